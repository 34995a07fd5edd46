//! What a lock is made of, and what can be chosen, as they are read from a tree.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;
use std::fs;

use gpuvm_core::lock::{Lock, LockedDevice, Serial};
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::Selector;
use gpuvm_host::facts;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu};

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// A config space with a serial number: the capability is the first of the extended ones.
fn with_serial(host: &FakeHost, at: &str, serial: u64) {
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&[0xde, 0x10, 0x30, 0x23]);
    config[0x100..0x104].copy_from_slice(&[0x03, 0x00, 0x01, 0x00]);
    config[0x104..0x10c].copy_from_slice(&serial.to_le_bytes());
    host.file(&format!("/sys/bus/pci/devices/{at}/config"), config);
}

/// A card behind a port with a bridge beside it, and a device behind that bridge.
fn host() -> FakeHost {
    let host = FakeHost::new();
    let port = Some("0000:80:01.0");
    host.device(&FakeDevice { port, ..gpu("0000:81:00.0", 7, 1) });
    let bridge = FakeDevice { class: 0x06_0400, driver: None, port, ..gpu("0000:81:01.0", 8, 1) };
    host.device(&bridge);
    host.file("/sys/bus/pci/devices/0000:81:01.0/secondary_bus_number", "130\n");
    host.file("/sys/bus/pci/devices/0000:81:01.0/subordinate_bus_number", "131\n");
    let below = "/sys/devices/pci0000:81/0000:80:01.0/0000:81:01.0/0000:83:00.0";
    for (name, text) in
        [("vendor", "0x8086"), ("device", "0x100e"), ("class", "0x020000"), ("numa_node", "1")]
    {
        host.file(&format!("{below}/{name}"), format!("{text}\n"));
    }
    host.link("/sys/bus/pci/devices/0000:83:00.0", below);
    host
}

fn locked(host: &FakeHost, at: &str) -> LockedDevice {
    let facts = facts::for_lock(&host.root(), &BTreeSet::from([bdf(at)]), None).unwrap();
    assert_eq!(facts.unread, [""; 0]);
    LockedDevice::of(bdf(at), &facts.devices[&bdf(at)], &facts)
}

#[test]
fn the_way_up_and_what_a_bus_reset_reaches_are_read() {
    let host = host();
    with_serial(&host, "0000:81:00.0", 7);
    let device = locked(&host, "0000:81:00.0");
    let spelt = |functions: &[gpuvm_core::lock::LockedFunction]| {
        functions.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(spelt(&device.path), ["0000:80:01.0 1b36:000c 060400"]);
    assert_eq!(spelt(&device.reset), ["0000:81:01.0 10de:2330 060400", "0000:83:00.0 8086:100e 020000"]);
    assert_eq!(device.serial.unwrap().to_string(), "00-00-00-00-00-00-00-07");
}

#[test]
fn a_config_space_without_the_capability_is_no_serial_number_and_one_that_sleeps_is_none_read() {
    let host = host();
    host.file("/sys/bus/pci/devices/0000:81:00.0/resource1_resize", "0000000000000700\n");
    let registers = || {
        let facts = facts::for_lock(&host.root(), &BTreeSet::from([bdf("0000:81:00.0")]), None).unwrap();
        facts.devices[&bdf("0000:81:00.0")].resizable.len()
    };
    assert_eq!((locked(&host, "0000:81:00.0").serial, registers()), (Some(Serial::None), 1));
    host.file("/sys/bus/pci/devices/0000:80:01.0/power/runtime_status", "suspended\n");
    assert_eq!((locked(&host, "0000:81:00.0").serial, registers()), (None, 0));
}

#[test]
fn of_a_card_that_a_write_hangs_on_nothing_is_read_that_takes_its_lock() {
    let host = host();
    with_serial(&host, "0000:81:00.0", 7);
    let asked = BTreeSet::from([bdf("0000:81:00.0")]);
    let root = host.root().sparing([(bdf("0000:81:00.0"), 1)].into());
    let facts = facts::for_lock(&root, &asked, None).unwrap();
    assert_eq!(facts.devices[&bdf("0000:81:00.0")].config, None);
    assert!(
        facts.unread.iter().any(|what| what.contains("in the hands of the kernel")),
        "{:?}",
        facts.unread
    );
}

#[test]
fn a_card_that_is_not_where_it_was_locked_is_looked_for_by_its_ids() {
    let host = host();
    let asked = BTreeSet::from([bdf("0000:81:00.0")]);
    let facts = facts::for_lock(&host.root(), &asked, None).unwrap();
    let lock = format!(
        "version = 1\n[host]\n[[device]]\nbdf = \"0000:81:00.0\"\nid = \"10de:2330\"\nclass = \"{}\"\n",
        facts.devices[&bdf("0000:81:00.0")].class
    );
    let lock = Lock::parse(&lock).unwrap();
    host.device(&gpu("0000:91:00.0", 9, 1));
    host.device(&FakeDevice { id: (0x1002, 1), ..gpu("0000:92:00.0", 10, 1) });
    let devices = |lock| facts::for_lock(&host.root(), &asked, lock).unwrap().devices;
    assert!(!devices(Some(&lock)).contains_key(&bdf("0000:91:00.0")), "it is where it was");
    fs::remove_file(host.path("/sys/bus/pci/devices/0000:81:00.0")).unwrap();
    let found = devices(Some(&lock));
    assert!(found.contains_key(&bdf("0000:91:00.0")) && !found.contains_key(&bdf("0000:92:00.0")));
    assert!(devices(None).is_empty());
}

#[test]
fn what_can_be_chosen_is_read_without_virtual_functions_and_serial_numbers_only_where_they_count() {
    let host = host();
    with_serial(&host, "0000:81:00.0", 7);
    host.device(&FakeDevice { id: (0x1002, 1), ..gpu("0000:92:00.0", 10, 0) });
    with_serial(&host, "0000:92:00.0", 8);
    // A virtual function of which nothing but the link to its card can be read.
    let function = "/sys/devices/pci0000:81/0000:81:00.4";
    host.link(&format!("{function}/physfn"), "/sys/bus/pci/devices/0000:81:00.0");
    host.file(&format!("{function}/class"), "unreadable");
    host.link("/sys/bus/pci/devices/0000:81:00.4", function);
    let by_id = Selector { id: Some("10de:2330".parse().unwrap()), ..Selector::default() };
    let index = facts::index(&host.root(), &[&by_id]).unwrap();
    let serial = |index: &gpuvm_core::select::FunctionIndex, at: &str| index.get(bdf(at)).unwrap().serial;
    assert_eq!(index.get(bdf("0000:81:00.4")), None);
    assert_eq!(index.get(bdf("0000:92:00.0")).unwrap().node, Some(0));
    assert_eq!(serial(&index, "0000:81:00.0"), None);
    let by_number = Selector { serial: Some("00-00-00-00-00-00-00-07".parse().unwrap()), ..by_id };
    let index = facts::index(&host.root(), &[&by_number]).unwrap();
    assert!(matches!(serial(&index, "0000:81:00.0"), Some(Serial::Number(number)) if number.0 == 7));
    assert_eq!(serial(&index, "0000:92:00.0"), None);
}
