//! Guests that stand still on a fake host: why, what is done about it, and how they end.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use gpuvm_core::lifecycle::{self, Outcome, Stage, State};
use gpuvm_run::{Note, Observer, Phase, Signals, up};
use gpuvm_testkit::fake_qemu::{Action, Recording, Reply, Script, TimedAction};
use rstest::rstest;

use bench::{Bench, Told, action, shutdown_after};

#[tokio::test]
async fn a_stop_for_an_internal_error_ends_the_guest() {
    let status = serde_json::json!({"status": "internal-error", "running": false, "singlestep": false});
    let bench = Bench::new(&Script {
        after_cont: action(Action::Event { name: "STOP".into(), data: serde_json::Value::Null }),
        replies: [("query-status".to_owned(), Reply::Value(status))].into(),
        ..Script::default()
    });
    assert_eq!(
        bench.up().await.unwrap().outcome,
        Outcome::InternalError { fault: lifecycle::Fault::Unknown }
    );
    bench.assert_given_back();
}

fn at(after_ms: u64, action: Action) -> TimedAction {
    TimedAction { after_ms, action }
}

fn stops(after_ms: u64, status: &str) -> TimedAction {
    at(after_ms, Action::Stop { status: status.to_owned() })
}

fn says(after_ms: u64, name: &str, data: serde_json::Value) -> TimedAction {
    at(after_ms, Action::Event { name: name.to_owned(), data })
}

#[rstest]
#[case::by_somebody(vec![stops(20, "paused")], "paused as asked", State::PausedByUser)]
#[case::by_a_full_disk(
    vec![
        says(10, "BLOCK_IO_ERROR", serde_json::json!({
            "device": "", "qom-path": "/machine/peripheral/disk0/virtio-backend", "node-name": "#block1", "operation": "write",
            "action": "stop", "nospace": true, "reason": "No space left on device",
        })),
        stops(20, "io-error"),
    ],
    "paused by QEMU: write failed on disk0: No space left on device",
    State::PausedByError
)]
#[case::by_its_watchdog(
    vec![says(10, "WATCHDOG", serde_json::json!({"action": "pause"})), stops(20, "watchdog")],
    "paused by QEMU: its watchdog was not fed",
    State::PausedByError
)]
#[case::by_something_new(vec![stops(20, "moonstruck")], "whose word for it is `moonstruck`", State::PausedByError)]
#[tokio::test]
async fn a_guest_that_stands_still_is_told_with_the_reason_and_goes_on(
    #[case] mut after_cont: Vec<TimedAction>,
    #[case] words: &str,
    #[case] state: State,
) {
    after_cont.push(at(600, Action::Resume));
    after_cont.extend(shutdown_after(900));
    let bench = Bench::new(&Script { after_cont, ..Script::default() });
    let mut told = Told::default();
    assert_eq!(bench.up_told(&mut told).await.unwrap().outcome, Outcome::PoweredOff);
    let place = |text: &str| told.0.iter().position(|line| line.contains(text));
    let paused = place(words).unwrap_or_else(|| panic!("{:?}", told.0));
    let goes_on = place("the guest goes on").unwrap_or_else(|| panic!("{:?}", told.0));
    assert!(paused < goes_on, "{:?}", told.0);
    let states: Vec<&str> = told.0.iter().filter_map(|line| line.strip_prefix("state ")).collect();
    let expected = [
        "preparing",
        "host-ready",
        "paused",
        "running",
        state.name(),
        "running",
        "quitting",
        "exited",
        "released",
    ];
    assert_eq!(states, expected);
    bench.assert_given_back();
}

/// One that stands still doesn't see its power button.
#[rstest]
#[case::by_somebody("paused")]
#[case::by_a_disk("io-error")]
#[tokio::test]
async fn a_paused_guest_that_is_asked_to_end_goes_on_and_powers_off(#[case] status: &str) {
    let bench = Bench::new(&Script { after_cont: vec![stops(10, status)], ..Script::default() });
    let (ask, requests) = tokio::sync::mpsc::unbounded_channel();
    let mut signals = Signals::from_channel(requests);
    let mut told = Asking { at: "the guest is paused", ask, told: Told::default() };
    let report = up(&bench.run(), &mut signals, None, &mut told).await.unwrap();
    assert_eq!(report.outcome, Outcome::Stopped { stage: Stage::Acpi }, "{:?}", told.told.0);
    let commands = Recording::load(&bench.record).unwrap();
    let all = ["qmp_capabilities", "query-cpus-fast", "cont", "query-status", "cont", "system_powerdown"];
    assert_eq!(commands.names(), all);
    bench.assert_given_back();
}

/// Asks for the guest's end when something is told.
struct Asking {
    at: &'static str,
    ask: tokio::sync::mpsc::UnboundedSender<&'static str>,
    told: Told,
}

impl Asking {
    fn look(&mut self) {
        if self.told.0.last().is_some_and(|line| line.contains(self.at)) {
            self.ask.send("SIGTERM").unwrap();
        }
    }
}

impl Observer for Asking {
    fn phase(&mut self, phase: &Phase) {
        self.told.phase(phase);
        self.look();
    }

    fn note(&mut self, note: &Note) {
        self.told.note(note);
        self.look();
    }

    fn state(&mut self, state: State, halt: Option<&lifecycle::Halt>) {
        self.told.state(state, halt);
        self.look();
    }
}

const DEVICE_LINE: &str = "qemu-system-x86_64: vfio_err_notifier_handler(0000:81:00.0) Unrecoverable error detected. Please collect any \
                           data possible and then kill the guest\n";
const KVM_LINE: &str = "KVM internal error. Suberror: 1\nemulation failure\n";

#[rstest]
#[case::device(DEVICE_LINE, "an error of 0000:81:00.0, of which nothing shows")]
#[case::kvm(KVM_LINE, "because of KVM (KVM internal error. Suberror: 1)")]
#[case::nobody_knows("warning: something\n", "because of an error that it can't go on from")]
#[tokio::test]
async fn an_internal_error_is_told_apart(#[case] stderr: &str, #[case] words: &str) {
    let after_cont = vec![at(10, Action::Stderr { text: stderr.to_owned() }), stops(20, "internal-error")];
    let bench = Bench::new(&Script { after_cont, ..Script::default() });
    let report = bench.up().await.unwrap();
    assert!(matches!(report.outcome, Outcome::InternalError { .. }), "{:?}", report.outcome);
    assert!(report.outcome.to_string().contains(words), "{}", report.outcome);
    assert!(report.last_words.is_some());
    bench.assert_given_back();
}

#[tokio::test]
async fn broken_memory_ends_the_guest_and_says_so() {
    let data = serde_json::json!({"recipient": "hypervisor", "action": "fatal", "flags": {"action-required": true, "recursive": false}});
    let after_cont = vec![says(10, "MEMORY_FAILURE", data), at(20, Action::Exit { code: 1 })];
    let bench = Bench::new(&Script { after_cont, ..Script::default() });
    assert_eq!(bench.up().await.unwrap().outcome, Outcome::MemoryFailure);
    bench.assert_given_back();
}

#[tokio::test]
async fn what_the_guest_or_qemu_sees_to_is_told_and_ends_nothing() {
    let disk = serde_json::json!({"device": "disk0", "operation": "read", "action": "report", "reason": "Input/output error"});
    let mut after_cont = vec![
        says(10, "MEMORY_FAILURE", serde_json::json!({"recipient": "guest", "action": "inject"})),
        says(11, "WATCHDOG", serde_json::json!({"action": "inject-nmi"})),
        says(12, "GUEST_CRASHLOADED", serde_json::json!({"action": "run"})),
        says(13, "DEVICE_UNPLUG_GUEST_ERROR", serde_json::json!({"device": "vf0"})),
    ];
    after_cont.extend((14..20).map(|ms| says(ms, "BLOCK_IO_ERROR", disk.clone())));
    after_cont.extend(shutdown_after(100));
    let bench = Bench::new(&Script { after_cont, ..Script::default() });
    let mut told = Told::default();
    assert_eq!(bench.up_told(&mut told).await.unwrap().outcome, Outcome::PoweredOff);
    let count = |text: &str| told.0.iter().filter(|line| line.contains(text)).count();
    for text in [
        "memory of the host is broken (guest",
        "watchdog was not fed",
        "has crashed",
        "does not let go of its device vf0",
    ] {
        assert_eq!(count(text), 1, "{text}: {:?}", told.0);
    }
    assert_eq!(count("read failed on disk0: Input/output error"), 1, "{:?}", told.0);
}

/// The guest was on its way out: nothing is wrong with a command that came too late for it.
#[tokio::test]
async fn a_power_button_that_comes_too_late_is_no_failure_to_tell() {
    let script = Script {
        replies: [("system_powerdown".to_owned(), Reply::Die { code: 0 })].into(),
        ..Script::default()
    };
    let bench = Bench::new(&script);
    let (ask, requests) = tokio::sync::mpsc::unbounded_channel();
    let mut signals = Signals::from_channel(requests);
    let mut told = Asking { at: "state running", ask, told: Told::default() };
    let report = up(&bench.run(), &mut signals, None, &mut told).await.unwrap();
    assert_eq!(report.outcome, Outcome::Stopped { stage: Stage::Acpi });
    assert!(!told.told.0.iter().any(|line| line.contains("system_powerdown")), "{:?}", told.told.0);
}
