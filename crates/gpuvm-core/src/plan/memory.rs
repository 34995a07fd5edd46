//! Where the guest's memory lies, and what backs it.

use serde::{Deserialize, Serialize};

use super::obstacle::{GoesOn, Obstacles, Topic};
use super::{MemoryMeasure, Placement, Refusal};
use crate::facts::HostFacts;
use crate::profile::{Hugepages, Profile};
use crate::units::{ByteSize, PageSize};

/// One guest node's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCell {
    /// How much.
    pub size: ByteSize,
    /// The host node that it comes from.
    pub host_node: Option<u32>,
    /// Whether it may come from other nodes too.
    #[serde(default)]
    pub binding: NodeBinding,
    /// The hugepages that back it.
    pub hugepages: Option<PageSize>,
    /// Why there.
    pub reason: String,
}

/// How firmly memory belongs to its host node (mbind(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeBinding {
    /// MPOL_BIND: from there and nowhere else.
    #[default]
    Bind,
    /// MPOL_PREFERRED: from there as long as it lasts.
    Preferred,
}

/// Plans one cell on each node that was chosen.
pub(super) fn cells(
    profile: &Profile,
    facts: &HostFacts,
    placement: &Placement,
    obstacles: &mut Obstacles,
) -> Vec<MemoryCell> {
    let nodes: Vec<Option<u32>> = match placement.nodes.as_slice() {
        [] => vec![None],
        nodes => nodes.iter().copied().map(Some).collect(),
    };
    let (size, count) = (profile.memory.size.as_bytes(), nodes.len() as u64);
    let unit = match profile.memory.hugepages {
        Hugepages::Off => 1 << 20,
        Hugepages::Size(page) => page.as_bytes(),
    };
    if !size.is_multiple_of(count * unit) {
        let nodes = placement.nodes.iter().copied().collect();
        let (size, unit) = (profile.memory.size, ByteSize::bytes(unit));
        obstacles.refuse(Refusal::UnevenMemory { size, nodes, unit });
        return Vec::new();
    }
    let each = ByteSize::bytes(size / count);
    let reason = |node: Option<u32>| match (node, count) {
        (Some(node), 2..) => {
            format!("{}: {each} of {} come from node {node}", placement.reason, profile.memory.size)
        }
        _ => placement.reason.clone(),
    };
    let cells: Vec<_> =
        nodes.iter().map(|node| cell(profile, facts, *node, each, reason(*node), obstacles)).collect();
    enough_at_all(&cells, facts, obstacles);
    cells
}

/// Checks that the host has the memory of a guest that may take it from any node: else the OOM killer would choose what ends.
fn enough_at_all(cells: &[MemoryCell], facts: &HostFacts, obstacles: &mut Obstacles) {
    let anywhere = |cell: &&MemoryCell| {
        cell.hugepages.is_none() && (cell.host_node.is_none() || cell.binding == NodeBinding::Preferred)
    };
    let need: u64 = cells.iter().filter(anywhere).map(|cell| cell.size.as_bytes()).sum();
    // A damaged meminfo may say anything.
    let free = facts.nodes.values().map(|node| node.memory_free.as_bytes());
    let have = free.fold(0, u64::saturating_add);
    // A kernel that shows no nodes doesn't tell.
    if need > have && !facts.nodes.is_empty() {
        let (need, have) = (ByteSize::bytes(need), ByteSize::bytes(have));
        obstacles.refuse(Refusal::TooLittleMemory { need, have });
    }
}

fn cell(
    profile: &Profile,
    facts: &HostFacts,
    node: Option<u32>,
    size: ByteSize,
    reason: String,
    obstacles: &mut Obstacles,
) -> MemoryCell {
    let asked = match profile.memory.hugepages {
        Hugepages::Off => None,
        Hugepages::Size(page) => Some(page),
    };
    // Hugepages come from a pool of one node, so without a chosen node they come from the first that has the memory.
    let roomy = || facts.nodes.iter().find(|(_, node)| node.memory >= size).or(facts.nodes.iter().next());
    let fallback = asked.and_then(|_| roomy()).map(|(id, _)| *id);
    let host_node = node.or(fallback);
    let reason = match (node, fallback) {
        (Some(_), _) => reason,
        (None, None) => "no node was chosen: the kernel places it".to_owned(),
        (None, Some(node)) => {
            format!("hugepages are a node's, and node {node} is the first that is large enough")
        }
    };
    let hugepages = asked.filter(|page| has_pages(profile, facts, host_node, *page, size, obstacles));
    // Without hugepages nothing needs a node that wasn't chosen.
    let host_node = if hugepages.is_some() { host_node } else { node };
    let binding = match hugepages {
        Some(_) => NodeBinding::Bind,
        None => ordinary(profile, facts, host_node, size, obstacles),
    };
    MemoryCell { size, host_node, binding, hugepages, reason }
}

/// Tells whether a node can have the hugepages at all; whether the kernel finds them is seen when they are claimed.
fn has_pages(
    profile: &Profile,
    facts: &HostFacts,
    node: Option<u32>,
    page: PageSize,
    need: ByteSize,
    obstacles: &mut Obstacles,
) -> bool {
    let instead = "ordinary pages back the guest's memory";
    let policy = profile.memory.hugepages_policy;
    let Some((node, known)) = node.and_then(|node| Some((node, facts.nodes.get(&node)?))) else {
        return obstacles.weigh(policy, Refusal::NoNodeOfPages { page }, Topic::Hugepages, instead)
            == GoesOn::Refused;
    };
    let refusal = if !known.hugepages.contains_key(&page) {
        Refusal::NoPool { node, page }
    } else if known.memory < need {
        let (have, measure) = (known.memory, MemoryMeasure::Total);
        Refusal::NodeTooSmall { node, size: profile.memory.size, need, have, measure }
    } else {
        return true;
    };
    obstacles.weigh(policy, refusal, Topic::Hugepages, instead) == GoesOn::Refused
}

/// Checks that a node has the memory: without hugepages nobody but the OOM killer would say that it is too much.
fn ordinary(
    profile: &Profile,
    facts: &HostFacts,
    node: Option<u32>,
    need: ByteSize,
    obstacles: &mut Obstacles,
) -> NodeBinding {
    let Some((node, known)) = node.and_then(|node| Some((node, facts.nodes.get(&node)?))) else {
        return NodeBinding::Bind;
    };
    if known.memory_free >= need {
        return NodeBinding::Bind;
    }
    let (have, measure) = (known.memory_free, MemoryMeasure::Available);
    let refusal = Refusal::NodeTooSmall { node, size: profile.memory.size, need, have, measure };
    let instead = "the rest comes from other nodes";
    match obstacles.weigh(profile.memory.node_policy, refusal, Topic::Node, instead) {
        GoesOn::Refused => NodeBinding::Bind,
        GoesOn::Instead => NodeBinding::Preferred,
    }
}
