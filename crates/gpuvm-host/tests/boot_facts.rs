//! Facts that the doctor needs: what the boot has left, what was counted, and what the kernel says of groups.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use gpuvm_core::facts::{ErrorCounters, HostFacts, Viability};
use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_host::places::Places;
use gpuvm_host::vfio::viability;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};

const CARD: &str = "0000:81:00.0";

/// Looks at a card and its slot as the doctor does.
fn survey(host: &FakeHost) -> HostFacts {
    let scope = Scope::Devices([CARD.parse::<Bdf>().unwrap()].into());
    facts::survey(&host.root(), &scope, Depth::Config, None).unwrap()
}

#[test]
fn errors_that_were_counted_and_registers_as_they_stand_are_read() {
    let host = FakeHost::new();
    host.device(&gpu(CARD, 7, 1));
    let counters = |kind: &str, count: u32| {
        let total = ["COR", "NONFATAL", "FATAL"]
            .iter()
            .find(|word| word.to_lowercase().starts_with(&kind[..3]))
            .unwrap();
        let text = format!("RxErr {count}\nBadTLP 0\nTOTAL_ERR_{total} {count}\n");
        host.file(&format!("/sys/bus/pci/devices/{CARD}/aer_dev_{kind}"), text);
    };
    counters("correctable", 3);
    counters("nonfatal", 0);
    counters("fatal", 1);
    let mut config = [0; 256];
    config[0x10..0x18].copy_from_slice(&[0x0c, 0, 0, 0xe0, 0x38, 0, 0, 0]);
    host.file(&format!("/sys/bus/pci/devices/{CARD}/config"), config);
    let device = survey(&host).devices.remove(&CARD.parse().unwrap()).unwrap();
    assert_eq!(device.errors, Some(ErrorCounters { correctable: 3, nonfatal: 0, fatal: 1 }));
    assert_eq!(device.config.unwrap().registers, [0xe000_000c, 0x38, 0, 0, 0, 0]);
}

#[test]
fn counters_without_a_total_are_unread_and_no_zeros() {
    let host = FakeHost::new();
    host.device(&gpu(CARD, 7, 1));
    for kind in ["correctable", "nonfatal", "fatal"] {
        host.file(&format!("/sys/bus/pci/devices/{CARD}/aer_dev_{kind}"), "RxErr\n");
    }
    let facts = survey(&host);
    assert_eq!(facts.devices[&CARD.parse().unwrap()].errors, None);
    assert!(facts.unread.iter().any(|said| said.contains("aer_dev_correctable")), "{:?}", facts.unread);
}

#[test]
fn rules_for_modules_are_read_where_they_hold_and_matched_with_all_devices() {
    let host = FakeHost::new();
    host.device(&gpu(CARD, 7, 1));
    host.device(&gpu("0000:c1:00.0", 9, 1));
    host.device(&nvme("0000:01:00.0", 1, 0));
    host.file("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:2330\nsoftdep nvidia pre: vfio-pci\n");
    host.file("/usr/lib/modprobe.d/vfio.conf", "options vfio-pci ids=144d:a80a\n");
    host.file("/usr/lib/modprobe.d/other.conf", "options snd power_save=1\nblacklist nouveau\n");
    host.file("/etc/modprobe.d/notes.txt", "options vfio-pci ids=1:2\n");
    host.file("/proc/cmdline", "ro vfio-pci.ids=144d:a80a rd.driver.pre=vfio-pci\n");
    host.file("/etc/modules", "# none\n");
    host.file("/etc/modules-load.d/kvm.conf", "kvm_amd\nloop\n");
    let boot = survey(&host).boot;
    let rules: Vec<_> =
        boot.rules.iter().map(|rule| format!("{}: {}", rule.source, rule.directive)).collect();
    assert_eq!(
        rules,
        [
            "/usr/lib/modprobe.d/other.conf: blacklist nouveau",
            "/etc/modprobe.d/vfio.conf: options vfio_pci ids=10de:2330",
            "/etc/modprobe.d/vfio.conf: softdep nvidia pre: vfio_pci",
            "kernel command line: options vfio_pci ids=144d:a80a",
        ]
    );
    let at_boot: Vec<_> = boot.at_boot.iter().map(|at| format!("{}: {}", at.source, at.module)).collect();
    assert_eq!(at_boot, ["/etc/modules-load.d/kvm.conf: kvm_amd", "kernel command line: vfio_pci"]);
    let caught = |id: &str| boot.caught_by(id).map(<[Bdf]>::len);
    assert_eq!((caught("10de:2330"), caught("144d:a80a"), caught("8086:1")), (Some(2), Some(1), None));
}

/// Any device of a vendor, and those of a class: how whole kinds of cards are given away.
#[test]
fn rules_by_vendor_and_class_catch_what_the_kernel_would() {
    let host = FakeHost::new();
    host.device(&FakeDevice { class: 0x03_0000, ..gpu(CARD, 7, 1) });
    host.device(&FakeDevice { class: 0x04_0300, ..gpu("0000:81:00.1", 7, 1) });
    let any = "10de:ffffffff:ffffffff:ffffffff";
    let rule = format!("options vfio-pci ids={any}:00030000:ffff0000,{any}\n");
    host.file("/etc/modprobe.d/vfio.conf", rule);
    let boot = survey(&host).boot;
    let caught = |id: &str| boot.caught_by(id).map(<[Bdf]>::len);
    assert_eq!((caught(&format!("{any}:00030000:ffff0000")), caught(any)), (Some(1), Some(2)));
}

#[test]
fn screens_of_the_firmware_are_read_and_hidden_addresses_are_not_taken_for_none() {
    let host = FakeHost::new();
    host.device(&gpu(CARD, 7, 1));
    assert_eq!(survey(&host).boot.framebuffers, None);
    host.file("/proc/iomem", "e0000000-e0ffffff : 0000:81:00.0\n  e0000000-e02fffff : BOOTFB\n");
    assert_eq!(survey(&host).boot.framebuffers.unwrap()[0].begin, 0xe000_0000);
}

#[test]
fn groups_are_asked_about_only_where_a_vfio_driver_has_a_member() {
    let host = FakeHost::new();
    host.device(&gpu(CARD, 7, 1));
    let places = Places::below(&host.prefix());
    let asked = |host: &FakeHost| viability(&host.root(), &places, &survey(host));
    assert!(asked(&host).is_empty());
    assert!(!places.run().exists(), "a host where nothing can be asked was written to");
    host.device(&FakeDevice { driver: Some("vfio-pci"), ..gpu("0000:81:00.1", 7, 1) });
    // A file isn't VFIO's device: the question fails, and that is no answer.
    assert_eq!(asked(&host)[&GroupId(7)], Viability::Failed { errno: 25 });
}
