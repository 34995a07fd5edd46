//! How `reset` would reset the devices of a host in files, and what it refuses.

use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::{hosts, recorded};

use crate::refusals::{card_node, changed, opened};
use crate::shared::golden::compare;
use crate::shared::hosts::lab;
use crate::{gpuvm, transcript};

/// A call: its name, how gpuvm ends, and the words.
type Case = (&'static str, i32, &'static [&'static str]);

/// What is changed on a host before the call.
type Change = fn(FakeHost) -> FakeHost;

/// On the lab's host, as it was recorded.
const RECORDED: &[Case] = &[
    ("a-disk", 0, &["reset", "83:00.0"]),
    ("a-disk-json", 0, &["reset", "--json", "83:00.0"]),
    ("a-card", 0, &["reset", "81:00.0"]),
    ("a-card-by-hot", 0, &["reset", "--method", "hot", "81:00.0"]),
    ("a-slot", 0, &["reset", "0000:81:00"]),
    ("a-profile", 0, &["reset", "profiles/lab-compute.toml"]),
    ("the-sound-of-a-card", 69, &["reset", "81:00.1"]),
    ("by-a-stale-bus", 69, &["reset", "--method", "bus", "81:00.0"]),
    ("by-what-is-not-listed", 69, &["reset", "--method", "pm", "83:00.0"]),
    ("by-what-nobody-knows", 64, &["reset", "--method", "warp", "83:00.0"]),
    ("one-of-a-group", 69, &["reset", "04:01.0"]),
    ("a-whole-group", 0, &["reset", "04:01.0", "04:02.0"]),
    ("a-card-and-its-ladder", 0, &["reset", "--repair", "rescan", "81:00.0"]),
    ("a-disk-and-its-ladder-json", 0, &["reset", "--repair", "rescan", "--json", "83:00.0"]),
    ("a-disk-and-its-ladder-up-to-hot", 0, &["reset", "--repair", "hot", "83:00.0"]),
    ("by-a-rung-that-nobody-knows", 64, &["reset", "--repair", "warp", "83:00.0"]),
    ("what-has-no-reset-and-no-ladder", 69, &["reset", "--repair", "rescan", "00:01.0"]),
    ("what-has-no-reset", 69, &["reset", "00:01.0"]),
    ("what-has-no-reset-json", 69, &["reset", "--json", "00:01.0"]),
    ("a-mounted-disk", 69, &["reset", "02:00.0"]),
    ("what-is-not-there", 78, &["reset", "99:00.0"]),
    ("a-bridge", 78, &["reset", "03:00.0"]),
];

/// On a host whose cards are known.
const KNOWN: &[Case] = &[
    ("what-the-kernel-never-resets-by-its-bus", 69, &["reset", "--method", "hot", "41:00.0"]),
    ("what-somebody-has-lost-by-a-reset", 0, &["reset", "81:00.0"]),
];

/// On a host that is made up, and somebody is at its devices.
const IN_USE: &[(Case, Change)] = &[
    (("what-is-on-vfio", 0, &["reset", "82:00.0"]), bound),
    (("what-a-vm-has", 75, &["reset", "82:00.0"]), |host| {
        opened(bound(host), 4242, "qemu-system-x86", &["/dev/vfio/17"])
    }),
    (("an-opened-card", 75, &["reset", "81:00.0"]), |host| {
        opened(card_node(host), 4242, "Xorg", &["/dev/dri/card1"])
    }),
];

/// Binds the accelerator by hand.
fn bound(host: FakeHost) -> FakeHost {
    let device = "/sys/bus/pci/devices/0000:82:00.0";
    host.link(&format!("{device}/driver"), "/sys/bus/pci/drivers/vfio-pci");
    changed(host, &format!("{device}/driver_override"), "vfio-pci\n")
}

#[test]
fn each_reset_is_planned_as_it_was() {
    let recorded = recorded::lay_out("default").unwrap();
    let recorded = RECORDED.iter().map(|case| told(case, &recorded.path().display().to_string()));
    let in_use = IN_USE.iter().map(|(case, change)| {
        let host = change(lab());
        told(case, &host.path("/").display().to_string())
    });
    let host = hosts::known_quirks();
    let known = KNOWN.iter().map(|case| told(case, &host.path("/").display().to_string()));
    compare("reset", recorded.chain(in_use).chain(known));
}

fn told((name, code, words): &Case, root: &str) -> (String, String) {
    let root = root.trim_end_matches('/');
    let output = gpuvm(&[words, &["--dry-run", "--host-root", root][..]].concat());
    let transcript = transcript(&output, root);
    assert!(transcript.starts_with(&format!("exit {code}\n")), "{name}: expected {code}: {transcript}");
    ((*name).to_owned(), transcript)
}
