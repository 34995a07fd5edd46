//! `-m`, the memory backends and `-numa`.

use serde::Serialize;

use super::arg::{Arg, Opts};
use crate::plan::{MemoryCell, NodeBinding, Plan};

/// Names the backend of a guest's node.
pub(super) fn backend(node: usize) -> String {
    format!("mem{node}")
}

/// `-object memory-backend-memfd`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MemoryBackendMemfd {
    qom_type: &'static str,
    id: String,
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
    fn new(node: usize, cell: &MemoryCell) -> Self {
        let policy = match cell.binding {
            NodeBinding::Bind => "bind",
            NodeBinding::Preferred => "preferred",
        };
        Self {
            qom_type: "memory-backend-memfd",
            id: backend(node),
            size: cell.size.as_bytes(),
            hugetlb: cell.hugepages.map(|_| true),
            hugetlbsize: cell.hugepages.map(crate::units::PageSize::as_bytes),
            host_nodes: cell.host_node.map(|node| [node]),
            policy: cell.host_node.map(|_| policy),
            // VFIO pins every page anyway, and pinning a page that isn't there yet is many times slower than touching it
            // first; without hugepages it also shows at once, not at the guest's first touch, that memory is short.
            prealloc: true,
            share: true,
        }
    }
}

/// Renders the memory's size and its backends, and the guest's nodes where it has several.
pub(super) fn args(plan: &Plan) -> Vec<Arg> {
    let size = format!("{}M", plan.memory_size().as_mib_ceil());
    let mut args = vec![Arg::opts("-m", Opts::new().with("size", size))];
    let backends = plan.memory.iter().enumerate();
    args.extend(backends.map(|(node, cell)| Arg::json("-object", &MemoryBackendMemfd::new(node, cell))));
    if plan.memory.len() > 1 {
        args.extend(numa(plan));
    }
    args
}

/// Gives each node its memory and one socket; the vCPUs of the first node are the first ones.
fn numa(plan: &Plan) -> Vec<Arg> {
    let mut args = Vec::new();
    for node in 0..plan.memory.len() {
        let id = node.to_string();
        let memory = Opts::new().with("", "node").with("nodeid", &id).with("memdev", backend(node));
        let cpus = Opts::new().with("", "cpu").with("node-id", &id).with("socket-id", &id);
        args.extend([Arg::opts("-numa", memory), Arg::opts("-numa", cpus)]);
    }
    for (from, row) in plan.distances.iter().enumerate() {
        for (to, distance) in row.iter().enumerate().filter(|(to, _)| *to != from) {
            let opts = Opts::new().with("", "dist").with("src", from.to_string()).with("dst", to.to_string());
            args.push(Arg::opts("-numa", opts.with("val", distance.to_string())));
        }
    }
    args
}
