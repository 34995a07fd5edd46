//! What the ledger tells: lists, histories, the way out, and what every other verb says of a device in quarantine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use gpuvm_testkit::fake_host::FakeHost;
use serde_json::{Value, json};

use crate::shared::golden::compare;
use crate::shared::hosts::{NOT_WRITABLE, lab, with_platform};
use crate::{gpuvm, transcript};

/// Writes a file of the ledger.
fn ledger(prefix: &Path, name: &str, lines: &[Value]) {
    let folder = prefix.join("lib/ledger");
    fs::create_dir_all(&folder).unwrap();
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(folder.join(name), format!("{{\"ledger\":1}}\n{lines}")).unwrap();
}

fn entry(bdf: &str, serial: Option<u64>, at: u64, deed: Value) -> Value {
    let mut entry = json!({
        "at": 1_800_000_000 + at, "boot_id": "5c0f1111-2222-4333-8444-555566667777", "kernel": "6.12.0",
        "device": { "id": "1234:1111", "subsystem": null, "serial": serial, "bdf": bdf }, "driver": "vfio-pci",
    });
    entry.as_object_mut().unwrap().extend(deed.as_object().unwrap().clone());
    entry
}

fn well() -> Value {
    json!({ "verdict": "healthy", "findings": [] })
}

fn dead(bdf: &str) -> Value {
    json!({ "verdict": "unreachable", "findings": [{
        "check": "all-ones", "weight": "unreachable", "bdf": bdf, "register": "config 0x00", "before": "0x11111234",
        "after": "0xffffffff", "meaning": "it reads all ones: it has fallen off the bus"
    }]})
}

fn run(outcome: &Value, ms: u64, judgement: &Value) -> Value {
    json!({ "deed": "run", "vm": "win", "qemu": "9.2.0", "outcome": outcome, "ms": ms, "judgement": judgement })
}

fn reset(method: &str, ms: u64, failure: Option<&str>, judgement: &Value) -> Value {
    json!({ "deed": "reset", "method": method, "ms": ms, "failure": failure, "judgement": judgement })
}

fn repair(rung: &str, ms: u64, failure: Option<&str>, judgement: &Value) -> Value {
    json!({ "deed": "repair", "rung": rung, "ms": ms, "failure": failure, "judgement": judgement })
}

/// Addresses that no machine has which runs this.
const RESET: &str = "00fe:41:00.0";
const SICK: &str = "00fe:81:00.0";
const DAMAGED: &str = "00fe:82:00.0";
const WELL: &str = "00fe:83:00.0";
const REPAIRED: &str = "00fe:85:00.0";

/// A ledger of one card that was reset and came back well, one that is sick, one whose file is damaged, one that is well,
/// and one that was sick and was repaired.
fn written(prefix: &Path) {
    let serial = Some(0x0015_17ff_ffaa_bbcc);
    let powered_off = json!({ "kind": "powered-off" });
    let killed = json!({ "kind": "stopped", "stage": "kill" });
    let died = json!({ "kind": "qemu-died", "exit": { "signal": 11 } });
    ledger(
        prefix,
        "1234-1111.none.00-15-17-ff-ff-aa-bb-cc.00fe-41-00-0.jsonl",
        &[
            entry("00fe:40:00.0", serial, 0, run(&powered_off, 7_260_000, &well())),
            entry(RESET, serial, 86_400, run(&killed, 95_300, &dead(RESET))),
            entry(
                RESET,
                serial,
                86_500,
                reset("bus", 1003, Some("ENOTTY: Inappropriate ioctl for device"), &dead(RESET)),
            ),
            entry(RESET, serial, 86_600, reset("flr", 104, None, &well())),
            entry(RESET, serial, 86_700, reset("flr", 100, None, &well())),
        ],
    );
    ledger(
        prefix,
        "1234-1111.none.none.00fe-81-00-0.jsonl",
        &[entry(SICK, None, 5, run(&Value::Null, 400, &dead(SICK)))],
    );
    ledger(prefix, "1234-1111.none.none.00fe-82-00-0.jsonl", &[json!({ "at": "noon" })]);
    let path = prefix.join("lib/ledger/1234-1111.none.none.00fe-83-00-0.jsonl");
    ledger(
        prefix,
        "1234-1111.none.none.00fe-83-00-0.jsonl",
        &[
            entry(WELL, None, 1, run(&died, 9000, &dead(WELL))),
            entry(WELL, None, 2, json!({ "deed": "cleared", "grounds": "accepted" })),
            entry(WELL, None, 3, json!({ "deed": "soak", "hours": 72 })),
        ],
    );
    ledger(
        prefix,
        "1234-1111.none.none.00fe-85-00-0.jsonl",
        &[
            entry(REPAIRED, None, 7, run(&powered_off, 9000, &dead(REPAIRED))),
            entry(REPAIRED, None, 8, repair("hot", 118, None, &dead(REPAIRED))),
            entry(
                REPAIRED,
                None,
                9,
                repair("subordinate", 1100, Some("ENOTTY: Inappropriate ioctl for device"), &dead(REPAIRED)),
            ),
            entry(REPAIRED, None, 10, repair("rescan", 264, None, &well())),
        ],
    );
    let torn = fs::read_to_string(&path).unwrap() + "{\"at\":18000";
    fs::write(path, torn).unwrap();
}

const CASES: &[(&str, i32, &[&str])] = &[
    ("list", 0, &["quarantine"]),
    ("list-json", 0, &["quarantine", "--json"]),
    ("history", 0, &["devices", RESET, "--history"]),
    ("history-json", 0, &["devices", RESET, "--history", "--json"]),
    ("history-of-a-sick-card", 0, &["devices", SICK, "--history"]),
    ("history-of-a-damaged-file", 0, &["devices", DAMAGED, "--history"]),
    ("history-of-a-file-cut-short", 0, &["devices", WELL, "--history"]),
    ("history-of-a-repaired-card", 0, &["devices", REPAIRED, "--history"]),
    ("history-of-a-repaired-card-json", 0, &["devices", REPAIRED, "--history", "--json"]),
    ("clear-of-a-repaired-card", 0, &["quarantine", "clear", REPAIRED]),
    ("history-of-what-never-was", 78, &["devices", "00fe:84:00.0", "--history"]),
    ("clear-after-a-good-reset", 0, &["quarantine", "clear", RESET]),
    ("clear-without-a-reset", 69, &["quarantine", "clear", SICK]),
    ("clear-without-a-reset-json", 69, &["quarantine", "clear", SICK, "--json"]),
    ("clear-accepted", 0, &["quarantine", "clear", SICK, "--accept"]),
    ("clear-accepted-json", 0, &["quarantine", "clear", SICK, "--accept", "--json"]),
    ("clear-of-a-damaged-file", 69, &["quarantine", "clear", DAMAGED, "--accept"]),
    ("clear-of-a-well-card", 0, &["quarantine", "clear", WELL]),
    ("clear-of-what-never-was", 78, &["quarantine", "clear", "00fe:84:00.0"]),
];

fn told(prefix: &Path, words: &[&str]) -> String {
    let prefix = prefix.display().to_string();
    transcript(&gpuvm(&[&["--prefix", &prefix], words].concat()), &prefix)
}

#[test]
fn the_ledger_is_told_as_it_was() {
    let case = |(name, code, words): &(&str, i32, &[&str])| {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let transcript = told(folder.path(), words);
        assert!(transcript.starts_with(&format!("exit {code}\n")), "{name}: {transcript}");
        ((*name).to_owned(), transcript)
    };
    let empty = tempfile::tempdir().unwrap();
    let host = on_a_host();
    compare(
        "quarantine",
        CASES
            .iter()
            .map(case)
            .chain([("list-of-none".to_owned(), told(empty.path(), &["quarantine"]))])
            .chain(host),
    );
}

/// A host with one card in quarantine, and one whose file is damaged.
fn quarantined() -> FakeHost {
    let host = with_platform(lab());
    let prefix = host.path("/gpuvm");
    let sick = "0000:81:00.0";
    let ended = json!({ "kind": "internal-error" });
    ledger(
        &prefix,
        "1234-1111.none.none.0000-81-00-0.jsonl",
        &[entry(sick, None, 0, run(&ended, 95_300, &dead(sick)))],
    );
    ledger(&prefix, "1234-1111.none.none.0000-41-00-0.jsonl", &[json!("no entry")]);
    host
}

/// What verbs say on it that don't look at the ledger by themselves.
fn on_a_host() -> Vec<(String, String)> {
    let host = quarantined();
    let ask = |name: &str, code: i32, words: &[&str]| {
        let (root, prefix) =
            (host.path("/").display().to_string(), host.path("/gpuvm").display().to_string());
        let root = root.trim_end_matches('/');
        let transcript =
            transcript(&gpuvm(&[&["--host-root", root, "--prefix", &prefix], words].concat()), root);
        assert!(transcript.starts_with(&format!("exit {code}\n")), "{name}: {transcript}");
        (format!("host-{name}"), transcript)
    };
    let compute = "profiles/lab-compute.toml";
    vec![
        ask("devices", 0, &["devices"]),
        ask("device", 0, &["devices", "81:00.0"]),
        ask("device-damaged", 0, &["devices", "41:00.0"]),
        ask("device-history", 0, &["devices", "81:00.0", "--history"]),
        ask("device-without-history", 0, &["devices", "82:00.0", "--history"]),
        ask("plan", 69, &["plan", compute]),
        ask("plan-json", 69, &["plan", compute, "--json"]),
        ask("bind", 69, &["bind", "--dry-run", "81:00.0", "41:00.0"]),
        ask("unbind", 0, &["unbind", "--dry-run", "81:00.0"]),
        ask("doctor", 69, &["doctor", "81:00.0", "41:00.0"]),
    ]
}

/// Who has cleared a card is in its history, and nothing is held against it any more.
#[test]
fn a_cleared_card_has_it_in_its_history() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path());
    for (bdf, words) in [(RESET, "it came back well from a reset"), (SICK, "accepted as it was")] {
        assert!(told(folder.path(), &["quarantine"]).contains(bdf));
        assert!(told(folder.path(), &["quarantine", "clear", bdf, "--accept"]).contains("is cleared"));
        assert!(!told(folder.path(), &["quarantine"]).contains(bdf));
        let history = told(folder.path(), &["devices", bdf, "--history"]);
        let last = history.split("\n\n").last().unwrap();
        assert!(last.contains(&format!("cleared, {words}")) || last.contains(words), "{history}");
        assert!(told(folder.path(), &["quarantine", "clear", bdf]).contains("isn't in quarantine"));
    }
}

#[test]
fn who_may_not_write_the_ledger_is_told() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path());
    fs::create_dir_all(folder.path().join("run")).unwrap();
    symlink(NOT_WRITABLE, folder.path().join("run/lock")).unwrap();
    let transcript = told(folder.path(), &["quarantine", "clear", RESET]);
    assert!(transcript.starts_with("exit 77\n"), "{transcript}");
}

/// Facts hold what the ledger said when they were taken.
#[test]
fn a_report_says_what_its_host_said() {
    let host = quarantined();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.tar.gz").display().to_string();
    let (root, prefix) = (host.path("/").display().to_string(), host.path("/gpuvm").display().to_string());
    let on_host = ["--host-root", root.trim_end_matches('/'), "--prefix", &prefix];
    let made = gpuvm(&[&on_host[..], &["report", "-o", &file]].concat());
    assert!(made.status.success(), "{made:?}");
    for words in [&["devices"][..], &["devices", "81:00.0"], &["devices", "41:00.0", "--json"]] {
        let [here, there] = [&on_host[..], &["--facts", &file]].map(|host| gpuvm(&[host, words].concat()));
        assert_eq!((there.status.code(), &there.stdout), (here.status.code(), &here.stdout), "{words:?}");
    }
    let listed = gpuvm(&["quarantine", "--facts", &file]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("0000:81:00.0") && listed.contains("it has fallen off the bus"), "{listed}");
}
