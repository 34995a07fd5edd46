//! Memory, CPUs and limits; and at the end whether all of it comes to a plan.

mod cpus_isolated;
mod cpus_online;
mod dma_entries;
mod facts_unread;
mod hugepages;
mod irqbalance;
mod memory_lock;
mod node_memory;
mod plan;
mod swap;
mod thp;

use super::Definition;
use crate::units::ByteSize;

pub(super) const CHECKS: &[Definition] = &[
    hugepages::CHECK,
    node_memory::CHECK,
    memory_lock::CHECK,
    dma_entries::CHECK,
    swap::CHECK,
    thp::CHECK,
    cpus_online::CHECK,
    cpus_isolated::CHECK,
    irqbalance::CHECK,
    facts_unread::CHECK,
    plan::CHECK,
];

/// Spells a size that is no round number.
fn mib(size: ByteSize) -> String {
    format!("{} MiB", size.as_bytes() >> 20)
}
