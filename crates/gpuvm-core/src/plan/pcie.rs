//! The guest's PCIe layout: one root port per slot, the functions of a card kept together.
//!
//! A guest of several nodes gets an expander bridge for each, with the node's devices below it, so that its kernel knows how
//! near they are.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::obstacle::Obstacles;
use super::{Placement, Refusal};
use crate::facts::HostFacts;
use crate::pci::{Bdf, Slot};
use crate::profile::{Display, Media, Network, PortAddress, Profile};

const FIRST_SLOT: u8 = PortAddress::FIRST_SLOT;
/// Ports share a slot, eight to one, as functions.
const FUNCTIONS: u8 = 8;
/// The ports of a root bus.
const PORTS: usize = (PortAddress::LAST_SLOT - FIRST_SLOT + 1) as usize * FUNCTIONS as usize;
/// The first expander's bus number, half of all there are: those of the ports on the main root bus lie below it.
const EXPANDER_BUS: u8 = 0x80;

/// The guest's root ports, and what sits behind each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PciTopology {
    /// The expander bridges, one for each node of a guest that has several.
    #[serde(default)]
    pub expanders: Vec<Expander>,
    /// The ports, in order.
    pub ports: Vec<RootPort>,
}

/// An expander bridge: a root bus that belongs to a node of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expander {
    /// The guest's node.
    pub node: u32,
    /// Its slot on the main root bus.
    pub slot: u8,
    /// The number of its bus; those of its ports' follow.
    pub bus: u8,
}

/// A PCIe root port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPort {
    /// Its number, unique in the machine.
    pub index: u16,
    /// The root bus that it sits on.
    #[serde(default)]
    pub root: RootBus,
    /// Its slot there.
    pub slot: u8,
    /// Its function in that slot.
    pub function: u8,
    /// What sits behind it.
    pub holds: SlotUse,
}

/// A root bus of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootBus {
    /// Q35's own, `pcie.0`.
    #[default]
    Main,
    /// That of the expander of a guest's node.
    Expander(u32),
}

/// What sits behind a root port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum SlotUse {
    /// Functions of one slot of the host, each with its function number in the guest.
    Passthrough {
        /// Guest function number and host address.
        functions: Vec<(u8, Bdf)>,
    },
    /// The disk of that index.
    Disk {
        /// Its index in the profile.
        index: usize,
    },
    /// The network interface.
    Net,
    /// The random number generator.
    Rng,
    /// The USB controller of a virtual display's keyboard and tablet.
    Usb,
    /// Nothing: a guest looks at a slot's other functions only where there is a function 0.
    Nothing,
}

/// A function's address in the guest, as its root port and number: bus numbers are the firmware's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddress {
    /// The root port's index.
    pub port: u16,
    /// The function number behind it.
    pub function: u8,
}

impl std::fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rp{}:00.{}", self.port, self.function)
    }
}

impl PciTopology {
    /// Returns where the guest finds a host's function.
    pub fn of_device(&self, bdf: Bdf) -> Option<GuestAddress> {
        self.ports.iter().find_map(|port| match &port.holds {
            SlotUse::Passthrough { functions } => functions
                .iter()
                .find(|(_, host)| *host == bdf)
                .map(|(function, _)| GuestAddress { port: port.index, function: *function }),
            _ => None,
        })
    }
}

/// Something that needs a root port, and where it is to sit.
struct Need {
    holds: SlotUse,
    root: RootBus,
    address: Option<PortAddress>,
}

/// Lays out the guest's ports: passed-through slots first, in the profile's order, then VirtIO.
pub(super) fn lay_out(
    profile: &Profile,
    facts: &HostFacts,
    devices: &[Bdf],
    placement: &Placement,
    obstacles: &mut Obstacles,
) -> PciTopology {
    let mut needs: Vec<Need> = slots(devices)
        .into_iter()
        .map(|functions| {
            let node = functions.iter().find_map(|(_, bdf)| facts.devices.get(bdf)?.node);
            let address = functions.iter().find_map(|(_, bdf)| address_of(profile, *bdf));
            Need { holds: SlotUse::Passthrough { functions }, root: root_of(node, placement), address }
        })
        .collect();
    needs.extend(of_the_machine(profile).into_iter().map(|holds| Need {
        holds,
        root: RootBus::Main,
        address: None,
    }));
    let expanders = expanders(placement);
    let Some(ports) = assign(needs, &expanders, obstacles) else { return PciTopology::default() };
    PciTopology { expanders, ports }
}

fn address_of(profile: &Profile, bdf: Bdf) -> Option<PortAddress> {
    let of_slot = profile.devices.iter().filter(|device| device.bdf.slot() == bdf.slot());
    of_slot.filter_map(|device| device.guest_address).next()
}

/// Lists what gpuvm itself puts behind ports.
fn of_the_machine(profile: &Profile) -> Vec<SlotUse> {
    let disks = profile.disks.iter().enumerate().filter(|(_, disk)| disk.media == Media::Disk);
    let mut uses: Vec<_> = disks.map(|(index, _)| SlotUse::Disk { index }).collect();
    if profile.network == Network::User {
        uses.push(SlotUse::Net);
    }
    if matches!(profile.display, Display::Virtual(_)) {
        uses.push(SlotUse::Usb);
    }
    uses.push(SlotUse::Rng);
    uses
}

/// A guest of one node has one root bus, and knows nothing of nodes.
fn root_of(host_node: Option<u32>, placement: &Placement) -> RootBus {
    let position = placement.nodes.iter().position(|node| Some(*node) == host_node);
    match position.filter(|_| placement.nodes.len() > 1).and_then(|node| u32::try_from(node).ok()) {
        Some(node) => RootBus::Expander(node),
        None => RootBus::Main,
    }
}

/// Makes an expander for each of the guest's nodes, in the highest slots; their bus numbers share the upper half evenly.
fn expanders(placement: &Placement) -> Vec<Expander> {
    let count = u8::try_from(placement.nodes.len()).unwrap_or(u8::MAX);
    if count < 2 {
        return Vec::new();
    }
    let span = EXPANDER_BUS / count;
    let expander = |node: u8| Expander {
        node: node.into(),
        slot: PortAddress::LAST_SLOT.saturating_sub(count - 1 - node),
        bus: EXPANDER_BUS + node * span,
    };
    (0..count).map(expander).collect()
}

/// Gives each need a place: those that were asked for first, then the free ones in order.
fn assign(needs: Vec<Need>, expanders: &[Expander], obstacles: &mut Obstacles) -> Option<Vec<RootPort>> {
    let mut free: BTreeMap<RootBus, BTreeSet<PortAddress>> = BTreeMap::new();
    let reserved: BTreeSet<u8> = expanders.iter().map(|expander| expander.slot).collect();
    let every = |slots: &BTreeSet<u8>| -> BTreeSet<PortAddress> {
        let of_slot = |slot| (0..FUNCTIONS).map(move |function| PortAddress { slot, function });
        (FIRST_SLOT..=PortAddress::LAST_SLOT).filter(|slot| !slots.contains(slot)).flat_map(of_slot).collect()
    };
    free.insert(RootBus::Main, every(&reserved));
    free.extend(expanders.iter().map(|e| (RootBus::Expander(e.node), every(&BTreeSet::new()))));
    for need in &needs {
        if let (Some(address), RootBus::Main, SlotUse::Passthrough { functions }) =
            (need.address, need.root, &need.holds)
            && reserved.contains(&address.slot)
        {
            let bdfs = functions.iter().map(|(_, bdf)| *bdf).collect();
            obstacles.refuse(Refusal::ExpanderThere { bdfs, address });
        }
        if let (Some(address), Some(free)) = (need.address, free.get_mut(&need.root)) {
            free.remove(&address);
        }
    }
    let need_count = needs.len();
    let mut ports = Vec::new();
    for need in needs {
        let free = free.get_mut(&need.root)?;
        let Some(address) = need.address.or_else(|| free.pop_first()) else {
            obstacles.refuse(Refusal::TooManyPorts { need: need_count, have: PORTS });
            return None;
        };
        ports.push((need.root, address, need.holds));
    }
    let ports = with_functions_0(ports);
    enough_buses(&ports, expanders, obstacles)?;
    Some(number(ports))
}

/// Checks that each root bus has a bus number for every port on it; those of an expander end where the next one's begin.
fn enough_buses(
    ports: &[(RootBus, PortAddress, SlotUse)],
    expanders: &[Expander],
    obstacles: &mut Obstacles,
) -> Option<()> {
    let span = match expanders {
        [] => return Some(()),
        [first, second, ..] => second.bus - first.bus,
        [_] => EXPANDER_BUS,
    };
    for root in std::iter::once(RootBus::Main).chain(expanders.iter().map(|e| RootBus::Expander(e.node))) {
        let need = ports.iter().filter(|(on, ..)| *on == root).count();
        let have = usize::from(if root == RootBus::Main { EXPANDER_BUS } else { span }) - 1;
        if need > have {
            obstacles.refuse(Refusal::TooManyPorts { need, have });
            return None;
        }
    }
    Some(())
}

/// Adds an empty port as function 0 of each slot that would lack one.
fn with_functions_0(mut ports: Vec<(RootBus, PortAddress, SlotUse)>) -> Vec<(RootBus, PortAddress, SlotUse)> {
    let taken: BTreeSet<(RootBus, PortAddress)> = ports.iter().map(|(root, at, _)| (*root, *at)).collect();
    let missing: BTreeSet<_> = taken
        .iter()
        .map(|(root, at)| (*root, PortAddress { slot: at.slot, function: 0 }))
        .filter(|first| !taken.contains(first))
        .collect();
    ports.extend(missing.into_iter().map(|(root, at)| (root, at, SlotUse::Nothing)));
    ports
}

fn number(ports: Vec<(RootBus, PortAddress, SlotUse)>) -> Vec<RootPort> {
    let port = |(index, (root, at, holds)): (u16, (RootBus, PortAddress, SlotUse))| RootPort {
        index,
        root,
        slot: at.slot,
        function: at.function,
        holds,
    };
    (0..).zip(ports).map(port).collect()
}

/// Groups functions by their slot. Where function 0 isn't passed, the lowest one becomes it: no slot is found without.
fn slots(devices: &[Bdf]) -> Vec<Vec<(u8, Bdf)>> {
    let mut slots: Vec<(Slot, Vec<Bdf>)> = Vec::new();
    for bdf in devices {
        match slots.iter_mut().find(|(slot, _)| *slot == bdf.slot()) {
            Some((_, functions)) => functions.push(*bdf),
            None => slots.push((bdf.slot(), vec![*bdf])),
        }
    }
    let number = |(_, mut functions): (Slot, Vec<Bdf>)| {
        functions.sort();
        let keeps = functions.first().is_some_and(|first| first.function() == 0);
        (0..)
            .zip(functions)
            .map(|(position, bdf)| (if keeps { bdf.function() } else { position }, bdf))
            .collect()
    };
    slots.into_iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::kept("81:00.0 81:00.1", "0=81:00.0 1=81:00.1")]
    #[case::gaps_stay("81:00.0 81:00.3", "0=81:00.0 3=81:00.3")]
    #[case::renumbered("81:00.1 81:00.2", "0=81:00.1 1=81:00.2")]
    #[case::two_slots("82:00.0 81:00.0", "0=82:00.0 | 0=81:00.0")]
    #[case::apart_in_the_profile("81:00.1 82:00.0 81:00.0", "0=81:00.0 1=81:00.1 | 0=82:00.0")]
    fn functions_of_a_slot_stay_together(#[case] devices: &str, #[case] expected: &str) {
        let devices: Vec<Bdf> = devices.split(' ').map(|bdf| bdf.parse().unwrap()).collect();
        let spell = |(function, bdf): &(u8, Bdf)| format!("{function}={}", &bdf.to_string()[5..]);
        let spelt: Vec<String> =
            slots(&devices).iter().map(|slot| slot.iter().map(spell).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(spelt.join(" | "), expected);
    }

    #[rstest]
    #[case::full(63, 127, true)]
    #[case::a_node_with_more_ports_than_bus_numbers(64, 1, false)]
    #[case::a_main_bus_that_reaches_the_first_expander(1, 128, false)]
    fn each_root_bus_has_bus_numbers_for_its_ports(
        #[case] of_node: usize,
        #[case] of_main: usize,
        #[case] enough: bool,
    ) {
        let placement = Placement { nodes: vec![0, 1], ..Placement::default() };
        let at = PortAddress { slot: FIRST_SLOT, function: 0 };
        let port = |root| (root, at, SlotUse::Nothing);
        let mut ports = vec![port(RootBus::Expander(0)); of_node];
        ports.extend(vec![port(RootBus::Main); of_main]);
        let mut obstacles = Obstacles::default();
        let found = enough_buses(&ports, &expanders(&placement), &mut obstacles);
        assert_eq!((found.is_some(), obstacles.refusals.is_empty()), (enough, enough));
    }
}
