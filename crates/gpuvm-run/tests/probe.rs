//! Asking a QEMU what it can do: the answer is kept as long as it holds, and nothing is left of who doesn't answer.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpuvm_core::facts::{Access, HostFacts, Presence, QemuFacts, QemuProbe};
use gpuvm_host::places::Places;
use gpuvm_run::probe;
use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::fake_qemu::{ExitAtStart, Greeting, OnQuit, Reply, Script};
use rstest::rstest;
use serde_json::json;

/// A host whose QEMU plays a script, and counts how often it was started.
struct Host {
    host: FakeHost,
    starts: PathBuf,
    facts: HostFacts,
}

impl Host {
    fn new(script: &Script) -> Self {
        let host = FakeHost::new();
        host.fake_qemu(script);
        let (real, starts) = (host.path("/fake-qemu/qemu"), host.path("/fake-qemu/starts"));
        let counting =
            format!("#!/bin/sh\necho $$ >> '{}'\nexec '{}' \"$@\"\n", starts.display(), real.display());
        let qemu = host.script("/fake-qemu/counting", &counting);
        let facts = HostFacts { qemu: Some(qemu), kvm: Access::Usable, ..HostFacts::default() };
        Self { host, starts, facts }
    }

    fn probe(&self) -> QemuProbe {
        probe(&self.facts, &Places::below(&self.host.prefix()))
    }

    fn pids(&self) -> Vec<String> {
        fs::read_to_string(&self.starts).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Checks that none of the QEMUs is left, not even as a zombie.
    fn nothing_is_left(&self) {
        for pid in self.pids() {
            assert!(!Path::new("/proc").join(&pid).exists(), "QEMU {pid} is left");
        }
    }
}

fn answered(probe: QemuProbe) -> QemuFacts {
    match probe {
        QemuProbe::Answered(facts) => facts,
        other => panic!("no answer: {other:?}"),
    }
}

fn failed(probe: QemuProbe) -> String {
    match probe {
        QemuProbe::Failed { why } => why,
        other => panic!("no failure: {other:?}"),
    }
}

/// A QEMU that names two properties of each device, and doesn't know objects.
fn script() -> Script {
    let property = |name: &str| json!({"name": name, "type": "str"});
    let mut script = Script::default();
    let properties = json!([property("host"), property("addr")]);
    script.replies.insert("device-list-properties".to_owned(), Reply::Value(properties));
    script
}

#[test]
fn a_qemu_is_asked_once() {
    let host = Host::new(&script());
    let facts = answered(host.probe());
    assert_eq!((facts.version, facts.kvm), ((7, 2, 22), Presence::Present));
    assert_eq!(facts.types["vfio-pci"], ["addr", "host"].map(str::to_owned).into());
    assert!(!facts.types.contains_key("memory-backend-memfd"), "{facts:?}");
    assert_eq!(answered(host.probe()), facts);
    assert_eq!(host.pids().len(), 1);
    host.nothing_is_left();
}

#[rstest]
#[case::another_program(|host: &mut Host| {
    let path = host.facts.qemu.clone().unwrap();
    let text = fs::read(&path).unwrap();
    fs::write(&path, [text, b"# newer\n".to_vec()].concat()).unwrap();
})]
#[case::another_kernel(|host: &mut Host| host.facts.kernel.release = "6.99".to_owned())]
#[case::kvm_is_gone(|host: &mut Host| host.facts.kvm = Access::Denied)]
#[case::a_damaged_answer(|host: &mut Host| {
    let folder = Places::below(&host.host.prefix()).probes();
    for entry in fs::read_dir(folder).unwrap() {
        fs::write(entry.unwrap().path(), "{").unwrap();
    }
})]
fn a_changed_host_is_asked_again(#[case] change: fn(&mut Host)) {
    let mut host = Host::new(&script());
    answered(host.probe());
    change(&mut host);
    answered(host.probe());
    assert_eq!(host.pids().len(), 2);
    host.nothing_is_left();
}

#[test]
fn an_answer_that_cannot_be_kept_is_an_answer() {
    let host = Host::new(&script());
    host.host.file("/gpuvm/cache", "no folder");
    answered(host.probe());
    answered(host.probe());
    assert_eq!(host.pids().len(), 2);
}

#[test]
fn a_qemu_that_dies_is_quoted() {
    let exit = ExitAtStart { code: 1, stderr: "qemu: unsupported machine type\n".to_owned() };
    let host = Host::new(&Script { exit_at_start: Some(exit), ..script() });
    let why = failed(host.probe());
    assert!(why.contains("qemu: unsupported machine type"), "{why}");
    host.nothing_is_left();
}

#[test]
fn a_program_that_is_not_there_is_a_failure() {
    let facts = HostFacts { qemu: Some("/nowhere/qemu".into()), ..HostFacts::default() };
    let why = failed(probe(&facts, &Places::below(Path::new("/nowhere"))));
    assert!(why.contains("/nowhere/qemu"), "{why}");
    let none = probe(&HostFacts::default(), &Places::below(Path::new("/nowhere")));
    assert_eq!(none, QemuProbe::NotAsked);
}

#[rstest]
#[case::that_says_nothing(Script { greeting: Greeting::Silent, ..script() })]
#[case::that_stops_answering(Script {
    replies: [("query-kvm".to_owned(), Reply::Silence)].into(),
    ..script()
})]
fn a_qemu_is_given_up_at_the_deadline(#[case] script: Script) {
    let host = Host::new(&script);
    let begun = Instant::now();
    let why = failed(host.probe());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(why.contains("within 5 s"), "{why}");
    host.nothing_is_left();
}

#[test]
fn a_qemu_that_does_not_quit_is_ended() {
    let host = Host::new(&Script { on_quit: OnQuit::Linger, ..script() });
    answered(host.probe());
    host.nothing_is_left();
}

/// A wrapper that waits for QEMU instead of becoming it, and a QEMU that never speaks: both go.
#[test]
fn what_a_wrapper_has_started_is_ended_too() {
    let mut host = Host::new(&Script { greeting: Greeting::Silent, ..script() });
    let counting = host.facts.qemu.take().unwrap();
    let wrapper = format!("#!/bin/sh\n'{}' \"$@\"\nexit $?\n", counting.display());
    host.facts.qemu = Some(host.host.script("/fake-qemu/wrapper", &wrapper));
    failed(host.probe());
    assert_eq!(host.pids().len(), 1);
    // It is nobody's child any more, and who collects it takes a moment.
    let begun = Instant::now();
    let left = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", host.pids()[0])).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    };
    while left() {
        assert!(begun.elapsed() < Duration::from_secs(5), "QEMU is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}
