//! The machine, its firmware and its distribution.

use serde::{Deserialize, Serialize};

use crate::doctor::Distribution;

/// The machine, its firmware, its distribution, and what of the running system matters to guests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlatformFacts {
    /// Whose commands a remedy names (os-release(5)).
    #[serde(default)]
    pub distribution: Distribution,
    /// What the firmware says of the machine and of itself.
    #[serde(default)]
    pub system: SystemFacts,
}

/// What the firmware says of the machine and of itself (SMBIOS, by `/sys/class/dmi/id`); nothing where it doesn't say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemFacts {
    /// Who built the machine (`sys_vendor`).
    pub vendor: Option<String>,
    /// Its name (`product_name`).
    pub product: Option<String>,
    /// Its board (`board_name`).
    pub board: Option<String>,
    /// Who wrote the firmware (`bios_vendor`).
    pub bios_vendor: Option<String>,
    /// The firmware's version (`bios_version`).
    pub bios_version: Option<String>,
    /// The firmware's date, as it writes it (`bios_date`).
    pub bios_date: Option<String>,
}
