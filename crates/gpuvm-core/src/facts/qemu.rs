//! What a QEMU can do, as it says itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Presence;

/// Whether a QEMU was asked what it can do, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "probe")]
pub enum QemuProbe {
    /// It wasn't: there is none, or it belongs to another machine.
    #[default]
    NotAsked,
    /// It answered.
    Answered(QemuFacts),
    /// It hadn't answered by the deadline: it hangs, or the host is very slow just now.
    Late {
        /// The deadline in seconds.
        seconds: u64,
    },
    /// It gave no answer.
    Failed {
        /// Why, in words.
        why: String,
    },
}

/// What a QEMU can do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QemuFacts {
    /// Major, minor and micro version.
    pub version: (u32, u32, u32),
    /// The distributor's words, often empty.
    pub package: String,
    /// Whether it was built with KVM.
    pub kvm: Presence,
    /// Of the types that gpuvm uses ([`crate::qemu::abilities::TYPES`]), those that it has, with the properties that it names.
    pub types: BTreeMap<String, BTreeSet<String>>,
}
