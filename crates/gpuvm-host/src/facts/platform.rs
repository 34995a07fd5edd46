//! The machine, its firmware and its distribution.

use gpuvm_core::doctor::Distribution;
use gpuvm_core::facts::{PlatformFacts, SystemFacts};

use super::Reading;
use crate::HostError;
use crate::root::{HostRoot, read_text};

/// Reads them.
pub(super) fn read(root: &HostRoot, reading: &Reading) -> Result<PlatformFacts, HostError> {
    Ok(PlatformFacts { distribution: distribution(root, reading)?, system: system(root, reading)? })
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

/// Reads what the firmware says; its blanks are no names, and what it doesn't fill in has no file.
pub(super) fn system(root: &HostRoot, reading: &Reading) -> Result<SystemFacts, HostError> {
    let text = |name: &str| {
        let text = reading.take(read_text(&root.path(format!("/sys/class/dmi/id/{name}"))))?;
        let text = text.map(|text| text.trim().to_owned());
        Ok::<_, HostError>(text.filter(|text| !text.is_empty()))
    };
    Ok(SystemFacts {
        vendor: text("sys_vendor")?,
        product: text("product_name")?,
        board: text("board_name")?,
        bios_vendor: text("bios_vendor")?,
        bios_version: text("bios_version")?,
        bios_date: text("bios_date")?,
    })
}
