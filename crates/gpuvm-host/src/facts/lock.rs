//! What a lock is made of: the devices of a profile, what is above, beside and below them, and the machine.

use std::collections::BTreeSet;
use std::fs;

use gpuvm_core::facts::{HostFacts, PlatformFacts};
use gpuvm_core::lock::{Lock, missing};
use gpuvm_core::pci::{Bdf, Bus, ClassCode, PciId};

use super::index::is_virtual;
use super::{Depth, Reading, Scope, pci, platform};
use crate::HostError;
use crate::root::{HostRoot, list, read_hex, read_parsed};

/// Reads what a lock of these devices is made of, and where a lock is given that some aren't where they were, the cards that may
/// be them. What can't be read goes to [`HostFacts::unread`].
///
/// # Errors
/// None by reading; the result is that of [`super::read`] so that both go one way.
pub fn for_lock(root: &HostRoot, asked: &BTreeSet<Bdf>, lock: Option<&Lock>) -> Result<HostFacts, HostError> {
    let reading = Reading::lenient();
    let mut facts = HostFacts {
        kernel: reading.take(super::kernel(root))?,
        iommus: reading.take(list(&root.path("/sys/class/iommu")))?,
        platform: PlatformFacts {
            system: platform::system(root, &reading)?,
            interrupt_chips: reading.take(platform::interrupt_chips(&root.path("/proc/interrupts")))?,
            ..PlatformFacts::default()
        },
        ..HostFacts::default()
    };
    let index = names(root, &reading)?;
    let mut scope = asked.clone();
    for bdf in asked {
        scope.extend(below_the_same_bridge(root, *bdf, &index, &reading)?);
    }
    pci::read_places(root, &Scope::Devices(scope), Depth::Config, &reading, &mut facts)?;
    if let Some(ids) = lock.map(|lock| missing(lock, &facts)).filter(|ids| !ids.is_empty()) {
        let alike = alike(root, &index, &ids, &reading)?;
        pci::read_places(root, &Scope::Devices(alike), Depth::Config, &reading, &mut facts)?;
    }
    facts.unread = reading.unread();
    Ok(facts)
}

fn names(root: &HostRoot, reading: &Reading) -> Result<BTreeSet<Bdf>, HostError> {
    let names = reading.take(list(&root.path("/sys/bus/pci/devices")))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Lists what a bus reset of a device may reach: the functions on its bus, and those on buses below. A root bus has no reset.
fn below_the_same_bridge(
    root: &HostRoot,
    bdf: Bdf,
    index: &BTreeSet<Bdf>,
    reading: &Reading,
) -> Result<BTreeSet<Bdf>, HostError> {
    let Ok(real) = fs::canonicalize(root.device(bdf)) else { return Ok(BTreeSet::new()) };
    if pci::upstream(&real, bdf).is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut found = BTreeSet::new();
    let mut buses: Vec<Bus> = vec![bdf.bus()];
    let mut seen = BTreeSet::new();
    while let Some(bus) = buses.pop() {
        if !seen.insert(bus) {
            continue;
        }
        for other in index.iter().filter(|other| other.bus() == bus && !is_virtual(root, **other)) {
            found.insert(*other);
            let folder = root.device(*other);
            let class = reading.take(read_hex(&folder.join("class")))?.and_then(ClassCode::new);
            if class.is_some_and(ClassCode::is_bridge) {
                let below: Option<u8> = reading.take(read_parsed(&folder.join("secondary_bus_number")))?;
                let last: Option<u8> = reading.take(read_parsed(&folder.join("subordinate_bus_number")))?;
                let range = below.zip(last).into_iter().flat_map(|(below, last)| below..=last);
                buses.extend(range.map(|number| bus.neighbour(number)));
            }
        }
    }
    Ok(found)
}

/// Finds the functions with one of these ids, but for virtual ones.
fn alike(
    root: &HostRoot,
    index: &BTreeSet<Bdf>,
    ids: &BTreeSet<PciId>,
    reading: &Reading,
) -> Result<BTreeSet<Bdf>, HostError> {
    let mut alike = BTreeSet::new();
    for bdf in index.iter().filter(|bdf| !is_virtual(root, **bdf)) {
        if pci::id_of(root, *bdf, reading)?.is_some_and(|id| ids.contains(&id)) {
            alike.insert(*bdf);
        }
    }
    Ok(alike)
}
