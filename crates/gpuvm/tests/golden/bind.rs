//! What `bind` and `unbind` would do on hosts in files, and what they refuse.

use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu};

use crate::refusals::{card_node, changed, opened};
use crate::shared::golden::compare;
use crate::shared::hosts::lab;
use crate::{gpuvm, transcript};

/// A call on the lab's host: its name, how gpuvm ends, what is changed on that host, and the words.
type Case = (&'static str, i32, fn(FakeHost) -> FakeHost, &'static [&'static str]);

const SAME: fn(FakeHost) -> FakeHost = |host| host;

const CASES: &[Case] = &[
    ("bind-a-card", 0, SAME, &["bind", "81:00.0"]),
    ("bind-a-card-json", 0, SAME, &["bind", "--json", "81:00.0"]),
    ("bind-a-slot", 0, SAME, &["bind", "0000:81:00"]),
    ("bind-two-cards", 0, SAME, &["bind", "41:00.0", "81:00.0"]),
    ("bind-a-profile", 0, SAME, &["bind", "profiles/lab-compute.toml"]),
    ("bind-what-is-bound", 0, bound, &["bind", "82:00.0"]),
    ("bind-a-whole-group", 0, SAME, &["bind", "04:01.0", "04:02.0"]),
    ("bind-one-of-a-group", 69, SAME, &["bind", "04:01.0"]),
    ("bind-one-of-a-group-json", 69, SAME, &["bind", "--json", "04:01.0"]),
    ("bind-a-mounted-disk", 69, SAME, &["bind", "02:00.0"]),
    ("bind-a-mounted-disk-by-force", 0, SAME, &["bind", "--force", "02:00.0"]),
    ("bind-the-route-out", 69, SAME, &["bind", "01:00.0"]),
    ("bind-the-boot-display", 69, SAME, &["bind", "00:01.0"]),
    ("bind-an-empty-slot", 78, SAME, &["bind", "99:00"]),
    ("bind-what-is-not-there", 78, SAME, &["bind", "99:00.0"]),
    ("bind-a-bridge", 78, SAME, &["bind", "03:00.0"]),
    (
        "bind-an-opened-card",
        75,
        |host| opened(card_node(host), 4242, "Xorg", &["/dev/dri/card1"]),
        &["bind", "81:00.0"],
    ),
    (
        "bind-an-opened-card-by-force-json",
        0,
        |host| opened(card_node(host), 4242, "Xorg", &["/dev/dri/card1"]),
        &["bind", "--force", "--json", "81:00.0"],
    ),
    ("bind-to-a-variant-driver", 0, with_variant, &["bind", "82:00.0"]),
    ("unbind-what-somebody-bound", 0, bound, &["unbind", "82:00.0"]),
    ("unbind-what-somebody-bound-json", 0, bound, &["unbind", "--json", "82:00.0"]),
    ("unbind-what-is-not-bound", 0, SAME, &["unbind", "81:00.0"]),
    (
        "unbind-what-a-vm-has",
        75,
        |host| opened(bound(host), 4242, "qemu-system-x86", &["/dev/vfio/17"]),
        &["unbind", "82:00.0"],
    ),
    ("unbind-a-bridge", 78, SAME, &["unbind", "03:00.0"]),
];

/// Binds the accelerator by hand.
fn bound(host: FakeHost) -> FakeHost {
    let device = "/sys/bus/pci/devices/0000:82:00.0";
    host.link(&format!("{device}/driver"), "/sys/bus/pci/drivers/vfio-pci");
    changed(host, &format!("{device}/driver_override"), "vfio-pci\n")
}

/// Gives the accelerator a VFIO driver of its own.
fn with_variant(host: FakeHost) -> FakeHost {
    host.device(&FakeDevice { driver: Some("edu-vfio-pci"), group: None, ..gpu("0000:99:00.0", 0, -1) });
    host.link("/sys/module/edu_vfio_pci/drivers/pci:edu-vfio-pci", "/sys/bus/pci/drivers/edu-vfio-pci");
    host.file("/sys/bus/pci/devices/0000:82:00.0/modalias", "pci:v00001234d000011E8sv0sd0bc00scFFi00\n");
    let release = std::fs::read_to_string(host.path("/proc/sys/kernel/osrelease")).unwrap();
    let aliases = "alias vfio_pci:v00001234d000011E8sv*sd*bc*sc*i* edu_vfio_pci\n\
                   alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n";
    changed(host, &format!("/lib/modules/{}/modules.alias", release.trim()), aliases)
}

#[test]
fn each_bind_and_unbind_is_as_it_was() {
    let case = |(name, code, change, words): &Case| {
        let host = change(lab());
        let root = host.path("/").display().to_string();
        let root = root.trim_end_matches('/');
        let output = gpuvm(&[words, &["--dry-run", "--host-root", root][..]].concat());
        let transcript = transcript(&output, root);
        assert!(transcript.starts_with(&format!("exit {code}\n")), "{name}: expected {code}: {transcript}");
        ((*name).to_owned(), transcript)
    };
    compare("bind", CASES.iter().map(case));
}
