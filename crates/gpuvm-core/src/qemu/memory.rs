//! `-m` and the memory backend.

use serde::Serialize;

use super::arg::{Arg, Opts};
use crate::plan::{MemoryCell, Plan};

/// The id of the backend of all memory.
pub(super) const BACKEND: &str = "mem0";

/// `-object memory-backend-memfd`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MemoryBackendMemfd {
    qom_type: &'static str,
    id: &'static str,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlb: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlbsize: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_nodes: Option<[u32; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
    prealloc: bool,
    share: bool,
}

impl MemoryBackendMemfd {
    fn new(cell: &MemoryCell) -> Self {
        Self {
            qom_type: "memory-backend-memfd",
            id: BACKEND,
            size: cell.size.as_bytes(),
            hugetlb: cell.hugepages.map(|_| true),
            hugetlbsize: cell.hugepages.map(crate::units::PageSize::as_bytes),
            host_nodes: cell.host_node.map(|node| [node]),
            policy: cell.host_node.map(|_| "bind"),
            // VFIO pins every page anyway, and pinning a page that isn't there yet is many times slower than touching it
            // first; without hugepages it also shows at once, not at the guest's first touch, that memory is short.
            prealloc: true,
            share: true,
        }
    }
}

/// Renders the memory's size and backend.
pub(super) fn args(plan: &Plan) -> Vec<Arg> {
    plan.memory
        .iter()
        .flat_map(|cell| {
            let size = Opts::new().with("size", format!("{}M", cell.size.as_mib_ceil()));
            [Arg::opts("-m", size), Arg::json("-object", &MemoryBackendMemfd::new(cell))]
        })
        .collect()
}
