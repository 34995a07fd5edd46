//! The ledger: what was done with each device, how it came back, and whether anybody may have it.

use serde::{Deserialize, Serialize};

use super::{Finding, Judgement, Method};
use crate::lifecycle::Outcome;
use crate::pci::{Bdf, DriverName, PciId};
use crate::profile::VmName;

/// Which device an entry is about: not only where it sits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Vendor and device id.
    pub id: PciId,
    /// Whoever built the card.
    #[serde(default)]
    pub subsystem: Option<PciId>,
    /// The Device Serial Number, where it has one: then it is the same device in any slot.
    #[serde(default)]
    pub serial: Option<u64>,
    /// Where it sits. Part of the identity only where there is no serial number.
    pub bdf: Bdf,
}

impl Identity {
    /// Tells whether two records are of the same device: the same ids and serial number, or, without one, the same ids in the same
    /// place.
    pub fn is_same(&self, other: &Self) -> bool {
        let ids = (self.id, self.subsystem) == (other.id, other.subsystem) && self.serial == other.serial;
        // Functions of one card share its serial number.
        let place = match self.serial {
            Some(_) => self.bdf.function() == other.bdf.function(),
            None => self.bdf == other.bdf,
        };
        ids && place
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was written, in seconds since 1970-01-01 UTC.
    pub at: u64,
    /// The boot.
    pub boot_id: String,
    /// The running kernel.
    pub kernel: String,
    /// The device.
    pub device: Identity,
    /// The driver that it had when it was judged.
    #[serde(default)]
    pub driver: Option<DriverName>,
    /// What was done.
    #[serde(flatten)]
    pub deed: Deed,
}

/// What was done with a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "deed")]
pub enum Deed {
    /// A guest had it.
    Run {
        /// The VM.
        vm: VmName,
        /// QEMU's version, if it got so far as to tell.
        #[serde(default)]
        qemu: Option<String>,
        /// How the guest ended; nothing of one that never ran, or whose launcher died.
        #[serde(default)]
        outcome: Option<Outcome>,
        /// From the baseline to the verdict, in ms.
        ms: u64,
        /// How the device came back.
        judgement: Judgement,
    },
    /// It was reset.
    Reset {
        /// How.
        method: Method,
        /// How long the reset took, in ms.
        ms: u64,
        /// Why it failed; nothing of one that the kernel says succeeded.
        #[serde(default)]
        failure: Option<String>,
        /// How the device came back.
        judgement: Judgement,
    },
    /// A person gave it free.
    Cleared {
        /// On what grounds.
        grounds: Grounds,
    },
}

/// On what grounds a quarantined device was given free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grounds {
    /// It was reset, and came back well.
    GoodReset,
    /// It was accepted as it is.
    Accepted,
}

/// A device that nobody may have before it is cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The device.
    pub device: Identity,
    /// When it was put there, in seconds since 1970-01-01 UTC.
    pub since: u64,
    /// What for.
    pub finding: Finding,
    /// Whether it was reset since and came back well: then it may be cleared.
    pub reset_since: bool,
}

/// Reads from a device's entries, oldest first, whether it is in quarantine.
pub fn quarantine(entries: &[Entry]) -> Option<Quarantine> {
    let mut found: Option<Quarantine> = None;
    for entry in entries {
        let (judgement, is_reset) = match &entry.deed {
            Deed::Cleared { .. } => {
                found = None;
                continue;
            }
            Deed::Run { judgement, .. } => (judgement, false),
            Deed::Reset { judgement, failure, .. } => (judgement, failure.is_none()),
        };
        match (judgement.reason(), &mut found) {
            (Some(finding), _) if judgement.verdict.is_bad() => {
                found = Some(Quarantine {
                    device: entry.device.clone(),
                    since: entry.at,
                    finding: finding.clone(),
                    reset_since: false,
                });
            }
            (_, Some(quarantine)) if is_reset => quarantine.reset_since = true,
            _ => {}
        }
    }
    found
}
