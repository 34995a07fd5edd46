//! Profiles: what the user wrote, and what it means.
//!
//! `text --tree--> Tree --raw--> RawProfile --check--> Profile`. Each step collects all its problems, so that a
//! user sees every mistake at once. TOML 1.1 is taken, since the `toml` crate parses it.

mod check;
mod problem;
mod raw;
mod read;
mod tree;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use check::{GUEST_MEMORY_MIN, VCPUS_MAX};
pub use problem::{Problem, ProblemKind};
pub use raw::RawProfile;
pub use read::Located;
pub use tree::{Place, Sources};

use crate::pci::Bdf;
use crate::units::{ByteSize, PageSize};

/// The version of the profile language that this gpuvm speaks.
pub const VERSION: i64 = 1;

/// Parses and checks a profile.
///
/// `sources` holds the profile's text and the `--set` overrides; `base` is the folder that relative paths in it start
/// from, the profile's own.
///
/// # Errors
/// Returns every problem that the text has, in the order of the text.
pub fn parse(sources: &Sources, base: &Path) -> Result<Profile, Vec<Problem>> {
    let mut problems = Vec::new();
    let profile = tree::parse(sources, &mut problems).and_then(|tree| {
        let raw = RawProfile::read(&tree, &mut problems);
        check::check(raw, base, &mut problems)
    });
    problems.sort_by_key(|problem| problem.place.clone());
    match profile {
        Some(profile) if problems.is_empty() => Ok(profile),
        _ => Err(problems),
    }
}

/// A checked profile: every default filled in, nothing contradictory left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The VM's name.
    pub name: VmName,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// The guest's firmware.
    pub firmware: FirmwareKind,
    /// The guest's memory.
    pub memory: Memory,
    /// The guest's CPUs.
    pub cpu: Cpu,
    /// A kernel that is booted directly, without a boot loader.
    pub kernel: Option<KernelBoot>,
    /// The devices that are passed through.
    pub devices: Vec<DeviceRequest>,
    /// The VirtIO disks, in the order of the file.
    pub disks: Vec<Disk>,
    /// The VirtIO network interface.
    pub network: Network,
    /// Where the serial port's output goes.
    pub serial: Serial,
}

/// The name of a VM: one path component, and safe in a systemd unit's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// The pattern that names match.
    pub const PATTERN: &str = "[A-Za-z0-9][A-Za-z0-9_.-]{0,39}";

    /// Takes a name that matches [`Self::PATTERN`].
    pub fn new(name: &str) -> Option<Self> {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        (first && rest && name.len() <= 40).then(|| Self(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VmName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for VmName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::new(&name).ok_or_else(|| format!("`{name}` is no VM name: it must match {}", Self::PATTERN))
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl std::str::FromStr for VmName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        name.to_owned().try_into()
    }
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The host's hardware, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator; slow, but it runs anywhere.
    Tcg,
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The kind of firmware that a guest starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareKind {
    /// UEFI (OVMF), found by QEMU's firmware descriptors.
    Uefi,
    /// SeaBIOS, which comes with QEMU.
    Bios,
}

/// The guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// How much; fixed while the guest runs.
    pub size: ByteSize,
    /// What backs it.
    pub hugepages: Hugepages,
}

/// What backs the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hugepages {
    /// Ordinary pages.
    Off,
    /// Hugepages of one size, taken from the node's pool.
    Size(PageSize),
}

/// The guest's CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// How many vCPUs.
    pub count: u32,
    /// Where they run.
    pub pin: Pin,
}

/// Where vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// Each on a CPU of its own, on the node of the devices.
    Auto,
    /// Wherever the host's scheduler puts them.
    Off,
}

/// A kernel that QEMU loads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelBoot {
    /// The kernel: a bzImage, or an ELF with a PVH entry point.
    pub path: PathBuf,
    /// The initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A device to pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// Its address on the host.
    pub bdf: Bdf,
}

/// A VirtIO disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image or block device.
    pub path: PathBuf,
    /// The image's format.
    pub format: DiskFormat,
}

/// The format of a disk image. Never guessed: a guest could write a header into a raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The bytes of the disk, as they are.
    Raw,
}

/// The guest's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A VirtIO interface behind QEMU's own user-mode NAT.
    User,
    /// No interface.
    None,
}

/// Where the serial port's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serial {
    /// To the log and to gpuvm's standard output.
    Console,
    /// To the log only.
    Log,
}
