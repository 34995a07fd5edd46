//! Binds what was planned, all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::plan::{BindPlan, Ownership, PlannedSet};

use super::give_back::{give_back, name_holders};
use super::set::{self, BoundSet};
use super::{Step, Told, intact, with_any};
use crate::apply::{self, Host};
use crate::journal::{self, Journal, OpState, Record};
use crate::kernel::Kernel;
use crate::places::Places;
use crate::process::ProcessId;
use crate::reservation::{self, Reservation};
use crate::root::driver_of;
use crate::{HostError, snapshot};

/// Why nothing was bound, and what of the host could not be put back.
#[derive(Debug)]
pub struct BindError {
    /// Why.
    pub cause: Box<HostError>,
    /// What is not as it was.
    pub left: Vec<HostError>,
}

impl From<HostError> for BindError {
    fn from(cause: HostError) -> Self {
        Self { cause: Box::new(cause), left: Vec::new() }
    }
}

/// Binds what was planned. On a failure everything is put back as it was.
///
/// # Errors
/// Returns who else is at these devices, and what failed with what could not be put back: that stays on record.
pub fn bind(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    plan: &BindPlan,
    told: Told<'_>,
) -> Result<(), BindError> {
    // What is bound already by a record that makes no sense couldn't be given back.
    intact(places, &plan.devices.iter().map(|device| device.bdf).collect::<Vec<_>>())?;
    let devices: Vec<Bdf> = plan.sets.iter().flat_map(|set| set.devices.iter().copied()).collect();
    let Some(first) = devices.first() else { return Ok(()) };
    let groups = plan.sets.iter().flat_map(|set| set.groups.iter().copied()).collect();
    let mut reservation = Reservation::of_bind(*first, boot_id, groups, devices);
    reservation::reserve(places, &reservation)?;
    bind_reserved(kernel, places, plan, &mut reservation, Stay::Bound, told)?;
    told(Step::Release);
    Ok(reservation::release_bind(places, &reservation)?)
}

/// Binds what was planned for the time of a reset, for which everything is reserved already. What was bound is on record as leaving: if
/// this process dies, cleanup gives it back.
///
/// # Errors
/// As [`bind`]; then the reservation is given up as far as nothing is left.
pub fn bind_for_reset(
    kernel: &Kernel,
    places: &Places,
    plan: &BindPlan,
    reservation: &mut Reservation,
    told: Told<'_>,
) -> Result<(), BindError> {
    bind_reserved(kernel, places, plan, reservation, Stay::Leaving, told)
}

/// How what was bound is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// It stays, until somebody gives it back.
    Bound,
    /// It is given back by this process, or by cleanup.
    Leaving,
}

fn bind_reserved(
    kernel: &Kernel,
    places: &Places,
    plan: &BindPlan,
    reservation: &mut Reservation,
    stay: Stay,
    told: Told<'_>,
) -> Result<(), BindError> {
    let devices: Vec<Bdf> = plan.sets.iter().flat_map(|set| set.devices.iter().copied()).collect();
    let Some(first) = devices.first() else { return Ok(()) };
    let boot_id = &reservation.boot_id.clone();
    let begun = begin(kernel, places, boot_id, plan, &devices);
    let mut sets = begun.map_err(|cause| given_up(places, reservation, cause))?;
    let made = sets.iter_mut().zip(&plan.sets).try_for_each(|((set, journal), planned)| {
        let vm = super::name(*first);
        let host = Host { kernel, places, boot_id, vm: &vm, baselines: &set.baselines };
        planned.operations.iter().try_for_each(|planned| {
            told(Step::Apply(&planned.op));
            apply::apply(&host, journal, &planned.op)
        })
    });
    let made = made.and_then(|()| match stay {
        Stay::Bound => stand(places, &sets),
        Stay::Leaving => Ok(()),
    });
    let Err(mut cause) = made else { return Ok(()) };
    name_holders(kernel, reservation, &plan.overruled, &mut cause);
    note_in_flight(reservation, &cause);
    let mut left = Vec::new();
    for (set, journal) in sets.into_iter().rev() {
        left.extend(give_back(kernel, places, set, journal, told));
    }
    // What hangs is told once.
    left.retain(|error| in_flight(error).is_none() || in_flight(error) != in_flight(&cause));
    left.iter().for_each(|error| note_in_flight(reservation, error));
    left.extend(settle(places, reservation, told).err());
    Err(BindError { cause: Box::new(cause), left })
}

/// Notes that sets stand: from here on cleanup leaves them alone. Where that can't be written they leave again.
fn stand(places: &Places, sets: &[(BoundSet, Journal)]) -> Result<(), HostError> {
    let stood = sets
        .iter()
        .try_for_each(|(set, _)| BoundSet { leaving: BTreeSet::new(), ..set.clone() }.store(places));
    if stood.is_err() {
        for (set, _) in sets {
            // The failure itself is what is told; those that never stood are on record as leaving.
            if let Err(error) = set.store(places) {
                tracing::warn!("{} is given back, and its record doesn't say so: {error}", set.name);
            }
        }
    }
    stood
}

fn given_up(places: &Places, reservation: &Reservation, cause: HostError) -> BindError {
    BindError {
        cause: Box::new(cause),
        left: reservation::release_bind(places, reservation).err().into_iter().collect(),
    }
}

/// Gives a reservation up, unless something of it is still to be given back.
///
/// # Errors
/// Returns failures to read or write the records.
pub fn settle(places: &Places, reservation: &Reservation, told: Told<'_>) -> Result<(), HostError> {
    let waits = reservation.in_flight.iter().any(|child| child.is_alive());
    if waits || super::left(places, &reservation.boot_id, &reservation.devices)? > 0 {
        return reservation::update(places, reservation);
    }
    told(Step::Release);
    reservation::release_bind(places, reservation)
}

pub(super) fn in_flight(error: &HostError) -> Option<i32> {
    match error {
        HostError::InFlight { pid, .. } => Some(*pid),
        _ => None,
    }
}

pub(super) fn note_in_flight(reservation: &mut Reservation, error: &HostError) {
    reservation.in_flight.extend(in_flight(error).and_then(ProcessId::of));
}

/// Looks at the devices and makes the records. Where this fails nothing was changed, and no record is left.
fn begin(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    plan: &BindPlan,
    devices: &[Bdf],
) -> Result<Vec<(BoundSet, Journal)>, HostError> {
    let devices: BTreeSet<Bdf> = devices.iter().copied().collect();
    let mut was = BTreeMap::new();
    let mut baselines = BTreeMap::new();
    for device in plan.devices.iter().filter(|device| devices.contains(&device.bdf)) {
        let Ownership::BoundByUs { was: driver } = &device.ownership else { continue };
        unchanged(kernel, device.bdf, driver.as_ref())?;
        was.insert(device.bdf, driver.clone());
        baselines.insert(device.bdf, snapshot::take(&kernel.root, device.bdf));
    }
    let old = with_any(places, boot_id, &devices)?;
    let changes = carried(places, &old, &devices, &mut was)?;
    let mut sets: Vec<(BoundSet, Journal)> = Vec::new();
    let made = plan.sets.iter().try_for_each(|planned| {
        sets.push(make(places, boot_id, planned, &was, &baselines, &changes)?);
        Ok(())
    });
    match made.and_then(|()| forget(places, old, &devices)) {
        Ok(()) => Ok(sets),
        Err(error) => {
            sets.iter().try_for_each(|(set, _)| set.remove(places))?;
            Err(error)
        }
    }
}

/// Returns what was done to these functions when they were bound before, and is still to be undone, first to last: somebody has taken
/// them from VFIO by hand since. One that was left without a driver is to have the one that it had before that.
fn carried(
    places: &Places,
    old: &[BoundSet],
    devices: &BTreeSet<Bdf>,
    was: &mut BTreeMap<Bdf, Option<DriverName>>,
) -> Result<Vec<Record>, HostError> {
    let mut changes = Vec::new();
    for set in old {
        for (bdf, before) in &set.devices {
            if let Some(now @ None) = was.get_mut(bdf) {
                now.clone_from(before);
            }
        }
        let of_these = |record: &Record| record.op.bdf().is_some_and(|bdf| devices.contains(&bdf));
        let open = journal::open_of(&set.journal(places), &set.boot_id)?.into_iter().rev();
        changes.extend(open.filter(of_these).filter(|record| !matches!(record.op, HostOp::Bind { .. })));
    }
    Ok(changes)
}

fn make(
    places: &Places,
    boot_id: &str,
    planned: &PlannedSet,
    was: &BTreeMap<Bdf, Option<DriverName>>,
    baselines: &BTreeMap<Bdf, gpuvm_core::reset::Snapshot>,
    changes: &[Record],
) -> Result<(BoundSet, Journal), HostError> {
    let devices = &planned.devices;
    let Some(first) = devices.first() else {
        return Err(HostError::content(&places.bound(), "", "a set without functions"));
    };
    let set = BoundSet {
        name: set::free_name(places, boot_id, *first)?,
        boot_id: boot_id.to_owned(),
        groups: planned.groups.clone(),
        devices: devices.iter().map(|bdf| (*bdf, was.get(bdf).cloned().flatten())).collect(),
        leaving: devices.iter().copied().collect(),
        baselines: devices.iter().filter_map(|bdf| Some((*bdf, baselines.get(bdf)?.clone()))).collect(),
    };
    // A folder without a record, or of another boot, is of no use to anybody.
    journal::remove_dir(&set.folder(places))?;
    let begun = set.store(places).and_then(|()| {
        let mut journal = Journal::begin(&set.journal(places), boot_id)?;
        let ours = |record: &&Record| record.op.bdf().is_some_and(|bdf| set.devices.contains_key(&bdf));
        for record in changes.iter().filter(ours) {
            let seq = journal.intend(&record.op, record.saved.clone())?;
            journal.mark(seq, OpState::Applied)?;
        }
        Ok(journal)
    });
    match begun {
        Ok(journal) => Ok((set, journal)),
        Err(error) => {
            // Nothing is done yet, and cleanup isn't to undo what was carried over.
            set.remove(places)?;
            Err(error)
        }
    }
}

/// Checks that a device is as it was planned.
fn unchanged(kernel: &Kernel, bdf: Bdf, planned: Option<&DriverName>) -> Result<(), HostError> {
    let now = driver_of(&kernel.root, bdf)?;
    if now.as_ref() == planned {
        return Ok(());
    }
    let words =
        |driver: Option<&DriverName>| driver.map_or("no driver".to_owned(), |d| format!("driver {d}"));
    Err(HostError::Stale { bdf, planned: words(planned), now: words(now.as_ref()) })
}

/// Strikes out what was bound before and isn't any more: what of it is still to be undone is on the new record.
fn forget(places: &Places, old: Vec<BoundSet>, devices: &BTreeSet<Bdf>) -> Result<(), HostError> {
    for mut set in old {
        if let Some(mut journal) = Journal::reopen(&set.journal(places), &set.boot_id)? {
            let gone = |op: &HostOp| op.bdf().is_some_and(|bdf| devices.contains(&bdf));
            for record in journal.open_records().iter().filter(|record| gone(&record.op)) {
                journal.mark(record.seq, OpState::Undone)?;
            }
        }
        set.devices.retain(|bdf, _| !devices.contains(bdf));
        if set.devices.is_empty() { set.remove(places)? } else { set.store(places)? }
    }
    Ok(())
}
