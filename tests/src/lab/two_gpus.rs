//! Two GPUs on two host nodes: the guest has two nodes as well, each with its card, its vCPUs and its memory from the right place.

use std::collections::BTreeMap;
use std::fs;

use gpuvm_core::cpulist::CpuSet;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::guest::{GuestFunction, GuestReport};
use super::placement::Placed;
use super::scenarios::{CYCLE, GPU, leaving_no_trace};
use super::vm::{Vm, guest_kernel};
use super::{Outcome, doing, ensure};

const PROFILE: &str = "profiles/two-gpus.toml";
const OTHER_GPU: &str = "0000:41:00.0";
/// Each card and the host node that it sits on (`tests/lab/README.md`).
const CARDS: [(&str, u32); 2] = [(OTHER_GPU, 0), (GPU, 1)];
const VCPUS_PER_NODE: usize = 2;
const BYTES_PER_NODE: u64 = 512 << 20;

/// What the profile holds for a large host, cut down to the lab's.
fn overrides() -> Vec<String> {
    let cards: Vec<String> = CARDS.iter().map(|(bdf, _)| format!("{{bdf = \"{bdf}\"}}")).collect();
    vec![
        "firmware=bios".to_owned(),
        "network=none".to_owned(),
        "disk=[]".to_owned(),
        "memory.size=1G".to_owned(),
        "memory.hugepages=2M".to_owned(),
        "cpu.count=4".to_owned(),
        format!("device=[{}]", cards.join(", ")),
        guest_kernel("gpuvm.linger=60"),
    ]
}

/// Both cards, vCPUs and memory are split over the nodes, as the guest sees it and as the host has it.
pub(super) fn two_gpus() -> Outcome {
    let set = overrides();
    let args: Vec<&str> =
        [PROFILE].into_iter().chain(set.iter().flat_map(|value| ["--set", value.as_str()])).collect();
    leaving_no_trace(|| {
        let plan = Placed::planned_with(&args)?;
        let mut vm = Vm::up(&args)?;
        let report = vm.reported(CYCLE)?;
        let placed = Placed::of(plan)?;
        placed.check_threads()?;
        placed.check_memory()?;
        check_guest_nodes(&report)?;
        let seats = Seat::all(&placed.argv()?)?;
        for (card, host_node) in CARDS {
            let seat = seats.get(card).ok_or_else(|| format!("{card} has no seat among {seats:?}"))?;
            check_card(card, seat, &seats, &report)?;
            check_host_node(&placed, &report, seat.guest_node, host_node)?;
        }
        vm.signal(Signal::SIGTERM)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))
    })
}

/// Checks that the guest's kernel found two nodes of equal size.
fn check_guest_nodes(report: &GuestReport) -> Outcome {
    ensure(report.errors.is_empty(), || format!("the guest's errors: {:?}", report.errors))?;
    ensure(report.nodes.len() == CARDS.len(), || format!("the guest's nodes: {:?}", report.nodes))?;
    for node in &report.nodes {
        // The guest's kernel and its firmware keep some of it; more than a sixth would be none of theirs.
        let memory = BYTES_PER_NODE / 6 * 5..=BYTES_PER_NODE;
        ensure(node.cpus.len() == VCPUS_PER_NODE && memory.contains(&node.memory_bytes), || {
            format!("the guest's node: {node:?}, expected {VCPUS_PER_NODE} vCPUs and {memory:?} bytes")
        })?;
    }
    Ok(())
}

/// Checks that the guest sees a card and its audio function on the node of its seat.
fn check_card(card: &str, seat: &Seat, seats: &BTreeMap<String, Seat>, report: &GuestReport) -> Outcome {
    let end = seats.values().map(|other| other.first_bus).filter(|first| *first > seat.first_bus).min();
    let below = |function: &&GuestFunction| {
        bus_of(function).is_some_and(|bus| bus > seat.first_bus && end.is_none_or(|end| bus < end))
    };
    let found: Vec<(&str, i32)> =
        report.pci.iter().filter(below).map(|f| (f.class.as_str(), f.numa_node)).collect();
    let node = i32::try_from(seat.guest_node).map_err(doing("the guest's node"))?;
    ensure(found == [("0x030000", node), ("0x040300", node)], || {
        format!("{card} sits at {seat:?}, where the guest sees (class, node) {found:?}")
    })
}

fn bus_of(function: &GuestFunction) -> Option<u8> {
    u8::from_str_radix(function.bdf.split(':').nth(1)?, 16).ok()
}

/// Checks that a guest node's memory was planned on a host node and that its vCPUs run there.
fn check_host_node(placed: &Placed, report: &GuestReport, guest_node: u32, host_node: u32) -> Outcome {
    let cell = usize::try_from(guest_node).ok().and_then(|index| placed.plan().memory.get(index));
    ensure(cell.is_some_and(|cell| cell.host_node == Some(host_node)), || {
        format!("guest node {guest_node} has no memory on host node {host_node}: {:?}", placed.plan().memory)
    })?;
    let path = format!("/sys/devices/system/node/node{host_node}/cpulist");
    let text = fs::read_to_string(&path).map_err(doing(&path))?;
    let host_cpus: CpuSet = text.trim().parse().map_err(doing(&path))?;
    let node = report.nodes.iter().find(|node| node.node == guest_node);
    for &vcpu in node.map(|node| node.cpus.as_slice()).unwrap_or_default() {
        let allowed = placed.cpus_of_vcpu(vcpu)?;
        ensure(!allowed.is_empty() && allowed.iter().all(|cpu| host_cpus.contains(cpu)), || {
            format!("vCPU {vcpu} of guest node {guest_node} may run on {allowed}, not only on {host_cpus}")
        })?;
    }
    Ok(())
}

/// Where a host's function sits in the guest: below an expander bridge, which belongs to a node.
#[derive(Debug, PartialEq, Eq)]
struct Seat {
    /// The expander bridge's bus; what sits below has higher numbers.
    first_bus: u8,
    guest_node: u32,
}

impl Seat {
    /// Finds the seats of all functions that QEMU's command line passes, by host address.
    fn all(argv: &[String]) -> Result<BTreeMap<String, Self>, String> {
        let devices: Vec<Value> = argv
            .iter()
            .filter_map(|word| serde_json::from_str(word).ok())
            .filter(|value: &Value| value["driver"].is_string())
            .collect();
        let by_id = |id: &Value| devices.iter().find(|device| id.is_string() && device["id"] == *id);
        let seat = |device: &Value| {
            let bridge = by_id(&by_id(&device["bus"])?["bus"])?;
            Some(Self {
                first_bus: bridge["bus_nr"].as_u64()?.try_into().ok()?,
                guest_node: bridge["numa_node"].as_u64()?.try_into().ok()?,
            })
        };
        let passed = devices.iter().filter(|device| device["driver"] == "vfio-pci");
        passed
            .map(|device| {
                let host = device["host"].as_str().unwrap_or_default().to_owned();
                let seat =
                    seat(device).ok_or_else(|| format!("{host}: no expander bridge with a node above it"));
                Ok((host, seat?))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_seat_is_found_through_port_and_expander_bridge() {
        let words = argv(&[
            "-device",
            r#"{"driver":"pxb-pcie","id":"pxb1","bus":"pcie.0","bus_nr":128,"numa_node":1}"#,
            "-device",
            r#"{"driver":"pcie-root-port","id":"rp0","bus":"pxb1"}"#,
            "-device",
            r#"{"driver":"vfio-pci","id":"vfio0.0","bus":"rp0","host":"0000:81:00.0"}"#,
        ]);
        let seats = Seat::all(&words).unwrap();
        assert_eq!(seats["0000:81:00.0"], Seat { first_bus: 128, guest_node: 1 });
    }

    #[test]
    fn a_function_below_the_root_bus_has_no_seat() {
        let words = argv(&[
            r#"{"driver":"pcie-root-port","id":"rp0","bus":"pcie.0"}"#,
            r#"{"driver":"vfio-pci","id":"vfio0.0","bus":"rp0","host":"0000:81:00.0"}"#,
        ]);
        assert!(Seat::all(&words).unwrap_err().contains("0000:81:00.0"));
    }
}
