//! What stands in a plan's way: refusals, and warnings where the profile prefers to go on.

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::profile::Policy;

/// Something that a profile asked for and doesn't get, or should know about; it stays visible as long as the VM lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What it is about.
    pub about: Topic,
    /// What was found, and what is done instead.
    pub message: String,
}

/// What a warning is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// `memory.hugepages`.
    Hugepages,
    /// The node that memory comes from.
    Node,
    /// `cpu.pin`.
    Pinning,
    /// The host's boot display.
    BootDisplay,
    /// The host's text console.
    Console,
    /// Where BARs find room.
    AddressSpace,
    /// How devices can be reset.
    Reset,
    /// What is known of a device by whoever has met it before.
    Quirk,
    /// What has changed since the host was locked.
    Lock,
}

impl std::fmt::Display for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hugepages => "hugepages",
            Self::Node => "node",
            Self::Pinning => "pinning",
            Self::BootDisplay => "boot display",
            Self::Console => "console",
            Self::AddressSpace => "address space",
            Self::Reset => "reset",
            Self::Quirk => "known quirk",
            Self::Lock => "lock",
        })
    }
}

/// Collects what stands in the way while a plan is made.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    pub(super) refusals: Vec<Refusal>,
    pub(super) warnings: Vec<Warning>,
}

/// Whether a plan goes on after an obstacle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// It was refused, and goes on only to find what else is wrong.
    Refused,
    /// It goes on with something else.
    Instead,
}

impl Obstacles {
    /// Refuses the profile.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.refusals.push(refusal);
    }

    /// Tells something that is no reason to refuse.
    pub(super) fn warn(&mut self, about: Topic, message: String) {
        self.warnings.push(Warning { about, message });
    }

    /// Refuses the profile, unless it prefers to go on: then it is told what is done instead.
    pub(super) fn weigh(&mut self, policy: Policy, refusal: Refusal, about: Topic, instead: &str) -> GoesOn {
        match policy {
            Policy::Strict => {
                self.refuse(refusal);
                GoesOn::Refused
            }
            Policy::Prefer => {
                self.warn(about, format!("{refusal}; {instead}"));
                GoesOn::Instead
            }
        }
    }
}
