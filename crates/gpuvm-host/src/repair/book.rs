//! The journal of a repair that no VM makes (`gpuvm reset --repair`).
//!
//! It is a folder of its own, whoever has bound the devices. If the process dies, `gpuvm cleanup` finishes the repair ([`resume`]); the
//! reservation of the reset that it belongs to covers it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::Snapshot;
use gpuvm_core::reset::repair::Ladder;

use super::{Event, Repaired, finish, repair};
use crate::apply::Host;
use crate::journal::{self, Journal};
use crate::kernel::Kernel;
use crate::places::Places;
use crate::root::list;
use crate::{HostError, bound, lock, orphans};

/// Repairs devices that are reserved, and are in hand by whatever binding, as [`repair`] does; with a journal of its own.
///
/// # Errors
/// Returns that the journal can't be made: nothing was tried then.
pub fn repair_alone(
    (kernel, places, boot_id): (&Kernel, &Places, &str),
    baselines: &BTreeMap<Bdf, Snapshot>,
    ladders: &[Ladder],
    sick: &BTreeMap<Bdf, Snapshot>,
    stop: &dyn Fn() -> bool,
    told: &mut dyn FnMut(Event<'_>),
) -> Result<Repaired, HostError> {
    let Some(first) = ladders.first().map(|ladder| ladder.bdf) else { return Ok(Repaired::default()) };
    let folder = folder_of(places, first);
    lock::make_dir(&folder)?;
    // One that was closed, or is of another boot, is of no use to anybody.
    let path = folder.join(FILE);
    if journal::left(&path, boot_id)? == 0 {
        lock::remove(&path)?;
    }
    let mut journal = Journal::begin(&path, boot_id)?;
    let vm = bound::name(first);
    let host = Host { kernel, places, boot_id, vm: &vm, baselines };
    let mut repaired = repair(&host, &mut journal, ladders, sick, stop, told);
    repaired.left.extend(end(&folder, &mut journal).err());
    Ok(repaired)
}

/// Finishes repairs that died; the caller has reserved the functions that [`open`] tells of them. Returns what is left.
///
/// # Errors
/// Returns a journal that can't be read.
pub fn resume(
    (kernel, places, boot_id): (&Kernel, &Places, &str),
    first: Bdf,
    told: &mut dyn FnMut(&HostOp),
) -> Result<Vec<HostError>, HostError> {
    let folder = folder_of(places, first);
    let Some(mut journal) = Journal::reopen(&folder.join(FILE), boot_id)? else {
        journal::remove_dir(&folder)?;
        return Ok(Vec::new());
    };
    orphans::check(&kernel.root, &journal.open_records())?;
    let (vm, baselines) = (bound::name(first), BTreeMap::new());
    let host = Host { kernel, places, boot_id, vm: &vm, baselines: &baselines };
    let mut left = finish(&host, &mut journal, told);
    left.extend(end(&folder, &mut journal).err());
    Ok(left)
}

/// Lists the repairs that have something left to finish, each by the function that it is named by, with all functions that it has removed.
///
/// # Errors
/// Returns journals that can't be read.
pub fn open(places: &Places, boot_id: &str) -> Result<BTreeMap<Bdf, BTreeSet<Bdf>>, HostError> {
    let mut found = BTreeMap::new();
    for first in list(&places.repairs())?.iter().filter_map(|name| name.parse::<Bdf>().ok()) {
        let records = match journal::open_of(&folder_of(places, first).join(FILE), boot_id) {
            // What it holds isn't known: whoever finishes it is told so, and nobody else's devices are kept for it.
            Err(HostError::Content { .. }) => {
                found.insert(first, BTreeSet::from([first]));
                continue;
            }
            records => records?,
        };
        if !records.is_empty() {
            let removed = records.iter().filter_map(|record| record.op.bdf());
            found.insert(first, removed.chain([first]).collect());
        }
    }
    Ok(found)
}

/// Removes the folders of repairs that have nothing left to finish: their end was cut short, or they are of before a reboot.
///
/// # Errors
/// Returns journals that can't be read, and failures to remove.
pub(crate) fn clear_closed(places: &Places, boot_id: &str) -> Result<(), HostError> {
    let open = open(places, boot_id)?;
    for name in list(&places.repairs())? {
        if name.parse().is_ok_and(|first: Bdf| !open.contains_key(&first)) {
            journal::remove_dir(&places.repairs().join(name))?;
        }
    }
    Ok(())
}

/// Removes the folder of a repair that has nothing left to finish.
fn end(folder: &Path, journal: &mut Journal) -> Result<(), HostError> {
    if !journal.open_records().is_empty() {
        return Ok(());
    }
    journal.close()?;
    journal::remove_dir(folder)
}

const FILE: &str = "journal";

fn folder_of(places: &Places, first: Bdf) -> PathBuf {
    places.repairs().join(first.to_string())
}
