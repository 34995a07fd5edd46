//! Facts as they are read from a tree.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;
use std::path::Path;

use gpuvm_core::facts::{Access, Holder, HostFacts, Presence};
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_core::units::PageSize;
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};

fn profile(devices: &[&str]) -> Profile {
    let mut text = String::from(
        "version = 1\nname = \"x\"\nfirmware = \"bios\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n",
    );
    for bdf in devices {
        text.push_str(&format!("[[device]]\nbdf = \"{bdf}\"\n"));
    }
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

fn read(host: &FakeHost, devices: &[&str]) -> HostFacts {
    facts::read(&host.root(), &profile(devices)).unwrap()
}

fn holders(host: &FakeHost, bdf: &str) -> Vec<Holder> {
    read(host, &[bdf]).devices[&bdf.parse().unwrap()].holders.clone()
}

#[test]
fn scope_is_the_slot_and_the_groups_and_nothing_else() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.device(&FakeDevice { class: 0x04_0300, ..gpu("0000:81:00.1", 8, 1) });
    host.device(&nvme("0000:82:00.0", 8, 1));
    host.device(&nvme("0000:83:00.0", 9, 1));
    let facts = read(&host, &["0000:81:00.0"]);
    let found: Vec<String> = facts.devices.keys().map(ToString::to_string).collect();
    assert_eq!(found, ["0000:81:00.0", "0000:81:00.1", "0000:82:00.0"]);
    assert_eq!(facts.groups.len(), 2);
}

#[test]
fn a_device_is_read_as_sysfs_tells() {
    let host = FakeHost::new();
    host.device(&FakeDevice { boot_vga: Some(1), port: Some("0000:80:01.0"), ..gpu("0000:81:00.0", 7, -1) });
    host.file("/sys/bus/pci/devices/0000:81:00.0/driver_override", "vfio-pci\n");
    let facts = read(&host, &["0000:81:00.0"]);
    let device = &facts.devices[&"0000:81:00.0".parse().unwrap()];
    assert_eq!(device.id.to_string(), "10de:2330");
    assert_eq!(device.class.to_string(), "030200");
    assert_eq!(device.driver.as_ref().unwrap().as_str(), "nvidia");
    assert_eq!(device.driver_override.as_ref().unwrap().as_str(), "vfio-pci");
    assert_eq!(device.node, None);
    assert_eq!(device.boot_display, Presence::Present);
    assert_eq!(device.upstream, ["0000:80:01.0".parse().unwrap()]);
    assert_eq!(device.reset_methods, ["flr", "bus"]);
}

#[test]
fn nodes_pools_and_device_nodes_are_read() {
    let host = FakeHost::new();
    host.remove("/dev/kvm");
    let facts = read(&host, &[]);
    assert_eq!(facts.nodes[&1].cpus.to_string(), "4-7");
    assert_eq!(facts.nodes[&1].memory.to_string(), "64G");
    assert_eq!(facts.nodes[&0].hugepages.keys().copied().collect::<Vec<_>>(), PageSize::ALL);
    assert_eq!((facts.kvm, facts.vfio.container), (Access::Missing, Access::Usable));
    assert_eq!(facts.vfio.pci_driver, Presence::Present);
}

/// Puts a disk with a partition below an NVMe controller.
fn with_disk(host: &FakeHost, bdf: &str) {
    let disk = format!("/sys/bus/pci/devices/{bdf}/nvme/nvme0/nvme0n1");
    host.file(&format!("{disk}/nvme0n1p1/partition"), "1\n");
    host.link("/sys/class/block/nvme0n1", &disk);
    host.link("/sys/class/block/nvme0n1p1", &format!("{disk}/nvme0n1p1"));
    host.file("/dev/nvme0n1p1", "");
}

#[test]
fn a_mounted_partition_holds_its_controller() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.file("/proc/self/mountinfo", "36 35 259:1 / /srv/my\\040data rw - ext4 /dev/nvme0n1p1 rw\n");
    let holder = Holder::Mount { device: "/dev/nvme0n1p1".into(), target: "/srv/my data".into() };
    assert_eq!(holders(&host, "0000:01:00.0"), [holder]);
}

#[test]
fn a_volume_on_a_disk_holds_its_controller() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.file("/sys/devices/virtual/block/dm-0/slaves/nvme0n1p1", "");
    host.link("/sys/class/block/dm-0", "/sys/devices/virtual/block/dm-0");
    host.file("/dev/dm-0", "");
    host.link("/dev/mapper/root", "/dev/dm-0");
    host.file("/proc/self/mountinfo", "36 35 0:44 /@ / rw - btrfs /dev/mapper/root rw\n");
    assert_eq!(holders(&host, "0000:01:00.0").len(), 1);
}

#[test]
fn swap_holds_its_controller() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n");
    assert_eq!(holders(&host, "0000:01:00.0"), [Holder::Swap { device: "/dev/nvme0n1p1".into() }]);
}

#[test]
fn the_route_out_holds_its_card_through_a_bridge() {
    let host = FakeHost::new();
    host.device(&FakeDevice { class: 0x02_0000, driver: Some("e1000e"), ..gpu("0000:02:00.0", 2, 0) });
    host.link("/sys/class/net/eth0/device", "/sys/bus/pci/devices/0000:02:00.0");
    host.link("/sys/class/net/br0/lower_eth0", "/sys/class/net/eth0");
    host.file(
        "/proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
         br0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
         br0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
    );
    assert_eq!(holders(&host, "0000:02:00.0"), [Holder::Route { interface: "br0".into() }]);
}

#[test]
fn an_ipv6_route_counts_and_the_kernels_unreachable_entry_does_not() {
    let host = FakeHost::new();
    host.device(&FakeDevice { class: 0x02_0000, ..gpu("0000:02:00.0", 2, 0) });
    host.link("/sys/class/net/eth0/device", "/sys/bus/pci/devices/0000:02:00.0");
    let zero = "0".repeat(32);
    let entry = |flags: &str, interface: &str| {
        format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 {flags} {interface}\n")
    };
    host.file("/proc/net/ipv6_route", entry("00200200", "lo"));
    assert_eq!(holders(&host, "0000:02:00.0"), []);
    host.file("/proc/net/ipv6_route", entry("00450003", "eth0"));
    assert_eq!(holders(&host, "0000:02:00.0").len(), 1);
}

#[test]
fn a_damaged_attribute_is_named_with_its_content() {
    let host = FakeHost::new();
    host.device(&gpu("0000:81:00.0", 7, 1));
    host.file("/sys/bus/pci/devices/0000:81:00.0/numa_node", b"\xff\xfe");
    let error = facts::read(&host.root(), &profile(&["0000:81:00.0"])).unwrap_err().to_string();
    assert!(error.contains("0000:81:00.0/numa_node"), "{error}");
}

#[test]
fn firmware_descriptors_in_etc_mask_those_in_usr() {
    let host = FakeHost::new();
    let descriptor = |code: &str| {
        serde_json::json!({"description": "UEFI", "interface-types": ["uefi"], "features": [],
            "mapping": {"device": "flash", "executable": {"filename": code, "format": "raw"},
                "nvram-template": {"filename": "/vars", "format": "raw"}},
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]})
        .to_string()
    };
    host.file("/usr/share/qemu/firmware/40-a.json", descriptor("/usr/a"));
    host.file("/usr/share/qemu/firmware/50-b.json", descriptor("/usr/b"));
    host.file("/usr/share/qemu/firmware/60-broken.json", "{");
    host.file("/etc/qemu/firmware/40-a.json", "");
    host.file("/etc/qemu/firmware/50-b.json", descriptor("/etc/b"));
    let mut profile = profile(&[]);
    profile.firmware = gpuvm_core::profile::FirmwareKind::Uefi;
    let facts = facts::read(&host.root(), &profile).unwrap();
    let codes: Vec<_> = facts
        .firmware
        .iter()
        .map(|found| found.content.mapping.executable.as_ref().unwrap().filename.clone())
        .collect();
    assert_eq!(codes, [Path::new("/etc/b")]);
}

#[test]
fn a_root_mounted_as_dev_root_is_found_by_its_numbers() {
    let host = FakeHost::new();
    host.device(&nvme("0000:01:00.0", 1, 0));
    with_disk(&host, "0000:01:00.0");
    host.link("/sys/dev/block/259:2", "/sys/class/block/nvme0n1p1");
    host.file("/proc/self/mountinfo", "1 0 259:2 / / rw - ext4 /dev/root rw\n");
    let holder = Holder::Mount { device: "/dev/root".into(), target: "/".into() };
    assert_eq!(holders(&host, "0000:01:00.0"), [holder]);
}

#[test]
fn the_firmwares_words_are_read_and_its_blanks_are_none() {
    let host = FakeHost::new();
    host.file("/sys/class/dmi/id/sys_vendor", "Supermicro\n");
    host.file("/sys/class/dmi/id/bios_version", "2.1\n");
    host.file("/sys/class/dmi/id/bios_date", "07/14/2025\n");
    host.file("/sys/class/dmi/id/board_name", "    \n");
    let facts = facts::survey(&host.root(), &Scope::Devices(BTreeSet::new()), Depth::Sysfs, None).unwrap();
    let system = facts.platform.system;
    assert_eq!(system.vendor.as_deref(), Some("Supermicro"));
    assert_eq!(
        (system.bios_version.as_deref(), system.bios_date.as_deref()),
        (Some("2.1"), Some("07/14/2025"))
    );
    assert_eq!((system.board, system.product, system.bios_vendor), (None, None, None));
}
