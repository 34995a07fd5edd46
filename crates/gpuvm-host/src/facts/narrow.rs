//! Facts of a whole host, cut down to what a survey of less would have read.

use std::collections::{BTreeMap, BTreeSet};

use gpuvm_core::facts::{DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::{Bdf, PciId};

use super::{Depth, Scope};

/// Keeps the devices that a survey of this scope and depth would have found, with their groups.
///
/// What was read of each stays, even where the depth wouldn't have asked for it: more of a device is no other device.
pub fn narrow(mut facts: HostFacts, scope: &Scope, depth: Depth) -> HostFacts {
    let mut kept = BTreeMap::new();
    let mut groups = BTreeMap::new();
    let mut left: Vec<Bdf> = in_scope(&facts, scope);
    while let Some(bdf) = left.pop() {
        let Some(device) = facts.devices.remove(&bdf) else { continue };
        if let Some((group, members)) = device.group.and_then(|group| facts.groups.remove_entry(&group)) {
            left.extend(&members);
            groups.insert(group, members);
        }
        if !device.upstream.is_empty() && device.virtual_function == Presence::Absent {
            let physical = |(_, device): &(&Bdf, &DeviceFacts)| device.virtual_function == Presence::Absent;
            left.extend(facts.devices.range(bdf.bus().functions()).filter(physical).map(|(bdf, _)| *bdf));
        }
        if depth == Depth::Config {
            left.extend(&device.upstream);
        }
        kept.insert(bdf, device);
    }
    let ports = ports(&kept, &facts);
    HostFacts { devices: kept, groups, ports, ..facts }
}

/// Takes what is known of the bridges right above the devices that are kept, where those aren't kept themselves.
fn ports(kept: &BTreeMap<Bdf, DeviceFacts>, left: &HostFacts) -> BTreeMap<Bdf, PciId> {
    let above = kept.values().filter_map(|device| device.upstream.last().copied());
    let id = |port: &Bdf| left.devices.get(port).map(|device| device.id).or(left.ports.get(port).copied());
    above.filter(|port| !kept.contains_key(port)).filter_map(|port| Some((port, id(&port)?))).collect()
}

fn in_scope(facts: &HostFacts, scope: &Scope) -> Vec<Bdf> {
    let physical = |device: &DeviceFacts| device.virtual_function == Presence::Absent;
    let slots: BTreeSet<_> = match scope {
        Scope::Devices(asked) => asked.iter().map(|bdf| bdf.slot()).collect(),
        Scope::Cards => {
            let card = |device: &DeviceFacts| device.class.is_card() && physical(device);
            facts.devices.iter().filter(|(_, device)| card(device)).map(|(bdf, _)| bdf.slot()).collect()
        }
        _ => BTreeSet::new(),
    };
    let wanted = |bdf: &Bdf, device: &DeviceFacts| match scope {
        Scope::All => true,
        Scope::Devices(_) | Scope::Cards => slots.contains(&bdf.slot()),
        Scope::Physical => physical(device),
        Scope::Passable => physical(device) && !device.class.is_bridge(),
    };
    facts.devices.iter().filter(|(bdf, device)| wanted(bdf, device)).map(|(bdf, _)| *bdf).collect()
}
