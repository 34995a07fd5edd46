//! The made-up hosts are read as they are meant, and planned on as they should be.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use gpuvm_core::facts::{HostFacts, Presence};
use gpuvm_core::reset::{ResetWish, reset_plan};
use gpuvm_host::facts::{Depth, Scope, survey};
use gpuvm_testkit::hosts;
use rstest::rstest;

fn facts(name: &str) -> HostFacts {
    let (_, make) = hosts::ALL.iter().find(|(known, _)| *known == name).unwrap();
    survey(&make().root(), &Scope::All, Depth::Config, None).unwrap()
}

/// What a device is reset by when its card, and nothing else, is in hand.
#[rstest]
#[case::card_of_four_functions("desktop", "0000:01:00.0", &["0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:01:00.3"], &["hot"])]
#[case::pm_of_one_of_its_functions("desktop", "0000:01:00.3", &["0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:01:00.3"], &["hot", "pm"])]
#[case::card_without_its_usb("desktop", "0000:01:00.0", &["0000:01:00.0", "0000:01:00.1"], &[])]
#[case::pm_without_the_rest_of_the_card("desktop", "0000:01:00.3", &["0000:01:00.3"], &["pm"])]
#[case::flr_and_a_bus_that_never_was("acs_override", "0000:05:00.0", &["0000:05:00.0", "0000:05:00.1"], &["flr", "hot"])]
#[case::gpu_alone_behind_a_switch("hgx_h100", "0000:1b:00.0", &["0000:1b:00.0"], &["flr", "bus", "hot"])]
#[case::gpu_that_the_kernel_never_resets_by_its_bus("known_quirks", "0000:41:00.0", &["0000:41:00.0"], &["flr"])]
#[case::virtual_function("sriov", "0000:3b:01.0", &["0000:3b:01.0"], &["flr"])]
fn a_device_is_reset_by_what_its_host_lets_it(
    #[case] host: &str,
    #[case] bdf: &str,
    #[case] in_hand: &[&str],
    #[case] expected: &[&str],
) {
    let in_hand = in_hand.iter().map(|bdf| bdf.parse().unwrap()).collect();
    let plan = reset_plan(bdf.parse().unwrap(), ResetWish::default(), &in_hand, &facts(host));
    let steps: Vec<&str> = plan.steps.iter().map(|step| step.method.name()).collect();
    assert_eq!(steps, expected, "{plan:?}");
}

#[test]
fn each_host_is_read_without_anything_left_unread() {
    for (name, make) in hosts::ALL {
        let host = make();
        let facts = survey(&host.root(), &Scope::All, Depth::Config, None).unwrap();
        assert_eq!(facts.unread, [""; 0], "{name}");
        for (bdf, device) in &facts.devices {
            // An IOMMU is in no group itself.
            assert!(device.group.is_some() || device.class.class() == 0x0806, "{name}: {bdf}");
            assert!(device.upstream.iter().all(|bridge| facts.devices.contains_key(bridge)), "{name}: {bdf}");
            assert!(device.modalias.is_some() && device.subsystem.is_some(), "{name}: {bdf}");
            assert_eq!(device.config.as_ref().unwrap().complete, Presence::Present, "{name}: {bdf}");
        }
    }
}

#[rstest]
#[case("acs_override", 18, 16, 1, 32)]
#[case("desktop", 15, 7, 1, 16)]
#[case("domain32", 7, 3, 1, 36)]
#[case("hgx_h100", 91, 90, 2, 224)]
#[case("known_quirks", 19, 13, 1, 128)]
#[case("memoryless", 4, 4, 3, 72)]
#[case("mi300x", 64, 55, 2, 256)]
#[case("nps4", 49, 40, 8, 256)]
#[case("offline_cpus", 4, 4, 1, 28)]
#[case("pci_bridge", 9, 5, 1, 16)]
#[case("sriov", 10, 10, 2, 72)]
#[case("two_identical", 17, 13, 1, 32)]
fn a_host_has_so_many_functions_groups_nodes_and_cpus(
    #[case] name: &str,
    #[case] functions: usize,
    #[case] groups: usize,
    #[case] nodes: usize,
    #[case] cpus: usize,
) {
    let facts = facts(name);
    let counts = (facts.devices.len(), facts.groups.len(), facts.nodes.len(), facts.cpus.online.len());
    assert_eq!(counts, (functions, groups, nodes, cpus));
}
