//! Reports: what is in them, what isn't when they are redacted, and that gpuvm says the same of them as of the host.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Output;

use flate2::read::GzDecoder;
use gpuvm_core::doctor::examine;
use gpuvm_core::facts::file::FactsFile;
use gpuvm_core::init::{Choices, candidates, draft};
use gpuvm_core::plan::plan;
use gpuvm_core::profile::{Sources, parse};
use gpuvm_host::facts::{self, Depth, Scope};
use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::hosts;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use rstest::rstest;
use serde_json::Value;

use crate::gpuvm;
use crate::shared::golden::repository;
use crate::shared::hosts::{lab, with_files, with_ovmf};
use crate::shared::{Case, made_up, matrix};

/// Unpacks a report: files by name, without the folder that they are in.
fn unpack(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(path).unwrap()));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().components().skip(1).collect::<PathBuf>().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(name, content);
    }
    files
}

fn text(files: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
    let content = files.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
    String::from_utf8(content.clone()).unwrap()
}

/// Makes a report of a host in files; returns what was told.
fn report(root: &Path, file: &Path, args: &[&str]) -> Output {
    let (root, file) = (root.display().to_string(), file.display().to_string());
    let prefix = format!("{}/gpuvm", root.trim_end_matches('/'));
    gpuvm(
        &[&["report", "--host-root", root.trim_end_matches('/'), "--prefix", &prefix, "-o", &file], args]
            .concat(),
    )
}

fn same(here: &Output, there: &Output, what: &str) {
    let spelt = |output: &Output| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(spelt(there), spelt(here), "{what}: a report says otherwise than its host");
}

/// What a profile comes to on a host is the same on a report that was made there.
#[rstest]
#[case::made_up(made_up::all, 20)]
#[case::recorded(matrix::all, 15)]
fn a_report_is_answered_as_its_host_is(#[case] cases: fn() -> Vec<Case>, #[case] least: usize) {
    let cases = cases();
    assert!(cases.len() >= least);
    let folder = tempfile::tempdir().unwrap();
    for case in cases {
        let (root, file) =
            (case.host.root(), folder.path().join(format!("{}.tar.gz", case.name.replace('/', "-"))));
        let set: Vec<&str> = case.set.iter().flat_map(|set| ["--set", set]).collect();
        let made = report(&root, &file, &[&[case.profile.as_str()], set.as_slice()].concat());
        assert!(made.status.success(), "{}: {made:?}", case.name);
        let (root, file) = (root.display().to_string(), file.display().to_string());
        let root = root.trim_end_matches('/');
        let here = gpuvm(&[["plan", &case.profile, "--host-root", root].as_slice(), &set].concat());
        let there = gpuvm(&[["plan", &case.profile, "--facts", &file].as_slice(), &set].concat());
        same(&here, &there, &case.name);
        // The ledger is where the report found it.
        let prefix = format!("{root}/gpuvm");
        let host = ["--host-root", root, "--prefix", &prefix];
        let here = gpuvm(&[&["doctor", case.profile.as_str()], &host[..], &set].concat());
        let there = gpuvm(&[["doctor", &case.profile, "--facts", &file].as_slice(), &set].concat());
        same(&here, &there, &case.name);
    }
}

#[test]
fn a_report_of_a_made_up_host_is_looked_at_as_the_host_is() {
    let folder = tempfile::tempdir().unwrap();
    for (name, make) in hosts::ALL {
        let (host, file) = (make(), folder.path().join(format!("{name}.tar.gz")));
        let root = host.path("/");
        let made = report(&root, &file, &[]);
        assert!(made.status.success(), "{name}: {made:?}");
        let (root, file) = (root.display().to_string(), file.display().to_string());
        let bdf = fs::read_dir(host.path("/sys/bus/pci/devices")).unwrap().next().unwrap().unwrap();
        let bdf = bdf.file_name().to_string_lossy().into_owned();
        let verbs: &[&[&str]] = &[
            &["devices"],
            &["devices", "--all"],
            &["devices", "--json"],
            &["devices", &bdf],
            &["init"],
            &["init", &bdf],
            &["topology"],
            &["topology", "--json"],
        ];
        for verb in verbs {
            let here = gpuvm(&[verb, ["--host-root", root.trim_end_matches('/')].as_slice()].concat());
            let there = gpuvm(&[verb, ["--facts", &file].as_slice()].concat());
            same(&here, &there, &format!("{name} {verb:?}"));
            if let [verb @ ("devices" | "topology")] = verb {
                let kept = text(&unpack(Path::new(&file)), &format!("{verb}.txt"));
                assert_eq!(kept, String::from_utf8(here.stdout).unwrap(), "{name}: {verb}.txt");
            }
        }
    }
}

/// A profile that describes its device is replayed by the lock in the archive, also without what names somebody.
#[rstest]
#[case::whole(&[])]
#[case::redacted(&["--redact"])]
fn a_report_has_the_lock_of_its_profile(#[case] redact: &[&str]) {
    let (host, folder) = telling();
    let profile = folder.path().join("home/win.toml");
    let text_of = fs::read_to_string(&profile).unwrap();
    let described = text_of.replace("bdf = \"81:00.0\"", "select = { serial = \"01-02-03-04-05-06-07-08\" }");
    assert_ne!(text_of, described);
    fs::write(&profile, described).unwrap();
    let (root, path) = (host.path("/").display().to_string(), profile.display().to_string());
    let locked = gpuvm(&["lock", "--host-root", root.trim_end_matches('/'), &path]);
    assert!(locked.status.success(), "{locked:?}");
    let file = folder.path().join("r.tar.gz");
    assert!(report(&host.path("/"), &file, &[&[path.as_str()], redact].concat()).status.success());
    let files = unpack(&file);
    let there = tempfile::tempdir().unwrap();
    for name in ["profile.toml", "profile.lock"] {
        fs::write(there.path().join(name), text(&files, name)).unwrap();
    }
    assert_eq!(text(&files, "profile.lock").contains("01-02-03-04-05-06-07-08"), redact.is_empty());
    let profile = there.path().join("profile.toml").display().to_string();
    let planned = gpuvm(&["plan", "--facts", &file.display().to_string(), &profile]);
    assert!(planned.status.success(), "{planned:?}");
    // And without it: the serial number of the facts is still the one that the profile asks for.
    fs::remove_file(there.path().join("profile.lock")).unwrap();
    let chosen = gpuvm(&["devices", "--facts", &file.display().to_string(), &profile]);
    let listed = String::from_utf8(chosen.stdout).unwrap();
    assert!(chosen.status.success() && listed.contains("0000:81:00.0"), "{listed}");
}

#[test]
fn what_the_doctor_says_is_kept_without_colours() {
    let (host, folder) = telling();
    let file = folder.path().join("r.tar.gz");
    assert!(report(&host.path("/"), &file, &[]).status.success());
    assert!(!text(&unpack(&file), "doctor.txt").contains('\x1b'));
}

/// The facts alone do as well, and a profile that names other files is told so.
#[test]
fn facts_without_their_archive_are_taken_and_other_files_are_unknown_to_them() {
    let (host, folder) = (with_files(&[("/srv/data.img", &[0; 512])]), tempfile::tempdir().unwrap());
    let file = folder.path().join("report.tar.gz");
    let dev = "profiles/lab-compute.toml";
    assert!(report(&host.path("/"), &file, &[dev]).status.success());
    let facts = folder.path().join("facts.json");
    fs::write(&facts, text(&unpack(&file), "facts.json")).unwrap();
    let facts = facts.display().to_string();
    let plan = gpuvm(&["plan", "--facts", &facts, dev]);
    assert!(plan.status.success(), "{plan:?}");
    let other = gpuvm(&["plan", "--facts", &facts, dev, "--set", "disk=[{path=\"/srv/data.img\"}]"]);
    let told = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(64), "{told}");
    assert!(
        told.contains("they don't tell of files that the profile names: disk.path /srv/data.img"),
        "{told}"
    );
    let again = report(&host.path("/"), &file, &[]);
    assert_eq!(again.status.code(), Some(64), "it was written over: {again:?}");
    let of_facts = gpuvm(&["report", "--facts", &facts]);
    assert_eq!(of_facts.status.code(), Some(64), "{of_facts:?}");
}

const UUID: &str = "8ad1a9d4-5555-4bbb-9ccc-0123456789ab";
/// What the host below holds that is nobody's business.
const SECRETS: &[&str] = &[
    "node7",
    "example.org",
    "52:54:00:ab:cd:ef",
    "525400abcdef",
    "10.11.12.13",
    "2001:db9::77",
    UUID,
    "11112222333344445555666677778888",
    "alice",
    "acme corp",
    "hush-hush",
    "windows 11.qcow2",
    "base-of-acme.img",
    "lab-secret",
    "WD-SN-12345",
    "01-02-03-04-05-06-07-08",
    "0102030405060708",
    "72623859790382856",
    "vg-acme",
    "5c0f1111-2222-4333-8444-555566667777",
    "guest-says",
    "zoltan",
    "builders-box",
];

/// Whoever asks, and whoever built the kernel.
fn people(host: &FakeHost) {
    host.file(
        "/proc/version",
        "Linux version 6.12.0 (zoltan@builders-box) (gcc 14) #1 SMP Debian 6.12.1-1\n",
    );
    host.file("/etc/passwd", "root:x:0:0::/root:/bin/sh\nzoltan:x:1000:1000::/nowhere:/bin/sh\n");
    host.file("/proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n");
    host.file(
        "/proc/self/limits",
        "Max locked memory         8388608              8388608              bytes\n",
    );
}

/// Writes down a run of a card, in a file that is called by its serial number.
fn history(host: &FakeHost) {
    let entry = serde_json::json!({
        "at": 1_800_000_000, "boot_id": "5c0f1111-2222-4333-8444-555566667777", "kernel": "6.12.0",
        "device": { "id": "1234:1111", "serial": 0x0102_0304_0506_0708_u64, "bdf": "0000:81:00.0" },
        "deed": "run", "vm": "win", "ms": 5000, "judgement": { "verdict": "healthy", "findings": [] },
    });
    let name = "1234-1111.none.01-02-03-04-05-06-07-08.0000-81-00-0.jsonl";
    host.file(&format!("/gpuvm/lib/ledger/{name}"), format!("{{\"ledger\":1}}\n{entry}\n"));
}

/// A host on which everything that can be told is.
fn telling() -> (FakeHost, tempfile::TempDir) {
    let host = with_ovmf(with_files(&[("/home/alice/acme corp/windows 11.qcow2", b"QFI\xfb\0\0\0\x03")]));
    host.file("/proc/sys/kernel/hostname", "node7.example.org\n");
    host.file("/proc/sys/kernel/random/boot_id", "5c0f1111-2222-4333-8444-555566667777\n");
    host.file(
        "/proc/cmdline",
        format!(
            "root=UUID={UUID} rd.luks.key=/hush-hush rd.lvm.lv=vg-acme/root ip=10.11.12.13 intel_iommu=on\n"
        ),
    );
    people(&host);
    host.file("/proc/self/mountinfo", "36 35 259:1 / /mnt/lab-secret rw - ext4 /dev/nvme0n1 rw\n");
    let mut config = vec![0_u8; 4096];
    config[..8].copy_from_slice(&[0x34, 0x12, 0x11, 0x11, 6, 0, 0x10, 0]);
    config[0x100..0x10c].copy_from_slice(&[3, 0, 1, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
    host.file("/sys/bus/pci/devices/0000:81:00.0/config", &config);
    host.file("/sys/bus/pci/devices/0000:01:00.0/net/enx525400abcdef/address", "52:54:00:ab:cd:ef\n");
    host.file(
        "/dev/kmsg",
        format!(
            "6,1,5140900,-;e1000e 0000:01:00.0 enx525400abcdef: 52:54:00:ab:cd:ef on node7\n\
             6,2,5140901,-;Kernel command line: root=UUID={UUID} vfio-pci.ids=10de:2330\n\
             6,3,5140902,-;vfio-pci 0000:81:00.0: Device Serial Number 01-02-03-04-05-06-07-08\n\
             6,4,5140903,-;usb 1-1: SerialNumber: WD-SN-12345\n"
        ),
    );
    let own = |name: &str, content: String| host.file(&format!("/gpuvm/{name}"), content);
    let disks =
        r#""disks": [{"path": "/home/alice/acme corp/windows 11.qcow2"}, {"path": "/srv/base-of-acme.img"}]"#;
    own(
        "run/vm/win/run.json",
        format!(
            "{{\"plan\": {{{disks}, \"vf_token\": \"{UUID}\"}}, \"profile\": \"serial-number = 'WD-SN-12345'\"}}"
        ),
    );
    own(
        "run/vm/win/journal",
        "{\"op\": {\"backing\": \"/srv/base-of-acme.img\"}}\n{\"note\": \"base-of-acme.img\"}\n".into(),
    );
    own("run/vm/win/baselines.json", "{}".into());
    own("run/reservations/win.json", "{\"boot_id\": \"5c0f1111-2222-4333-8444-555566667777\"}".into());
    own("run/claims.json", "{\"boot_id\": \"5c0f1111-2222-4333-8444-555566667777\"}".into());
    own(
        "log/win/qemu.log",
        "qemu: /home/alice/acme corp/windows 11.qcow2: lock\n-object secret,id=s,data=hush-hush\n\
         -drive {\"serial\":\"WD-SN-12345\"} to node7 [2001:db9::77]:22\n\
         machine 11112222333344445555666677778888, serial 0x0102030405060708\n"
            .into(),
    );
    own("log/win/console.log", "guest-says: alice\n".into());
    history(&host);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("home")).unwrap();
    fs::write(
        folder.path().join("home/win.toml"),
        "version = 1\nname = \"win\" # of alice, see /home/alice/x on node7.example.org\nmemory.size = \"1G\"\ncpu.count = 2\nserial = \"log\"\n\
         [[device]]\nbdf = \"81:00.0\"\n[[disk]]\npath = \"/home/alice/acme corp/windows 11.qcow2\"\nformat = \"qcow2\"\n",
    )
    .unwrap();
    (host, folder)
}

#[test]
fn a_report_holds_what_was_found_and_is_for_its_owner_alone() {
    let (host, folder) = telling();
    let (file, profile) =
        (folder.path().join("r.tar.gz"), folder.path().join("home/win.toml").display().to_string());
    let made = report(&host.path("/"), &file, &["--json", &profile]);
    assert!(made.status.success(), "{made:?}");
    let document: Value = serde_json::from_slice(&made.stdout).unwrap();
    let files = unpack(&file);
    let listed: Vec<_> =
        document["members"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let expected = [
        "README.txt",
        "versions.json",
        "facts.json",
        "doctor.txt",
        "doctor.json",
        "devices.txt",
        "topology.txt",
        "profile.toml",
        "plan.json",
        "plan.txt",
        "argv.txt",
        "gpuvm/claims.json",
        "gpuvm/reservations/win.json",
        "gpuvm/vm/win/journal",
        "gpuvm/vm/win/run.json",
        "gpuvm/vm/win/baselines.json",
        "logs/win/qemu.log",
        "logs/win/console.log",
        "gpuvm/ledger/1234-1111-0000-81-00-0.jsonl",
        "kernel.log",
    ];
    assert_eq!(listed, expected);
    assert_eq!(files.len(), expected.len());
    let all: String = files.values().map(|content| String::from_utf8_lossy(content)).collect();
    let kernel = text(&files, "kernel.log");
    assert!(kernel.contains("[    5.140900] e1000e 0000:01:00.0") && !kernel.contains("usb 1-1"), "{kernel}");
    // What is redacted below is really there without that, or the next test would show nothing.
    let missing: Vec<_> = SECRETS.iter().filter(|secret| !all.contains(**secret)).collect();
    assert_eq!(missing, [&"2001:db9::77"; 0], "they aren't in the report at all");
}

#[test]
fn a_redacted_report_holds_no_secret_and_is_planned_as_the_host_is() {
    let (host, folder) = telling();
    let (file, profile) =
        (folder.path().join("r.tar.gz"), folder.path().join("home/win.toml").display().to_string());
    let made = report(&host.path("/"), &file, &["--redact", &profile]);
    assert!(made.status.success(), "{made:?}");
    let files = unpack(&file);
    for (name, content) in &files {
        let content = String::from_utf8_lossy(content);
        // Whoever the profile's own comment names has no form that one could be known by.
        let content = content.replace("# of alice, see", "");
        let found: Vec<_> = SECRETS.iter().filter(|secret| content.contains(**secret)).collect();
        assert!(found.is_empty(), "{found:?} in {name}:\n{content}");
        assert!(!name.contains("console"), "{name}");
    }
    let redacted = folder.path().join("profile.toml");
    fs::write(&redacted, text(&files, "profile.toml")).unwrap();
    let root = host.path("/").display().to_string();
    let here = gpuvm(&["plan", "--json", "--host-root", root.trim_end_matches('/'), &profile]);
    let there =
        gpuvm(&["plan", "--json", "--facts", &file.display().to_string(), &redacted.display().to_string()]);
    assert!(here.status.success() && there.status.success(), "{here:?} {there:?}");
    let names = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout);
        text.replace("acme corp", "folder")
            .replace("folder-1", "folder")
            .replace("folder-2", "folder")
            .replace("windows 11.qcow2", "disk-1.qcow2")
            .replace("alice", "user")
            .replace("user-1", "user")
            .replace("user-2", "user")
            .replace("user-3", "user")
    };
    assert_eq!(names(&there), names(&here));
}

/// Wherever a name stands, in whatever file, it is gone.
#[test]
fn no_planted_secret_survives_in_any_file() {
    let host = lab();
    let folder = tempfile::tempdir().unwrap();
    let mut runner = TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
    let secret = (
        "([0-9a-f]{2}:){5}[0-9a-f]{2}",
        "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}",
        "q[a-z]{7}",
        "z[a-z]{7}",
        "[a-z]{4}xx[0-9]{2}\\.img",
    );
    runner
        .run(&secret, |(mac, uuid, name, user, disk)| {
            host.file("/proc/sys/kernel/hostname", format!("{name}\n"));
            let all =
                format!("{mac} ({uuid}) on {name}: /home/{user}/x, \"/srv/{disk}\"; password={user}{mac}");
            host.file("/proc/cmdline", format!("{all}\n"));
            host.file("/dev/kmsg", format!("1,1,1,-;DMAR {all}\n"));
            host.file("/gpuvm/log/a/qemu.log", &all);
            let journal =
                serde_json::json!({"backing": format!("/srv/{disk}"), "x": [{"y": all}], "password": uuid});
            host.file("/gpuvm/run/vm/a/journal", format!("{journal}\nnot a document: {all}\n"));
            host.file("/gpuvm/run/vm/a/run.json", journal.to_string());
            let file = folder.path().join(format!("{name}.tar.gz"));
            let made = report(&host.path("/"), &file, &["--redact", "profiles/lab-compute.toml"]);
            prop_assert!(made.status.success(), "{:?}", made);
            for (member, content) in unpack(&file) {
                let content = String::from_utf8_lossy(&content);
                for secret in [&mac, &uuid, &name, &user, &disk] {
                    prop_assert!(
                        !content.contains(secret.as_str()),
                        "{} is in {}:\n{}",
                        secret,
                        member,
                        content
                    );
                }
            }
            let plan = gpuvm(&["plan", "--facts", &file.display().to_string(), "profiles/lab-compute.toml"]);
            prop_assert!(plan.status.success(), "{:?}", plan);
            Ok(())
        })
        .unwrap();
}

/// Returns the places of all values that hold no others.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
            object.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{}", escaped(key)), found));
        }
        Value::Array(values) => {
            (0..)
                .zip(values)
                .for_each(|(index, value): (usize, _)| leaves(value, &format!("{at}/{index}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

/// Facts that somebody has tampered with are refused, or judged as they are: nothing that judges falls over them.
#[test]
fn facts_with_any_value_in_them_are_refused_or_judged() {
    let host = with_ovmf(lab());
    let profile = fs::read_to_string(repository().join("profiles/lab-compute.toml")).unwrap();
    let profile = parse(&Sources::new("x", profile), Path::new("/")).unwrap();
    let facts = facts::survey(&host.root(), &Scope::All, Depth::Config, Some(&profile)).unwrap();
    let whole = serde_json::to_value(FactsFile::new("0.1.0", None, facts)).unwrap();
    let mut places = Vec::new();
    leaves(&whole, "", &mut places);
    let value = prop_oneof![
        proptest::sample::select(vec![0_u64, 1, 255, 65_536, 1 << 32, 1 << 52, u64::MAX])
            .prop_map(Value::from),
        Just(Value::from(-1)),
        Just(Value::Null),
        Just(serde_json::json!([])),
        proptest::sample::select(vec![
            "",
            "x",
            "0",
            "4096T",
            "18446744073709551615",
            "0-65535",
            "ffffffff:ff:1f.7",
            "ffffff",
            "ffff:ffff",
            "\u{0}",
            "../../x"
        ])
        .prop_map(Value::from),
    ];
    let changes = proptest::collection::vec((any::<Index>(), value), 1..4);
    let judged = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    runner
        .run(&changes, |changes| {
            let mut tampered = whole.clone();
            for (place, value) in changes {
                let place = place.get(&places);
                *tampered.pointer_mut(place).unwrap() = value;
            }
            let Ok(file) = FactsFile::parse(tampered.to_string().as_bytes()) else { return Ok(()) };
            judged.set(judged.get() + 1);
            let _ = plan(&profile, &file.facts);
            let targets: Vec<_> = facts::asked(&profile).into_iter().collect();
            let _ = examine(&file.facts, Some(&profile), &targets);
            let cards = candidates(&file.facts);
            for card in &cards {
                draft(&file.facts, card.device, &Choices::default()).ok();
            }
            Ok(())
        })
        .unwrap();
    assert!(judged.get() >= 100, "{} of 2000 were facts at all", judged.get());
}

/// What a user may not read is listed, and the rest is there.
#[test]
fn what_cannot_be_read_is_listed_in_the_report_and_told() {
    let (host, folder) = (lab(), tempfile::tempdir().unwrap());
    let sealed = "/sys/bus/pci/devices/0000:82:00.0/reset_method";
    host.remove(sealed);
    fs::create_dir(host.path(sealed)).unwrap();
    fs::create_dir_all(host.path("/gpuvm/run")).unwrap();
    host.file("/gpuvm/run/vm", "a file where a folder should be");
    let file = folder.path().join("r.tar.gz");
    let made = report(&host.path("/"), &file, &[]);
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success() && told.contains("not in the report: read"), "{told}");
    let unread = text(&unpack(&file), "unread.txt");
    assert!(unread.contains("0000:82:00.0/reset_method"), "{unread}");
}
