//! Where the guest's memory lies, and what backs it.

use super::{MemoryCell, MemoryMeasure, Placement, PlannedOp, Refusal};
use crate::facts::HostFacts;
use crate::host_ops::HostOp;
use crate::profile::{Hugepages, Profile};

/// Plans one cell on the node that was chosen.
pub(super) fn cells(
    profile: &Profile,
    facts: &HostFacts,
    placement: &Placement,
    refusals: &mut Vec<Refusal>,
) -> Vec<MemoryCell> {
    let size = profile.memory.size;
    let hugepages = match profile.memory.hugepages {
        Hugepages::Off => None,
        Hugepages::Size(page) => Some(page),
    };
    // Hugepages come from a pool of one node, so without a chosen node they come from the first that has the memory.
    let fallback = hugepages.and_then(|_| {
        facts
            .nodes
            .iter()
            .find(|(_, node)| node.memory >= size)
            .or(facts.nodes.iter().next())
            .map(|(id, _)| *id)
    });
    let host_node = placement.node.or(fallback);
    let reason = match placement.node {
        Some(_) => placement.reason.clone(),
        None => fallback.map_or_else(
            || "no node was chosen: the kernel places it".to_owned(),
            |node| format!("hugepages are a node's, and node {node} is the first that is large enough"),
        ),
    };
    if let Some((node, known)) = host_node.and_then(|node| Some((node, facts.nodes.get(&node)?))) {
        // Without hugepages nobody but the OOM killer would say that it is too much; with them the kernel tells, page by page.
        let (have, measure) = match hugepages {
            None => (known.memory_free, MemoryMeasure::Available),
            Some(_) => (known.memory, MemoryMeasure::Total),
        };
        if have < size {
            refusals.push(Refusal::NodeTooSmall { node, need: size, have, measure });
        }
        if let Some(page) = hugepages.filter(|page| !known.hugepages.contains_key(page)) {
            refusals.push(Refusal::NoPool { node, page });
        }
    }
    vec![MemoryCell { size, host_node, hugepages, reason }]
}

/// Lists the claims on hugepages.
pub(super) fn operations(cells: &[MemoryCell], facts: &HostFacts) -> Vec<PlannedOp> {
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
