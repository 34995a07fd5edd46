//! The changes to the host, in the order in which they are made.

use super::group::Taken;
use super::{MemoryCell, Ownership, PlannedOp};
use crate::facts::HostFacts;
use crate::host_ops::HostOp;
use crate::pci::DriverName;

/// Lists the changes that bind the functions to vfio-pci.
///
/// Unbind comes before the override, so that the way back, in reverse, clears the override before the old driver is
/// asked to take the device.
fn bindings(taken: &[Taken], facts: &HostFacts) -> Vec<PlannedOp> {
    let mut operations = Vec::new();
    for Taken { bdf, ownership, .. } in taken {
        let Ownership::BoundByUs { was } = ownership else { continue };
        let (bdf, driver) = (*bdf, DriverName::vfio_pci());
        if let Some(was) = was {
            let op = HostOp::Unbind { bdf, driver: was.clone() };
            operations.push(PlannedOp { op, reason: format!("the guest is to own {bdf}") });
        }
        if facts.devices.get(&bdf).and_then(|device| device.driver_override.as_ref()) != Some(&driver) {
            let op = HostOp::SetDriverOverride { bdf, driver: driver.clone() };
            operations.push(PlannedOp { op, reason: "no other driver may take it meanwhile".to_owned() });
        }
        let op = HostOp::Bind { bdf, driver };
        operations
            .push(PlannedOp { op, reason: "VFIO gives a device to a guest through this driver".to_owned() });
    }
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

/// Lists all changes: what is shared first, since it fails most easily and disturbs nobody.
pub(super) fn operations(cells: &[MemoryCell], taken: &[Taken], facts: &HostFacts) -> Vec<PlannedOp> {
    let mut operations = hugepages(cells, facts);
    operations.extend(bindings(taken, facts));
    operations
}
