//! Goes on with what a bind or unbind that died has begun.

use gpuvm_core::pci::Bdf;
use serde::Serialize;

use super::give_back::{name_holders, resume};
use super::set::{self, BoundSet};
use super::take::{note_in_flight, settle};
use super::{Step, Told};
use crate::HostError;
use crate::kernel::Kernel;
use crate::places::Places;
use crate::repair::book;
use crate::reservation::{self, Owner, Reservation};

/// What became of what a bind or unbind has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cleaned {
    /// It is under way: nothing was touched.
    Running,
    /// Everything is given back.
    Done,
    /// Something could not be given back: it is stranded, or still under way in the kernel.
    Left,
}

/// What became of one set's remains, with what is left.
#[derive(Debug, Serialize)]
pub struct BoundReport {
    /// The functions that were to be given back.
    pub bind: Vec<Bdf>,
    /// What became of them.
    pub result: Cleaned,
    /// What was removed of before a reboot, in words.
    pub cleared: Vec<String>,
    /// What is left, in words.
    pub not_given_back: Vec<String>,
    /// The same, for those who add remedies.
    #[serde(skip)]
    pub left: Vec<HostError>,
}

impl BoundReport {
    /// Says that nobody knows what is left: the records can't be read.
    pub fn failed(error: HostError) -> Self {
        report(Vec::new(), Vec::new(), vec![error])
    }
}

/// Gives back what is leaving and nobody sees to: binds that were cut short, unbinds that were, and functions that are stranded. What
/// is bound and stands is left alone.
///
/// # Errors
/// Returns records that can't be read.
pub fn cleanup(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    told: Told<'_>,
) -> Result<Vec<BoundReport>, HostError> {
    let mut reports = finish_repairs(kernel, places, boot_id, told)?;
    let leaving = |set: &BoundSet| set.boot_id == boot_id && !set.leaving.is_empty();
    for set in set::all(places)?.into_iter().filter(leaving) {
        reports.extend(clean(kernel, places, set, told));
    }
    let damaged = set::damaged(places)?;
    reports.extend(
        damaged
            .into_iter()
            .map(|(first, error)| report(first.into_iter().collect(), Vec::new(), vec![error])),
    );
    // A bind that begins takes over the folders of both.
    let cleared = reservation::clear_binds(places, boot_id, || {
        set::clear_unmade(places)?;
        book::clear_closed(places, boot_id)?;
        clear_of_before(places, boot_id)
    })?;
    reports.extend(cleared.into_iter().flatten());
    Ok(reports)
}

/// Finishes the repairs that died and that no VM's journal tells of: what was removed is found anew, and is what it was. Whoever gives
/// anything back calls this first.
///
/// # Errors
/// Returns records that can't be read.
pub fn finish_repairs(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    told: Told<'_>,
) -> Result<Vec<BoundReport>, HostError> {
    let mut reports = Vec::new();
    for (first, functions) in book::open(places, boot_id)? {
        let functions: Vec<Bdf> = functions.into_iter().collect();
        let wanted = Reservation::of_reset(first, boot_id, Vec::new(), functions.clone(), Vec::new());
        let mut reservation = match reservation::reserve_return(places, wanted) {
            Ok(reservation) => reservation,
            Err(HostError::Reserved { .. }) => {
                reports.push(BoundReport {
                    result: Cleaned::Running,
                    ..report(functions, Vec::new(), Vec::new())
                });
                continue;
            }
            Err(error) => {
                reports.push(report(functions, Vec::new(), vec![error]));
                continue;
            }
        };
        let resumed = book::resume((kernel, places, boot_id), first, &mut |op| told(Step::Undo(op)));
        let mut left = resumed.unwrap_or_else(|error| vec![error]);
        for error in &mut left {
            name_holders(kernel, &reservation, &[], error);
            note_in_flight(&mut reservation, error);
        }
        left.extend(settle(places, &reservation, told).err());
        reports.push(report(functions, Vec::new(), left));
    }
    Ok(reports)
}

/// Removes the records of before a reboot: the kernel that was changed is gone.
fn clear_of_before(places: &Places, boot_id: &str) -> Result<Vec<BoundReport>, HostError> {
    let before = set::all(places)?.into_iter().filter(|set| set.boot_id != boot_id);
    let clear = |set: BoundSet| {
        let cleared = format!("the record of what was bound with {} before the reboot", set.name);
        let left: Vec<HostError> = set.remove(places).err().into_iter().collect();
        report(set.devices.into_keys().collect(), vec![cleared], left)
    };
    Ok(before.map(clear).collect())
}

fn report(bind: Vec<Bdf>, cleared: Vec<String>, left: Vec<HostError>) -> BoundReport {
    let result = if left.is_empty() { Cleaned::Done } else { Cleaned::Left };
    let not_given_back = left.iter().map(ToString::to_string).collect();
    BoundReport { bind, result, cleared, not_given_back, left }
}

/// Gives back what of a set is leaving; nothing is told of one that somebody has seen to since it was read.
fn clean(kernel: &Kernel, places: &Places, set: BoundSet, told: Told<'_>) -> Option<BoundReport> {
    let leaving: Vec<Bdf> = set.leaving.iter().copied().collect();
    let devices: Vec<Bdf> = set.devices.keys().copied().collect();
    let first = leaving.first()?;
    let wanted = Reservation::of_bind(*first, &set.boot_id, set.groups.clone(), devices);
    let mut reservation = match reservation::reserve_return(places, wanted) {
        Ok(reservation) => reservation,
        Err(HostError::Reserved { owner: Owner::Bind(_) | Owner::Reset(_), .. }) => {
            return Some(BoundReport { result: Cleaned::Running, ..report(leaving, Vec::new(), Vec::new()) });
        }
        Err(error) => return Some(report(leaving, Vec::new(), vec![error])),
    };
    // Whoever made it may have come to its end between the look and the reservation: then it stands, and isn't to be touched.
    let known = |set: &BoundSet| set.devices.keys().all(|bdf| reservation.devices.contains(bdf));
    let mut left = match set::again(places, &set) {
        Ok(Some(set)) if !set.leaving.is_empty() && known(&set) => resume(kernel, places, set, told),
        Ok(_) => {
            let kept = settle(places, &reservation, told).err()?;
            return Some(report(leaving, Vec::new(), vec![kept]));
        }
        Err(error) => vec![error],
    };
    for error in &mut left {
        name_holders(kernel, &reservation, &[], error);
        note_in_flight(&mut reservation, error);
    }
    left.extend(settle(places, &reservation, told).err());
    Some(report(leaving, Vec::new(), left))
}
