//! Binds what was planned, all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::plan::{BindPlan, Ownership, PlannedSet};

use super::give_back::give_back;
use super::set::{self, BoundSet};
use super::{Step, Told, with_any};
use crate::apply::{self, Host};
use crate::journal::{self, Journal, OpState};
use crate::kernel::Kernel;
use crate::places::Places;
use crate::process::ProcessId;
use crate::reservation::{self, Reservation};
use crate::root::driver_of;
use crate::{HostError, config};

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
    let devices: Vec<Bdf> = plan.sets.iter().flat_map(|set| set.devices.iter().copied()).collect();
    let Some(first) = devices.first() else { return Ok(()) };
    let groups = plan.sets.iter().flat_map(|set| set.groups.iter().copied()).collect();
    let mut reservation = Reservation::of_bind(*first, boot_id, groups, devices.clone());
    reservation::reserve(places, &reservation)?;
    let begun = begin(kernel, places, boot_id, plan, &devices);
    let mut sets = begun.map_err(|cause| given_up(places, &reservation, cause))?;
    let made = sets.iter_mut().zip(&plan.sets).try_for_each(|((set, journal), planned)| {
        let vm = super::name(*first);
        let host = Host { kernel, places, boot_id, vm: &vm, baselines: &set.baselines };
        planned.operations.iter().try_for_each(|planned| {
            told(Step::Apply(&planned.op));
            apply::apply(&host, journal, &planned.op)
        })
    });
    let Err(cause) = made else {
        for (set, _) in &mut sets {
            set.leaving.clear();
            set.store(places)?;
        }
        told(Step::Release);
        return Ok(reservation::release_bind(places, &reservation)?);
    };
    note_in_flight(&mut reservation, &cause);
    let mut left = Vec::new();
    for (set, journal) in sets.into_iter().rev() {
        left.extend(give_back(kernel, places, set, journal, told));
    }
    // What hangs is told once.
    left.retain(|error| in_flight(error).is_none() || in_flight(error) != in_flight(&cause));
    left.iter().for_each(|error| note_in_flight(&mut reservation, error));
    left.extend(settle(places, &reservation, told).err());
    Err(BindError { cause: Box::new(cause), left })
}

fn given_up(places: &Places, reservation: &Reservation, cause: HostError) -> BindError {
    BindError {
        cause: Box::new(cause),
        left: reservation::release_bind(places, reservation).err().into_iter().collect(),
    }
}

/// Gives a reservation up, unless something of it is still to be given back.
pub(super) fn settle(places: &Places, reservation: &Reservation, told: Told<'_>) -> Result<(), HostError> {
    if super::left(places, &reservation.boot_id, &reservation.devices)? > 0 {
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
        baselines.insert(device.bdf, config::snapshot(&kernel.root, device.bdf)?);
    }
    forget(places, boot_id, &devices)?;
    let mut sets: Vec<(BoundSet, Journal)> = Vec::new();
    for planned in &plan.sets {
        let made = make(places, boot_id, planned, &was, &baselines);
        match made {
            Ok(made) => sets.push(made),
            Err(error) => {
                sets.iter().try_for_each(|(set, _)| set.remove(places))?;
                return Err(error);
            }
        }
    }
    Ok(sets)
}

fn make(
    places: &Places,
    boot_id: &str,
    planned: &PlannedSet,
    was: &BTreeMap<Bdf, Option<DriverName>>,
    baselines: &BTreeMap<Bdf, gpuvm_core::reset::Snapshot>,
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
        baselines: devices.iter().filter_map(|bdf| Some((*bdf, *baselines.get(bdf)?))).collect(),
    };
    // A folder without a record, or of another boot, is of no use to anybody.
    journal::remove_dir(&set.folder(places))?;
    set.store(places)?;
    let journal = Journal::begin(&set.journal(places), boot_id)?;
    Ok((set, journal))
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

/// Strikes out what was bound before and isn't any more: somebody has taken it from VFIO by hand, and there is nothing to give
/// back.
fn forget(places: &Places, boot_id: &str, devices: &BTreeSet<Bdf>) -> Result<(), HostError> {
    for mut set in with_any(places, boot_id, devices)? {
        if let Some(mut journal) = Journal::reopen(&set.journal(places), boot_id)? {
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
