//! A first profile: what fits a device on this host, written down with its reasons.
//!
//! Every draft is parsed and planned before it is given out, so that a profile of `gpuvm init` is one that `gpuvm plan` takes on
//! the host that it was written for.

mod share;
mod text;

use std::collections::BTreeMap;
use std::path::Path;

use crate::facts::{Access, DeviceFacts, Gravity, HostFacts, Presence};
use crate::firmware::choose_uefi;
use crate::pci::{Bdf, Slot};
use crate::plan::{FileRole, Plan, Refusal, plan};
use crate::profile::{FirmwareKind, Hugepages, Problem, Profile, Sources, VmName, parse};
use crate::units::ByteSize;

/// What the user has chosen; what isn't chosen is found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices {
    /// The VM's name.
    pub name: Option<VmName>,
    /// How many vCPUs.
    pub vcpus: Option<u32>,
    /// How much memory.
    pub memory: Option<ByteSize>,
    /// The firmware.
    pub firmware: Option<FirmwareKind>,
}

/// A profile that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The VM's name.
    pub name: VmName,
    /// The device.
    pub device: Bdf,
    /// How many vCPUs.
    pub vcpus: u32,
    /// How much memory.
    pub memory: ByteSize,
    /// What backs it.
    pub hugepages: Hugepages,
    /// The firmware.
    pub firmware: FirmwareKind,
    /// The profile's text.
    pub text: String,
    /// What of the host isn't ready yet: the profile is right, and `up` would still refuse it.
    pub not_ready: Vec<Refusal>,
}

/// Why there is no profile.
#[derive(Debug, Clone, PartialEq)]
pub enum NoDraft {
    /// The device can't be passed, or what was chosen can't be had.
    Refused(Vec<Refusal>),
    /// What was chosen can't be written in a profile.
    Invalid(Vec<Problem>),
}

/// A card that looks worth passing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its function to be listed.
    pub device: Bdf,
    /// Why it can't be passed; nothing where it can.
    pub refusals: Vec<Refusal>,
}

/// Lists the host's GPUs and accelerators, each by the function that stands for its card.
pub fn candidates(facts: &HostFacts) -> Vec<Candidate> {
    let mut cards: BTreeMap<(Slot, u8), Bdf> = BTreeMap::new();
    for (bdf, device) in &facts.devices {
        let (gpu, whole) = (is_gpu(device), device.virtual_function == Presence::Absent);
        if gpu && whole {
            // A display card is one thing; accelerators without a display may be several in a slot.
            let part = if device.class.is_display() { 0 } else { bdf.function() };
            cards.entry((bdf.slot(), part)).or_insert(*bdf);
        }
    }
    let candidate =
        |device: Bdf| Candidate { device, refusals: probe(facts, device).err().unwrap_or_default() };
    cards.into_values().map(candidate).collect()
}

/// Returns the function that stands for a card: the display function, where another function of its slot was named.
pub fn card_of(facts: &HostFacts, bdf: Bdf) -> Bdf {
    let named = facts.devices.get(&bdf);
    let own =
        |device: &DeviceFacts| device.class.is_display() || device.virtual_function == Presence::Present;
    if bdf.slot().is_chipset() || named.is_none_or(own) {
        return bdf;
    }
    let display = |mate: &Bdf| facts.devices.get(mate).is_some_and(|mate| mate.class.is_display());
    facts.slot_of(bdf).find(display).unwrap_or(bdf)
}

fn is_gpu(device: &DeviceFacts) -> bool {
    device.class.is_card()
}

/// Writes a profile for a device.
///
/// # Errors
/// Returns why `up` would refuse the device, or what of the choices can't be had.
pub fn draft(facts: &HostFacts, device: Bdf, choices: &Choices) -> Result<Draft, NoDraft> {
    let device = card_of(facts, device);
    let seen = probe(facts, device).map_err(NoDraft::Refused)?;
    let (node, home) = (seen.placement.nodes.first().copied(), seen.placement.reason.as_str());
    let firmware = choices.firmware.unwrap_or_else(|| firmware(facts));
    let cards = cards_on(facts, node, device);
    let mut settings = text::Settings {
        facts,
        plan: &seen,
        device,
        name: choices.name.clone().unwrap_or_else(|| name(facts, device)),
        firmware,
        cpus: share::cpus(facts, node, home, cards, choices.vcpus),
        memory: share::memory(facts, node, cards, choices.memory),
    };
    let ready = made_ready(facts);
    loop {
        let text = text::render(&settings);
        let profile = parsed(&text).map_err(NoDraft::Invalid)?;
        match plan(&profile, &ready) {
            Ok(_) => return Ok(settings.draft(text, plan(&profile, facts).err().unwrap_or_default())),
            // Less memory may fit where half of what is free doesn't, as below a narrow IOMMU.
            Err(refusals) => match settings.memory.less().filter(|_| choices.memory.is_none()) {
                Some(less) if refusals.iter().all(is_of_memory) => settings.memory = less,
                _ => return Err(NoDraft::Refused(refusals)),
            },
        }
    }
}

fn is_of_memory(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::AddressSpace { .. } | Refusal::NodeTooSmall { .. } | Refusal::TooLittleMemory { .. }
    )
}

fn parsed(text: &str) -> Result<Profile, Vec<Problem>> {
    parse(&Sources::new("profile", text), Path::new("/"))
}

/// Plans the least of guests with a device, on a host that is ready: what is refused then is refused for the device.
fn probe(facts: &HostFacts, device: Bdf) -> Result<Plan, Vec<Refusal>> {
    let ready = made_ready(facts);
    let hold: Vec<_> =
        held_with(facts, device).iter().map(|held| format!("{:?}", held.to_string())).collect();
    let mut last = Vec::new();
    for pin in ["auto", "off"] {
        let text = format!(
            "version = 1\nname = \"probe\"\nfirmware = \"bios\"\nmemory.size = \"32M\"\ncpu = {{ count = 1, pin = \"{pin}\" }}\n\
             [[device]]\nbdf = \"{device}\"\nhold = [{}]\n",
            hold.join(", ")
        );
        // It is a right profile whatever the device's address is; were it not, there is no plan and nothing to refuse either.
        let Ok(profile) = parsed(&text) else { continue };
        match plan(&profile, &ready) {
            Ok(plan) => return Ok(plan),
            Err(refusals) => last = refusals,
        }
        // The node may have no CPUs at all, or none that are free.
        if !last.iter().all(|refusal| matches!(refusal, Refusal::NoNode | Refusal::TooFewCpus { .. })) {
            break;
        }
    }
    Err(last)
}

/// The members of a device's group that neither come along nor are needed by the host: they are held.
fn held_with(facts: &HostFacts, device: Bdf) -> Vec<Bdf> {
    let Some(known) = facts.devices.get(&device) else { return Vec::new() };
    let card =
        |mate: Bdf| known.class.is_display() && mate.slot() == device.slot() && !device.slot().is_chipset();
    let harmless = |mate: &DeviceFacts| {
        !mate.class.is_bridge()
            && mate.holders.iter().all(|holder| holder.gravity() != Gravity::Critical)
            && mate.boot_display == Presence::Absent
            && mate.virtual_functions == 0
    };
    let members = known.group.and_then(|group| facts.groups.get(&group)).into_iter().flatten().copied();
    let foreign = members.filter(|member| *member != device && !card(*member));
    foreign.filter(|member| facts.devices.get(member).is_some_and(harmless)).collect()
}

/// The same host with its modules loaded, its nodes open to the user, its programs installed, and nobody at its devices: all that
/// is mended without another profile.
fn made_ready(facts: &HostFacts) -> HostFacts {
    let mut ready = facts.clone();
    ready.vfio.container = Access::Usable;
    ready.vfio.pci_driver = Presence::Present;
    ready.kvm = Access::Usable;
    for device in ready.devices.values_mut() {
        device.holders.retain(|holder| holder.gravity() != Gravity::Busy);
    }
    ready.qemu.get_or_insert_with(|| "/usr/bin/qemu-system-x86_64".into());
    ready
}

/// UEFI, where one is installed that can be read.
fn firmware(facts: &HostFacts) -> FirmwareKind {
    let text = "version = 1\nname = \"probe\"\nmemory.size = \"32M\"\ncpu = { count = 1, pin = \"off\" }\n";
    let of_firmware = |refusal: &Refusal| match refusal {
        Refusal::NoUefi { .. } => true,
        Refusal::File { role, .. } | Refusal::FileDenied { role, .. } => *role == FileRole::Firmware,
        _ => false,
    };
    let refused = parsed(text).is_ok_and(|profile| {
        plan(&profile, facts).err().is_some_and(|refusals| refusals.iter().any(of_firmware))
    });
    if refused || choose_uefi(&facts.firmware).is_none() { FirmwareKind::Bios } else { FirmwareKind::Uefi }
}

/// Counts the cards that share a node, so that each can have its part.
fn cards_on(facts: &HostFacts, node: Option<u32>, device: Bdf) -> u64 {
    let whole = |device: &DeviceFacts| is_gpu(device) && device.virtual_function == Presence::Absent;
    let there = |device: &DeviceFacts| device.node == node && device.boot_display == Presence::Absent;
    let slots = facts.devices.iter().filter(|(_, device)| whole(device) && there(device));
    let mut slots: Vec<_> = slots.map(|(bdf, _)| bdf.slot()).chain([device.slot()]).collect();
    slots.sort();
    slots.dedup();
    slots.len() as u64
}

/// Names a VM after its card, as in `gpu-81-00`.
fn name(facts: &HostFacts, device: Bdf) -> VmName {
    let kind = if facts.devices.get(&device).is_some_and(is_gpu) { "gpu" } else { "vm" };
    let place = device.to_string().trim_start_matches("0000:").replace([':', '.'], "-");
    let place = place.strip_suffix("-0").unwrap_or(&place).to_owned();
    VmName::new(&format!("{kind}-{place}")).or_else(|| VmName::new(kind)).unwrap_or_else(|| {
        // Both are names by the pattern: letters, digits and hyphens, and far below 40 of them.
        unreachable!("{kind} is a name")
    })
}
