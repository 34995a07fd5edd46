//! The machine, its firmware and its distribution.

use gpuvm_core::doctor::Distribution;
use gpuvm_core::facts::PlatformFacts;

use super::Reading;
use crate::HostError;
use crate::root::{HostRoot, read_text};

/// Reads them.
pub(super) fn read(root: &HostRoot, reading: &Reading) -> Result<PlatformFacts, HostError> {
    Ok(PlatformFacts { distribution: distribution(root, reading)? })
}

fn distribution(root: &HostRoot, reading: &Reading) -> Result<Distribution, HostError> {
    let etc = reading.take(read_text(&root.path("/etc/os-release")))?;
    let text = match etc {
        Some(text) => text,
        None => reading.take(read_text(&root.path("/usr/lib/os-release")))?.unwrap_or_default(),
    };
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).to_owned()).unwrap_or_default()
    };
    Ok(Distribution::of(&value("ID"), &value("ID_LIKE")))
}
