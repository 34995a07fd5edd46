//! One rung.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::is_vfio_driver;
use gpuvm_core::reset::Method;
use gpuvm_core::reset::repair::{Climb, Rung};

use super::finish;
use crate::HostError;
use crate::apply::{self, Host};
use crate::journal::Journal;
use crate::kernel::Kernel;
use crate::kernel_log::{About, listening};
use crate::ops::remove::{REMOVE_DEADLINE, RESCAN_DEADLINE};
use crate::reset::{self, Attempt};
use crate::root::{self, HostRoot, group_of};

/// What came of a rung.
#[derive(Debug)]
pub struct Done {
    /// What the kernel says.
    pub result: Result<(), HostError>,
    /// What it has changed for its time and couldn't put back: where there is any, the rung has failed.
    pub left: Vec<HostError>,
}

/// Returns how long a rung may take at most: then it is given up, and left alone.
pub fn deadline_of(planned: &Climb) -> Duration {
    let count = u32::try_from(planned.functions.len().max(1)).unwrap_or(u32::MAX);
    match planned.rung {
        Rung::Hot => reset::deadline_of_vfio(planned.functions.len()),
        Rung::Subordinate => reset::deadline(planned.functions.len()),
        Rung::Rescan => REMOVE_DEADLINE.saturating_mul(count) + RESCAN_DEADLINE,
    }
}

/// Tries one rung for a device. What it reaches must be in hand, and reserved.
pub fn climb(host: &Host<'_>, journal: &mut Journal, bdf: Bdf, planned: &Climb) -> Done {
    let result = match planned.rung {
        Rung::Hot => hot(host.kernel, bdf, planned),
        Rung::Subordinate => subordinate(host.kernel, bdf, planned),
        Rung::Rescan => return rescan(host, journal, planned),
    };
    Done { result, left: Vec::new() }
}

fn hot(kernel: &Kernel, bdf: Bdf, planned: &Climb) -> Result<(), HostError> {
    let Climb { functions, groups, .. } = planned;
    reset::perform(kernel, &Attempt { bdf, method: Method::Hot, functions, groups }).map(|_| ())
}

/// Has the kernel reset all that is below a bridge. It asks nobody whose that is, so it is looked at once more.
fn subordinate(kernel: &Kernel, bdf: Bdf, planned: &Climb) -> Result<(), HostError> {
    let root = &kernel.root;
    let Some(port) = planned.port else {
        let problem = "no bridge above it is known, and so nothing was reset";
        return Err(HostError::content(&root.device(bdf), "", problem));
    };
    let doing = format!("reset everything below {port}");
    planned.functions.iter().chain([&port]).try_for_each(|bdf| root.lockable(*bdf))?;
    nothing_more(&doing, planned, below(root, port)?)?;
    let about =
        About { devices: planned.functions.iter().copied().chain([port]).collect(), groups: Vec::new() };
    listening(root, about, || {
        kernel.write(&doing, &root.device(port).join("reset_subordinate"), "1", deadline_of(planned))
    })
}

/// Removes the card, has its bus scanned and gives the functions to the drivers that they were on.
fn rescan(host: &Host<'_>, journal: &mut Journal, planned: &Climb) -> Done {
    let removed = remove(host, journal, planned);
    let hangs = matches!(removed, Err(HostError::InFlight { .. }));
    let left = match hangs {
        // It keeps the kernel from any scan until it comes back: cleanup goes on from there.
        true => super::drop_claim(host, journal),
        false => finish(host, journal, &mut |_| {}),
    };
    let result = match removed {
        Ok(()) if left.is_empty() => {
            planned.functions.iter().try_for_each(|bdf| is_usable(&host.kernel.root, *bdf))
        }
        removed => removed,
    };
    Done { result, left }
}

fn remove(host: &Host<'_>, journal: &mut Journal, planned: &Climb) -> Result<(), HostError> {
    let root = &host.kernel.root;
    planned.functions.iter().try_for_each(|bdf| root.lockable(*bdf))?;
    if let Some(first) = planned.functions.first() {
        let card = all(root)?.into_iter().filter(|bdf| bdf.slot() == first.slot());
        nothing_more("remove the card", planned, card.collect())?;
    }
    apply::apply(host, journal, &HostOp::HoldAutoprobe)?;
    // The last first: the others of a card may rest on its first (its sound on its graphics, by device links).
    for bdf in planned.functions.iter().rev().filter(|bdf| root.device(**bdf).exists()) {
        apply::apply(host, journal, &HostOp::Remove { bdf: *bdf, port: planned.port })?;
    }
    Ok(())
}

/// Checks that nothing is reached that wasn't planned.
fn nothing_more(doing: &str, planned: &Climb, reached: Vec<Bdf>) -> Result<(), HostError> {
    match reached.into_iter().find(|bdf| !planned.functions.contains(bdf)) {
        Some(bdf) => Err(HostError::ReachesMore { doing: doing.to_owned(), bdf }),
        None => Ok(()),
    }
}

/// Lists what is below a bridge now, virtual functions included.
fn below(root: &HostRoot, port: Bdf) -> Result<Vec<Bdf>, HostError> {
    let place = |bdf: &Bdf| fs::canonicalize(root.device(*bdf)).unwrap_or_else(|_| PathBuf::new());
    let is_below = |bdf: &Bdf| place(bdf).iter().rev().skip(1).any(|part| *part == *port.to_string());
    Ok(all(root)?.into_iter().filter(is_below).collect())
}

fn all(root: &HostRoot) -> Result<Vec<Bdf>, HostError> {
    let names = root::list(&root.path("/sys/bus/pci/devices"))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Checks that VFIO offers a function that was found anew: its group may have another number now.
fn is_usable(root: &HostRoot, bdf: Bdf) -> Result<(), HostError> {
    let on_vfio = root::driver_of(root, bdf)?.is_some_and(|driver| is_vfio_driver(&driver));
    if !on_vfio {
        return Ok(());
    }
    let node = root.path(format!("/dev/vfio/{}", group_of(root, bdf)?));
    match node.exists() {
        true => Ok(()),
        false => Err(HostError::content(&node, "", format!("VFIO has none for {bdf}, which was found anew"))),
    }
}
