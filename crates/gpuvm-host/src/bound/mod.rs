//! What `gpuvm bind` has bound, and how it is given back.
//!
//! Functions that belong together are a set, with a folder of its own: what they were, and the journal of how they were bound. It
//! outlives the process that made it, and nobody undoes it but `gpuvm unbind`. A set says which of its functions are *leaving*:
//! all of them until it is whole, none while it stands, and those that are being given back. What is leaving and has no process
//! any more that sees to it is given back by `gpuvm cleanup`; a function that its driver doesn't take stays, and is stranded.
//!
//! A reservation is held only while something changes, so that a VM may use what is bound.

mod cleanup;
mod give_back;
mod set;
mod take;

use std::collections::{BTreeMap, BTreeSet};

use gpuvm_core::facts::BoundFacts;
use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;

pub use self::cleanup::{BoundReport, Cleaned, cleanup, finish_repairs};
pub use self::give_back::{GivenBack, end_reset, unbind};
use self::set::BoundSet;
pub use self::take::{BindError, bind, bind_for_reset, settle};
use crate::HostError;
use crate::journal::{self, OpState};
use crate::places::Places;
use crate::repair::book;

/// A step on the way, told when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// An operation is made.
    Apply(&'a HostOp),
    /// An operation is undone.
    Undo(&'a HostOp),
    /// All is done, and the reservation is given up.
    Release,
}

/// Who is told of the steps.
pub type Told<'a> = &'a mut dyn FnMut(Step<'_>);

/// Stands for a VM's name where an operation is made for none; it claims nothing.
pub(crate) fn name(first: Bdf) -> VmName {
    // Digits, dashes and a dot: always a name.
    let name = VmName::new(&first.to_string().replace(':', "-"));
    name.unwrap_or_else(|| unreachable!("an address without colons is a name"))
}

/// Counts what is left to undo of functions that are leaving, and what a repair has left of them.
///
/// # Errors
/// Returns records that can't be read.
pub(crate) fn left(places: &Places, boot_id: &str, devices: &[Bdf]) -> Result<usize, HostError> {
    intact(places, devices)?;
    let mut count = 0;
    for set in set::all(places)?.into_iter().filter(|set| set.boot_id == boot_id) {
        count += set.leaving.iter().filter(|bdf| devices.contains(bdf)).count();
    }
    for functions in book::open(places, boot_id)?.values() {
        count += functions.iter().filter(|bdf| devices.contains(bdf)).count();
    }
    Ok(count)
}

/// Returns every function that is bound, with the driver that it had; and why it is stranded, where it is.
///
/// # Errors
/// Returns records that can't be read.
pub fn bound(places: &Places, boot_id: &str) -> Result<BTreeMap<Bdf, BoundFacts>, HostError> {
    let mut found = BTreeMap::new();
    for set in set::all(places)?.into_iter().filter(|set| set.boot_id == boot_id) {
        let (messages, damage) = match stuck(places, &set) {
            // What the others are is known all the same.
            Err(error @ HostError::Content { .. }) => (BTreeMap::new(), Some(error.to_string())),
            messages => (messages?, None),
        };
        for (bdf, was) in &set.devices {
            let stranded =
                messages.get(bdf).filter(|_| set.leaving.contains(bdf)).cloned().or_else(|| damage.clone());
            found.insert(*bdf, BoundFacts { was: was.clone(), stranded });
        }
    }
    Ok(found)
}

/// Returns the records that make no sense, with the function that each is named by: what was done to it isn't known.
///
/// # Errors
/// Returns records that can't be read.
pub fn damaged(places: &Places) -> Result<Vec<(Option<Bdf>, HostError)>, HostError> {
    set::damaged(places)
}

/// Checks that what is on record of these functions makes sense.
///
/// # Errors
/// Returns the record that doesn't, and records that can't be read.
pub(crate) fn intact(places: &Places, devices: &[Bdf]) -> Result<(), HostError> {
    let of_these = |(first, _): &(Option<Bdf>, _)| first.is_some_and(|bdf| devices.contains(&bdf));
    match set::damaged(places)?.into_iter().find(of_these) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Returns why functions of a set could not be given back, as the journal says.
fn stuck(places: &Places, set: &BoundSet) -> Result<BTreeMap<Bdf, String>, HostError> {
    let records = journal::open_of(&set.journal(places), &set.boot_id)?;
    let message = |record: journal::Record| match record.state {
        OpState::Stuck { message } => Some((record.op.bdf()?, message)),
        OpState::InFlight { child } => {
            let state = crate::process::describe(child.pid);
            Some((record.op.bdf()?, format!("{} goes on in process {} ({state})", record.op, child.pid)))
        }
        _ => None,
    };
    Ok(records.into_iter().filter_map(message).collect())
}

/// Returns the sets that have any of these functions.
fn with_any(places: &Places, boot_id: &str, devices: &BTreeSet<Bdf>) -> Result<Vec<BoundSet>, HostError> {
    let mut sets = set::all(places)?;
    sets.retain(|set| set.boot_id == boot_id && set.devices.keys().any(|bdf| devices.contains(bdf)));
    Ok(sets)
}
