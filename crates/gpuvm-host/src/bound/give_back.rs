//! Gives bound functions back to the drivers that they had.

use std::collections::{BTreeMap, BTreeSet};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::plan::{Refusal, Returning, UnbindPlan, WayBack};
use serde::Serialize;

use super::set::{self, BoundSet};
use super::take::{note_in_flight, settle};
use super::{Step, Told, with_any};
use crate::apply::Host;
use crate::journal::{self, Journal, OpState};
use crate::kernel::Kernel;
use crate::places::Places;
use crate::reservation::{self, Reservation};
use crate::root::driver_of;
use crate::undo::{self, Part};
use crate::{HostError, lock, orphans, vfio};

/// What became of functions that were to be given back.
#[derive(Debug, Serialize)]
pub struct GivenBack {
    /// Those that are, with the drivers that they have now.
    pub devices: BTreeMap<Bdf, Option<DriverName>>,
    /// What is not given back, in words.
    pub not_given_back: Vec<String>,
    /// The same, for those who add remedies.
    #[serde(skip)]
    pub left: Vec<HostError>,
}

/// Gives functions back. What their drivers don't take stays on record.
///
/// # Errors
/// Returns who else is at these devices, and failures to read or write the records.
pub fn unbind(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    plan: &UnbindPlan,
    told: Told<'_>,
) -> Result<GivenBack, HostError> {
    let wanted: BTreeSet<Bdf> = plan.devices.iter().map(|device| device.bdf).collect();
    let mut done = GivenBack { devices: BTreeMap::new(), not_given_back: Vec::new(), left: Vec::new() };
    let Some(first) = wanted.first() else { return Ok(done) };
    let sets = with_any(places, boot_id, &wanted)?;
    let devices = wanted.iter().copied().chain(sets.iter().flat_map(|set| set.devices.keys().copied()));
    let devices: BTreeSet<Bdf> = devices.collect();
    let groups: BTreeSet<_> = plan.devices.iter().filter_map(|device| device.group).collect();
    let reservation =
        Reservation::of_bind(*first, boot_id, groups.into_iter().collect(), devices.into_iter().collect());
    let mut reservation = reservation::reserve_return(places, reservation)?;
    done.left = return_all(kernel, places, boot_id, plan, &wanted, told).unwrap_or_else(|error| vec![error]);
    for error in &mut done.left {
        name_holders(kernel, &reservation, &plan.overruled, error);
        note_in_flight(&mut reservation, error);
    }
    done.left.extend(settle(places, &reservation, told).err());
    done.not_given_back = done.left.iter().map(ToString::to_string).collect();
    let still = with_any(places, boot_id, &wanted)?;
    for bdf in wanted.iter().filter(|bdf| !still.iter().any(|set| set.devices.contains_key(bdf))) {
        done.devices.insert(*bdf, driver_of(&kernel.root, *bdf)?);
    }
    Ok(done)
}

/// Gives functions back that were bound for the time of a reset, or lets them stay bound; the reservation covers them. Returns what could not be
/// given back: that stays on record.
pub fn end_reset(
    kernel: &Kernel,
    places: &Places,
    reservation: &mut Reservation,
    staying: &BTreeSet<Bdf>,
    told: Told<'_>,
) -> Vec<HostError> {
    let of_these: BTreeSet<Bdf> = reservation.devices.iter().copied().collect();
    let end = |set: BoundSet, told: Told<'_>| match set.devices.keys().any(|bdf| staying.contains(bdf)) {
        // From here on cleanup leaves it alone.
        true => {
            let set = BoundSet { leaving: BTreeSet::new(), ..set };
            set.store(places).err().into_iter().collect()
        }
        false => resume(kernel, places, set, told),
    };
    let mut left = match with_any(places, &reservation.boot_id, &of_these) {
        Ok(sets) => {
            let leaving = sets.into_iter().filter(|set| !set.leaving.is_empty());
            leaving.flat_map(|set| end(set, told)).collect()
        }
        Err(error) => vec![error],
    };
    for error in &mut left {
        name_holders(kernel, reservation, &[], error);
        note_in_flight(reservation, error);
    }
    left
}

/// Gives the wanted functions of all sets back, and returns what could not be.
fn return_all(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    plan: &UnbindPlan,
    wanted: &BTreeSet<Bdf>,
    told: Told<'_>,
) -> Result<Vec<HostError>, HostError> {
    let mut left = Vec::new();
    let unknown: Vec<&Returning> =
        plan.devices.iter().filter(|device| matches!(device.way, WayBack::Kernel { .. })).collect();
    if !unknown.is_empty() {
        adopt(places, boot_id, &unknown)?;
    }
    for mut set in with_any(places, boot_id, wanted)? {
        let leaving = set.devices.keys().filter(|bdf| wanted.contains(bdf)).copied();
        set.leaving.extend(leaving.collect::<Vec<_>>());
        // From here on cleanup would go on with it.
        set.store(places)?;
        left.extend(resume(kernel, places, set, told));
    }
    Ok(left)
}

/// Goes on giving back what of a set is leaving, and returns what could not be given back.
pub(super) fn resume(kernel: &Kernel, places: &Places, set: BoundSet, told: Told<'_>) -> Vec<HostError> {
    let journal = match Journal::reopen(&set.journal(places), &set.boot_id) {
        Ok(Some(journal)) => journal,
        // Cut short before its first line: nothing was bound.
        Ok(None) => return set.remove(places).err().into_iter().collect(),
        Err(error) => return vec![error],
    };
    let mut records = journal.open_records();
    records.retain(|record| record.op.bdf().is_some_and(|bdf| set.leaving.contains(&bdf)));
    // A write of this set's own that is on record is waited for by its record.
    if !records.iter().any(|record| matches!(&record.state, OpState::InFlight { child } if child.is_alive()))
        && let Err(error) = orphans::check(&kernel.root, &records)
    {
        return vec![error];
    }
    give_back(kernel, places, set, journal, told)
}

/// Undoes what was done to the functions of a set that are leaving, and returns what could not be undone.
pub(super) fn give_back(
    kernel: &Kernel,
    places: &Places,
    mut set: BoundSet,
    mut journal: Journal,
    told: Told<'_>,
) -> Vec<HostError> {
    let Some(first) = set.devices.keys().next() else {
        return set.remove(places).err().into_iter().collect();
    };
    let (vm, boot_id, baselines) = (super::name(*first), set.boot_id.clone(), set.baselines.clone());
    let host = Host { kernel, places, boot_id: &boot_id, vm: &vm, baselines: &baselines };
    let leaving = set.leaving.clone();
    let part = |op: &HostOp| match op.bdf() {
        Some(bdf) if !leaving.contains(&bdf) => Part::Kept,
        _ => Part::Undone,
    };
    let mut left = undo::undo_some(&host, &mut journal, &part, &mut |op| told(Step::Undo(op)));
    // Somebody has given it back by hand: it has what it is to have.
    left.retain(|error| !by_hand(kernel, &set, error));
    let open: BTreeSet<Bdf> = journal.open_records().iter().filter_map(|record| record.op.bdf()).collect();
    set.leaving.retain(|bdf| open.contains(bdf));
    set.devices.retain(|bdf, _| !leaving.contains(bdf) || open.contains(bdf));
    let kept = match set.devices.is_empty() {
        true => journal.close().and_then(|()| set.remove(places)),
        false => set.store(places),
    };
    left.extend(kept.err());
    left
}

/// Tells whether an error only says that a function has its own driver already.
fn by_hand(kernel: &Kernel, set: &BoundSet, error: &HostError) -> bool {
    let HostError::ChangedByOthers { what, now, .. } = error else { return false };
    set.devices.iter().any(|(bdf, was)| {
        let driver = driver_of(&kernel.root, *bdf).ok().flatten();
        *what == format!("the driver of {bdf}")
            && was.as_ref().is_some_and(|was| was.as_str() == now && driver.as_ref() == Some(was))
    })
}

/// Makes a set of functions that somebody else has bound, so that giving them back survives a crash like any other.
fn adopt(places: &Places, boot_id: &str, devices: &[&Returning]) -> Result<(), HostError> {
    let Some(first) = devices.first() else { return Ok(()) };
    let set = BoundSet {
        name: set::free_name(places, boot_id, first.bdf)?,
        boot_id: boot_id.to_owned(),
        groups: devices
            .iter()
            .filter_map(|device| device.group)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        devices: devices.iter().map(|device| (device.bdf, None)).collect(),
        leaving: devices.iter().map(|device| device.bdf).collect(),
        baselines: BTreeMap::new(),
    };
    journal::remove_dir(&set.folder(places))?;
    lock::make_dir(&set.folder(places))?;
    let mut journal = Journal::begin(&set.journal(places), boot_id)?;
    for device in devices {
        let WayBack::Kernel { operations } = &device.way else { continue };
        for op in operations {
            let seq = journal.intend(op, None)?;
            journal.mark(seq, OpState::Applied)?;
        }
    }
    set.store(places)
}

/// Adds to a write that doesn't come back who has the groups open, and who had the device when it was taken in spite of them.
pub(super) fn name_holders(
    kernel: &Kernel,
    reservation: &Reservation,
    overruled: &[Refusal],
    error: &mut HostError,
) {
    let HostError::InFlight { state, value, .. } = error else { return };
    for refusal in overruled {
        if let Refusal::InUse { bdf, holder, .. } = refusal
            && value.parse().ok().is_none_or(|hangs: Bdf| hangs == *bdf)
        {
            state.push_str(&format!("; {holder}"));
        }
    }
    for group in &reservation.groups {
        if let Ok(Some(holder)) = vfio::group_holder(&kernel.root, *group) {
            state.push_str(&format!("; process {holder} has /dev/vfio/{group} open"));
        }
    }
}
