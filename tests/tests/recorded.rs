//! The recorded hosts: each can be read, and holds what it was recorded for.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::path::Path;

use gpuvm_core::facts::{Access, CpuVendor, DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_core::units::PageSize;
use gpuvm_e2e::record::{Scope, record};
use gpuvm_host::facts::{self, Depth};
use gpuvm_host::root::HostRoot;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};
use gpuvm_testkit::recorded;
use rstest::rstest;

fn profile(devices: &[&str]) -> Profile {
    let mut text = String::from("version = 1\nname = \"x\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n");
    for bdf in devices {
        text.push_str(&format!("[[device]]\nbdf = \"{bdf}\"\n"));
    }
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

fn read(root: &HostRoot, devices: &[&str]) -> HostFacts {
    facts::read(root, &profile(devices)).unwrap()
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// What a recorded host is known by.
struct Expected {
    /// The cards, each of two functions in one group, with their nodes.
    cards: &'static [(&'static str, Option<u32>)],
    vendor: CpuVendor,
    cpus: usize,
    /// The threads of the first core.
    core: &'static str,
    /// The nodes, with their memory in GiB, rounded up.
    nodes: &'static [u64],
}

#[rstest]
#[case::two_nodes("default", Expected {
    cards: &[("0000:41:00.0", Some(0)), ("0000:81:00.0", Some(1))],
    vendor: CpuVendor::Amd,
    cpus: 8,
    core: "0",
    nodes: &[3, 3],
})]
#[case::one_node("workstation", Expected {
    cards: &[("0000:41:00.0", None)],
    vendor: CpuVendor::Other,
    cpus: 24,
    core: "0-1",
    nodes: &[95],
})]
#[case::server("eight-gpus", Expected {
    cards: &[
        ("0000:41:00.0", Some(0)),
        ("0000:42:00.0", Some(0)),
        ("0000:43:00.0", Some(0)),
        ("0000:44:00.0", Some(0)),
        ("0000:81:00.0", Some(1)),
        ("0000:82:00.0", Some(1)),
        ("0000:83:00.0", Some(1)),
        ("0000:84:00.0", Some(1)),
    ],
    vendor: CpuVendor::Amd,
    cpus: 40,
    core: "0",
    nodes: &[95, 95],
})]
fn a_recorded_host_reads_as_the_host_that_it_was(#[case] name: &str, #[case] expected: Expected) {
    let host = recorded::lay_out(name).unwrap();
    let cards: Vec<&str> = expected.cards.iter().map(|(card, _)| *card).collect();
    let facts = read(&host.root(), &cards);
    assert_eq!(facts.devices.len(), 2 * cards.len());
    assert_eq!(facts.groups.len(), cards.len());
    for (card, node) in expected.cards {
        let card = bdf(card);
        let device = &facts.devices[&card];
        let group = &facts.groups[&device.group.unwrap()];
        assert_eq!(group.iter().map(|member| member.slot()).collect::<Vec<_>>(), [card.slot(); 2]);
        assert_eq!((device.node, device.class.to_string().starts_with("03")), (*node, true), "{card}");
        assert_eq!((device.boot_display, device.upstream.len()), (Presence::Absent, 1), "{card}");
        assert!(device.holders.is_empty(), "{card}: {:?}", device.holders);
    }
    assert_eq!((facts.cpus.vendor, facts.cpus.online.iter().count()), (expected.vendor, expected.cpus));
    assert_eq!(facts.cpus.cores[0].to_string(), expected.core);
    let gib = |bytes: u64| bytes.div_ceil(1 << 30);
    let nodes: Vec<u64> = facts.nodes.values().map(|node| gib(node.memory.as_bytes())).collect();
    assert_eq!(nodes, expected.nodes);
    assert!(facts.nodes.values().all(|node| node.hugepages.len() == PageSize::ALL.len()));
    assert_eq!((facts.kvm, facts.vfio.container), (Access::Usable, Access::Usable));
    assert_eq!(facts.vfio.pci_driver, Presence::Present);
    assert!(gpuvm_core::firmware::choose_uefi(&facts.firmware).is_some());
}

#[test]
fn each_recorded_host_has_a_case_above() {
    assert_eq!(recorded::names().unwrap(), ["default", "eight-gpus", "workstation"]);
}

/// A host with what the recorder has code for: a mounted volume on a disk, a route through a bridge, groups, functions.
fn fake() -> FakeHost {
    let host = FakeHost::new();
    host.device(&FakeDevice { port: Some("0000:81:01.0"), ..gpu("0000:82:00.0", 7, 1) });
    host.device(&nvme("0000:01:00.0", 1, 0));
    host.device(&FakeDevice { class: 0x02_0100, ..gpu("0000:02:00.0", 2, 0) });
    let card = "/sys/bus/pci/devices/0000:82:00.0";
    for (name, text) in [
        ("current_link_speed", "2.5 GT/s PCIe\n"),
        ("current_link_width", "16\n"),
        ("max_link_speed", "32.0 GT/s PCIe\n"),
        ("max_link_width", "16\n"),
        ("modalias", "pci:v000010DEd00002330\n"),
        ("power_state", "D0\n"),
        ("power/runtime_status", "active\n"),
        ("resource1_resize", "00000000000001c0\n"),
        ("sriov_totalvfs", "16\n"),
        ("subsystem_device", "0x16c1\n"),
        ("subsystem_vendor", "0x10de\n"),
        ("drm/card1/dev", "226:1\n"),
    ] {
        host.file(&format!("{card}/{name}"), text);
    }
    host.file(
        "/usr/share/misc/pci.ids",
        "10de  NVIDIA\n\t2330  H100\n\t\t10de 16c1  SXM5\n1b36  Red Hat\n\
         C 02  Network controller\n\t01  Token ring network controller\n",
    );
    let disk = "/sys/bus/pci/devices/0000:01:00.0/nvme/nvme0/nvme0n1";
    host.file(&format!("{disk}/nvme0n1p1/partition"), "1\n");
    host.link("/sys/class/block/nvme0n1", disk);
    host.link("/sys/class/block/nvme0n1p1", &format!("{disk}/nvme0n1p1"));
    host.file("/sys/devices/virtual/block/dm-0/slaves/nvme0n1p1", "");
    host.link("/sys/class/block/dm-0", "/sys/devices/virtual/block/dm-0");
    host.file("/dev/dm-0", "");
    host.link("/dev/mapper/root", "/dev/dm-0");
    host.file(
        "/proc/self/mountinfo",
        "36 35 0:44 / / rw - btrfs /dev/mapper/root rw\n25 30 0:23 / /s rw - sysfs s rw\n",
    );
    host.link("/sys/class/net/eth0/device", "/sys/bus/pci/devices/0000:02:00.0");
    host.link("/sys/class/net/br0/lower_eth0", "/sys/class/net/eth0");
    host.file("/proc/net/route", "Iface Destination\nbr0 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n");
    host
}

#[test]
fn a_host_laid_out_from_its_recording_gives_the_same_facts() {
    const DEVICES: [&str; 3] = ["0000:01:00.0", "0000:02:00.0", "0000:82:00.0"];
    let host = fake();
    let before = read(&host.root(), &DEVICES);
    assert_eq!(before.devices.values().map(|device| device.holders.len()).collect::<Vec<_>>(), [1, 1, 0]);
    let survey = |root: &HostRoot| facts::survey(root, &facts::Scope::All, Depth::Config, None).unwrap();
    let surveyed = survey(&host.root());
    let recording = record(&host.root(), Scope::Host, &[]).unwrap();
    let again = recording.to_string().parse::<recorded::Recording>().unwrap().lay_out().unwrap();
    let mut after = read(&again.root(), &DEVICES);
    assert_ne!(before.kernel.boot_id, after.kernel.boot_id, "the boot's id is nobody's business");
    after.kernel.boot_id.clone_from(&before.kernel.boot_id);
    assert_eq!(after, before);
    let after = survey(&again.root());
    assert_eq!(after.names, surveyed.names);
    assert_eq!(after.class_of(&after.devices[&bdf(DEVICES[1])]), "Token ring network controller");
    for (bdf, before) in surveyed.devices {
        // `config` isn't taken down: reading it wakes devices.
        let expected = DeviceFacts { config: None, ..before };
        assert_eq!(after.devices[&bdf], expected, "{bdf}");
    }
}

#[test]
fn a_recording_holds_no_gateway_and_no_file_system_of_the_kernel() {
    let text = record(&fake().root(), Scope::Host, &[]).unwrap().to_string();
    assert!(!text.contains("0202000A") && !text.contains("sysfs"), "{text}");
}

#[test]
fn a_scoped_recording_has_the_profiles_devices_alone() {
    let host = fake();
    let profile = host.path("/x.toml");
    let text = "version = 1\nname = \"x\"\nfirmware = \"bios\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n\
        [[device]]\nbdf = \"0000:82:00.0\"\n[kernel]\npath = \"/boot/k\"\n";
    std::fs::write(&profile, text).unwrap();
    host.file("/boot/k", "12345");
    let text = record(&host.root(), Scope::Profiles, &[profile]).unwrap().to_string();
    assert!(text.contains("0000:82:00.0 -> ") && text.contains("k (5 bytes)"), "{text}");
    assert!(!text.contains("0000:02:00.0 -> "), "{text}");
}
