//! What a profile comes to on a host, as far as it can be told while something stands in its way.

use std::collections::BTreeSet;

use super::obstacle::Obstacles;
use super::{AddressPlan, MemoryCell, Placement, group, memory, mmio, numa};
use crate::facts::HostFacts;
use crate::pci::Bdf;
use crate::profile::Profile;

/// What a profile comes to on a host, whether or not anything stands in its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The functions that the guest gets, those of the same card with them.
    pub passed: Vec<Bdf>,
    /// Where it runs.
    pub placement: Placement,
    /// Where its memory comes from; empty where it can't be split as asked for.
    pub memory: Vec<MemoryCell>,
    /// Where things lie in its address space.
    pub addresses: AddressPlan,
}

/// Works out what a profile comes to. What stands in its way is for [`super::plan`] to tell.
pub fn outline(profile: &Profile, facts: &HostFacts) -> Outline {
    let mut ignored = Obstacles::default();
    let groups = group::resolve(&profile.devices, facts, &mut ignored);
    let passed: Vec<_> = groups.passed().map(|passed| passed.bdf).collect();
    let placement = numa::place(profile, facts, &passed, &mut ignored);
    let memory = memory::cells(profile, facts, &placement, &mut ignored);
    let addresses = mmio::addresses(profile, facts, &passed, &mut ignored);
    Outline { passed, placement, memory, addresses }
}

/// Returns the functions that a profile is about: those that it would pass, and those that it names and that aren't there.
pub fn targets(profile: &Profile, facts: &HostFacts) -> Vec<Bdf> {
    let groups = group::resolve(&profile.devices, facts, &mut Obstacles::default());
    let passed = groups.passed().map(|passed| passed.bdf);
    let named = profile.devices.iter().map(|device| device.bdf);
    passed.chain(named).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns a function and those of the same card that come along with it.
pub fn card_of(bdf: Bdf, facts: &HostFacts) -> Vec<Bdf> {
    let mates = facts.devices.get(&bdf).map(|device| group::brings_along(bdf, device, facts));
    std::iter::once(bdf).chain(mates.unwrap_or_default()).collect()
}
