//! Writes to the kernel that go on although the launcher that began them is dead.
//!
//! The children that wait for the kernel are never signalled and outlive their launcher. One that was killed before its
//! deadline had no time to note them; but each has the attribute that it writes to open, and nothing else. Its name begins as what
//! it writes does: by that, a device that hangs in a driver's `bind` or `unbind` is told from the others of that driver.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;

use crate::HostError;
use crate::journal::{Record, Removed, Saved};
use crate::ops;
use crate::process::{Opener, all_open, find_open};
use crate::root::HostRoot;

/// What a reset has open: an attribute of the device, or VFIO, by a process that is named after the device.
const RESETS: [&str; 2] = ["reset", "reset_method"];
const CONTAINER: &str = "/dev/vfio/vfio";

/// How long a write is waited for: most take a second at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// Checks that nothing is being written that undoing these operations would run into.
///
/// While an unbind hangs, the device's `driver` link is gone and its lock is held: it looks free, and whatever is written to it
/// hangs too.
///
/// # Errors
/// Returns the write that goes on, with the process that waits in it, and that processes can't be listed.
pub fn check(root: &HostRoot, records: &[Record]) -> Result<(), HostError> {
    let mut attributes: BTreeMap<PathBuf, Vec<&HostOp>> = BTreeMap::new();
    for record in records {
        // What isn't there can't be written to.
        let mut paths: Vec<PathBuf> = attributes_of(root, &record.op)
            .into_iter()
            .filter_map(|path| fs::canonicalize(path).ok())
            .collect();
        paths.extend(removals(root, &record.op));
        if let Some(Saved::Removed(Removed { driver: Some(driver), .. })) = &record.saved {
            paths.extend(fs::canonicalize(root.driver(driver).join("bind")).ok());
        }
        for real in paths {
            attributes.entry(real).or_default().push(&record.op);
        }
    }
    let begun = Instant::now();
    while let Some(Orphan { op, path, pid }) = find(&attributes)? {
        if begun.elapsed() > PATIENCE {
            return Err(HostError::InFlight {
                doing: op.to_string(),
                path,
                value: String::new(),
                seconds: PATIENCE.as_secs(),
                pid,
                state: crate::process::describe(pid),
                said: Box::default(),
            });
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// How long a write may take that is none to be told of: a reset at bind takes 100 ms.
const ORDINARY: Duration = Duration::from_millis(300);

/// Finds the functions that are being bound, unbound, removed or reset by a child of any gpuvm, with the child, where that takes longer than it
/// mostly does: the device's lock is held until it comes back, whether or not there was time to note it.
///
/// # Errors
/// Returns that processes can't be listed.
pub(crate) fn lasting_writers(root: &HostRoot) -> Result<BTreeMap<Bdf, i32>, HostError> {
    let mut found = writers(root)?;
    if !found.is_empty() {
        sleep(ORDINARY);
        let later = writers(root)?;
        found.retain(|bdf, pid| later.get(bdf) == Some(pid));
    }
    Ok(found)
}

fn writers(root: &HostRoot) -> Result<BTreeMap<Bdf, i32>, HostError> {
    let Ok(bus) = fs::canonicalize(root.path("/sys/bus/pci")) else { return Ok(BTreeMap::new()) };
    let probe = Path::new(ops::adopt::PROBE).file_name();
    let takes_lock = |file: &Path| {
        let name = file.file_name();
        file.starts_with(&bus)
            && (name == probe || name == Some("bind".as_ref()) || name == Some("unbind".as_ref()))
    };
    let container = fs::canonicalize(root.path(CONTAINER)).ok();
    let resets = |bdf: &Bdf, file: &Path| {
        let of_device = file.parent().and_then(Path::file_name) == Some(bdf.to_string().as_ref());
        let name = file.file_name().and_then(|name| name.to_str());
        (of_device && name.is_some_and(|name| RESETS.contains(&name))) || container.as_deref() == Some(file)
    };
    // What isn't called as its device is: all that can be written to remove one, or to reset what is below a port, is `1`.
    let named = |name: &str| (name == "1").then_some(None).or_else(|| name.parse().ok().map(Some));
    let of = |opener: &Opener, name: &Option<Bdf>, file: &Path| match name {
        Some(bdf) => (takes_lock(file) || resets(bdf, file)).then_some((*bdf, opener.pid)),
        None => removed(root, file).map(|bdf| (bdf, opener.pid)),
    };
    let mut found: BTreeMap<Bdf, i32> = all_open(named, of)?.into_iter().collect();
    // A reset of all that is below a port has the locks of all of that.
    let below = |opener: &Opener, _: &(), file: &Path| Some((reset_below(root, file), opener.pid));
    for (functions, pid) in all_open(|name| (name == "1").then_some(()), below)? {
        found.extend(functions.into_iter().map(|bdf| (bdf, pid)));
    }
    Ok(found)
}

/// Lists what is reset by a write to this file, if it is a port's `reset_subordinate`.
fn reset_below(root: &HostRoot, file: &Path) -> Vec<Bdf> {
    let Some(port) = file.parent().filter(|_| file.ends_with(SUBORDINATE)) else { return Vec::new() };
    let names = crate::root::list(&root.path("/sys/bus/pci/devices")).unwrap_or_default();
    let functions = names.iter().filter_map(|name| name.parse().ok());
    let is_below =
        |bdf: &Bdf| fs::canonicalize(root.device(*bdf)).is_ok_and(|at| at != port && at.starts_with(port));
    functions.filter(is_below).collect()
}

/// The attribute of a port that resets everything below it.
const SUBORDINATE: &str = "reset_subordinate";

/// What a process has open that removes a device: the kernel takes the attribute away first, and its place may be gone too.
fn removals(root: &HostRoot, op: &HostOp) -> Vec<PathBuf> {
    let HostOp::Remove { bdf, port } = op else { return Vec::new() };
    let above =
        port.map_or_else(|| root.path(format!("/sys/devices/pci{}", bdf.bus())), |port| root.device(port));
    let place = |above: PathBuf| above.join(bdf.to_string()).join(REMOVE);
    let Ok(place) = fs::canonicalize(above).map(place) else { return Vec::new() };
    let mut deleted = place.clone().into_os_string();
    deleted.push(DELETED);
    vec![place, deleted.into()]
}

/// The attribute that removes a device.
const REMOVE: &str = "remove";
/// What the kernel adds to the path of an open file whose name is gone (d_path of fs/d_path.c).
const DELETED: &str = " (deleted)";

/// Finds the function whose attribute `remove` this is.
fn removed(root: &HostRoot, file: &Path) -> Option<Bdf> {
    let own = file.file_name()?.to_str()?;
    let devices = fs::canonicalize(root.path("/sys/devices")).ok()?;
    let is_it = own.strip_suffix(DELETED).unwrap_or(own) == REMOVE && file.starts_with(devices);
    is_it.then(|| file.parent()?.file_name()?.to_str()?.parse().ok())?
}

/// Lists what is written to make or undo an operation.
fn attributes_of(root: &HostRoot, op: &HostOp) -> Vec<PathBuf> {
    let of_device = |bdf, names: &[&str]| names.iter().map(|name| root.device(bdf).join(name)).collect();
    match op {
        HostOp::ClaimHugepages { node, page, .. } => {
            vec![root.hugepage_pool(*node, *page).join("nr_hugepages")]
        }
        HostOp::CreateOverlay { .. } => Vec::new(),
        HostOp::ClaimAwake { port: bdf } | HostOp::KeepAwake { bdf } => {
            of_device(*bdf, &["power/control", "d3cold_allowed"])
        }
        HostOp::Adopt { bdf } => [vec![root.path(ops::adopt::PROBE)], resets_of(root, *bdf)].concat(),
        HostOp::SetResetMethods { bdf, .. } => of_device(*bdf, &["reset_method"]),
        HostOp::HoldAutoprobe => vec![root.path(ops::hold_autoprobe::AUTOPROBE)],
        HostOp::Remove { bdf, .. } => {
            let scan = ops::remove::rescan_of(root, bdf.bus());
            let own = ["driver_override", "reset_method", "power/control", "d3cold_allowed"];
            [vec![scan], of_device(*bdf, &own)].concat()
        }
        HostOp::SetDriverOverride { bdf, .. } => of_device(*bdf, &["driver_override"]),
        HostOp::Unbind { bdf, driver } | HostOp::Bind { bdf, driver } => {
            let writes = ["bind", "unbind"].map(|name| root.driver(driver).join(name)).to_vec();
            [writes, resets_of(root, *bdf)].concat()
        }
    }
}

/// Lists what a reset of a device would have open: its lock is held meanwhile.
fn resets_of(root: &HostRoot, bdf: Bdf) -> Vec<PathBuf> {
    let attributes = RESETS.map(|name| root.device(bdf).join(name));
    let above = fs::canonicalize(root.device(bdf)).ok();
    let port = above.as_deref().and_then(Path::parent).map(|port| port.join(SUBORDINATE));
    attributes.into_iter().chain([root.path(CONTAINER)]).chain(port).collect()
}

/// A write that goes on.
struct Orphan<'a> {
    /// The operation that it is in the way of.
    op: &'a HostOp,
    path: PathBuf,
    pid: i32,
}

/// Finds a process that writes to one of these attributes for one of the operations.
fn find<'a>(attributes: &BTreeMap<PathBuf, Vec<&'a HostOp>>) -> Result<Option<Orphan<'a>>, HostError> {
    find_open(|opener, path| {
        let (ops, name) = (attributes.get(path)?, opener.name());
        // QEMU has VFIO open too, and isn't called as a device.
        let vfio = path.ends_with("dev/vfio/vfio") && name.parse::<Bdf>().is_err();
        let op = ops.iter().find(|op| !vfio && may_be_for(&name, op))?;
        Some(Orphan { op, path: path.to_owned(), pid: opener.pid })
    })
}

/// Tells whether a process of this name may write for an operation: one that is named after another device doesn't.
fn may_be_for(name: &str, op: &HostOp) -> bool {
    match (op, name.parse::<Bdf>()) {
        (
            HostOp::Adopt { bdf }
            | HostOp::Unbind { bdf, .. }
            | HostOp::Bind { bdf, .. }
            | HostOp::Remove { bdf, .. },
            Ok(written),
        ) => *bdf == written,
        _ => true,
    }
}
