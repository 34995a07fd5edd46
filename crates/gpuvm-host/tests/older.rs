//! Records of older versions are read, and what they hold is given back.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gpuvm_core::profile::VmName;
use gpuvm_host::apply::Host;
use gpuvm_host::journal::Journal;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::reservation;
use gpuvm_host::undo::undo_all;
use gpuvm_testkit::fake_host::{FakeHost, gpu};

const BOOT: &str = "boot-1";

/// A sample of version 1: what gpuvm 0.1 wrote before it kept devices awake.
fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1").join(name);
    fs::read_to_string(path).unwrap()
}

fn places(fake: &FakeHost) -> Places {
    let places = Places::below(&fake.prefix());
    let vm = VmName::new("vm").unwrap();
    make_dir(&places.vm(&vm)).unwrap();
    make_dir(&places.reservations()).unwrap();
    fs::write(places.journal(&vm), fixture("journal")).unwrap();
    fs::write(places.claims(), fixture("claims.json")).unwrap();
    fs::write(places.reservations().join("vm.json"), fixture("reservation.json")).unwrap();
    places
}

#[test]
fn a_journal_and_claims_of_version_1_are_given_back() {
    let fake = FakeHost::new();
    fake.device(&gpu("0000:81:00.0", 7, 1));
    let (device, pool) =
        ("/sys/bus/pci/devices/0000:81:00.0", "/sys/devices/system/node/node1/hugepages/hugepages-2048kB");
    fake.file(&format!("{device}/driver_override"), "nvidia\n");
    for file in ["nr_hugepages", "free_hugepages"] {
        fake.file(&format!("{pool}/{file}"), "3\n");
    }
    let before = fake.snapshot().unwrap().of_host();
    fake.remove(&format!("{device}/driver"));
    fake.link(&format!("{device}/driver"), "/sys/bus/pci/drivers/vfio-pci");
    fake.file(&format!("{device}/driver_override"), "vfio-pci\n");
    for file in ["nr_hugepages", "free_hugepages"] {
        fake.file(&format!("{pool}/{file}"), "131\n");
    }
    let (places, kernel, vm) = (places(&fake), fake.kernel(), VmName::new("vm").unwrap());
    let mut journal = Journal::reopen(&places.journal(&vm), BOOT).unwrap().unwrap();
    let host = Host { kernel: &kernel, places: &places, boot_id: BOOT, vm: &vm, baselines: &BTreeMap::new() };
    let left = undo_all(&host, &mut journal, &mut |_| {});
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(before.differences(&fake.snapshot().unwrap().of_host()), [""; 0]);
    assert!(!places.claims().exists(), "a table without claims is no file");
}

#[test]
fn a_reservation_of_version_1_still_holds_its_devices() {
    let fake = FakeHost::new();
    let records = reservation::all(&places(&fake), BOOT).unwrap();
    assert_eq!(records[0].devices, ["0000:81:00.0".parse().unwrap()]);
    assert_eq!(records[0].reset_domains, []);
    assert_eq!(records[0].cpus.to_string(), "4-6");
}
