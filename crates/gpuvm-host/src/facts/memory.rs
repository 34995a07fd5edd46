//! NUMA nodes, their memory and their hugepage pools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuvm_core::cpulist::NodeSet;
use gpuvm_core::facts::NodeFacts;
use gpuvm_core::units::{ByteSize, PageSize};

use crate::HostError;
use crate::ops::hugepages::read_pool;
use crate::root::{HostRoot, read_parsed, read_text};

pub(super) fn nodes(root: &HostRoot) -> Result<BTreeMap<u32, NodeFacts>, HostError> {
    let online = root.path("/sys/devices/system/node/online");
    let nodes: NodeSet = read_parsed(&online)?.unwrap_or_default();
    nodes.iter().map(|id| Ok((id, node(root, id)?))).collect()
}

fn node(root: &HostRoot, id: u32) -> Result<NodeFacts, HostError> {
    let folder = folder(root, id);
    let (memory, memory_free) = meminfo(&folder.join("meminfo"))?;
    let mut hugepages = BTreeMap::new();
    for page in PageSize::ALL {
        if root.hugepage_pool(id, page).exists() {
            hugepages.insert(page, read_pool(root, id, page)?);
        }
    }
    Ok(NodeFacts {
        cpus: read_parsed(&folder.join("cpulist"))?.unwrap_or_default(),
        memory,
        memory_free,
        hugepages,
        distances: distances(&folder.join("distance"))?,
    })
}

/// Reads how much memory a node has in all; nothing where it has no `meminfo`.
///
/// # Errors
/// Returns failures to read, and a figure that is none.
pub(crate) fn of_node(root: &HostRoot, node: u32) -> Result<ByteSize, HostError> {
    Ok(meminfo(&folder(root, node).join("meminfo"))?.0)
}

fn folder(root: &HostRoot, node: u32) -> PathBuf {
    root.path(format!("/sys/devices/system/node/node{node}"))
}

fn distances(path: &Path) -> Result<Vec<u8>, HostError> {
    let text = read_text(path)?.unwrap_or_default();
    let parse = |word: &str| word.parse().map_err(|error| HostError::content(path, word, error));
    text.split_ascii_whitespace().map(parse).collect()
}

/// Reads total and available memory from lines like `Node 0 MemTotal:  65536 kB`.
fn meminfo(path: &Path) -> Result<(ByteSize, ByteSize), HostError> {
    let text = read_text(path)?.unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split_ascii_whitespace().nth(2) == Some(name));
        let kib: u64 = match line.and_then(|line| line.split_ascii_whitespace().nth(3)) {
            None => 0,
            Some(kib) => kib.parse().map_err(|error| HostError::content(path, kib, error))?,
        };
        Ok::<_, HostError>(ByteSize::bytes(kib.saturating_mul(1024)))
    };
    let cache = field("FilePages:")?.as_bytes().saturating_sub(field("Shmem:")?.as_bytes());
    let free = field("MemFree:")?.as_bytes().saturating_add(cache);
    Ok((field("MemTotal:")?, ByteSize::bytes(free)))
}
