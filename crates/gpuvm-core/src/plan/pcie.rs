//! The guest's PCIe layout: one root port per slot, the functions of a card kept together.

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::pci::{Bdf, Slot};
use crate::profile::{Network, Profile};

/// The first slot of Q35's root bus that ports take; 0 is the host bridge, and 1 is the panic device's.
const FIRST_SLOT: u8 = 2;
/// The slots that ports take: up to 0x1e, since 0x1f is the ICH9.
const SLOTS: usize = 0x1e - FIRST_SLOT as usize + 1;
/// Ports share a slot, eight to one, as functions.
const PORTS: usize = SLOTS * 8;

/// The guest's root ports, and what sits behind each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PciTopology {
    /// The ports, in order.
    pub ports: Vec<RootPort>,
}

/// A PCIe root port of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPort {
    /// Its number, which is also its bus's: `rp0` is bus 1 of the guest once firmware has counted.
    pub index: u16,
    /// Its slot on the root bus.
    pub slot: u8,
    /// Its function in that slot.
    pub function: u8,
    /// What sits behind it.
    pub holds: SlotUse,
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

/// Lays out the guest's ports: passed-through slots first, in the profile's order, then VirtIO.
pub(super) fn lay_out(profile: &Profile, devices: &[Bdf], refusals: &mut Vec<Refusal>) -> PciTopology {
    let mut uses: Vec<SlotUse> =
        slots(devices).into_iter().map(|functions| SlotUse::Passthrough { functions }).collect();
    uses.extend((0..profile.disks.len()).map(|index| SlotUse::Disk { index }));
    if profile.network == Network::User {
        uses.push(SlotUse::Net);
    }
    uses.push(SlotUse::Rng);
    if uses.len() > PORTS {
        refusals.push(Refusal::TooManyPorts { need: uses.len(), have: PORTS });
        return PciTopology::default();
    }
    let port = |(index, holds): (u16, SlotUse)| RootPort {
        index,
        // Both fit: the index is below PORTS, which is 232.
        slot: FIRST_SLOT + u8::try_from(index / 8).unwrap_or(0),
        function: u8::try_from(index % 8).unwrap_or(0),
        holds,
    };
    PciTopology { ports: (0..).zip(uses).map(port).collect() }
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
}
