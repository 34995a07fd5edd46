//! What must hold of a plan's cost whatever the machine.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use gpuvm_e2e::bench::plan_time::{Size, host, profile};
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_testkit::fake_host::FakeHost;

/// Makes all attributes of the virtual functions ones that can't be read; returns how many there are.
fn trap(host: &FakeHost) -> usize {
    let mut traps = 0;
    for function in std::fs::read_dir(host.path("/sys/devices/pci0001:00")).unwrap() {
        for attribute in std::fs::read_dir(function.unwrap().path()).unwrap() {
            let path = attribute.unwrap().path();
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            traps += 1;
        }
    }
    traps
}

/// Attributes that can't be read stand for those that nobody should read: each read of one fails.
#[test]
fn reading_the_facts_of_cards_touches_no_attribute_of_other_functions() {
    let size = Size { gpus: 8, vfs: 64 };
    let host = host(size);
    let profile = profile(size).unwrap();
    let before = facts::read(&host.root(), &profile).unwrap();
    assert_eq!(trap(&host), 64 * 13);
    assert_eq!(facts::read(&host.root(), &profile).unwrap(), before);
    // The trap works: with a card's own attribute it springs.
    let own = host.path("/sys/bus/pci/devices/0000:41:00.0/class");
    std::fs::remove_file(&own).unwrap();
    std::fs::create_dir(&own).unwrap();
    assert!(facts::read(&host.root(), &profile).is_err());
}

/// So it is for a closer look: it goes on where something can't be read, and tells what that was.
#[test]
fn examining_cards_touches_no_attribute_of_other_functions() {
    let size = Size { gpus: 8, vfs: 64 };
    let host = host(size);
    let profile = profile(size).unwrap();
    let cards = profile.devices.iter().map(|device| device.bdf).collect();
    let scope = Scope::Devices(cards);
    let survey = || facts::survey(&host.root(), &scope, Depth::Config, Some(&profile)).unwrap();
    let before = survey();
    assert_eq!(before.unread, Vec::<String>::new());
    trap(&host);
    assert_eq!(survey(), before);
}
