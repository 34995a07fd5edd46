//! What is known of devices and kernels that don't do as they should: the quirk table.
//!
//! One table, `quirks.toml`, is part of the program; a host adds to it in `/etc/gpuvm/quirks.d`, by the same language. Each entry says
//! whom it is about, what happens, what to do, and whose word that is. Only what the kernel's own source says changes what is
//! planned; what users report is told, with the advice.

mod effect;
mod ids;
mod kernel;
mod parse;

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

pub use effect::{Confidence, Effect, Meets, Role};
pub use ids::{ClassPrefix, DeviceIds, VendorId};
pub use kernel::{Bearing, KernelRange, Known, Release, Version};
pub use parse::{KEYS, parse};

use crate::facts::{DeviceFacts, HostFacts};
use crate::pci::{Bdf, PciId};
use crate::profile::Sources;
use crate::reset::{RebootPolicy, ResetPolicy, ResetWish};

/// The folder on the host whose files add to the table.
pub const FOLDER: &str = "/etc/gpuvm/quirks.d";

/// The table that is part of the program.
pub const EMBEDDED: &str = include_str!("quirks.toml");

/// Something that a device or a kernel does and shouldn't, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quirk {
    /// Its name, stable.
    pub name: String,
    /// Whose devices have it; nothing where it is the kernel's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<VendorId>,
    /// Which devices of that vendor; none for all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceIds>,
    /// Which class they must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ClassPrefix>,
    /// Which card they must be on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<PciId>,
    /// Which revision they must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u8>,
    /// Whether it is about the device itself, or about what is below it.
    #[serde(default)]
    pub role: Role,
    /// Whether they must be on a root bus, or must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_root_bus: Option<bool>,
    /// Which kernels have it; none for all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelRange>,
    /// Which hosts meet it, where it is the kernel's own.
    #[serde(default)]
    pub meets: Meets,
    /// What happens, in one sentence; of the kernel's own, what follows "this kernel".
    pub behaviour: String,
    /// The same for programs.
    pub effects: Vec<Effect>,
    /// What to do.
    pub advice: String,
    /// Where it is from.
    pub source: String,
    /// How sure it is.
    pub confidence: Confidence,
    /// The file that it is from; nothing for the table that is part of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl Quirk {
    /// An entry that says nothing but its name: it is there to silence the one that it replaces.
    pub(super) fn silence(name: String) -> Self {
        Self {
            name,
            vendor: None,
            devices: Vec::new(),
            class: None,
            subsystem: None,
            revision: None,
            role: Role::default(),
            on_root_bus: None,
            kernels: Vec::new(),
            meets: Meets::default(),
            behaviour: String::new(),
            effects: Vec::new(),
            advice: String::new(),
            source: String::new(),
            confidence: Confidence::Unverified,
            file: None,
        }
    }

    /// Tells whether it is one that silences another: no other entry may be without a behaviour.
    fn is_silence(&self) -> bool {
        self.behaviour.is_empty()
    }

    /// Tells whether a quirk does something.
    pub fn has(&self, effect: Effect) -> bool {
        self.effects.contains(&effect)
    }

    /// Tells whether ids, class, card, revision and place of a function are those of the entry.
    fn fits(&self, device: &DeviceFacts) -> bool {
        self.fits_id(device.id)
            && self.class.is_none_or(|class| class.fits(device.class))
            && self.subsystem.is_none_or(|card| device.subsystem == Some(card))
            && self.revision.is_none_or(|revision| device.revision == Some(revision))
            && self.on_root_bus.is_none_or(|on_root_bus| device.upstream.is_empty() == on_root_bus)
    }

    /// Tells whether the ids are those of the entry.
    fn fits_id(&self, id: PciId) -> bool {
        let devices = || self.devices.is_empty() || self.devices.iter().any(|ids| ids.contain(id.device));
        self.vendor.is_some_and(|vendor| vendor.0 == id.vendor) && devices()
    }

    /// Tells whether nothing but ids has to fit: of a port above a device no more is known.
    fn is_by_id(&self) -> bool {
        self.class.is_none()
            && self.subsystem.is_none()
            && self.revision.is_none()
            && self.on_root_bus.is_none()
    }
}

/// What the host's own files add to the table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LocalQuirks {
    /// Their entries, in the order of the files' names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<Quirk>,
    /// What is wrong with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<FileProblem>,
}

impl LocalQuirks {
    /// Tells whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.problems.is_empty()
    }

    /// Adds a file's entries, or what is wrong with it: then none of them.
    pub fn add(&mut self, file: &str, text: &str) {
        let sources = Sources::new(file, text);
        match parse(&sources) {
            Ok(entries) => {
                for mut quirk in entries {
                    // A file that comes later has the last word.
                    self.entries.retain(|other| other.name != quirk.name);
                    quirk.file = Some(file.to_owned());
                    self.entries.push(quirk);
                }
            }
            Err(problems) => self.problems.extend(problems.iter().map(|problem| FileProblem {
                file: file.to_owned(),
                line: sources.line(&problem.place),
                key: problem.key.clone(),
                message: problem.kind.to_string(),
                hint: problem.kind.hint(),
            })),
        }
    }

    /// Notes that a file, or the folder of all of them, can't be read: nobody knows what it says.
    pub fn unreadable(&mut self, file: &str, why: &str) {
        let (file, message) = (file.to_owned(), format!("it can't be read: {why}"));
        self.problems.push(FileProblem { file, line: 0, key: String::new(), message, hint: None });
    }
}

/// Something that is wrong with a file of quirks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileProblem {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 of a file that can't be read at all.
    pub line: usize,
    /// The key's path, as `quirk.0.vendor`; empty for the whole text.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it, where that isn't plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl std::fmt::Display for FileProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, line, message, .. } = self;
        match line {
            0 => write!(f, "{file}: {message}"),
            line => write!(f, "{file}, line {line}: {message}"),
        }
    }
}

impl std::error::Error for FileProblem {}

/// Returns the table that is part of the program.
pub fn embedded() -> &'static [Quirk] {
    // A test holds that the text parses: there is nothing to be told here that isn't told there.
    static TABLE: LazyLock<Vec<Quirk>> =
        LazyLock::new(|| parse(&Sources::new("quirks.toml", EMBEDDED)).unwrap_or_default());
    &TABLE
}

/// Returns the table as it is on a host: an entry of the host's own replaces the one of its name, or silences it.
pub fn table(facts: &HostFacts) -> impl Iterator<Item = &Quirk> {
    let own = &facts.quirks.entries;
    let embedded = embedded().iter().filter(|quirk| own.iter().all(|other| other.name != quirk.name));
    embedded.chain(own.iter().filter(|quirk| !quirk.is_silence()))
}

/// A quirk that a function has, or that a port gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// The function.
    pub bdf: Bdf,
    /// The entry.
    pub quirk: &'a Quirk,
    /// Whose ids fit: the function's own, or those of the port right above it.
    pub at: Bdf,
    /// Whether the running kernel has it.
    pub bearing: Bearing<'a>,
}

impl Found<'_> {
    /// Tells whether it says for sure what the running kernel does.
    pub fn is_decisive(&self) -> bool {
        // A kernel of which only the series is known is taken to have it: then it is left alone, which harms nobody.
        let runs = matches!(self.bearing, Bearing::Has(_) | Bearing::Perhaps(_) | Bearing::Unknown);
        self.quirk.confidence == Confidence::KernelSource && runs
    }

    /// Says what happens, where, on which kernels, and whose word that is.
    pub fn told(&self) -> String {
        let Quirk { behaviour, confidence, .. } = self.quirk;
        let unsure = match self.bearing {
            Bearing::Has(_) | Bearing::Not => "",
            Bearing::Perhaps(_) => "; whether this very kernel has it, its name doesn't say",
            Bearing::Newer(_) => "; this kernel is newer than what gpuvm knows",
            Bearing::Unknown => "; not on all kernels, and which one runs isn't known",
        };
        let port =
            if self.bdf == self.at { String::new() } else { format!("the port above it, {}: ", self.at) };
        format!("{port}{behaviour} ({}{unsure})", confidence.whose())
    }

    /// Returns the first of its effects that is to be warned of: what the profile has got round isn't.
    pub fn worry(
        &self,
        device: &DeviceFacts,
        wish: ResetWish,
        reboot: RebootPolicy,
        facts: &HostFacts,
    ) -> Option<Effect> {
        let heeded = |effect: &Effect| match effect {
            Effect::FlrHangs => {
                wish.avoid_flr || !matches!(wish.policy, ResetPolicy::Auto | ResetPolicy::Flr)
            }
            Effect::RelaunchOnReboot => reboot != RebootPolicy::InPlace,
            Effect::NeedsDeviceSpecific => {
                device.reset_methods.iter().any(|method| method == "device_specific")
            }
            Effect::SticksInD3 => facts.platform.vfio.disable_idle_d3 == Some(true),
            // These are the kernel's and QEMU's own remedies, which hold by themselves.
            Effect::NoFlr | Effect::NoPmReset | Effect::QemuResets => true,
            // The first is of weight where the kernel refuses such resets, which is told on its own; the second once a device is lost.
            Effect::NeedsBusReset | Effect::NeedsPowerCycle => true,
            _ => false,
        };
        self.quirk.effects.iter().copied().find(|effect| !heeded(effect))
    }
}

/// Lists what is known of a function: of itself, and of the port right above it where that bears on what is below.
pub fn quirks_of(bdf: Bdf, facts: &HostFacts) -> Vec<Found<'_>> {
    let Some(device) = facts.devices.get(&bdf) else { return Vec::new() };
    let known = Known::of(&facts.kernel);
    let above = device.upstream.last().copied();
    let found = |quirk| {
        let own = || fits_itself(quirk, device).then_some(bdf);
        let at = own()
            .or_else(|| above.filter(|port| quirk.role != Role::Device && fits_port(quirk, *port, facts)))?;
        let bearing = known.bearing(&quirk.kernels);
        (bearing != Bearing::Not).then_some(Found { bdf, quirk, at, bearing })
    };
    table(facts).filter_map(found).collect()
}

fn fits_itself(quirk: &Quirk, device: &DeviceFacts) -> bool {
    let role = quirk.role != Role::Port || device.class.is_pci_bridge();
    role && quirk.fits(device)
}

/// Tells whether an entry is about a port above; of those that weren't looked at, only their ids are known.
fn fits_port(quirk: &Quirk, port: Bdf, facts: &HostFacts) -> bool {
    match (facts.devices.get(&port), facts.ports.get(&port)) {
        (Some(device), _) => quirk.fits(device),
        (None, Some(id)) => quirk.is_by_id() && quirk.fits_id(*id),
        (None, None) => false,
    }
}

/// Says why the kernel won't reset the bus that a function is on: it marks the function, another that the reset would reach, or the
/// port right above (`pci_bus_resettable` of drivers/pci/pci.c). `reach` is all that such a reset reaches.
pub fn against_bus_reset(bdf: Bdf, reach: &[Bdf], facts: &HostFacts) -> Option<String> {
    std::iter::once(&bdf).chain(reach).find_map(|member| {
        let found = quirks_of(*member, facts);
        // What a port further down does to what is below it is found at the port itself, which the reset reaches too.
        let mut decisive =
            found.iter().filter(|found| found.quirk.has(Effect::NoBusReset) && found.is_decisive());
        let found = decisive.find(|found| found.at == *member || *member == bdf)?;
        let Quirk { name, behaviour, confidence, .. } = found.quirk;
        Some(format!("of {}: {behaviour} ({name}, {})", found.at, confidence.whose()))
    })
}
