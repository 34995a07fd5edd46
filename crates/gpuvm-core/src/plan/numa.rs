//! Where vCPUs go: on the node that holds the devices.

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::cpulist::{CpuSet, NodeSet};
use crate::facts::{CpuVendor, HostFacts};
use crate::pci::Bdf;
use crate::profile::{Pin, Profile};

/// Where a guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// The node, if one was chosen.
    pub node: Option<u32>,
    /// Why that one, or why none.
    pub reason: String,
    /// One entry per vCPU; empty when vCPUs aren't pinned.
    pub vcpus: Vec<VcpuPin>,
    /// The CPUs of QEMU's other threads; empty when they aren't pinned.
    pub emulator: CpuSet,
    /// The sockets, cores and threads that the guest sees.
    pub topology: CpuTopology,
}

/// One vCPU's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuPin {
    /// The vCPU, from 0.
    pub vcpu: u32,
    /// The host's CPU.
    pub cpu: u32,
    /// Why there.
    pub reason: String,
}

/// The CPU topology that a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuTopology {
    /// Cores of the one socket.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
    /// Who made the host's CPUs.
    #[serde(default)]
    pub vendor: CpuVendor,
}

/// Chooses the node and the CPUs.
pub(super) fn place(
    profile: &Profile,
    facts: &HostFacts,
    devices: &[Bdf],
    refusals: &mut Vec<Refusal>,
) -> Placement {
    let count = profile.cpu.count;
    let vendor = facts.cpus.vendor;
    let flat = CpuTopology { cores: count, threads: 1, vendor };
    let (node, reason) = choose_node(profile, facts, devices, refusals);
    if profile.cpu.pin == Pin::Off {
        if count as usize > facts.cpus.online.len() {
            refusals.push(Refusal::TooFewCpusOnHost { need: count, have: facts.cpus.online.len() });
        }
        return Placement { node, reason, topology: flat, ..Placement::default() };
    }
    let free = |cpus: CpuSet| cpus.iter().filter(|cpu| !facts.cpus.taken.contains(*cpu)).collect::<CpuSet>();
    let usable = node
        .and_then(|node| facts.nodes.get(&node))
        .map(|node| free(node.cpus.intersection(&facts.cpus.online)));
    let Some((node, usable)) = node.zip(usable) else {
        return Placement { node, reason, topology: flat, ..Placement::default() };
    };
    if (count as usize) > usable.len() {
        let of_node = facts.nodes.get(&node).map(|node| node.cpus.intersection(&facts.cpus.taken));
        let taken = of_node.unwrap_or_default();
        refusals.push(Refusal::TooFewCpus { node, need: count, cpus: usable, taken });
        return Placement { node: Some(node), reason, topology: flat, ..Placement::default() };
    }
    let (chosen, topology) = choose_cpus(count, &usable, &facts.cpus.cores);
    let topology = CpuTopology { vendor, ..topology };
    let rest: CpuSet = usable.iter().filter(|cpu| !chosen.contains(cpu)).collect();
    Placement {
        node: Some(node),
        vcpus: pins(&chosen, &reason),
        emulator: if rest.is_empty() { usable } else { rest },
        topology,
        reason,
    }
}

fn pins(chosen: &[u32], reason: &str) -> Vec<VcpuPin> {
    let pin = |(vcpu, cpu): (u32, &u32)| VcpuPin { vcpu, cpu: *cpu, reason: reason.to_owned() };
    (0..).zip(chosen).map(pin).collect()
}

/// Chooses the node that the devices sit on, or, without any, the node with the most free memory.
fn choose_node(
    profile: &Profile,
    facts: &HostFacts,
    devices: &[Bdf],
    refusals: &mut Vec<Refusal>,
) -> (Option<u32>, String) {
    let located: Vec<_> =
        devices.iter().filter_map(|bdf| Some((facts.devices.get(bdf)?.node?, *bdf))).collect();
    let nodes: NodeSet = located.iter().map(|(node, _)| *node).collect();
    if nodes.len() > 1 {
        if profile.cpu.pin == Pin::Auto {
            refusals.push(Refusal::SeveralNodes { nodes: nodes.clone() });
        }
        return (None, format!("the devices sit on nodes {nodes}"));
    }
    if let Some((node, bdf)) = located.first() {
        return (Some(*node), format!("node {node} holds {bdf}"));
    }
    if profile.cpu.pin == Pin::Off {
        return (None, "no device says which node it is on, and vCPUs aren't pinned".to_owned());
    }
    let with_cpus = |node: &&u32| facts.nodes.get(*node).is_some_and(|node| !node.cpus.is_empty());
    let roomiest = facts
        .nodes
        .keys()
        .filter(with_cpus)
        .max_by_key(|node| (facts.nodes.get(*node).map(|n| n.memory_free), std::cmp::Reverse(**node)));
    match roomiest {
        Some(node) if facts.nodes.len() == 1 => (Some(*node), format!("node {node} is the only one")),
        Some(node) => {
            (Some(*node), format!("no device is on a node, and node {node} has the most free memory"))
        }
        None => (None, "the host has no NUMA node with CPUs".to_owned()),
    }
}

/// Takes whole cores as long as they last, so that no vCPU shares a core with a stranger.
///
/// The guest sees threads only where each core it got is complete and they are all alike.
fn choose_cpus(count: u32, usable: &CpuSet, cores: &[CpuSet]) -> (Vec<u32>, CpuTopology) {
    let mut whole: Vec<Vec<u32>> = Vec::new();
    let mut listed = CpuSet::default();
    for core in cores {
        let threads: Vec<u32> = core.intersection(usable).iter().collect();
        if !threads.is_empty() {
            listed = listed.iter().chain(threads.iter().copied()).collect();
            whole.push(threads);
        }
    }
    // CPUs whose siblings are unknown count as cores of one thread.
    whole.extend(usable.iter().filter(|cpu| !listed.contains(*cpu)).map(|cpu| vec![cpu]));
    let flat = CpuTopology { cores: count, threads: 1, ..CpuTopology::default() };
    let mut chosen = Vec::new();
    let mut threads = whole.first().map_or(1, Vec::len);
    for core in whole {
        let left = count as usize - chosen.len();
        if left == 0 {
            break;
        }
        if core.len() != threads || left < core.len() {
            threads = 0;
        }
        chosen.extend(core.into_iter().take(left));
    }
    let topology = match u32::try_from(threads) {
        Ok(threads @ 2..) => CpuTopology { cores: count / threads, threads, ..CpuTopology::default() },
        _ => flat,
    };
    (chosen, topology)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[rstest]
    #[case::no_smt(4, "4-7", &["4", "5", "6", "7"], &[4, 5, 6, 7], 4, 1)]
    #[case::pairs(4, "0-3,8-11", &["0,8", "1,9", "2,10", "3,11"], &[0, 8, 1, 9], 2, 2)]
    #[case::odd_count_shows_no_threads(3, "0-3,8-11", &["0,8", "1,9"], &[0, 8, 1], 3, 1)]
    #[case::an_offline_sibling_shows_no_threads(3, "0,1,8", &["0,8", "1,9"], &[0, 8, 1], 3, 1)]
    #[case::unknown_siblings(2, "2,3", &[], &[2, 3], 2, 1)]
    fn cpus_are_taken_core_by_core(
        #[case] count: u32,
        #[case] usable: &str,
        #[case] cores: &[&str],
        #[case] chosen: &[u32],
        #[case] guest_cores: u32,
        #[case] threads: u32,
    ) {
        let cores: Vec<_> = cores.iter().map(|core| set(core)).collect();
        let topology = CpuTopology { cores: guest_cores, threads, ..CpuTopology::default() };
        assert_eq!(choose_cpus(count, &set(usable), &cores), (chosen.to_vec(), topology));
    }
}
