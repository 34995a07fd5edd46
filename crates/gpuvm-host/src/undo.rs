//! Gives the host back: undoes what the journal holds, last first, and only what is still as gpuvm left it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gpuvm_core::host_ops::{HostOp, PowerPolicy};
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::profile::VmName;

use crate::HostError;
use crate::apply::Host;
use crate::journal::{self, Journal, OpState, Record, Saved};
use crate::ops::create_overlay::{self, Overlay};
use crate::ops::hugepages::{self, PoolClaim};
use crate::ops::remove::Found;
use crate::ops::{
    adopt, bind, claim_awake, driver_override, hold_autoprobe, keep_awake, remove, reset_methods, unbind,
};
use crate::places::Places;
use crate::power::DriverChange;
use crate::process::ProcessId;
use crate::root;

/// Undoes everything a journal holds, and returns what could not be undone.
///
/// Each device's operations are tried whatever became of the other devices', and up to its first that fails: what comes
/// before it in the journal rests on it, and a device that doesn't answer or hangs is not to be touched further. An
/// operation may have been made or not, since a crash can come between the note and the deed: undoing looks at the host.
///
/// A journal that can't be written, on a full disk for example, stops nothing: giving back comes first. `told` hears of each
/// operation before it is undone.
pub fn undo_all(host: &Host<'_>, journal: &mut Journal, told: &mut dyn FnMut(&HostOp)) -> Vec<HostError> {
    undo_some(host, journal, &|_| Part::Undone, told)
}

/// Whether an operation is among those that are undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is.
    Undone,
    /// It stays.
    Kept,
}

/// Undoes a part of what a journal holds, as [`undo_all`] does all of it: the part must be all of its devices' operations.
pub fn undo_some(
    host: &Host<'_>,
    journal: &mut Journal,
    part: &dyn Fn(&HostOp) -> Part,
    told: &mut dyn FnMut(&HostOp),
) -> Vec<HostError> {
    let mut failures = Vec::new();
    let mut blocked = BTreeSet::new();
    let known = Known::of(host, journal);
    for record in journal.open_records().into_iter().filter(|record| part(&record.op) == Part::Undone) {
        if record.op.bdf().is_some_and(|bdf| blocked.contains(&bdf)) {
            continue;
        }
        told(&record.op);
        match undo(host, &record, &known) {
            Ok(()) => failures.extend(journal.mark(record.seq, OpState::Undone).err()),
            // Reported once, and never overwritten: there is nothing left for us to give back.
            Err(error @ HostError::ChangedByOthers { .. }) => {
                failures.extend(journal.mark(record.seq, OpState::Undone).err());
                failures.push(error);
            }
            Err(error) => {
                failures.extend(journal.mark(record.seq, stuck(&error)).err());
                blocked.extend(record.op.bdf());
                // A scan that hangs keeps the kernel from any other.
                if matches!((&record.op, &error), (HostOp::Remove { .. }, HostError::InFlight { .. })) {
                    let gone = |bdf: &&Bdf| !host.kernel.root.device(**bdf).exists();
                    blocked.extend(known.gone.iter().filter(gone).copied());
                }
                failures.push(error);
            }
        }
    }
    failures
}

fn stuck(error: &HostError) -> OpState {
    match error {
        HostError::InFlight { pid, .. } => {
            OpState::InFlight { child: ProcessId::of(*pid).unwrap_or(ProcessId { pid: *pid, start_time: 0 }) }
        }
        error => OpState::Stuck { message: error.to_string() },
    }
}

/// Returns the device whose driver an operation changes.
fn rebinds(op: &HostOp) -> Option<Bdf> {
    match op {
        HostOp::Adopt { bdf } | HostOp::Unbind { bdf, .. } | HostOp::Bind { bdf, .. } => Some(*bdf),
        _ => None,
    }
}

/// Returns the driver that an operation takes a device from.
fn taken(record: &Record) -> Option<(Bdf, DriverName)> {
    match &record.op {
        HostOp::Unbind { bdf, driver } => Some((*bdf, driver.clone())),
        _ => None,
    }
}

/// What undoing one operation must know of the others.
struct Known {
    /// The devices whose drivers were changed.
    rebound: BTreeSet<Bdf>,
    /// The drivers that devices were taken from.
    taken_from: BTreeMap<Bdf, DriverName>,
    /// The devices that were removed and aren't there.
    gone: BTreeSet<Bdf>,
}

impl Known {
    fn of(host: &Host<'_>, journal: &Journal) -> Self {
        let gone = |record: Record| match record.op {
            HostOp::Remove { bdf, .. } => (!host.kernel.root.device(bdf).exists()).then_some(bdf),
            _ => None,
        };
        Self {
            rebound: journal.records().iter().filter_map(|record| rebinds(&record.op)).collect(),
            taken_from: journal.records().iter().filter_map(taken).collect(),
            gone: journal.open_records().into_iter().filter_map(gone).collect(),
        }
    }
}

fn undo(host: &Host<'_>, record: &Record, known: &Known) -> Result<(), HostError> {
    if let OpState::InFlight { child } = &record.state
        && child.is_alive()
    {
        return Err(still_in_flight(host, record, *child));
    }
    match &record.op {
        HostOp::ClaimHugepages { node, page, pages } => {
            hugepages::undo(host, &PoolClaim { vm: host.vm, node: *node, page: *page, pages: *pages })
        }
        HostOp::ClaimAwake { port } => claim_awake::undo(host, *port),
        HostOp::CreateOverlay { path, backing, format, qemu_img } => {
            create_overlay::undo(&Overlay { path, backing, format: *format, qemu_img })
        }
        HostOp::KeepAwake { bdf } => {
            let change = if known.rebound.contains(bdf) { DriverChange::Rebound } else { DriverChange::Kept };
            keep_awake::undo(host, *bdf, saved_policy(record), change)
        }
        HostOp::SetResetMethods { bdf, methods } => match &record.saved {
            Some(Saved::ResetMethods(saved)) => reset_methods::undo(host, *bdf, methods, saved.clone()),
            // What it was is always written down first; without that, nothing was changed.
            _ => Ok(()),
        },
        HostOp::Adopt { bdf } => adopt::undo(host, *bdf),
        HostOp::Bind { bdf, driver } => bind::undo(host, *bdf, driver, known.taken_from.get(bdf)),
        HostOp::SetDriverOverride { bdf, driver } => {
            driver_override::undo(host, *bdf, driver, saved_driver(record))
        }
        HostOp::Unbind { bdf, driver } => unbind::undo(host, *bdf, driver),
        HostOp::HoldAutoprobe => hold_autoprobe::undo(host),
        HostOp::Remove { bdf, port } => {
            let saved = match &record.saved {
                Some(Saved::Removed(saved)) => Some(saved),
                _ => None,
            };
            let found = if known.gone.contains(bdf) { Found::ByUs } else { Found::Before };
            remove::undo(host, (*bdf, *port), saved, found, known.taken_from.get(bdf))
        }
    }
}

fn saved_driver(record: &Record) -> Option<&DriverName> {
    match &record.saved {
        Some(Saved::Driver(driver)) => Some(driver),
        _ => None,
    }
}

fn saved_policy(record: &Record) -> PowerPolicy {
    match &record.saved {
        Some(Saved::Power(policy)) => *policy,
        _ => PowerPolicy::default(),
    }
}

/// Removes what a VM's run in another boot has left in files, and returns what it was, in words.
///
/// Nothing is replayed: the kernel that was changed is gone. Overlays alone survive a reboot.
///
/// # Errors
/// Returns failures to read the journal; what could not be removed is in the second list.
pub fn clear_stale(
    places: &Places,
    vm: &VmName,
    boot_id: &str,
) -> Result<(Vec<String>, Vec<HostError>), HostError> {
    let (mut cleared, mut left) = (Vec::new(), Vec::new());
    for record in journal::of_other_boot(&places.journal(vm), boot_id)? {
        let HostOp::CreateOverlay { path, backing, format, qemu_img } = &record.op else { continue };
        let there = path.exists();
        match create_overlay::undo(&Overlay { path, backing, format: *format, qemu_img }) {
            Ok(()) if there => cleared.push(format!("overlay {} of an earlier run", path.display())),
            Ok(()) => {}
            Err(error) => left.push(error),
        }
    }
    let words = |path: &Path| format!("overlay {} of an earlier run", path.display());
    match create_overlay::clear_left(&places.overlays(vm)) {
        Ok(paths) => cleared.extend(paths.iter().map(|path| words(path))),
        Err(error) => left.push(error),
    }
    Ok((cleared, left))
}

/// Lists the VMs that have overlays lying about; those of VMs that are up are among them.
///
/// # Errors
/// Returns failures to list.
pub fn with_overlays(places: &Places) -> Result<Vec<VmName>, HostError> {
    let mut names: Vec<VmName> =
        root::list(&places.states())?.iter().filter_map(|name| VmName::new(name)).collect();
    let mut error = None;
    names.retain(|name| match root::list(&places.overlays(name)) {
        Ok(files) => !files.is_empty(),
        Err(failed) => {
            error = Some(failed);
            false
        }
    });
    error.map_or(Ok(names), Err)
}

fn still_in_flight(host: &Host<'_>, record: &Record, child: ProcessId) -> HostError {
    HostError::InFlight {
        doing: format!("undo: {}", record.op),
        path: record.op.bdf().map(|bdf| host.kernel.root.device(bdf)).unwrap_or_default(),
        value: String::new(),
        seconds: 0,
        pid: child.pid,
        state: crate::process::describe(child.pid),
        said: Box::default(),
    }
}
