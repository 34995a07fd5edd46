//! How much of a node a guest is given: enough to be of use, and not so much that the host or a second guest has none.

use crate::cpulist::CpuSet;
use crate::facts::HostFacts;
use crate::profile::{GUEST_MEMORY_MIN, Hugepages, VCPUS_MAX};
use crate::units::{ByteSize, PageSize};

/// The CPUs of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cpus {
    pub(super) count: u32,
    pub(super) pinned: Pinned,
    pub(super) reason: String,
}

/// Whether vCPUs are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pinned {
    /// As is the default.
    Auto,
    /// There is no node whose CPUs they could have.
    Off,
}

/// The memory of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) size: ByteSize,
    pub(super) hugepages: Hugepages,
    /// Why so much.
    pub(super) reason: String,
    /// Why these pages.
    pub(super) pages: String,
}

impl Memory {
    /// Returns half of it, or nothing where that is too little for a guest.
    pub(super) fn less(&self) -> Option<Self> {
        let unit = match self.hugepages {
            Hugepages::Size(page) => page.as_bytes(),
            Hugepages::Off => PageSize::M2.as_bytes(),
        };
        let size = ByteSize::bytes(self.size.as_bytes() / 2 / unit * unit);
        let reason = "half of what is free doesn't fit: this does".to_owned();
        (size >= GUEST_MEMORY_MIN).then(|| Self { size, reason, ..self.clone() })
    }
}

/// Gives each card of a node its part of the CPUs, and half of them at most.
pub(super) fn cpus(
    facts: &HostFacts,
    node: Option<u32>,
    home: &str,
    cards: u64,
    chosen: Option<u32>,
) -> Cpus {
    let known = node.and_then(|node| Some((node, facts.nodes.get(&node)?)));
    let free = |cpus: &CpuSet| -> CpuSet {
        let online = cpus.intersection(&facts.cpus.online);
        online.iter().filter(|cpu| !facts.cpus.taken.contains(*cpu)).collect()
    };
    let of_node = known.map(|(node, known)| (node, free(&known.cpus))).filter(|(_, cpus)| !cpus.is_empty());
    let (usable, pinned, whose) = match of_node {
        Some((node, cpus)) => (cpus, Pinned::Auto, format!("node {node} has free")),
        None => (free(&facts.cpus.online), Pinned::Off, "the host has free".to_owned()),
    };
    // Whole cores, so that the guest sees threads as they are.
    let siblings = |cpu: u32| {
        facts.cpus.cores.iter().find(|core| core.contains(cpu)).map(|core| core.intersection(&usable).len())
    };
    let threads = usable.iter().next().and_then(siblings).unwrap_or(1).max(1);
    let part = usable.len() / usize::try_from(cards.max(2)).unwrap_or(2);
    let whole = (part / threads * threads).max(threads.min(usable.len())).max(1);
    let count = chosen.unwrap_or_else(|| u32::try_from(whole).unwrap_or(VCPUS_MAX).min(VCPUS_MAX));
    let why = match pinned {
        Pinned::Auto => home,
        Pinned::Off => "no node has CPUs for it",
    };
    let shared = if cards > 2 { format!(", which {cards} cards share") } else { String::new() };
    let reason = format!("of the {} CPUs that {whose}{shared}; {why}", usable.len());
    Cpus { count, pinned, reason }
}

/// Gives each card of a node its part of the memory, and half of it at most.
pub(super) fn memory(facts: &HostFacts, node: Option<u32>, cards: u64, chosen: Option<ByteSize>) -> Memory {
    let Some((node, known)) = node.and_then(|node| Some((node, facts.nodes.get(&node)?))) else {
        let free =
            facts.nodes.values().fold(0_u64, |sum, node| sum.saturating_add(node.memory_free.as_bytes()));
        // A kernel that shows no nodes doesn't tell how much there is.
        let part = if facts.nodes.is_empty() { 1 << 30 } else { rounded(free / 2) };
        return Memory {
            size: chosen.unwrap_or(ByteSize::bytes(part)),
            hugepages: Hugepages::Off,
            reason: "no node was chosen: the kernel places it".to_owned(),
            pages: "hugepages are a node's; \"2M\" or \"1G\" where the guest has one".to_owned(),
        };
    };
    let fits = |page: PageSize| chosen.is_none_or(|size| size.is_multiple_of(page));
    let shared = if cards > 2 { format!(", and {cards} cards share it") } else { String::new() };
    let reserved = known.hugepages.get(&PageSize::G1).map_or(0, |pool| pool.free);
    let pages = reserved / cards.max(1);
    let enough = chosen.is_none_or(|size| PageSize::G1.pages_for(size) <= reserved);
    if pages > 0 && fits(PageSize::G1) && enough {
        return Memory {
            size: chosen.unwrap_or(ByteSize::bytes(pages.saturating_mul(PageSize::G1.as_bytes()))),
            hugepages: Hugepages::Size(PageSize::G1),
            reason: format!("node {node} has {reserved} pages of 1G reserved{shared}"),
            pages: format!("from node {node}'s pool, which was reserved at boot"),
        };
    }
    let part = rounded(known.memory_free.as_bytes() / cards.max(2));
    let (hugepages, pages) = match known.hugepages.get(&PageSize::M2) {
        Some(_) if fits(PageSize::M2) => (
            Hugepages::Size(PageSize::M2),
            format!("from node {node}'s pool, which is grown for it and given back"),
        ),
        Some(_) => (Hugepages::Off, "ordinary pages: the size is no multiple of 2M".to_owned()),
        None => (Hugepages::Off, format!("ordinary pages: node {node} has no pool of hugepages")),
    };
    let free = known.memory_free.as_mib_ceil();
    let reason = format!("node {node} has {free} MiB that are free or only cache{shared}");
    Memory { size: chosen.unwrap_or(ByteSize::bytes(part)), hugepages, reason, pages }
}

/// Rounds down to what people write: whole G, or a quarter of one where there is less.
fn rounded(bytes: u64) -> u64 {
    const G: u64 = 1 << 30;
    let unit = match bytes {
        0..G => PageSize::M2.as_bytes(),
        G.. if bytes < 4 * G => G / 4,
        _ => G,
    };
    (bytes / unit * unit).max(GUEST_MEMORY_MIN.as_bytes())
}
