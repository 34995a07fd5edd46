//! Where vCPUs go: on the nodes that hold the devices.
//!
//! One node: one guest node, and nothing is told about NUMA. Several: the guest gets a node for each, with as many vCPUs and
//! as much memory on every one of them.

use serde::{Deserialize, Serialize};

use super::Refusal;
use super::obstacle::{Obstacles, Topic};
use crate::cpulist::{CpuSet, NodeSet};
use crate::facts::{CpuVendor, HostFacts};
use crate::pci::Bdf;
use crate::profile::{Accel, Pin, Policy, Profile};

/// What is done where vCPUs can't be pinned as asked for.
const UNPINNED: &str = "vCPUs run anywhere";

/// Where a guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// The host's nodes that were chosen, one for each of the guest's; none if the kernel places it.
    pub nodes: Vec<u32>,
    /// Why those, or why none.
    pub reason: String,
    /// One entry per vCPU; empty when vCPUs aren't pinned. Those of the first node come first.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTopology {
    /// Sockets; one for each node of the guest.
    #[serde(default = "one")]
    pub sockets: u32,
    /// Cores of each socket.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
    /// Who made the host's CPUs.
    #[serde(default)]
    pub vendor: CpuVendor,
}

fn one() -> u32 {
    1
}

impl Default for CpuTopology {
    fn default() -> Self {
        Self { sockets: 1, cores: 1, threads: 1, vendor: CpuVendor::default() }
    }
}

impl CpuTopology {
    fn flat(count: u32, vendor: CpuVendor) -> Self {
        Self { cores: count, vendor, ..Self::default() }
    }

    /// Returns the number of vCPUs.
    pub fn count(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }
}

/// The nodes that a guest belongs on, and why.
struct Home {
    nodes: Vec<u32>,
    reasons: Vec<String>,
    reason: String,
}

/// Chooses the nodes and the CPUs.
pub(super) fn place(
    profile: &Profile,
    facts: &HostFacts,
    devices: &[Bdf],
    obstacles: &mut Obstacles,
) -> Placement {
    let home = home(profile, facts, devices, obstacles);
    let before = obstacles.refusals.len();
    let placed = match &profile.cpu.pin {
        Pin::Off => None,
        Pin::Auto => auto(profile, facts, &home, obstacles),
        Pin::Cpus(cpus) => explicit(profile, facts, cpus, &home, obstacles),
    };
    let count = profile.cpu.count;
    placed.unwrap_or_else(|| {
        if count as usize > facts.cpus.online.len() && obstacles.refusals.len() == before {
            obstacles.refuse(Refusal::TooFewCpusOnHost { need: count, have: facts.cpus.online.len() });
        }
        let topology = CpuTopology::flat(count, facts.cpus.vendor);
        let refused = profile.cpu.pin != Pin::Off && profile.cpu.pin_policy == Policy::Strict;
        // A guest whose vCPUs wander has one node, and memory of one host node at most. One that is refused for its vCPUs is told
        // what the nodes lack that it was meant for.
        let (nodes, reason) = match home.nodes.len() {
            0 | 1 => (home.nodes, home.reason),
            _ if refused => (home.nodes, home.reason),
            _ => {
                let message = format!("{}, and vCPUs aren't pinned: the kernel places memory", home.reason);
                obstacles.warn(Topic::Node, message);
                (Vec::new(), format!("{}, and vCPUs aren't pinned", home.reason))
            }
        };
        Placement { nodes, reason, topology, ..Placement::default() }
    })
}

/// Finds the nodes that the devices sit on, or, without any, the node with the most free memory.
fn home(profile: &Profile, facts: &HostFacts, devices: &[Bdf], obstacles: &mut Obstacles) -> Home {
    let mut nodes: Vec<u32> = Vec::new();
    let mut reasons = Vec::new();
    let located = devices.iter().filter_map(|bdf| Some((facts.devices.get(bdf)?.node?, *bdf)));
    for (node, bdf) in located {
        if !facts.nodes.contains_key(&node) {
            let message =
                format!("{bdf} is on node {node}, which isn't online: it counts as a device without a node");
            obstacles.warn(Topic::Node, message);
        } else if !nodes.contains(&node) {
            nodes.push(node);
            reasons.push(format!("node {node} holds {bdf}"));
        }
    }
    if let [reason] = reasons.as_slice() {
        return Home { nodes, reason: reason.clone(), reasons };
    }
    if !nodes.is_empty() {
        let mut both: Vec<_> = nodes.iter().copied().zip(reasons).collect();
        both.sort();
        let (nodes, reasons): (Vec<_>, Vec<_>) = both.into_iter().unzip();
        let reason = format!("the devices sit on nodes {}", nodes.iter().copied().collect::<NodeSet>());
        return Home { nodes, reasons, reason };
    }
    let none = |reason: &str| Home { nodes: Vec::new(), reasons: Vec::new(), reason: reason.to_owned() };
    if profile.cpu.pin == Pin::Off {
        return none("no device says which node it is on, and vCPUs aren't pinned");
    }
    let with_cpus = |node: &&u32| facts.nodes.get(*node).is_some_and(|node| !node.cpus.is_empty());
    let roomiest = facts
        .nodes
        .keys()
        .filter(with_cpus)
        .max_by_key(|node| (facts.nodes.get(*node).map(|n| n.memory_free), std::cmp::Reverse(**node)));
    let Some(node) = roomiest else { return none("the host has no NUMA node with CPUs") };
    let reason = match facts.nodes.len() {
        1 => format!("node {node} is the only one"),
        _ => format!("no device is on a node, and node {node} has the most free memory"),
    };
    Home { nodes: vec![*node], reasons: vec![reason.clone()], reason }
}

/// Pins vCPUs to CPUs of the devices' nodes, whole cores first; or returns `None`, having told why not.
fn auto(profile: &Profile, facts: &HostFacts, home: &Home, obstacles: &mut Obstacles) -> Option<Placement> {
    let count = profile.cpu.count;
    let nodes = u32::try_from(home.nodes.len()).ok()?;
    let policy = profile.cpu.pin_policy;
    if nodes == 0 {
        obstacles.weigh(policy, Refusal::NoNode, Topic::Pinning, UNPINNED);
        return None;
    }
    if !count.is_multiple_of(nodes) {
        let refusal = Refusal::UnevenCpus { count, nodes: home.nodes.iter().copied().collect() };
        obstacles.weigh(policy, refusal, Topic::Pinning, UNPINNED);
        return None;
    }
    let each = count / nodes;
    let (mut vcpus, mut usable_all, mut rest_all) = (Vec::new(), Vec::new(), Vec::new());
    let mut topologies = Vec::new();
    for (node, reason) in home.nodes.iter().zip(&home.reasons) {
        let known = facts.nodes.get(node)?;
        let online = known.cpus.intersection(&facts.cpus.online);
        let usable: CpuSet = online.iter().filter(|cpu| !facts.cpus.taken.contains(*cpu)).collect();
        if (each as usize) > usable.len() {
            let taken = known.cpus.intersection(&facts.cpus.taken);
            let refusal = Refusal::TooFewCpus { node: *node, need: each, count, cpus: usable, taken };
            obstacles.weigh(policy, refusal, Topic::Pinning, UNPINNED);
            return None;
        }
        // What the profile keeps for QEMU's own threads is left to them where the rest is enough.
        let kept = |cpu: u32| profile.cpu.emulator.as_ref().is_some_and(|emulator| emulator.contains(cpu));
        let others: CpuSet = usable.iter().filter(|cpu| !kept(*cpu)).collect();
        let usable = if others.len() < each as usize { usable } else { others };
        let (chosen, topology) = choose_cpus(each, &usable, &facts.cpus.cores);
        rest_all.extend(usable.iter().filter(|cpu| !chosen.contains(cpu)));
        usable_all.extend(usable.iter());
        vcpus.extend(chosen.into_iter().map(|cpu| (cpu, reason.clone())));
        topologies.push(topology);
    }
    let emulator = match (&profile.cpu.emulator, rest_all.is_empty()) {
        (Some(given), _) => emulator(given, facts, policy, obstacles)?,
        (None, false) => rest_all.into_iter().collect(),
        (None, true) => usable_all.into_iter().collect(),
    };
    // Sockets that differ in their threads can't be told to a guest, and QEMU's translator has no CPU with threads on every host
    // ("This family of AMD CPU doesn't support hyperthreading").
    let first = topologies.first().copied().unwrap_or_default();
    let alike = profile.accel == Accel::Kvm && topologies.iter().all(|topology| *topology == first);
    let shape = if alike { first } else { CpuTopology::flat(each, CpuVendor::Other) };
    Some(Placement {
        nodes: home.nodes.clone(),
        reason: home.reason.clone(),
        vcpus: pins(vcpus),
        emulator,
        topology: CpuTopology { sockets: nodes, vendor: facts.cpus.vendor, ..shape },
    })
}

/// Pins vCPUs to the CPUs that the profile lists.
fn explicit(
    profile: &Profile,
    facts: &HostFacts,
    cpus: &[u32],
    home: &Home,
    obstacles: &mut Obstacles,
) -> Option<Placement> {
    let policy = profile.cpu.pin_policy;
    if facts.nodes.is_empty() {
        obstacles.weigh(policy, Refusal::NoNode, Topic::Pinning, UNPINNED);
        return None;
    }
    let listed: CpuSet = cpus.iter().copied().collect();
    usable("cpu.pin", &listed, facts, policy, obstacles)?;
    let node_of = |cpu: u32| facts.nodes.iter().find(|(_, node)| node.cpus.contains(cpu)).map(|(id, _)| *id);
    // Runs of CPUs of one node: the guest's nodes, if each node has one run and all are as long.
    let mut runs: Vec<(u32, usize)> = Vec::new();
    for node in cpus.iter().map(|cpu| node_of(*cpu).unwrap_or(0)) {
        match runs.last_mut() {
            Some((last, length)) if *last == node => *length += 1,
            _ => runs.push((node, 1)),
        }
    }
    let nodes: NodeSet = runs.iter().map(|(node, _)| *node).collect();
    let even = runs.len() == nodes.len()
        && runs.iter().all(|(_, length)| Some(length) == runs.first().map(|r| &r.1));
    if !even {
        obstacles.weigh(policy, Refusal::MixedNodes { nodes }, Topic::Pinning, UNPINNED);
        return None;
    }
    let sockets = u32::try_from(runs.len()).ok()?;
    if !home.nodes.is_empty() && !home.nodes.iter().all(|node| nodes.contains(*node)) {
        obstacles.warn(
            Topic::Node,
            format!("cpu.pin lists CPUs of node {nodes}, but {}: DMA crosses between nodes", home.reason),
        );
    }
    let emulator = match &profile.cpu.emulator {
        Some(given) => emulator(given, facts, policy, obstacles)?,
        None => beside(&listed, &nodes, facts),
    };
    let vendor = facts.cpus.vendor;
    Some(Placement {
        nodes: runs.iter().map(|(node, _)| *node).collect(),
        reason: format!("cpu.pin lists CPUs of node {nodes}"),
        vcpus: pins(cpus.iter().map(|cpu| (*cpu, "cpu.pin lists it".to_owned())).collect()),
        emulator,
        topology: CpuTopology { sockets, ..CpuTopology::flat(profile.cpu.count / sockets, vendor) },
    })
}

/// Chooses CPUs for QEMU's own threads: those of the nodes that no vCPU has, or all of them.
fn beside(vcpus: &CpuSet, nodes: &NodeSet, facts: &HostFacts) -> CpuSet {
    let of_nodes = nodes.iter().filter_map(|node| facts.nodes.get(&node));
    let online: CpuSet = of_nodes
        .flat_map(|node| node.cpus.intersection(&facts.cpus.online).iter().collect::<Vec<_>>())
        .collect();
    let free = |cpu: &u32| !vcpus.contains(*cpu) && !facts.cpus.taken.contains(*cpu);
    let rest: CpuSet = online.iter().filter(free).collect();
    if rest.is_empty() { online } else { rest }
}

fn emulator(given: &CpuSet, facts: &HostFacts, policy: Policy, obstacles: &mut Obstacles) -> Option<CpuSet> {
    usable("cpu.emulator", given, facts, policy, obstacles)?;
    Some(given.clone())
}

/// Checks that listed CPUs are online and no other VM's.
fn usable(
    key: &'static str,
    listed: &CpuSet,
    facts: &HostFacts,
    policy: Policy,
    obstacles: &mut Obstacles,
) -> Option<()> {
    let offline: CpuSet = listed.iter().filter(|cpu| !facts.cpus.online.contains(*cpu)).collect();
    let taken = listed.intersection(&facts.cpus.taken);
    let mut usable = Some(());
    if !offline.is_empty() {
        let online = facts.cpus.online.clone();
        obstacles.weigh(policy, Refusal::OfflineCpus { key, offline, online }, Topic::Pinning, UNPINNED);
        usable = None;
    }
    if !taken.is_empty() {
        obstacles.weigh(policy, Refusal::TakenCpus { key, taken }, Topic::Pinning, UNPINNED);
        usable = None;
    }
    usable
}

/// Returns how far the guest's nodes are from each other, as the host's are.
pub(super) fn distances(placement: &Placement, facts: &HostFacts) -> Vec<Vec<u8>> {
    if placement.nodes.len() < 2 {
        return Vec::new();
    }
    let column = |node: &u32| facts.nodes.keys().position(|known| known == node);
    let row = |from: &u32| {
        let distances = &facts.nodes.get(from)?.distances;
        placement.nodes.iter().map(|to| distances.get(column(to)?).copied()).collect::<Option<Vec<u8>>>()
    };
    placement.nodes.iter().map(row).collect::<Option<_>>().unwrap_or_default()
}

fn pins(cpus: Vec<(u32, String)>) -> Vec<VcpuPin> {
    (0..).zip(cpus).map(|(vcpu, (cpu, reason))| VcpuPin { vcpu, cpu, reason }).collect()
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
    let flat = CpuTopology::flat(count, CpuVendor::default());
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
