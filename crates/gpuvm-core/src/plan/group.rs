//! The whole-group rule: which functions come along, and what stands in the way.

use std::collections::{BTreeMap, BTreeSet};

use super::{Member, Ownership, PlannedGroup, PlannedOp, Refusal, Role, is_vfio_driver};
use crate::facts::{DeviceFacts, HostFacts, Presence};
use crate::host_ops::HostOp;
use crate::pci::{Bdf, DriverName};
use crate::profile::Profile;

/// A function that the guest gets.
#[derive(Debug, Clone)]
pub(super) struct Passed {
    pub(super) bdf: Bdf,
    pub(super) ownership: Ownership,
    pub(super) reason: String,
}

/// What a profile's devices come to.
#[derive(Debug, Clone, Default)]
pub(super) struct Groups {
    pub(super) passed: Vec<Passed>,
    pub(super) groups: Vec<PlannedGroup>,
}

/// Resolves the devices asked for into whole groups.
pub(super) fn resolve(profile: &Profile, facts: &HostFacts, refusals: &mut Vec<Refusal>) -> Groups {
    let wanted = wanted(profile, facts, refusals);
    let mut groups = Groups::default();
    for (bdf, reason) in &wanted {
        let Some(device) = facts.devices.get(bdf) else { continue };
        may_take(*bdf, device, refusals);
        let ownership = ownership(device);
        groups.passed.push(Passed { bdf: *bdf, ownership, reason: reason.clone() });
    }
    groups.groups = members(&wanted, facts, refusals);
    groups
}

/// Lists the functions asked for and those that come along with a display card, each with its reason.
///
/// A card's slot is kept in one piece: its audio, USB and UCSI functions share its reset and its firmware.
fn wanted(profile: &Profile, facts: &HostFacts, refusals: &mut Vec<Refusal>) -> Vec<(Bdf, String)> {
    let listed: BTreeSet<Bdf> = profile.devices.iter().map(|device| device.bdf).collect();
    let mut seen = BTreeSet::new();
    let mut wanted = Vec::new();
    for bdf in profile.devices.iter().map(|device| device.bdf) {
        let Some(device) = facts.devices.get(&bdf) else {
            refusals.push(Refusal::UnknownDevice { bdf });
            continue;
        };
        if device.class.is_bridge() {
            refusals.push(Refusal::Bridge { bdf, class: device.class });
            continue;
        }
        if seen.insert(bdf) {
            wanted.push((bdf, "listed in the profile".to_owned()));
        }
        if !brings_its_slot(bdf, device) {
            continue;
        }
        let belongs = |mate: &Bdf| {
            facts
                .devices
                .get(mate)
                .is_some_and(|mate| mate.virtual_function == Presence::Absent && !mate.class.is_bridge())
        };
        for mate in facts.slot_of(bdf).filter(|mate| !listed.contains(mate)).filter(belongs) {
            if seen.insert(mate) {
                wanted.push((mate, format!("comes along with {bdf}: another function of the same card")));
            }
        }
    }
    wanted
}

fn brings_its_slot(bdf: Bdf, device: &DeviceFacts) -> bool {
    device.class.is_display() && device.virtual_function == Presence::Absent && !bdf.slot().is_chipset()
}

/// Checks that a function may be taken from the host.
fn may_take(bdf: Bdf, device: &DeviceFacts, refusals: &mut Vec<Refusal>) {
    let driver = || device.driver.clone();
    for holder in &device.holders {
        refusals.push(Refusal::Critical { bdf, driver: driver(), holder: holder.clone() });
    }
    if device.boot_display == Presence::Present {
        refusals.push(Refusal::BootDisplay { bdf, driver: driver() });
    }
    if device.virtual_functions > 0 {
        refusals.push(Refusal::HasVirtualFunctions {
            bdf,
            driver: driver(),
            count: device.virtual_functions,
        });
    }
    if let Some(set) = device.driver_override.as_ref().filter(|set| !is_vfio_driver(set)) {
        refusals.push(Refusal::Overridden { bdf, driver: driver(), set: set.clone() });
    }
}

fn ownership(device: &DeviceFacts) -> Ownership {
    match &device.driver {
        Some(driver) if *driver == DriverName::vfio_pci() => Ownership::WasVfio,
        Some(driver) if is_vfio_driver(driver) => Ownership::KeepDriver { driver: driver.clone() },
        was => Ownership::BoundByUs { was: was.clone() },
    }
}

/// Goes through all members of all groups touched; one that is neither wanted nor a bridge stands in the way.
fn members(wanted: &[(Bdf, String)], facts: &HostFacts, refusals: &mut Vec<Refusal>) -> Vec<PlannedGroup> {
    let reasons: BTreeMap<_, _> = wanted.iter().cloned().collect();
    let mut groups: Vec<PlannedGroup> = Vec::new();
    if facts.iommus.is_empty() && !wanted.is_empty() {
        refusals.push(Refusal::NoIommu { bdfs: wanted.iter().map(|(bdf, _)| *bdf).collect() });
    }
    for (bdf, _) in wanted {
        let Some(group) = facts.devices.get(bdf).and_then(|device| device.group) else {
            if !facts.iommus.is_empty() {
                refusals.push(Refusal::NoGroup { bdf: *bdf });
            }
            continue;
        };
        if groups.iter().any(|planned| planned.id == group) {
            continue;
        }
        let mut members = Vec::new();
        for member in facts.groups.get(&group).into_iter().flatten() {
            let Some(device) = facts.devices.get(member) else { continue };
            match (reasons.get(member), device.class.is_bridge()) {
                (Some(reason), _) => {
                    members.push(Member { bdf: *member, role: Role::Pass, reason: reason.clone() });
                }
                (None, true) => {
                    let reason = "a bridge: it stays with the kernel, which VFIO allows".to_owned();
                    members.push(Member { bdf: *member, role: Role::Bridge, reason });
                }
                (None, false) => refusals.push(Refusal::ForeignMember {
                    bdf: *bdf,
                    group,
                    member: *member,
                    id: device.id,
                    class: device.class,
                    driver: device.driver.clone(),
                    holder: device.holders.first().cloned(),
                }),
            }
        }
        groups.push(PlannedGroup { id: group, members });
    }
    groups
}

/// Lists the changes that bind the functions to vfio-pci.
///
/// Unbind comes before the override, so that the way back, in reverse, clears the override before the old driver is
/// asked to take the device.
pub(super) fn operations(passed: &[Passed], facts: &HostFacts) -> Vec<PlannedOp> {
    let mut operations = Vec::new();
    for Passed { bdf, ownership, .. } in passed {
        let Ownership::BoundByUs { was } = ownership else { continue };
        let (bdf, driver) = (*bdf, DriverName::vfio_pci());
        if let Some(was) = was {
            let op = HostOp::Unbind { bdf, driver: was.clone() };
            operations.push(PlannedOp { op, reason: format!("the guest is to own {bdf}") });
        }
        if facts.devices.get(&bdf).and_then(|device| device.driver_override.as_ref()) != Some(&driver) {
            let op = HostOp::SetDriverOverride { bdf, driver: driver.clone() };
            operations.push(PlannedOp { op, reason: "no other driver may take it meanwhile".to_owned() });
        }
        let op = HostOp::Bind { bdf, driver };
        operations
            .push(PlannedOp { op, reason: "VFIO gives a device to a guest through this driver".to_owned() });
    }
    operations
}
