//! How the host hangs together: nodes, root complexes, ports, groups and devices as a tree, and as a picture.

pub mod svg;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cpulist::CpuSet;
use crate::facts::{DeviceFacts, HostFacts};
use crate::inventory::{Kind, LinkState};
use crate::pci::{Bdf, Bus, ClassCode, DriverName, GroupId, PciId};
use crate::units::ByteSize;

/// The host as a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// The nodes in order, and at the end what sits on none.
    pub rooms: Vec<Room>,
}

/// A NUMA node with what is local to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Room {
    /// Its number; nothing for devices whose node the firmware doesn't tell.
    pub node: Option<u32>,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Its memory.
    pub memory: ByteSize,
    /// The root complexes on it.
    pub complexes: Vec<Complex>,
}

/// A host bridge with its root bus, as `pci0000:40` in sysfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Complex {
    /// The root bus.
    pub bus: Bus,
    /// The functions on it.
    pub branches: Vec<Branch>,
}

/// A function with what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// Its address.
    pub bdf: Bdf,
    /// What it is for.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its ids.
    pub id: PciId,
    /// Its class.
    pub class: ClassCode,
    /// Its class in words.
    pub class_name: String,
    /// Its driver.
    pub driver: Option<DriverName>,
    /// Its group.
    pub group: Option<GroupId>,
    /// Its node.
    pub node: Option<u32>,
    /// Its link, towards the root.
    pub link: Option<LinkState>,
    /// How many virtual functions it has; they aren't in the tree.
    pub virtual_functions: u32,
    /// What is behind it.
    pub below: Vec<Branch>,
}

impl Branch {
    /// Names it with its class where it has no name of its own.
    pub fn label(&self) -> String {
        if self.name == self.id.to_string() {
            format!("{} {}", self.class_name, self.name)
        } else {
            self.name.clone()
        }
    }

    /// Finds the first node that it or anything below is on.
    fn first_node(&self) -> Option<u32> {
        self.node.or_else(|| self.below.iter().find_map(Self::first_node))
    }
}

impl Topology {
    /// Puts the tree together.
    pub fn of(facts: &HostFacts) -> Self {
        let mut children: BTreeMap<Option<Bdf>, Vec<Bdf>> = BTreeMap::new();
        for (bdf, device) in facts.devices.iter().filter(|(bdf, device)| !is_folded(**bdf, device, facts)) {
            children.entry(parent(device, facts)).or_default().push(*bdf);
        }
        let mut complexes: BTreeMap<Bus, Vec<Branch>> = BTreeMap::new();
        for bdf in children.get(&None).into_iter().flatten() {
            let Some(device) = facts.devices.get(bdf) else { continue };
            // A scope may leave the ports out; the root bus is still told by the topmost of them.
            let bus = device.upstream.first().unwrap_or(bdf).bus();
            complexes.entry(bus).or_default().push(branch(*bdf, device, &children, facts));
        }
        let mut rooms: Vec<Room> = facts
            .nodes
            .iter()
            .map(|(node, facts)| Room {
                node: Some(*node),
                cpus: facts.cpus.clone(),
                memory: facts.memory,
                complexes: Vec::new(),
            })
            .collect();
        let mut elsewhere =
            Room { node: None, cpus: CpuSet::default(), memory: ByteSize::default(), complexes: Vec::new() };
        let only = rooms.len() == 1;
        for (bus, branches) in complexes {
            let node = branches.iter().find_map(Branch::first_node);
            let room = rooms.iter_mut().find(|room| room.node == node || (only && node.is_none()));
            room.unwrap_or(&mut elsewhere).complexes.push(Complex { bus, branches });
        }
        rooms.extend((!elsewhere.complexes.is_empty()).then_some(elsewhere));
        Self { rooms }
    }
}

/// Tells whether a function is a virtual one whose physical function is there to be counted for it.
fn is_folded(bdf: Bdf, device: &DeviceFacts, facts: &HostFacts) -> bool {
    let physical = device.physical_function.filter(|physical| *physical != bdf);
    physical
        .and_then(|physical| facts.devices.get(&physical))
        .is_some_and(|pf| pf.physical_function.is_none())
}

/// Finds the nearest bridge above that is known. Each has fewer above it than the last, so that no list of facts makes a circle.
fn parent(device: &DeviceFacts, facts: &HostFacts) -> Option<Bdf> {
    let depth = |bdf: &Bdf| facts.devices.get(bdf).map(|above| above.upstream.len());
    device
        .upstream
        .iter()
        .rev()
        .copied()
        .find(|bdf| depth(bdf).is_some_and(|depth| depth < device.upstream.len()))
}

fn branch(
    bdf: Bdf,
    device: &DeviceFacts,
    children: &BTreeMap<Option<Bdf>, Vec<Bdf>>,
    facts: &HostFacts,
) -> Branch {
    let below = children.get(&Some(bdf)).into_iter().flatten();
    let below = below.filter_map(|child| Some(branch(*child, facts.devices.get(child)?, children, facts)));
    Branch {
        bdf,
        kind: Kind::of(bdf, device, facts),
        name: facts.name_of(device),
        id: device.id,
        class: device.class,
        class_name: facts.class_of(device),
        driver: device.driver.clone(),
        group: device.group,
        node: device.node,
        link: LinkState::of(device, facts),
        virtual_functions: device.virtual_functions,
        below: below.collect(),
    }
}
