//! Which devices a profile means that describes them.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::{HostFacts, Presence};
use crate::lock::{Lock, LockedFunction, Serial};
use crate::pci::{Bdf, ClassCode, PciId};
use crate::plan::Refusal;
use crate::profile::{DeviceChoice, DeviceRequest, Profile, Selector};

/// What is known of every function that can be chosen: of all but the virtual ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FunctionIndex {
    functions: BTreeMap<Bdf, IndexedFunction>,
}

/// A function as an index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedFunction {
    /// Its ids.
    pub id: PciId,
    /// Its class.
    pub class: ClassCode,
    /// Its node, where the firmware tells.
    pub node: Option<u32>,
    /// Its serial number; nothing where it wasn't read.
    pub serial: Option<Serial>,
}

impl FunctionIndex {
    /// Adds a function.
    pub fn insert(&mut self, bdf: Bdf, function: IndexedFunction) {
        self.functions.insert(bdf, function);
    }

    /// Returns what is known of a function.
    pub fn get(&self, bdf: Bdf) -> Option<&IndexedFunction> {
        self.functions.get(&bdf)
    }

    /// Takes the index out of facts about all of a host, such as somebody has sent along.
    pub fn of(facts: &HostFacts) -> Self {
        let physical = facts.devices.iter().filter(|(_, device)| device.virtual_function == Presence::Absent);
        let function = |(bdf, device): (&Bdf, _)| (*bdf, IndexedFunction::of(device));
        Self { functions: physical.map(function).collect() }
    }

    /// Adds what more is known of functions that are in it.
    pub fn know(&mut self, facts: &HostFacts) {
        for (bdf, function) in &mut self.functions {
            if let Some(device) = facts.devices.get(bdf) {
                *function = IndexedFunction::of(device);
            }
        }
    }

    /// Lists the functions that fit a selector but for its serial number, in the order of their addresses: those whose serial
    /// numbers are worth reading.
    pub fn candidates(&self, selector: &Selector) -> Vec<Bdf> {
        let fits = |(bdf, function): &(&Bdf, &IndexedFunction)| self.fits(selector, **bdf, function);
        self.functions.iter().filter(fits).map(|(bdf, _)| *bdf).collect()
    }

    /// Lists the functions that match all of a selector but its place among them.
    fn matching(&self, selector: &Selector) -> Vec<Bdf> {
        let wanted = selector.serial.map(Serial::Number);
        let numbered =
            |bdf: &Bdf| wanted.is_none() || self.functions.get(bdf).is_some_and(|f| f.serial == wanted);
        self.candidates(selector).into_iter().filter(numbered).collect()
    }

    /// A bridge can't be passed; and a display card's other functions come along with it, so that they are meant only if they
    /// are asked for.
    fn fits(&self, selector: &Selector, bdf: Bdf, is: &IndexedFunction) -> bool {
        let of_display_card = || {
            let mates = self.functions.iter().filter(|(mate, _)| mate.slot() == bdf.slot());
            mates.into_iter().any(|(_, mate)| mate.class.is_display())
        };
        let function = match selector.function {
            Some(function) => bdf.function() == function,
            None => bdf.function() == 0 || !of_display_card(),
        };
        let Selector { id, class, node, slot, .. } = selector;
        id.is_none_or(|id| id == is.id)
            && class.is_none_or(|class| class.0 == is.class.class())
            && node.is_none_or(|node| is.node == Some(node))
            && slot.is_none_or(|slot| slot == bdf.slot())
            && !is.class.is_bridge()
            && function
    }

    fn words(&self, bdf: Bdf) -> LockedFunction {
        LockedFunction { bdf, what: self.functions.get(&bdf).map(|function| (function.id, function.class)) }
    }
}

/// Whether a lock holds a device fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Whatever is at the locked address now: that it is no other card is for [`crate::lock::compare`] to say.
    Always,
    /// As long as the card at the locked address is one that the selector may mean: for a lock that is to be made anew.
    WhileItFits,
}

/// Tells whether the index of a host's functions is needed to resolve a profile: not where its lock knows all that it describes.
pub fn needs_index(profile: &Profile, lock: Option<&Lock>, hold: Hold) -> bool {
    let locked = |choice: &DeviceChoice| hold == Hold::Always && locked_at(choice, lock).is_some();
    !profile.choices.iter().all(locked)
}

/// Finds the devices that a profile describes.
///
/// # Errors
/// Returns each description that fits no device of this host, or several.
pub fn resolve(
    mut profile: Profile,
    lock: Option<&Lock>,
    hold: Hold,
    index: &FunctionIndex,
) -> Result<Profile, Vec<Refusal>> {
    let choices = std::mem::take(&mut profile.choices);
    let mut taken: BTreeSet<Bdf> = profile.devices.iter().map(|device| device.bdf).collect();
    taken.extend(profile.devices.iter().flat_map(|device| device.hold.iter().copied()));
    taken.extend(choices.iter().flat_map(|choice| choice.hold.iter().copied()));
    let mut refusals = Vec::new();
    let mut chosen: Vec<(DeviceChoice, Bdf)> = Vec::new();
    // Those that say which one they mean come first: the others are among what is left.
    let (sure, open): (Vec<_>, Vec<_>) = choices
        .into_iter()
        .map(|choice| (fixed(&choice, lock, hold, index), choice))
        .partition(|(fixed, choice)| fixed.is_some() || choice.select.nth.is_some());
    for (fixed, choice) in sure.into_iter().chain(open) {
        match fixed.map_or_else(|| choose(&choice.select, &taken, index), Ok) {
            Ok(bdf) if taken.insert(bdf) => chosen.push((choice, bdf)),
            Ok(bdf) => refusals.push(Refusal::ChosenTwice { selector: choice.select, bdf }),
            Err(refusal) => refusals.push(*refusal),
        }
    }
    chosen.sort_by_key(|(choice, _)| choice.place);
    for (choice, bdf) in chosen {
        let place = choice.place.min(profile.devices.len());
        profile.devices.insert(place, choice.at(bdf));
    }
    refusals.extend(ports(&profile.devices));
    if refusals.is_empty() { Ok(profile) } else { Err(refusals) }
}

fn locked_at(choice: &DeviceChoice, lock: Option<&Lock>) -> Option<Bdf> {
    let text = choice.select.to_string();
    let chosen = lock?.devices.iter().find(|device| device.chosen_by.as_ref() == Some(&text));
    chosen.map(|device| device.bdf)
}

/// Returns the device that the lock has for a description.
fn fixed(choice: &DeviceChoice, lock: Option<&Lock>, hold: Hold, index: &FunctionIndex) -> Option<Bdf> {
    let bdf = locked_at(choice, lock)?;
    (hold == Hold::Always || index.matching(&choice.select).contains(&bdf)).then_some(bdf)
}

fn choose(selector: &Selector, taken: &BTreeSet<Bdf>, index: &FunctionIndex) -> Result<Bdf, Box<Refusal>> {
    let all = index.matching(selector);
    let functions = |bdfs: &[Bdf]| bdfs.iter().map(|bdf| index.words(*bdf)).collect();
    let Some(first) = all.first().copied() else {
        let unread = |bdf: &Bdf| {
            selector.serial.is_some() && index.functions.get(bdf).is_some_and(|f| f.serial.is_none())
        };
        let unread = index.candidates(selector).into_iter().filter(unread).collect();
        return Err(Box::new(Refusal::NoneFits { selector: selector.clone(), unread }));
    };
    if let Some(nth) = selector.nth {
        let found = usize::try_from(nth).ok().and_then(|nth| all.get(nth)).copied();
        return found.ok_or_else(|| {
            Box::new(Refusal::TooFewFit { selector: selector.clone(), fit: functions(&all) })
        });
    }
    let free: Vec<Bdf> = all.into_iter().filter(|bdf| !taken.contains(bdf)).collect();
    match free.as_slice() {
        [] => Err(Box::new(Refusal::ChosenTwice { selector: selector.clone(), bdf: first })),
        [only] => Ok(*only),
        several => Err(Box::new(Refusal::SeveralFit { selector: selector.clone(), fit: functions(several) })),
    }
}

/// The functions of one slot share a root port, and two slots can't: where both are named, the profile's own check says so.
fn ports(devices: &[DeviceRequest]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        for other in &devices[..index] {
            let (Some(mine), Some(theirs)) = (device.guest_address, other.guest_address) else { continue };
            let chosen = device.chosen_by.is_some() || other.chosen_by.is_some();
            let same_slot = device.bdf.slot() == other.bdf.slot();
            if chosen && same_slot != (mine == theirs) {
                let (bdf, other, address) = (device.bdf, other.bdf, mine);
                refusals.push(Refusal::ChosenForOnePlace { bdf, other, address });
            }
        }
    }
    refusals
}

impl IndexedFunction {
    fn of(device: &crate::facts::DeviceFacts) -> Self {
        let serial = crate::lock::serial(device);
        Self { id: device.id, class: device.class, node: device.node, serial }
    }
}
