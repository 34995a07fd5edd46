//! What is written down of each VM, and where it stands by that: read without a lock, and without anybody who answers.

use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::VmName;
use gpuvm_core::standing::{Files, Journaled, Records, Reserved, Standing, standing};
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::journal;
use crate::places::Places;
use crate::process::ProcessId;
use crate::reservation::{self, Reservation};
use crate::root::{list, read_text};
use crate::undo;

/// How often records are read again that have changed meanwhile.
const TRIES: usize = 5;

/// What is known of a VM without asking it.
#[derive(Debug)]
pub struct Known {
    /// The VM.
    pub name: VmName,
    /// Where it stands.
    pub standing: Standing,
    /// Its supervisor, of this boot.
    pub supervisor: Option<Seen>,
    /// Its QEMU, of this boot.
    pub qemu: Option<Seen>,
    /// The children that still wait for the kernel.
    pub in_flight: Vec<i32>,
    /// All functions that are reserved for it.
    pub devices: Vec<Bdf>,
    /// How many changes to the host are not undone.
    pub not_undone: usize,
    /// When the run began, in seconds since 1970.
    pub begun: Option<u64>,
    /// What was decided for it; nothing where another gpuvm has written it.
    pub plan: Option<Box<Plan>>,
    /// What can't be read of it.
    pub unread: Vec<HostError>,
}

/// A process that is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Its number.
    pub pid: i32,
    /// Whether it is alive.
    pub alive: bool,
}

impl From<ProcessId> for Seen {
    fn from(process: ProcessId) -> Self {
        Self { pid: process.pid, alive: process.is_alive() }
    }
}

/// Lists the VMs of which anything is written down that a run has made: one that has ended well is none of them.
///
/// # Errors
/// Returns failures to read gpuvm's folders.
pub fn names(places: &Places) -> Result<Vec<VmName>, HostError> {
    let mut names: Vec<VmName> = list(&places.vms())?.iter().filter_map(|name| VmName::new(name)).collect();
    names.extend(reservation::names(places)?);
    names.extend(undo::with_overlays(places)?);
    names.sort();
    names.dedup();
    Ok(names)
}

/// Reads what is known of a VM.
///
/// A run that begins or ends meanwhile changes its reservation first or last: what was read between two looks at the same one belongs
/// together.
pub fn of(places: &Places, boot_id: &str, vm: &VmName) -> Known {
    let mut before = reservation::of(places, vm);
    for _ in 1..TRIES {
        let known = read(places, boot_id, vm, &before);
        let after = reservation::of(places, vm);
        if matches!((&before, &after), (Ok(before), Ok(after)) if before == after) {
            return with_error(known, before);
        }
        before = after;
    }
    let known = read(places, boot_id, vm, &before);
    with_error(known, before)
}

fn with_error(mut known: Known, reservation: Result<Option<Reservation>, HostError>) -> Known {
    known.unread.extend(reservation.err());
    known
}

fn read(
    places: &Places,
    boot_id: &str,
    vm: &VmName,
    reservation: &Result<Option<Reservation>, HostError>,
) -> Known {
    let mut unread = Vec::new();
    let record =
        reservation.as_ref().ok().and_then(Option::as_ref).filter(|record| record.boot_id == boot_id);
    let supervisor = record.map(|record| Seen::from(record.supervisor));
    let qemu = record.and_then(|record| record.qemu).map(Seen::from);
    let waiting = record.iter().flat_map(|record| &record.in_flight).filter(|child| child.is_alive());
    let in_flight: Vec<i32> = waiting.map(|child| child.pid).collect();
    let reserved = match (reservation, supervisor) {
        (Err(_), _) => Reserved::Unreadable,
        (Ok(None), _) => Reserved::No,
        (Ok(Some(_)), None) => Reserved::BeforeReboot,
        (Ok(Some(_)), Some(supervisor)) => Reserved::Now {
            supervisor: supervisor.alive.into(),
            // One that is on its way out runs no guest; nor is one to go on without its gpuvm that was started in the foreground.
            qemu: record.and_then(|record| {
                let goes_on = record.detached || supervisor.alive;
                record.qemu.map(|qemu| (goes_on && qemu.goes_on()).into())
            }),
            in_flight: (!in_flight.is_empty()).into(),
        },
    };
    let journal = journaled(places, boot_id, vm, &mut unread);
    let files = files(places, vm, &mut unread);
    let folder = places.vm(vm);
    Known {
        name: vm.clone(),
        standing: standing(&Records { reserved, journal, files }),
        supervisor,
        qemu,
        in_flight,
        devices: record.map(|record| record.devices.clone()).unwrap_or_default(),
        not_undone: if let Journaled::Open(count) = journal { count } else { 0 },
        begun: kept::<Begun>(&places.begun(vm)).map(|begun| begun.at),
        plan: kept::<Kept>(&folder.join("run.json")).map(|kept| kept.plan),
        unread,
    }
}

fn journaled(places: &Places, boot_id: &str, vm: &VmName, unread: &mut Vec<HostError>) -> Journaled {
    let path = places.journal(vm);
    let counted = journal::left(&path, boot_id)
        .and_then(|here| Ok((here, journal::of_other_boot(&path, boot_id)?.len())));
    match counted {
        Ok((0, 0)) => Journaled::Nothing,
        Ok((0, _)) => Journaled::BeforeReboot,
        Ok((count, _)) => Journaled::Open(count),
        Err(error) => {
            unread.push(error);
            Journaled::Unreadable
        }
    }
}

fn files(places: &Places, vm: &VmName, unread: &mut Vec<HostError>) -> Files {
    if places.vm(vm).exists() {
        return Files::Left;
    }
    match list(&places.overlays(vm)) {
        Ok(files) if files.is_empty() => Files::None,
        Ok(_) => Files::Left,
        Err(error) => {
            unread.push(error);
            Files::Left
        }
    }
}

/// What is needed of the moment at which a run began.
#[derive(Deserialize)]
struct Begun {
    at: u64,
}

/// What is needed of what is kept with a run.
#[derive(Deserialize)]
struct Kept {
    plan: Box<Plan>,
}

/// Reads what tells more of a VM, but not where it stands: what another gpuvm has written otherwise is read over.
fn kept<T: for<'a> Deserialize<'a>>(path: &std::path::Path) -> Option<T> {
    let text = read_text(path).ok()??;
    serde_json::from_str(&text).inspect_err(|error| tracing::debug!("{}: {error}", path.display())).ok()
}
