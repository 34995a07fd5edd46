//! The NUMA nodes that the guest's kernel found.

use std::fs;

use serde::Serialize;

use crate::system::{parse_cpu_list, parse_mem_total, read};

const NODES: &str = "/sys/devices/system/node";

/// One NUMA node.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Node {
    /// Its number.
    pub(crate) node: u32,
    /// The CPUs on it that are online.
    pub(crate) cpus: Vec<u32>,
    /// Memory of it that the guest's kernel has.
    pub(crate) memory_bytes: u64,
}

/// All nodes, in order of number.
pub(crate) fn nodes() -> Result<Vec<Node>, String> {
    let entries = fs::read_dir(NODES).map_err(|error| format!("{NODES}: {error}"))?;
    let mut numbers: Vec<u32> =
        entries.flatten().filter_map(|entry| parse_node_name(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    numbers.into_iter().map(node).collect()
}

/// The number in a folder's name, `node1`; the other entries there are lists of nodes.
fn parse_node_name(name: &str) -> Option<u32> {
    name.strip_prefix("node")?.parse().ok()
}

fn node(node: u32) -> Result<Node, String> {
    let cpu_list = read(&format!("{NODES}/node{node}/cpulist"))?;
    let cpus = parse_cpu_list(&cpu_list)
        .ok_or_else(|| format!("node {node}: CPU list {cpu_list:?} isn't understood"))?;
    let memory_bytes = parse_node_memory(&read(&format!("{NODES}/node{node}/meminfo"))?)
        .ok_or_else(|| format!("node {node}: no MemTotal in its meminfo"))?;
    Ok(Node { node, cpus, memory_bytes })
}

/// MemTotal of a node in bytes; each line begins with `Node N`.
fn parse_node_memory(text: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (_, rest) = line.strip_prefix("Node ")?.split_once(' ')?;
        parse_mem_total(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_nodes_have_a_number() {
        assert_eq!(parse_node_name("node12"), Some(12));
        for name in ["possible", "has_cpu", "node", "nodes"] {
            assert_eq!(parse_node_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_nodes_memory_is_in_bytes() {
        let text = "\nNode 1 MemTotal:         507904 kB\nNode 1 MemFree:          400000 kB\nNode 1 MemUsed: 1 kB\n";
        assert_eq!(parse_node_memory(text), Some(507_904 * 1024));
        assert_eq!(parse_node_memory("Node 1 MemFree:  1 kB\n"), None);
    }
}
