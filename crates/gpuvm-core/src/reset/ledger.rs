//! The ledger's entries: what was done with each device, and how it came back.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::repair::Climbed;
use super::{Identity, Judgement, Method};
use crate::lifecycle::Outcome;
use crate::pci::DriverName;
use crate::profile::VmName;

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was written, in seconds since 1970-01-01 UTC. Clocks jump: it is the order of lines that counts.
    pub at: u64,
    /// The boot.
    #[serde(default)]
    pub boot_id: String,
    /// The running kernel.
    #[serde(default)]
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
    /// A guest had it, or was to have it: a device that is sick before the run has an entry too.
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
    /// A rung of the ladder has reached it; the device is known by its name before that.
    Repair {
        /// How it was before: only what was sick can be repaired.
        #[serde(default, skip_serializing_if = "Before::is_sick")]
        before: Before,
        /// What was tried.
        #[serde(flatten)]
        climbed: Climbed,
    },
    /// A person gave it free.
    Cleared {
        /// On what grounds.
        grounds: Grounds,
    },
    /// Something that this gpuvm doesn't know, of a newer one: kept as it was written.
    #[serde(untagged)]
    Newer(Map<String, Value>),
}

impl Deed {
    /// Returns how the device came back, where it was judged and this gpuvm knows the words.
    pub fn judgement(&self) -> Option<&Judgement> {
        match self {
            Self::Run { judgement, .. } | Self::Reset { judgement, .. } => Some(judgement),
            Self::Repair { climbed, .. } => Some(&climbed.judgement),
            Self::Cleared { .. } | Self::Newer(_) => None,
        }
    }
}

/// How a device was before a rung of the ladder reached it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Before {
    /// It was sick.
    #[default]
    Sick,
    /// Nothing was wrong with it, as far as this repair has looked.
    Well,
}

impl Before {
    fn is_sick(&self) -> bool {
        *self == Self::Sick
    }
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
