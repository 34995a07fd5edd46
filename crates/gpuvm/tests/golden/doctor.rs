//! What the doctor says: of hosts on which all is well and of others, with a profile, with devices, and alone.

use std::fs;
use std::path::Path;

use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::{hosts, recorded};
use serde_json::Value;

use crate::shared::golden::compare;
use crate::shared::hosts::{kernel, lab, with_platform};
use crate::{gpuvm, transcript};

const COMPUTE: &str = "profiles/lab-compute.toml";

/// An examination: its name, how gpuvm ends, what is changed on the lab's host, and the words after `doctor`.
type Case = (&'static str, i32, fn(&FakeHost), &'static [&'static str]);

const SAME: fn(&FakeHost) = |_| {};

const CASES: &[Case] = &[
    ("fit", 0, SAME, &[COMPUTE]),
    ("fit-with-all-that-was-read", 0, SAME, &[COMPUTE, "--all"]),
    ("fit-json", 0, SAME, &[COMPUTE, "--json"]),
    ("devices", 0, SAME, &["0000:81:00.0", "0000:82:00.0"]),
    ("cards-of-the-host", 0, SAME, &[]),
    ("no-iommu", 69, no_iommu, &[COMPUTE]),
    ("no-iommu-json", 69, no_iommu, &[COMPUTE, "--json"]),
    ("no-iommu-and-no-devices", 0, no_iommu, &["profiles/dev.toml"]),
    ("no-interrupt-remapping", 69, no_intremap, &[COMPUTE]),
    ("refused-by-the-plan", 69, SAME, &[COMPUTE, "--set", "cpu.count=7"]),
    ("missing-device", 69, SAME, &["0000:99:00.0"]),
    ("unreadable", 0, unreadable, &["0000:82:00.0"]),
];

fn no_iommu(host: &FakeHost) {
    for folder in ["/sys/class/iommu/dmar0", "/sys/kernel/iommu_groups"] {
        fs::remove_dir_all(host.path(folder)).unwrap();
    }
    host.file("/proc/cmdline", "quiet intel_iommu=off\n");
    let interrupts = "           CPU0\n  1:          9  IO-APIC   1-edge      i8042\n";
    host.file("/proc/interrupts", interrupts);
}

fn no_intremap(host: &FakeHost) {
    let interrupts = "           CPU0\n  1:          9  IO-APIC   1-edge      i8042\n 24:          0  DMAR-MSI   0-edge      dmar0\n";
    host.file("/proc/interrupts", interrupts);
    host.file("/sys/class/iommu/dmar0/intel-iommu/ecap", "f00f46\n");
}

fn unreadable(host: &FakeHost) {
    host.file("/sys/bus/pci/devices/0000:82:00.0/numa_node", "many\n");
}

fn doctor(root: &Path, words: &[&str]) -> String {
    let root = root.display().to_string();
    let root = root.trim_end_matches('/');
    transcript(&gpuvm(&[&["doctor", "--host-root", root], words].concat()), root)
}

/// What is known of the devices of a host, as its table has it and as the host's own files have.
fn known_quirks() -> Vec<(String, String)> {
    let host = hosts::known_quirks();
    let ask = |words: &[&str]| doctor(&host.path("/"), words);
    let cards = ask(&["0000:41:00.0", "0000:61:00.0", "0000:81:00.0"]);
    host.file("/etc/gpuvm/quirks.d/10-ours.toml", OWN_QUIRKS);
    let own = ask(&["0000:61:00.0", "--all"]);
    host.file("/etc/gpuvm/quirks.d/20-wrong.toml", "[[quirk]]\nnam = \"mine\"\n");
    let wrong = ask(&["0000:61:00.0"]);
    let named = |name: &str, transcript| (format!("known-quirks{name}"), transcript);
    vec![named("", cards), named("-of-the-host-itself", own), named("-that-cant-be-read", wrong)]
}

/// One entry that says otherwise, and one of a device that nobody else has an entry for.
const OWN_QUIRKS: &str = r#"
[[quirk]]
name = "rtx-5090-flr"
vendor = "10de"
devices = ["2b85"]
behaviour = "ours went through 400 cycles of `gpuvm soak`"
effects = []
advice = "nothing is to be done"
source = "soak of 20 November 2026"
confidence = "one-report"

[[quirk]]
name = "our-audio"
vendor = "10de"
devices = ["22e8"]
subsystem = "10de:2057"
behaviour = "it sticks in D3 when the room is cold"
effects = ["sticks-in-d3"]
advice = "keep it awake"
source = "seen twice"
confidence = "one-report"
"#;

#[test]
fn examinations_are_as_they_were() {
    let case = |(name, code, change, words): &Case| {
        let host = with_platform(lab());
        change(&host);
        let transcript = doctor(&host.path("/"), words);
        assert!(transcript.starts_with(&format!("exit {code}\n")), "{name}: {transcript}");
        ((*name).to_owned(), transcript)
    };
    let recorded = recorded::names().unwrap().into_iter().map(|name| {
        let host = recorded::lay_out(&name).unwrap();
        let files = [("/lab/guest/kernel", kernel()), ("/lab/guest/initrd", b"x".to_vec())];
        for (path, content) in files {
            let path = host.root().path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        (format!("recorded-{name}"), doctor(host.path(), &[]))
    });
    compare("doctor", CASES.iter().map(case).chain(recorded).chain(known_quirks()));
}

/// The document holds what it promises: each count is that of the checks, and it is fit if none failed.
#[test]
fn the_json_document_counts_its_checks() {
    for change in [SAME, no_iommu] {
        let host = with_platform(lab());
        change(&host);
        let root = host.path("/").display().to_string();
        let output = gpuvm(&["doctor", "--json", "--host-root", &root, COMPUTE]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = document["checks"].as_array().unwrap();
        let count = |verdict: &str| checks.iter().filter(|check| check["verdict"] == verdict).count();
        for (verdict, counted) in document["counts"].as_object().unwrap() {
            assert_eq!(counted.as_u64().unwrap(), count(verdict) as u64, "{verdict}");
        }
        assert_eq!(document["fit"].as_bool().unwrap(), count("failed") == 0);
        assert_eq!(output.status.code() == Some(0), count("failed") == 0);
        for key in ["name", "layer", "subject", "verdict", "found", "read", "why", "remedy"] {
            assert!(checks.iter().all(|check| check.get(key).is_some()), "{key}");
        }
    }
}
