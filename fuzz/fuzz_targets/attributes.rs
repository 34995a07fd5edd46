//! One file of a host holds any bytes: the first byte says which, of those that the readers know. Nothing falls over, and what
//! isn't understood is named.

#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use gpuvm_core::doctor::examine;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::plan;
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_host::facts::{Depth, Scope, survey};
use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::hosts;
use libfuzzer_sys::fuzz_target;

const CARD: &str = "0000:01:00.0";

/// What is read of the host.
const OF_HOST: [&str; 24] = [
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/net/ipv6_route",
    "/proc/net/route",
    "/proc/self/limits",
    "/proc/self/mountinfo",
    "/proc/self/status",
    "/proc/swaps",
    "/etc/modprobe.d/vfio.conf",
    "/etc/modules-load.d/vfio.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/lib/modules/6.14.5-300.fc42.x86_64/modules.alias",
    "/sys/class/iommu/dmar0/intel-iommu/cap",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "/sys/devices/system/node/node0/distance",
    "/sys/devices/system/node/node0/meminfo",
    "/sys/devices/system/node/online",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/usr/share/misc/pci.ids",
    "/usr/share/qemu/firmware/60-edk2-x86_64.json",
];

/// What is read of a card.
const OF_CARD: [&str; 18] = [
    "boot_vga",
    "class",
    "config",
    "current_link_speed",
    "current_link_width",
    "d3cold_allowed",
    "device",
    "driver_override",
    "max_link_speed",
    "modalias",
    "numa_node",
    "power/control",
    "power_state",
    "reset_method",
    "resource",
    "resource1_resize",
    "sriov_numvfs",
    "vendor",
];

struct Case {
    host: FakeHost,
    profile: Profile,
    card: Bdf,
    paths: Vec<PathBuf>,
}

fn case() -> Case {
    let host = hosts::desktop();
    let of_card = OF_CARD.iter().map(|name| format!("/sys/bus/pci/devices/{CARD}/{name}"));
    let paths = OF_HOST.iter().map(|path| (*path).to_owned()).chain(of_card).map(|path| host.path(&path));
    let text = format!(
        "version = 1\nname = \"x\"\n[memory]\nsize = \"2G\"\n[cpu]\ncount = 2\n[[device]]\nbdf = \"{CARD}\"\n"
    );
    let profile = parse(&Sources::new("x.toml", text), std::path::Path::new("/")).expect("a valid profile");
    let paths = paths.collect();
    Case { host, profile, card: CARD.parse().expect("an address"), paths }
}

thread_local! {
    static CASE: OnceCell<Case> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, content)) = bytes.split_first() else { return };
    CASE.with(|cell| {
        let case = cell.get_or_init(case);
        let path = &case.paths[usize::from(*which) % case.paths.len()];
        fs::create_dir_all(path.parent().expect("a folder")).expect("make it");
        let before = fs::read(path).ok();
        fs::write(path, content).expect("write it");
        let scope = Scope::Devices([case.card].into());
        let facts = survey(&case.host.root(), &scope, Depth::Config, Some(&case.profile)).expect("a survey");
        let _ = plan(&case.profile, &facts);
        let checks = examine(&facts, Some(&case.profile), &[case.card]).checks;
        assert!(!checks.is_empty());
        match before {
            Some(before) => fs::write(path, before),
            None => fs::remove_file(path),
        }
        .expect("put it back");
    });
});
