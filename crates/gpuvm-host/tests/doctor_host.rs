//! The doctor's checks of the host as a whole, from the tree up: what the kernel shows, what is read of it, and what is said.
//!
//! What each check makes of facts is tested where it is; here it is that the facts come from where the kernel shows them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gpuvm_core::doctor::{Verdict, examine};
use gpuvm_core::facts::{HostFacts, Presence, QemuFacts, QemuProbe};
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_testkit::fake_host::{FakeHost, gpu};
use rstest::rstest;

const GPU: &str = "0000:81:00.0";
const CMDLINE: &str = "/proc/cmdline";
const POOL: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";
const TYPE1: &str = "/sys/module/vfio_iommu_type1/parameters";

/// A host of Intel's on which everything fits.
fn fit() -> FakeHost {
    let host = FakeHost::new();
    host.device(&gpu(GPU, 7, 1));
    host.file("/sys/firmware/acpi/tables/DMAR", "");
    host.file("/sys/class/iommu/dmar0/intel-iommu/cap", "d2008c222f0686\n");
    host.file("/sys/class/iommu/dmar0/intel-iommu/ecap", "f00f5e\n");
    host.file(
        "/proc/interrupts",
        "           CPU0       \n  4:          2  IR-IO-APIC   4-edge      ttyS0\n",
    );
    host.file(
        "/proc/cpuinfo",
        "processor\t: 0\nflags\t\t: fpu vmx\naddress sizes\t: 46 bits physical, 48 bits virtual\n",
    );
    host.file("/proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
    host.file(
        "/proc/self/limits",
        "Max locked memory         8388608              8388608              bytes     \n",
    );
    host.file("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    host.file(&format!("{TYPE1}/allow_unsafe_interrupts"), "N\n");
    host.file(&format!("{TYPE1}/dma_entry_limit"), "65535\n");
    host.file("/usr/bin/qemu-system-x86_64", "");
    host
}

fn profile(more: &str) -> Profile {
    let text = format!(
        "version = 1\nname = \"x\"\nfirmware = \"bios\"\n[memory]\nsize = \"1G\"\n{more}\n[cpu]\ncount = 2\n\
         [[device]]\nbdf = \"{GPU}\"\n"
    );
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

fn read(host: &FakeHost, profile: &Profile) -> HostFacts {
    let scope = Scope::Devices([GPU.parse::<Bdf>().unwrap()].into());
    let mut facts = facts::survey(&host.root(), &scope, Depth::Config, Some(profile)).unwrap();
    facts.qemu = Some("/usr/bin/qemu-system-x86_64".into());
    facts.qemu_probe = answer((9, 2, 0), Presence::Present);
    facts
}

/// What a QEMU says that has every type and property.
fn answer(version: (u32, u32, u32), kvm: Presence) -> QemuProbe {
    let all: BTreeMap<String, BTreeSet<String>> = gpuvm_core::qemu::abilities::TYPES
        .iter()
        .map(|kind| (kind.name.to_owned(), kind.properties.iter().map(|name| (*name).to_owned()).collect()))
        .collect();
    QemuProbe::Answered(QemuFacts { version, package: String::new(), kvm, types: all })
}

/// Returns the worst that a check says.
fn worst(facts: &HostFacts, profile: &Profile, check: &str) -> Verdict {
    let checks = examine(facts, Some(profile), &[GPU.parse().unwrap()]).checks;
    let judged = checks.into_iter().filter(|found| found.name == check);
    judged.map(|found| found.verdict).max().unwrap()
}

#[rstest]
fn a_host_on_which_everything_fits_is_fit(
    #[values(
        "iommu-tables",
        "iommu-options",
        "iommu-active",
        "iommu-groups",
        "interrupt-remapping",
        "iommu-width",
        "kvm",
        "qemu",
        "qemu-abilities",
        "guest-addresses",
        "vfio-access",
        "hugepages",
        "memory-lock",
        "dma-entries",
        "swap",
        "cpus-online",
        "cpus-isolated",
        "irqbalance",
        "facts-unread",
        "plan"
    )]
    check: &str,
) {
    let profile = profile("hugepages = \"2M\"");
    assert_eq!(worst(&read(&fit(), &profile), &profile, check), Verdict::Ok);
}

#[rstest]
#[case::no_table("iommu-tables", |host: &FakeHost| {
    host.remove("/sys/firmware/acpi/tables/DMAR");
    host.file("/sys/firmware/acpi/tables/FACP", "");
    no_iommu(host);
}, Verdict::Failed)]
#[case::switched_off("iommu-options", |host: &FakeHost| { host.file(CMDLINE, "intel_iommu=off\n"); no_iommu(host); }, Verdict::Failed)]
#[case::not_driven("iommu-active", no_iommu, Verdict::Failed)]
#[case::no_groups("iommu-groups", |host: &FakeHost| {
    std::fs::remove_dir_all(host.path("/sys/kernel/iommu_groups")).unwrap();
}, Verdict::Failed)]
#[case::not_remapped("interrupt-remapping", not_remapped, Verdict::Failed)]
#[case::told_to_do_without("interrupt-remapping", |host: &FakeHost| {
    not_remapped(host);
    host.file(&format!("{TYPE1}/allow_unsafe_interrupts"), "Y\n");
}, Verdict::Warning)]
#[case::nobody_tells("interrupt-remapping", |host: &FakeHost| host.remove("/proc/interrupts"), Verdict::Unknown)]
#[case::no_width("iommu-width", |host: &FakeHost| host.remove("/sys/class/iommu/dmar0/intel-iommu/cap"), Verdict::Unknown)]
#[case::no_kvm("kvm", |host: &FakeHost| host.remove("/dev/kvm"), Verdict::Failed)]
#[case::no_container("vfio-access", |host: &FakeHost| host.remove("/dev/vfio/vfio"), Verdict::NotApplicable)]
#[case::no_pages("hugepages", |host: &FakeHost| meminfo(host, 512), Verdict::Failed)]
#[case::no_pool("hugepages", |host: &FakeHost| std::fs::remove_dir_all(host.path(POOL)).unwrap(), Verdict::Failed)]
#[case::a_limit_and_no_right("memory-lock", |host: &FakeHost| {
    host.file("/proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n");
}, Verdict::Failed)]
#[case::few_ranges("dma-entries", |host: &FakeHost| host.file(&format!("{TYPE1}/dma_entry_limit"), "16\n"), Verdict::Failed)]
#[case::cpus_are_off("cpus-online", |host: &FakeHost| host.file("/sys/devices/system/cpu/offline", "8-9\n"), Verdict::Warning)]
#[case::irqs_move("irqbalance", |host: &FakeHost| host.file("/proc/77/comm", "irqbalance\n"), Verdict::Warning)]
#[case::half_read("facts-unread", |host: &FakeHost| {
    host.remove("/proc/cmdline");
    std::fs::create_dir(host.path("/proc/cmdline")).unwrap();
}, Verdict::Unknown)]
#[case::refused("plan", no_iommu, Verdict::Failed)]
fn what_does_not_fit_is_found(
    #[case] check: &str,
    #[case] change: impl FnOnce(&FakeHost),
    #[case] expected: Verdict,
) {
    let (host, profile) = (fit(), profile("hugepages = \"2M\""));
    change(&host);
    assert_eq!(worst(&read(&host, &profile), &profile, check), expected);
}

#[rstest]
#[case::memory_that_can_be_swapped("swap", "", |host: &FakeHost| {
    host.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
}, Verdict::Ok)]
#[case::no_large_pages("transparent-hugepages", "", |host: &FakeHost| {
    host.file("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
}, Verdict::Warning)]
#[case::large_pages("transparent-hugepages", "", |_: &FakeHost| {}, Verdict::Ok)]
#[case::enough("node-memory", "", |_: &FakeHost| {}, Verdict::Ok)]
#[case::too_little("node-memory", "", |host: &FakeHost| meminfo(host, 512), Verdict::Failed)]
fn a_guest_of_ordinary_pages_needs_other_things(
    #[case] check: &str,
    #[case] memory: &str,
    #[case] change: impl FnOnce(&FakeHost),
    #[case] expected: Verdict,
) {
    let (host, profile) = (fit(), profile(memory));
    change(&host);
    assert_eq!(worst(&read(&host, &profile), &profile, check), expected);
}

#[rstest]
#[case::too_old(answer((7, 1, 0), Presence::Present), "qemu", Verdict::Failed)]
#[case::without_kvm(answer((9, 2, 0), Presence::Absent), "qemu", Verdict::Failed)]
#[case::silent(QemuProbe::Failed { why: "it ended".into() }, "qemu", Verdict::Failed)]
#[case::late(QemuProbe::Late { seconds: 5 }, "qemu", Verdict::Unknown)]
#[case::not_asked(QemuProbe::NotAsked, "qemu", Verdict::Unknown)]
#[case::without_devices(
    QemuProbe::Answered(QemuFacts { version: (9, 2, 0), kvm: Presence::Present, ..QemuFacts::default() }),
    "qemu-abilities",
    Verdict::Failed
)]
fn what_qemu_says_of_itself_counts(#[case] probe: QemuProbe, #[case] check: &str, #[case] expected: Verdict) {
    let profile = profile("");
    let facts = HostFacts { qemu_probe: probe, ..read(&fit(), &profile) };
    assert_eq!(worst(&facts, &profile, check), expected);
}

fn no_iommu(host: &FakeHost) {
    std::fs::remove_dir_all(host.path("/sys/class/iommu/dmar0")).unwrap();
}

fn not_remapped(host: &FakeHost) {
    host.file("/proc/interrupts", "           CPU0       \n  4:          2   IO-APIC   4-edge      ttyS0\n");
}

/// Leaves the card's node with so many MiB.
fn meminfo(host: &FakeHost, mib: u64) {
    let kib = mib << 10;
    host.file(
        "/sys/devices/system/node/node1/meminfo",
        format!("Node 1 MemTotal: {kib} kB\nNode 1 MemFree: {kib} kB\n"),
    );
}
