//! The changes to the host, in the order in which they are made; they are undone in the reverse.

use std::collections::BTreeSet;

use super::group::Taken;
use super::{MemoryCell, Ownership, PlannedDisk, PlannedOp};
use crate::facts::HostFacts;
use crate::host_ops::{HostOp, ImageFormat};
use crate::pci::{Bdf, DriverName};
use crate::profile::DiskFormat;
use crate::reset::PlannedReset;

/// Lists all changes.
///
/// Memory comes first: it is what a host most often can't give, and no device is touched for nothing then. Ports are kept awake
/// before the devices below them, and a device before its driver changes.
pub(super) fn in_order(
    cells: &[MemoryCell],
    disks: &[PlannedDisk],
    taken: &[Taken],
    resets: &[PlannedReset],
    facts: &HostFacts,
) -> Vec<PlannedOp> {
    let mut operations = hugepages(cells, facts);
    operations.extend(overlays(disks, facts));
    operations.extend(ports(taken, facts));
    for taken in taken {
        let reset = resets.iter().find(|reset| reset.plan.bdf == taken.bdf);
        operations.extend(of_device(taken, reset, facts));
    }
    operations
}

/// Lists the changes to one function.
///
/// Its reset methods are cut down before its driver changes: the kernel may refuse them, and on the way back a list that can't be
/// restored doesn't keep the device from its driver.
pub(super) fn of_device(taken: &Taken, reset: Option<&PlannedReset>, facts: &HostFacts) -> Vec<PlannedOp> {
    let reason = "a device that sleeps may not wake up for its guest".to_owned();
    let mut operations = vec![PlannedOp { op: HostOp::KeepAwake { bdf: taken.bdf }, reason }];
    if let Some((reset, methods)) = reset.and_then(|reset| Some((reset, reset.methods.clone()?))) {
        let op = HostOp::SetResetMethods { bdf: taken.bdf, methods };
        operations.push(PlannedOp { op, reason: reset.wish.to_string() });
    }
    operations.extend(driver(taken, facts));
    operations
}

/// Lists the claims on hugepages.
fn hugepages(cells: &[MemoryCell], facts: &HostFacts) -> Vec<PlannedOp> {
    let claim = |cell: &MemoryCell| {
        let (page, node) = cell.hugepages.zip(cell.host_node)?;
        let pages = page.pages_for(cell.size);
        let pool =
            facts.nodes.get(&node).and_then(|node| node.hugepages.get(&page)).copied().unwrap_or_default();
        let reason = format!(
            "{} / {page} = {pages}; the pool has {} pages, {} of them free",
            cell.size, pool.total, pool.free
        );
        Some(PlannedOp { op: HostOp::ClaimHugepages { node, page, pages }, reason })
    };
    cells.iter().filter_map(claim).collect()
}

/// Lists the overlays of disks that are to be as they were in the end.
fn overlays(disks: &[PlannedDisk], facts: &HostFacts) -> Vec<PlannedOp> {
    let overlay = |disk: &PlannedDisk| {
        let (path, qemu_img) = disk.overlay.clone().zip(facts.qemu_img.clone())?;
        let format = match disk.disk.format {
            DiskFormat::Raw => ImageFormat::Raw,
            DiskFormat::Qcow2 => ImageFormat::Qcow2,
        };
        let op = HostOp::CreateOverlay { path, backing: disk.disk.path.clone(), format, qemu_img };
        Some(PlannedOp { op, reason: "what the guest writes is thrown away with it".to_owned() })
    };
    disks.iter().filter_map(overlay).collect()
}

/// Lists the claims on the bridges above the devices, from the root ports down.
fn ports(taken: &[Taken], facts: &HostFacts) -> Vec<PlannedOp> {
    let mut seen = BTreeSet::new();
    let mut operations = Vec::new();
    for bdf in taken.iter().map(|taken| taken.bdf) {
        for port in facts.devices.get(&bdf).into_iter().flat_map(|device| device.upstream.iter().copied()) {
            if seen.insert(port) {
                let reason = format!("{bdf} is behind it, and can't be reached while it sleeps");
                operations.push(PlannedOp { op: HostOp::ClaimAwake { port }, reason });
            }
        }
    }
    operations
}

/// Lists the changes that give a function to its VFIO driver; none where it has a VFIO driver already.
///
/// Unbind comes before the override, so that the way back, in reverse, clears the override before the old driver is
/// asked to take the device.
fn driver(taken: &Taken, facts: &HostFacts) -> Vec<PlannedOp> {
    let Ownership::BoundByUs { was } = &taken.ownership else { return Vec::new() };
    let (bdf, driver) = (taken.bdf, taken.vfio.name.clone());
    let mut operations = Vec::new();
    if let Some(was) = was {
        let op = HostOp::Unbind { bdf, driver: was.clone() };
        operations.push(PlannedOp { op, reason: format!("the guest is to own {bdf}") });
    }
    if set_override(bdf, facts) != Some(&driver) {
        let op = HostOp::SetDriverOverride { bdf, driver: driver.clone() };
        operations.push(PlannedOp { op, reason: "no other driver may take it meanwhile".to_owned() });
    }
    operations.push(PlannedOp { op: HostOp::Bind { bdf, driver }, reason: taken.vfio.reason.clone() });
    operations
}

fn set_override(bdf: Bdf, facts: &HostFacts) -> Option<&DriverName> {
    facts.devices.get(&bdf).and_then(|device| device.driver_override.as_ref())
}
