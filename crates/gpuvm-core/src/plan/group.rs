//! The whole-group rule: which functions come along, which are only held, and what stands in the way.

use std::collections::{BTreeMap, BTreeSet};

use super::obstacle::{Obstacles, Topic};
use super::variant::{self, VfioDriver};
use super::{Member, Ownership, PlannedGroup, Refusal, Role, is_vfio_driver};
use crate::facts::{DeviceFacts, Gravity, HostFacts, Presence};
use crate::pci::{Bdf, DriverName, GroupId};
use crate::profile::DeviceRequest;
use crate::reset::Quarantine;

/// A function that the VM owns while it runs.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub(super) bdf: Bdf,
    /// Whether the guest gets it, or VFIO only holds it.
    pub(super) role: Role,
    pub(super) ownership: Ownership,
    /// The driver that it is bound to, where it isn't on one of VFIO's already.
    pub(super) vfio: VfioDriver,
    pub(super) reason: String,
}

/// What a profile's devices come to.
#[derive(Debug, Clone, Default)]
pub(super) struct Groups {
    pub(super) taken: Vec<Taken>,
    pub(super) groups: Vec<PlannedGroup>,
}

impl Groups {
    /// Returns the functions that the guest gets.
    pub(super) fn passed(&self) -> impl Iterator<Item = &Taken> {
        self.taken.iter().filter(|taken| taken.role == Role::Pass)
    }
}

/// A function that is asked for, or comes along.
struct Wanted {
    role: Role,
    reason: String,
    boot_display: BootDisplay,
}

/// Whether the host's boot display may be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BootDisplay {
    Refused,
    Allowed,
}

/// Where devices are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// In a profile.
    Profile,
    /// On the command line.
    CommandLine,
}

/// Resolves the devices asked for into whole groups.
pub(super) fn resolve(
    requests: &[DeviceRequest],
    origin: Origin,
    facts: &HostFacts,
    obstacles: &mut Obstacles,
) -> Groups {
    let wanted = wanted(requests, origin, facts, obstacles);
    let mut groups = Groups::default();
    for (bdf, wanted) in &wanted {
        let Some(device) = facts.devices.get(bdf) else { continue };
        may_take(*bdf, device, wanted.boot_display, facts, obstacles);
        let (ownership, reason) = (ownership(device), wanted.reason.clone());
        let vfio = match ownership {
            Ownership::BoundByUs { .. } => variant::choose(*bdf, device, obstacles),
            Ownership::WasVfio | Ownership::KeepDriver { .. } => VfioDriver::generic(),
        };
        groups.taken.push(Taken { bdf: *bdf, role: wanted.role, ownership, vfio, reason });
    }
    groups.groups = members(&wanted, origin, facts, obstacles);
    groups
}

/// Lists the functions asked for, those that come along with a display card, and those that are held, each with its reason.
///
/// A card's slot is kept in one piece: its audio, USB and UCSI functions share its reset and its firmware.
fn wanted(
    requests: &[DeviceRequest],
    origin: Origin,
    facts: &HostFacts,
    obstacles: &mut Obstacles,
) -> Vec<(Bdf, Wanted)> {
    let asked = match origin {
        Origin::Profile => "listed in the profile",
        Origin::CommandLine => "asked for",
    };
    let listed: BTreeSet<Bdf> = requests.iter().map(|device| device.bdf).collect();
    let held: BTreeSet<Bdf> = requests.iter().flat_map(|device| device.hold.iter().copied()).collect();
    let mut wanted: Vec<(Bdf, Wanted)> = Vec::new();
    for request in requests {
        let bdf = request.bdf;
        let boot_display = match request.allow_boot_display {
            true => BootDisplay::Allowed,
            false => BootDisplay::Refused,
        };
        let mut want = |bdf, role, reason| wanted.push((bdf, Wanted { role, reason, boot_display }));
        if let Some(device) = takeable(bdf, facts, obstacles) {
            let reason = match &request.chosen_by {
                Some(selector) => format!("chosen by {selector}"),
                None => asked.to_owned(),
            };
            want(bdf, Role::Pass, reason);
            let mates = brings_along(bdf, device, facts);
            for mate in mates.into_iter().filter(|mate| !listed.contains(mate) && !held.contains(mate)) {
                let reason = format!("comes along with {bdf}: another function of the same card");
                want(mate, Role::Pass, reason);
            }
            for held in held_with(request, device, facts, obstacles) {
                want(
                    held,
                    Role::Hold,
                    format!("held with {bdf}, as the profile says: the guest doesn't get it"),
                );
            }
        }
    }
    // Two functions of a card may be listed, and both bring the third along.
    let mut seen = BTreeSet::new();
    wanted.retain(|(bdf, _)| seen.insert(*bdf));
    wanted
}

/// Returns a device that is there and no bridge.
pub(super) fn takeable<'a>(
    bdf: Bdf,
    facts: &'a HostFacts,
    obstacles: &mut Obstacles,
) -> Option<&'a DeviceFacts> {
    match facts.devices.get(&bdf) {
        None => obstacles.refuse(Refusal::UnknownDevice { bdf }),
        Some(device) if device.class.is_bridge() => {
            obstacles.refuse(Refusal::Bridge { bdf, class: device.class });
        }
        Some(device) => return Some(device),
    }
    None
}

/// Lists the other functions of a display card.
pub(super) fn brings_along(bdf: Bdf, device: &DeviceFacts, facts: &HostFacts) -> Vec<Bdf> {
    let whole = |device: &DeviceFacts| device.virtual_function == Presence::Absent;
    if !device.class.is_display() || !whole(device) || bdf.slot().is_chipset() {
        return Vec::new();
    }
    let belongs =
        |mate: &Bdf| facts.devices.get(mate).is_some_and(|mate| whole(mate) && !mate.class.is_bridge());
    facts.slot_of(bdf).filter(|mate| *mate != bdf).filter(belongs).collect()
}

/// Lists the functions that are held with a device: members of its group or its card, and no others.
fn held_with(
    request: &DeviceRequest,
    device: &DeviceFacts,
    facts: &HostFacts,
    obstacles: &mut Obstacles,
) -> Vec<Bdf> {
    let bdf = request.bdf;
    let mut held = Vec::new();
    for other in &request.hold {
        let Some(facts) = takeable(*other, facts, obstacles) else { continue };
        let one_group = facts.group.is_some() && facts.group == device.group;
        match (one_group, other.slot() == bdf.slot()) {
            (true, _) => held.push(*other),
            (false, true) => {
                held.push(*other);
                warn_of_resets(bdf, device, *other, obstacles);
            }
            (false, false) => {
                obstacles.refuse(Refusal::HeldElsewhere { bdf, held: *other, group: facts.group });
            }
        }
    }
    held
}

/// QEMU resets a card by its bus only when it has every group on it open, and it opens those that it passes (hw/vfio/pci.c,
/// vfio_pci_hot_reset). That matters where a function can't be reset by itself.
fn warn_of_resets(bdf: Bdf, device: &DeviceFacts, held: Bdf, obstacles: &mut Obstacles) {
    let by_itself = ["device_specific", "acpi", "flr", "af_flr", "pm"];
    if !device.reset_methods.iter().any(|method| by_itself.contains(&method.as_str())) {
        let message = format!(
            "{bdf} can only be reset together with its bus, and QEMU can't do that while {held}, which is in a group of its own, is \
             held and not passed"
        );
        obstacles.warn(Topic::Reset, message);
    }
}

/// Checks that a function may be taken from the host.
fn may_take(
    bdf: Bdf,
    device: &DeviceFacts,
    boot_display: BootDisplay,
    facts: &HostFacts,
    obstacles: &mut Obstacles,
) {
    let driver = || device.driver.clone();
    for holder in &device.holders {
        let (driver, holder) = (driver(), holder.clone());
        match holder.gravity() {
            Gravity::Critical => obstacles.refuse(Refusal::Critical { bdf, driver, holder }),
            Gravity::Busy => obstacles.refuse(Refusal::InUse { bdf, driver, holder }),
            Gravity::Note => obstacles.warn(Topic::Console, format!("{bdf}: {holder}")),
        }
    }
    known_well(bdf, facts, obstacles);
    match (device.boot_display, boot_display) {
        (Presence::Absent, _) => {}
        (Presence::Present, BootDisplay::Refused) => {
            obstacles.refuse(Refusal::BootDisplay { bdf, driver: driver() });
        }
        (Presence::Present, BootDisplay::Allowed) => obstacles.warn(
            Topic::BootDisplay,
            format!("{bdf} is the boot display of this host: its console is dark while the guest has it"),
        ),
    }
    if device.virtual_functions > 0 {
        let count = device.virtual_functions;
        obstacles.refuse(Refusal::HasVirtualFunctions { bdf, driver: driver(), count });
    }
    // While an override stands, no other driver takes the device, so one that it doesn't name could never get it back.
    let on_vfio = device.driver.as_ref().is_none_or(is_vfio_driver);
    if let Some(set) = device.driver_override.as_ref().filter(|set| !(on_vfio && is_vfio_driver(set))) {
        obstacles.refuse(Refusal::Overridden { bdf, driver: driver(), set: set.clone() });
    }
}

/// Checks that the ledger has nothing against a device: it may have come back sick from its last guest.
fn known_well(bdf: Bdf, facts: &HostFacts, obstacles: &mut Obstacles) {
    if let Some(problem) = facts.ledgers_unread.get(&bdf).cloned() {
        obstacles.refuse(Refusal::LedgerUnread { bdf, problem });
    }
    if let Some(Quarantine { finding, since, reset_since, .. }) = facts.quarantined.get(&bdf).cloned() {
        obstacles.refuse(Refusal::Quarantined { bdf, finding, since, reset_since });
    }
}

fn ownership(device: &DeviceFacts) -> Ownership {
    match &device.driver {
        Some(driver) if *driver == DriverName::vfio_pci() => Ownership::WasVfio,
        Some(driver) if is_vfio_driver(driver) => Ownership::KeepDriver { driver: driver.clone() },
        was => Ownership::BoundByUs { was: was.clone() },
    }
}

/// Tells whether a group is viable although the kernel keeps this member: no driver of its own may do DMA for it. That of ports
/// doesn't (`driver_managed_dma` of drivers/pci/pcie/portdrv.c); that of an ISA bridge, say lpc_ich, counts as one that does.
pub(crate) fn may_stay(device: &DeviceFacts) -> bool {
    device.class.is_bridge() && (device.class.is_pci_bridge() || device.driver.is_none())
}

/// Goes through all members of all groups touched; one that is neither wanted nor a bridge stands in the way.
fn members(
    wanted: &[(Bdf, Wanted)],
    origin: Origin,
    facts: &HostFacts,
    obstacles: &mut Obstacles,
) -> Vec<PlannedGroup> {
    let by_bdf: BTreeMap<Bdf, &Wanted> = wanted.iter().map(|(bdf, wanted)| (*bdf, wanted)).collect();
    let mut groups: Vec<PlannedGroup> = Vec::new();
    if facts.iommus.is_empty() && !wanted.is_empty() {
        obstacles.refuse(Refusal::NoIommu { bdfs: wanted.iter().map(|(bdf, _)| *bdf).collect() });
    }
    for (bdf, _) in wanted {
        let Some(group) = facts.devices.get(bdf).and_then(|device| device.group) else {
            if !facts.iommus.is_empty() {
                obstacles.refuse(Refusal::NoGroup { bdf: *bdf });
            }
            continue;
        };
        if groups.iter().any(|planned| planned.id == group) {
            continue;
        }
        let mut members = Vec::new();
        for member in facts.groups.get(&group).into_iter().flatten() {
            let Some(device) = facts.devices.get(member) else {
                obstacles.refuse(Refusal::UnreadMember { bdf: *bdf, group, member: *member });
                continue;
            };
            match (by_bdf.get(member), may_stay(device)) {
                (Some(wanted), _) => {
                    members.push(Member { bdf: *member, role: wanted.role, reason: wanted.reason.clone() });
                }
                (None, true) => {
                    let reason = "a bridge: it stays with the kernel, which VFIO allows".to_owned();
                    members.push(Member { bdf: *member, role: Role::Bridge, reason });
                }
                (None, false) => obstacles.refuse(Refusal::ForeignMember {
                    bdf: *bdf,
                    group,
                    member: *member,
                    id: device.id,
                    class: device.class,
                    driver: device.driver.clone(),
                    wanted: match origin {
                        Origin::Profile => Vec::new(),
                        Origin::CommandLine => whole(*bdf, group, wanted, facts),
                    },
                    holder: device
                        .holders
                        .iter()
                        .find(|holder| holder.gravity() == Gravity::Critical)
                        .cloned(),
                }),
            }
        }
        groups.push(PlannedGroup { id: group, members });
    }
    groups
}

/// Lists what must be asked for so that the group is whole: what was, and all other members that are no bridges.
fn whole(bdf: Bdf, group: GroupId, wanted: &[(Bdf, Wanted)], facts: &HostFacts) -> Vec<Bdf> {
    let is_endpoint =
        |member: &Bdf| facts.devices.get(member).is_some_and(|device| !device.class.is_bridge());
    let members = facts.groups.get(&group).into_iter().flatten().copied().filter(is_endpoint);
    let wanted = wanted.iter().map(|(bdf, _)| *bdf);
    let all: BTreeSet<Bdf> = wanted.chain(members).chain([bdf]).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::pci::{ClassCode, PciId};

    #[rstest]
    #[case::a_port_with_its_driver(0x06_0400, Some("pcieport"), true)]
    #[case::a_host_bridge(0x06_0000, None, true)]
    #[case::an_isa_bridge_without_a_driver(0x06_0100, None, true)]
    #[case::an_isa_bridge_with_one(0x06_0100, Some("lpc_ich"), false)]
    #[case::an_nvswitch(0x06_8000, None, false)]
    #[case::a_card(0x03_0000, None, false)]
    fn bridges_stay_with_the_kernel_unless_a_driver_may_use_them(
        #[case] class: u32,
        #[case] driver: Option<&str>,
        #[case] stays: bool,
    ) {
        let id = PciId { vendor: 0x8086, device: 0 };
        let mut device = DeviceFacts::new(id, ClassCode::new(class).unwrap());
        device.driver = driver.and_then(DriverName::new);
        assert_eq!(may_stay(&device), stays);
    }
}
