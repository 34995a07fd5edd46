//! What happens to devices at boot, and what the boot has left on them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::modprobe::Directive;
use crate::pci::Bdf;

/// Modules, the rules by which they take devices, and the screens that the firmware has set up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootFacts {
    /// The modules that are loaded or built in, of those that matter (`/sys/module`).
    #[serde(default)]
    pub modules: BTreeSet<String>,
    /// The modules that are built into this kernel, of those that matter (`modules.builtin`).
    #[serde(default)]
    pub builtin: BTreeSet<String>,
    /// The modules that something loads at boot, of those that matter.
    #[serde(default)]
    pub at_boot: Vec<BootModule>,
    /// What modprobe.d and the command line say about modules that matter.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// The devices that each rule by id catches, of all devices of the host.
    #[serde(default)]
    pub matches: Vec<IdMatches>,
    /// What the running kernel's initramfs says; nothing where it wasn't looked for.
    #[serde(default)]
    pub initramfs: Option<InitramfsFacts>,
    /// The screens of the firmware that a driver of the kernel holds; nothing where this user may not see addresses.
    #[serde(default)]
    pub framebuffers: Option<Vec<Framebuffer>>,
}

/// A module that is loaded at boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootModule {
    /// The module, with underscores.
    pub module: String,
    /// The file that names it, or `kernel command line`.
    pub source: String,
}

/// A directive of modprobe.d(5), or what stands for one on the kernel's command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The file that it is in, or `kernel command line`.
    pub source: String,
    /// What it says.
    pub directive: Directive,
}

/// The devices that a rule by id catches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMatches {
    /// The id as the rule spells it, `10de:2330`.
    pub id: String,
    /// The devices.
    pub devices: Vec<Bdf>,
}

/// What is in an initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum InitramfsFacts {
    /// There is none in the usual places.
    NotFound {
        /// Where it was looked for.
        tried: Vec<String>,
    },
    /// It can't be read.
    Unread {
        /// Where it is.
        path: String,
        /// Why.
        reason: String,
    },
    /// It was read.
    Read {
        /// Where it is.
        path: String,
        /// The rules in it that matter.
        rules: Vec<Rule>,
        /// The modules in it that matter.
        modules: BTreeSet<String>,
        /// The modules that it loads by name, of those that matter.
        at_boot: Vec<BootModule>,
        /// The devices that its rules by id catch.
        #[serde(default)]
        matches: Vec<IdMatches>,
    },
}

/// A screen that the firmware has set up, as memory that a driver holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framebuffer {
    /// What holds it, as `/proc/iomem` names it: `BOOTFB`, `efifb`, `simpledrm`.
    pub name: String,
    /// Its first address.
    pub begin: u64,
    /// Its last address.
    pub end: u64,
}

/// What the kernel says of a group (`VFIO_GROUP_GET_STATUS`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
pub enum Viability {
    /// It can be used.
    Viable,
    /// A driver of the host has one of its devices.
    NotViable,
    /// Some process has it open.
    InUse,
    /// A VM of gpuvm has it, or its last run was not given back; the kernel wasn't asked.
    Reserved {
        /// The VM.
        vm: String,
    },
    /// This user may not ask.
    Denied,
    /// The question failed.
    Failed {
        /// How.
        errno: i32,
    },
}

impl BootFacts {
    /// Returns the devices that a rule's id catches, where that was looked up.
    pub fn caught_by(&self, id: &str) -> Option<&[Bdf]> {
        let of_initramfs = match &self.initramfs {
            Some(InitramfsFacts::Read { matches, .. }) => matches.as_slice(),
            _ => &[],
        };
        let all: BTreeMap<&str, &[Bdf]> = self
            .matches
            .iter()
            .chain(of_initramfs)
            .map(|found| (found.id.as_str(), found.devices.as_slice()))
            .collect();
        all.get(id).copied()
    }
}
