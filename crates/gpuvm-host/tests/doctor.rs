//! The doctor's checks of devices from the tree up: what a host has, what is read of it, and what is said.
//!
//! What each check makes of facts is tested where it is; here it is that the facts come from where the kernel shows them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use gpuvm_core::doctor::{Distribution, Subject, Verdict, examine};
use gpuvm_core::facts::{HostFacts, Viability};
use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_host::facts::{self, Depth, Scope, add_initramfs};
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, PowerAttributes, gpu};
use rstest::rstest;

const GPU: &str = "0000:81:00.0";
const AUDIO: &str = "0000:81:00.1";
const PORT: &str = "0000:80:01.0";

fn attribute(bdf: &str, name: &str) -> String {
    format!("/sys/bus/pci/devices/{bdf}/{name}")
}

/// A config space of 4096 bytes: what kind of PCI Express function it is, and extended capabilities at 0x100.
fn config(header: u8, kind: u16, extended: &[u8]) -> Vec<u8> {
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&[0xde, 0x10, 0x30, 0x23]);
    (config[0x06], config[0x0e], config[0x34]) = (0x10, header, 0x60);
    let flags = (kind << 4 | 2).to_le_bytes();
    config[0x60..0x64].copy_from_slice(&[0x10, 0, flags[0], flags[1]]);
    config[0x100..0x100 + extended.len()].copy_from_slice(extended);
    config
}

const ENDPOINT: u16 = 0;
const ROOT_PORT: u16 = 4;
const PCI_BRIDGE: u16 = 7;
/// Access Control Services: all that isolation needs, and on.
const ACS_ON: [u8; 8] = [0x0d, 0, 1, 0, 0x1d, 0, 0x1d, 0];
const ACS_OFF: [u8; 8] = [0x0d, 0, 1, 0, 0x1d, 0, 0, 0];
const AER: [u8; 4] = [0x01, 0, 2, 0];
const RESIZABLE: [u8; 4] = [0x15, 0, 1, 0];

fn link(host: &FakeHost, bdf: &str, width: u8, max_width: u8) {
    host.file(&attribute(bdf, "current_link_speed"), "16.0 GT/s PCIe\n");
    host.file(&attribute(bdf, "max_link_speed"), "16.0 GT/s PCIe\n");
    host.file(&attribute(bdf, "current_link_width"), format!("{width}\n"));
    host.file(&attribute(bdf, "max_link_width"), format!("{max_width}\n"));
}

fn counters(host: &FakeHost, bdf: &str, nonfatal: u32) {
    for (file, total, count) in
        [("correctable", "COR", 0), ("nonfatal", "NONFATAL", nonfatal), ("fatal", "FATAL", 0)]
    {
        host.file(&attribute(bdf, &format!("aer_dev_{file}")), format!("TOTAL_ERR_{total} {count}\n"));
    }
}

/// A host on which a card of two functions fits well.
fn fit() -> FakeHost {
    let host = FakeHost::new();
    let power = PowerAttributes { control: "on", d3cold_allowed: Some("1") };
    let card = FakeDevice { port: Some(PORT), boot_vga: Some(0), class: 0x03_0000, power, ..gpu(GPU, 7, 1) };
    host.device(&card);
    host.device(&FakeDevice {
        bdf: AUDIO,
        class: 0x04_0300,
        boot_vga: None,
        driver: Some("snd_hda_intel"),
        ..card
    });
    host.file(&attribute(PORT, "config"), config(1, ROOT_PORT, &ACS_ON));
    for function in [GPU, AUDIO] {
        host.file(&attribute(function, "config"), config(0, ENDPOINT, &AER));
        counters(&host, function, 0);
        link(&host, function, 16, 16);
    }
    link(&host, PORT, 16, 16);
    host.file("/proc/sys/kernel/osrelease", "6.12.117-amd64\n");
    host.file("/proc/iomem", "e0000000-e0ffffff : 0000:81:00.0\n");
    host.file("/etc/modules-load.d/vfio.conf", "vfio-pci\n");
    host.file("/boot/initrd.img-6.12.117-amd64", archive(""));
    host.file(&attribute(GPU, "sriov_totalvfs"), "16\n");
    host.file(&attribute(GPU, "sriov_numvfs"), "0\n");
    host
}

/// An initramfs with VFIO's driver and a file of rules in it.
fn archive(rules: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let files = [("lib/modules/x/vfio-pci.ko", ""), ("etc/modprobe.d/vfio.conf", rules), ("TRAILER!!!", "")];
    for (name, content) in files {
        let fields = [0, 0o100_644, 0, 0, 0, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        let numbers: String = fields.iter().map(|field| format!("{field:08X}")).collect();
        bytes.extend(format!("070701{numbers}{name}\0").as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn survey(host: &FakeHost) -> HostFacts {
    let scope = Scope::Devices([GPU.parse::<Bdf>().unwrap()].into());
    let mut facts = facts::survey(&host.root(), &scope, Depth::Config, None).unwrap();
    add_initramfs(&host.root(), None, &mut facts);
    facts
}

/// Returns the worst verdict of a check on the card's first function, its group and the host.
fn verdict(facts: &HostFacts, check: &str) -> Verdict {
    let (gpu, audio): (Bdf, Bdf) = (GPU.parse().unwrap(), AUDIO.parse().unwrap());
    let checks = examine(facts, None, &[gpu, audio]).checks;
    let other = Subject::Device { bdf: audio };
    let judged = checks.into_iter().filter(|found| found.name == check && found.subject != other);
    judged.map(|found| found.verdict).max().unwrap()
}

/// Newer kernels wake a sleeping port to show the link of what is below it, and the buses behind a bridge.
#[test]
fn nothing_is_asked_of_what_sleeps() {
    let host = fit();
    host.file(&attribute(GPU, "secondary_bus_number"), "1\n");
    host.file(&attribute(GPU, "subordinate_bus_number"), "1\n");
    let gpu: Bdf = GPU.parse().unwrap();
    let awake = survey(&host);
    assert!(awake.devices[&gpu].link.is_some() && awake.devices[&gpu].buses.is_some());
    host.file(&attribute(PORT, "power/runtime_status"), "suspended\n");
    let asleep = survey(&host);
    assert_eq!((asleep.devices[&gpu].link, asleep.devices[&gpu].buses), (None, None));
    assert_eq!((&asleep.devices[&gpu].config, verdict(&asleep, "pcie-link")), (&None, Verdict::Unknown));
}

#[rstest]
#[case::there("device-present", |_: &FakeHost| {}, Verdict::Ok)]
#[case::silent("device-present", |host: &FakeHost| {
    host.file(&attribute(GPU, "config"), vec![0xff; 4096]);
}, Verdict::Failed)]
#[case::silent_of_no_errors("error-counters", |host: &FakeHost| {
    host.file(&attribute(GPU, "config"), vec![0xff; 4096]);
    for file in ["correctable", "nonfatal", "fatal"] {
        std::fs::remove_file(host.path(&attribute(GPU, &format!("aer_dev_{file}")))).unwrap();
    }
}, Verdict::Unknown)]
#[case::silent_port("pci-bridge", |host: &FakeHost| {
    host.file(&attribute(PORT, "config"), vec![0xff; 4096]);
}, Verdict::Unknown)]
#[case::silent_registers("bar-addresses", |host: &FakeHost| {
    host.file(&attribute(GPU, "config"), vec![0xff; 4096]);
}, Verdict::Unknown)]
#[case::registers("bar-addresses", |_: &FakeHost| {}, Verdict::Ok)]
#[case::registers_unplaced("bar-addresses", |host: &FakeHost| host.file(&attribute(GPU, "resource"),
    "0x0000000000000000 0x00000003ffffffff 0x000000002014220c\n"), Verdict::Failed)]
#[case::registers_given_up("bar-addresses", |host: &FakeHost| {
    let mut bytes = config(0, ENDPOINT, &AER);
    bytes[0x14] = 0x0c;
    host.file(&attribute(GPU, "config"), bytes);
}, Verdict::Failed)]
#[case::not_resizable("resizable-bar", |_: &FakeHost| {}, Verdict::NotApplicable)]
#[case::resizable("resizable-bar", |host: &FakeHost| {
    host.file(&attribute(GPU, "config"), config(0, ENDPOINT, &RESIZABLE));
    host.file(&attribute(GPU, "resource0_resize"), "0000000000000030\n");
}, Verdict::Ok)]
#[case::wide("pcie-link", |_: &FakeHost| {}, Verdict::Ok)]
#[case::narrow("pcie-link", |host: &FakeHost| link(host, GPU, 8, 16), Verdict::Warning)]
#[case::down("pcie-link", |host: &FakeHost| link(host, GPU, 0, 16), Verdict::Failed)]
#[case::awake("power-policy", |_: &FakeHost| {}, Verdict::Ok)]
#[case::fallen("power-policy", |host: &FakeHost| {
    host.file(&attribute(GPU, "power_state"), "D3cold\n");
    host.file(&attribute(GPU, "power/runtime_status"), "active\n");
}, Verdict::Failed)]
#[case::resets("reset-methods", |_: &FakeHost| {}, Verdict::Ok)]
#[case::resets_as_a_whole("reset-methods", |host: &FakeHost| host.file(&attribute(GPU, "reset_method"), "bus\n"), Verdict::Ok)]
#[case::no_reset("reset-methods", |host: &FakeHost| {
    host.file(&attribute(GPU, "reset_method"), "bus\n");
    host.device(&FakeDevice { port: Some(PORT), ..gpu("0000:81:00.2", 7, 1) });
}, Verdict::Warning)]
#[case::own_bus("reset-domain", |_: &FakeHost| {}, Verdict::Ok)]
#[case::shared_bus("reset-domain", |host: &FakeHost| {
    host.file(&attribute(GPU, "reset_method"), "bus\n");
    host.device(&FakeDevice { port: Some(PORT), ..gpu("0000:81:00.2", 7, 1) });
}, Verdict::Warning)]
#[case::express("pci-bridge", |_: &FakeHost| {}, Verdict::Ok)]
#[case::conventional("pci-bridge", |host: &FakeHost| {
    host.file(&attribute(PORT, "config"), config(1, PCI_BRIDGE, &[]));
    host.device(&gpu("0000:82:00.0", 7, 1));
}, Verdict::Warning)]
#[case::no_errors("error-counters", |_: &FakeHost| {}, Verdict::Ok)]
#[case::errors("error-counters", |host: &FakeHost| counters(host, GPU, 2), Verdict::Warning)]
#[case::errors_hidden("error-counters", |host: &FakeHost| {
    for kind in ["correctable", "nonfatal", "fatal"] {
        host.remove(&attribute(GPU, &format!("aer_dev_{kind}")));
    }
}, Verdict::Unknown)]
fn topology_is_judged_by_what_sysfs_shows(
    #[case] check: &str,
    #[case] change: fn(&FakeHost),
    #[case] expected: Verdict,
) {
    let host = fit();
    change(&host);
    assert_eq!(verdict(&survey(&host), check), expected);
}

#[rstest]
#[case::owned("driver-owner", |_: &FakeHost| {}, Verdict::Ok)]
#[case::set_aside("driver-owner", |host: &FakeHost| host.file(&attribute(GPU, "driver_override"), "pci-stub\n"), Verdict::Failed)]
#[case::held("device-holders", |host: &FakeHost| {
    host.link("/sys/class/net/eth0/device", &format!("/sys/bus/pci/devices/{GPU}"));
    host.file("/proc/net/route", "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\n");
}, Verdict::Failed)]
#[case::another_display("boot-display", |_: &FakeHost| {}, Verdict::Ok)]
#[case::boot_display("boot-display", |host: &FakeHost| host.file(&attribute(GPU, "boot_vga"), "1\n"), Verdict::Failed)]
#[case::no_screen("firmware-framebuffer", |_: &FakeHost| {}, Verdict::Ok)]
#[case::screen("firmware-framebuffer", |host: &FakeHost| host.file("/proc/iomem",
    "e0000000-e0ffffff : 0000:81:00.0\n  e0000000-e02fffff : BOOTFB\n"), Verdict::Warning)]
#[case::screen_hidden("firmware-framebuffer", |host: &FakeHost| host.file("/proc/iomem",
    "00000000-00000000 : 0000:81:00.0\n"), Verdict::Unknown)]
#[case::loaded("vfio-modules", |_: &FakeHost| {}, Verdict::Ok)]
#[case::loaded_by_hand("vfio-modules", |host: &FakeHost| host.remove("/etc/modules-load.d/vfio.conf"), Verdict::Warning)]
#[case::no_rule("id-rules", |_: &FakeHost| {}, Verdict::Ok)]
#[case::identical_cards("id-rules", |host: &FakeHost| {
    host.device(&gpu("0000:c1:00.0", 9, 1));
    host.file("/proc/cmdline", "ro vfio-pci.ids=10de:2330\n");
}, Verdict::Warning)]
#[case::identical_cards_by_the_initramfs("id-rules", |host: &FakeHost| {
    host.device(&gpu("0000:c1:00.0", 9, 1));
    host.file("/boot/initrd.img-6.12.117-amd64", archive("options vfio-pci ids=10de:2330\n"));
}, Verdict::Warning)]
#[case::initramfs("initramfs-rules", |_: &FakeHost| {}, Verdict::Ok)]
#[case::old_initramfs("initramfs-rules", |host: &FakeHost| host.file("/etc/modprobe.d/vfio.conf",
    "options vfio-pci ids=10de:2330\n"), Verdict::Warning)]
#[case::no_initramfs("initramfs-rules", |host: &FakeHost| host.remove("/boot/initrd.img-6.12.117-amd64"), Verdict::Unknown)]
fn ownership_is_judged_by_what_the_host_says(
    #[case] check: &str,
    #[case] change: fn(&FakeHost),
    #[case] expected: Verdict,
) {
    let host = fit();
    change(&host);
    assert_eq!(verdict(&survey(&host), check), expected);
}

#[rstest]
#[case::grouped("iommu-group", |_: &FakeHost| {}, Verdict::Ok)]
#[case::not_grouped("iommu-group", |host: &FakeHost| host.remove(&attribute(GPU, "iommu_group")), Verdict::Failed)]
#[case::own_group("group-members", |_: &FakeHost| {}, Verdict::Ok)]
#[case::shared_group("group-members", |host: &FakeHost| host.device(&gpu("0000:82:00.0", 7, 1)), Verdict::Failed)]
#[case::isolated("acs-path", |_: &FakeHost| {}, Verdict::Ok)]
#[case::not_isolated("acs-path", |host: &FakeHost| {
    host.file(&attribute(PORT, "config"), config(1, ROOT_PORT, &ACS_OFF));
    host.device(&gpu("0000:82:00.0", 7, 1));
}, Verdict::Warning)]
#[case::not_for_this_user("acs-path", |host: &FakeHost| host.file(&attribute(PORT, "config"), [0; 64]), Verdict::Unknown)]
#[case::no_override("acs-override", |_: &FakeHost| {}, Verdict::Ok)]
#[case::acs_override("acs-override", |host: &FakeHost| host.file("/proc/cmdline", "pcie_acs_override=downstream\n"), Verdict::Warning)]
#[case::no_virtual_functions("sriov", |_: &FakeHost| {}, Verdict::Ok)]
#[case::virtual_functions("sriov", |host: &FakeHost| host.file(&attribute(GPU, "sriov_numvfs"), "4\n"), Verdict::Failed)]
#[case::good_kernel("kernel-bugs", |_: &FakeHost| {}, Verdict::Ok)]
#[case::bad_kernel("kernel-bugs", |host: &FakeHost| host.file("/proc/sys/kernel/osrelease", "6.12.24-amd64\n"), Verdict::Warning)]
#[case::told_by_its_build("kernel-bugs", |host: &FakeHost| {
    host.file("/proc/sys/kernel/osrelease", "6.1.0-34-amd64\n");
    host.file("/proc/version", "Linux version 6.1.0-34-amd64 (x) #1 SMP Debian 6.1.134-1 (2025-05-02)\n");
}, Verdict::Warning)]
fn isolation_is_judged_by_what_the_host_says(
    #[case] check: &str,
    #[case] change: fn(&FakeHost),
    #[case] expected: Verdict,
) {
    let host = fit();
    change(&host);
    assert_eq!(verdict(&survey(&host), check), expected);
}

#[test]
fn a_group_is_judged_by_the_kernels_word_alone() {
    let host = fit();
    let mut facts = survey(&host);
    assert_eq!(verdict(&facts, "group-viable"), Verdict::NotApplicable);
    for (said, expected) in [(Viability::Viable, Verdict::Ok), (Viability::NotViable, Verdict::Failed)] {
        facts.viability.insert(GroupId(7), said);
        assert_eq!(verdict(&facts, "group-viable"), expected);
    }
}

/// `iommu=off` is also the end of `intel_iommu=off`, which stays as it is.
#[rstest]
#[case("iommu=off", "\"quiet iommu=off intel_iommu=off\"", "\"quiet  intel_iommu=off\"")]
#[case("iommu=off", "'iommu=off'", "''")]
#[case(
    "pcie_acs_override=downstream,multifunction",
    "\"pcie_acs_override=downstream,multifunction ro\"",
    "\" ro\""
)]
fn an_option_is_taken_off_the_command_line_as_a_whole_word(
    #[case] option: &str,
    #[case] before: &str,
    #[case] after: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("grub");
    std::fs::write(&file, format!("GRUB_CMDLINE_LINUX={before}\n")).unwrap();
    let command = Distribution::Debian.without_kernel_option(option).remove(0);
    let command = command.replace("/etc/default/grub", &file.display().to_string());
    assert!(std::process::Command::new("sh").args(["-c", &command]).status().unwrap().success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("GRUB_CMDLINE_LINUX={after}\n"));
}

/// A machine lists CPUs that it could have as offline; only those that are there count.
#[rstest]
#[case::there("0-7", "4-7")]
#[case::half_of_them("0-5", "4-5")]
#[case::none_of_them("0-3", "")]
fn cpus_that_are_not_there_are_not_offline(#[case] present: &str, #[case] offline: &str) {
    let host = fit();
    host.file("/sys/devices/system/cpu/offline", "4-7\n");
    host.file("/sys/devices/system/cpu/present", format!("{present}\n"));
    assert_eq!(survey(&host).platform.offline_cpus.to_string(), offline);
}

/// A limit that isn't told is no missing limit.
#[rstest]
#[case::none("Max locked memory         unlimited            unlimited            bytes\n", Some(None))]
#[case::some(
    "Max locked memory         8388608              8388608              bytes\n",
    Some(Some(8_388_608))
)]
#[case::cut("Max file locks            unlimited            unlimited            locks\n", None)]
#[case::garbage("Max locked memory         ???\n", None)]
fn the_limit_of_locked_memory_is_read(#[case] limits: &str, #[case] expected: Option<Option<u64>>) {
    let host = fit();
    host.file("/proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n");
    host.file("/proc/self/limits", limits);
    let facts = survey(&host);
    let read = facts.platform.user.as_ref().map(|user| user.memlock.map(|size| size.as_bytes()));
    assert_eq!(read, expected);
    assert_eq!(verdict(&facts, "memory-lock") == Verdict::Unknown, expected.is_none());
}
