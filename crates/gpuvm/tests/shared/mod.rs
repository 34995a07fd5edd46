//! What the golden tests and tier 2 share: the fake hosts, and the profiles that are planned on them.

pub(crate) mod features;
pub(crate) mod golden;
pub(crate) mod hosts;
#[allow(dead_code, reason = "plans alone are made of them")]
pub(crate) mod made_up;
pub(crate) mod matrix;

use std::path::PathBuf;

use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::recorded::TempHost;

/// A profile on a host.
pub(crate) struct Case {
    /// What it shows.
    pub(crate) name: String,
    /// The host; its files are there as long as the case is.
    pub(crate) host: Host,
    /// The profile, from the root of the repository.
    pub(crate) profile: String,
    /// What is set beside it.
    pub(crate) set: Vec<String>,
}

/// A host in files.
pub(crate) enum Host {
    /// One that a test made up.
    Fake(FakeHost),
    /// One that was recorded.
    Recorded(TempHost),
}

impl Host {
    /// Returns the folder that it lies in.
    pub(crate) fn root(&self) -> PathBuf {
        match self {
            Self::Fake(host) => host.path("/"),
            Self::Recorded(host) => host.path().to_owned(),
        }
    }
}
