//! One cycle of a soak on a fake host with a fake QEMU: when a guest is ready, how it is ended, and what its line of the record holds.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bench::{Bench, GPU, Told, nobody};
use gpuvm_core::lifecycle::{Exit, NotAgain, Outcome, Stage};
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::Serial;
use gpuvm_core::reset::{Check, RebootPolicy, Snapshot, Verdict};
use gpuvm_core::soak::{Cycle, CycleKind, CycleVerdict, Fault, Phase, Ready, ResetWay};
use gpuvm_run::soak::{Awaited, CycleEnd, CycleJob, cycle, first_baselines};
use gpuvm_run::{Cause, Note, Observer, Signals, Sink};
use gpuvm_testkit::fake_qemu::{Action, OnPowerdown, Recording, Script, TimedAction};
use rstest::rstest;

/// Ready at once.
fn at_once() -> Ready {
    Ready { expect: None, job: false, after_ms: 0, timeout_seconds: 20 }
}

/// Ready once a line matches.
fn expects(line: &str) -> Ready {
    Ready { expect: Some(line.to_owned()), ..at_once() }
}

/// Ready once its job has reported.
fn job() -> Ready {
    Ready { job: true, ..at_once() }
}

fn says(after_ms: u64, text: &str) -> TimedAction {
    TimedAction { after_ms, action: Action::Console { text: text.to_owned() } }
}

fn powers_off(after_ms: u64) -> TimedAction {
    TimedAction { after_ms, action: Action::Shutdown { reason: "guest-shutdown".to_owned() } }
}

fn reboots(after_ms: u64) -> TimedAction {
    TimedAction { after_ms, action: Action::Reboot }
}

/// A guest that does this by itself.
fn does(actions: &[TimedAction]) -> Script {
    Script { after_cont: actions.to_vec(), ..Script::default() }
}

fn bench(script: &Script) -> Bench {
    let bench = Bench::new(script);
    bench.fake.says_now("the kernel's log begins").unwrap();
    bench
}

/// A cycle on a bench.
struct Given<'a> {
    bench: &'a Bench,
    kind: CycleKind,
    ready: Ready,
    first: BTreeMap<Bdf, Snapshot>,
}

impl<'a> Given<'a> {
    fn new(bench: &'a Bench, kind: CycleKind, ready: Ready) -> Self {
        Self { bench, kind, ready, first: first_baselines(&bench.fake.root(), &bench.plan) }
    }

    async fn run(&self, signals: &mut Signals, observer: &mut dyn Observer) -> CycleEnd {
        self.run_into(None, signals, observer).await
    }

    async fn run_into(
        &self,
        console: Option<Sink>,
        signals: &mut Signals,
        observer: &mut dyn Observer,
    ) -> CycleEnd {
        let ready = Awaited::new(self.ready.clone()).unwrap();
        let run = self.bench.run();
        let job = CycleJob {
            run,
            number: 7,
            kind: self.kind,
            ready: &ready,
            first: &self.first,
            at: 1_800_000_000,
            plan_ms: 40,
        };
        let end = cycle(&job, signals, observer, console).await;
        let sum: u64 = end.cycle.phases.iter().map(|part| part.ms).sum();
        assert_eq!(sum, end.cycle.ms, "every ms is accounted for: {:?}", end.cycle.phases);
        end
    }
}

async fn run(bench: &Bench, kind: CycleKind, ready: Ready) -> CycleEnd {
    Given::new(bench, kind, ready).run(&mut nobody(), &mut Told::default()).await
}

fn phases(cycle: &Cycle) -> Vec<Phase> {
    cycle.phases.iter().map(|part| part.phase).collect()
}

fn ms(cycle: &Cycle, phase: Phase) -> u64 {
    cycle.phases.iter().filter(|part| part.phase == phase).map(|part| part.ms).sum()
}

/// All parts of a cycle whose guest boots once.
const ONCE: [Phase; 8] = [
    Phase::Plan,
    Phase::Prepare,
    Phase::Start,
    Phase::Boot,
    Phase::Work,
    Phase::Stop,
    Phase::Judge,
    Phase::GiveBack,
];
const KILLED: Outcome = Outcome::QemuDied { exit: Exit::Signal(9) };
const BY_BUTTON: Outcome = Outcome::Stopped { stage: Stage::Acpi };
const JOB: &str = "gpuvm-job: {\"exit\":0,\"figures\":{\"gib/s\":12.5}}\r\n";

#[rstest]
#[case::by_its_button(does(&[says(30, "guest login: \r\n")]), CycleKind::Clean, expects("login:"), BY_BUTTON)]
#[case::by_itself(
    does(&[says(30, JOB), powers_off(31)]), CycleKind::Clean, Ready { after_ms: 20_000, ..job() }, Outcome::PoweredOff
)]
#[case::by_itself_meanwhile(
    does(&[powers_off(60)]), CycleKind::Clean, Ready { after_ms: 20_000, ..at_once() }, Outcome::PoweredOff
)]
#[case::killed(does(&[says(30, JOB)]), CycleKind::Kill, job(), KILLED)]
#[case::killed_as_soon_as_it_runs(does(&[]), CycleKind::Kill, at_once(), KILLED)]
#[case::over_chunk_borders(
    does(&[says(20, "Welcome to \x1b[1mth"), says(60, "e gue"), says(90, "st\x1b[0m\r\n")]),
    CycleKind::Clean,
    expects("^Welcome to the guest$"),
    BY_BUTTON
)]
#[case::at_a_prompt(does(&[says(20, "\r\nguest login: ")]), CycleKind::Clean, expects("login: $"), BY_BUTTON)]
#[case::in_its_first_words(
    Script { console_output: "ready\n".to_owned(), ..Script::default() }, CycleKind::Clean, expects("^ready$"), BY_BUTTON
)]
#[case::line_and_job(
    does(&[says(20, "up\n"), says(60, JOB)]), CycleKind::Clean, Ready { expect: Some("^up$".into()), ..job() }, BY_BUTTON
)]
#[tokio::test]
async fn a_guest_that_does_what_it_was_to_makes_a_healthy_cycle(
    #[case] script: Script,
    #[case] kind: CycleKind,
    #[case] ready: Ready,
    #[case] outcome: Outcome,
) {
    let bench = bench(&script);
    let has_job = ready.job;
    let end = run(&bench, kind, ready).await;
    let cycle = end.cycle;
    assert_eq!((cycle.outcome.as_ref(), &cycle.faults[..]), (Some(&outcome), &[][..]));
    assert_eq!(cycle.verdict(), CycleVerdict::Healthy, "{cycle:?}");
    assert_eq!((cycle.number, cycle.kind, cycle.at), (7, kind, 1_800_000_000));
    assert_eq!(phases(&cycle), ONCE);
    assert_eq!(ms(&cycle, Phase::Plan), 40);
    assert_eq!(cycle.job.is_some_and(|job| job.figures["gib/s"] == 12.5), has_job);
    assert_eq!((cycle.devices.len(), &cycle.devices[0].kernel[..]), (2, &[][..]));
    assert_eq!((end.interrupted, end.error.is_none()), (None, true));
    assert_eq!(end.qemu.as_deref(), Some("7.2.22 (fake)"));
    bench.assert_given_back();
}

#[tokio::test]
async fn the_parts_of_a_cycle_are_as_long_as_they_took() {
    let bench = bench(&does(&[says(300, "ready\n")]));
    let cycle = run(&bench, CycleKind::Clean, Ready { after_ms: 200, ..expects("ready") }).await.cycle;
    let (boot, work) = (ms(&cycle, Phase::Boot), ms(&cycle, Phase::Work));
    assert!((280..2_000).contains(&boot) && (200..2_000).contains(&work), "{:?}", cycle.phases);
}

#[rstest]
#[case::asked_for(
    Script { console_output: "ready\n".into(), after_reset: vec![says(200, "ready\n")], ..Script::default() },
    RebootPolicy::InPlace,
    &["system_reset", "system_powerdown"]
)]
#[case::and_powers_off(
    Script {
        console_output: "ready\n".into(),
        after_reset: vec![says(200, "ready\n"), powers_off(201)],
        ..Script::default()
    },
    RebootPolicy::InPlace,
    &["system_reset"]
)]
#[case::started_again(
    Script {
        console_output: "ready\n".into(),
        next: Some(Box::new(Script { console_output: "ready\n".into(), ..Script::default() })),
        ..Script::default()
    },
    RebootPolicy::Relaunch,
    &["system_reset", "system_powerdown"]
)]
#[case::at_its_end_by_the_profile(
    Script { console_output: "ready\n".into(), ..Script::default() }, RebootPolicy::Stop, &["system_reset"]
)]
#[tokio::test]
async fn a_guest_that_is_reset_and_gets_ready_again_makes_a_healthy_cycle(
    #[case] script: Script,
    #[case] reboot: RebootPolicy,
    #[case] asked: &[&str],
) {
    let mut bench = bench(&script);
    bench.plan.reboot = reboot;
    let cycle = run(&bench, CycleKind::Reboot, Ready { after_ms: 300, ..expects("^ready$") }).await.cycle;
    assert_eq!((&cycle.faults[..], cycle.verdict()), (&[][..], CycleVerdict::Healthy), "{cycle:?}");
    let at_its_end = Outcome::Rebooted { not_again: Some(NotAgain::Policy) };
    assert_eq!(cycle.outcome == Some(at_its_end), reboot == RebootPolicy::Stop);
    let count = |phase| phases(&cycle).iter().filter(|other| **other == phase).count();
    assert!(count(Phase::Reboot) > 0, "{:?}", cycle.phases);
    let (works, starts) = match reboot {
        RebootPolicy::InPlace => (2, 1),
        RebootPolicy::Relaunch => (2, 2),
        RebootPolicy::Stop => (1, 1),
    };
    assert_eq!([count(Phase::Work), count(Phase::Start)], [works, starts], "{:?}", cycle.phases);
    let recording = Recording::load(&bench.record).unwrap();
    let heard: Vec<_> = recording.names().into_iter().filter(|name| name.starts_with("system_")).collect();
    assert_eq!(heard, asked);
    bench.assert_given_back();
}

fn how(cycle: &Cycle) -> String {
    match &cycle.faults[..] {
        [Fault::EndedOtherwise { how }] => how.clone(),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case::off_before_it_was_ready(does(&[powers_off(30)]), CycleKind::Clean, expects("login:"), "before it was ready, it powered itself off")]
#[case::crash_before_it_was_ready(
    does(&[TimedAction { after_ms: 30, action: Action::Die { signal: 9 } }]), CycleKind::Kill, job(), "before it was ready"
)]
#[case::button_ignored(
    Script { on_powerdown: OnPowerdown::Ignore, ..Script::default() }, CycleKind::Clean, at_once(), "telling QEMU to quit"
)]
#[case::off_before_the_kill(does(&[powers_off(30)]), CycleKind::Kill, Ready { after_ms: 20_000, ..at_once() }, "before QEMU was to be killed")]
#[case::off_before_the_reset(does(&[powers_off(30)]), CycleKind::Reboot, Ready { after_ms: 20_000, ..at_once() }, "before it was to be reset")]
#[case::panic(
    does(&[TimedAction {
        after_ms: 30,
        action: Action::Event { name: "GUEST_PANICKED".into(), data: serde_json::json!({"action": "pause"}) },
    }]),
    CycleKind::Clean,
    Ready { after_ms: 20_000, ..at_once() },
    "it panicked"
)]
#[case::off_after_its_reset(
    Script { console_output: "ready\n".into(), after_reset: vec![powers_off(40)], ..Script::default() },
    CycleKind::Reboot,
    expects("ready"),
    "before it was ready, it powered itself off"
)]
#[tokio::test]
async fn a_guest_that_ends_otherwise_fails_its_cycle(
    #[case] script: Script,
    #[case] kind: CycleKind,
    #[case] ready: Ready,
    #[case] words: &str,
) {
    let bench = bench(&script);
    let cycle = run(&bench, kind, ready).await.cycle;
    assert!(how(&cycle).contains(words), "{}", how(&cycle));
    assert_eq!(cycle.verdict(), CycleVerdict::Failed);
    assert!(cycle.devices.iter().all(|device| device.judgement.verdict == Verdict::Healthy), "{cycle:?}");
    bench.assert_given_back();
}

#[rstest]
#[case::line(expects("login:"), "a line of its console that matches `login:`")]
#[case::job(job(), "the report of its job")]
#[case::either(Ready { expect: Some("never".into()), ..job() }, "matches `never`, and for the report")]
#[tokio::test]
async fn a_guest_that_doesnt_get_ready_in_time_is_ended_and_what_it_lacked_is_told(
    #[case] ready: Ready,
    #[case] lacked: &str,
) {
    let bench = bench(&does(&[says(20, "booting\n")]));
    let cycle = run(&bench, CycleKind::Kill, Ready { timeout_seconds: 1, ..ready }).await.cycle;
    match &cycle.faults[..] {
        [Fault::NotReady { waited_for, ms }] => {
            assert!(waited_for.contains(lacked) && (1000..5_000).contains(ms), "{:?}", cycle.faults);
        }
        other => panic!("{other:?}"),
    }
    // It may have something to write down, even where it was to be killed.
    assert_eq!(cycle.outcome, Some(BY_BUTTON));
    assert_eq!(cycle.verdict(), CycleVerdict::Failed);
    bench.assert_given_back();
}

#[rstest]
#[case::failed("gpuvm-job: {\"exit\":3,\"message\":\"no device\"}\n", "it ended with 3: no device", true)]
#[case::malformed("gpuvm-job: done\n", "makes no sense", false)]
#[tokio::test]
async fn a_job_that_fails_or_makes_no_sense_fails_its_cycle_which_goes_on(
    #[case] line: &str,
    #[case] message: &str,
    #[case] is_kept: bool,
) {
    let bench = bench(&does(&[says(20, line)]));
    let cycle = run(&bench, CycleKind::Clean, job()).await.cycle;
    match &cycle.faults[..] {
        [Fault::Job { message: told }] => assert!(told.contains(message), "{told}"),
        other => panic!("{other:?}"),
    }
    assert_eq!((cycle.job.is_some(), cycle.outcome.as_ref()), (is_kept, Some(&BY_BUTTON)));
    assert_eq!(cycle.verdict(), CycleVerdict::Failed);
}

#[tokio::test]
async fn a_guest_that_never_ran_gives_its_error_to_the_caller() {
    let mut bench = bench(&Script::default());
    bench.plan.qemu = "/nowhere/qemu".into();
    let end = run(&bench, CycleKind::Clean, at_once()).await;
    assert!(matches!(*end.error.unwrap().cause, Cause::Launch(_)));
    let cycle = end.cycle;
    assert_eq!((cycle.outcome.as_ref(), &cycle.faults[..], cycle.devices.len()), (None, &[][..], 2));
    assert_eq!(phases(&cycle), [Phase::Plan, Phase::Prepare, Phase::Start, Phase::Judge, Phase::GiveBack]);
    bench.assert_given_back();
}

/// Has something happen at a phase.
struct At<'a>(&'a str, Box<dyn FnMut() + 'a>);

impl Observer for At<'_> {
    fn phase(&mut self, phase: &gpuvm_run::Phase) {
        if format!("{phase:?}").starts_with(self.0) {
            (self.1)();
        }
    }

    fn note(&mut self, _note: &Note) {}
}

#[rstest]
#[case::while_the_guest_runs("Running", Some(BY_BUTTON))]
#[case::while_qemu_starts("Starting", None)]
#[case::while_the_host_is_given_back("GivingBack", Some(KILLED))]
#[tokio::test]
async fn a_signal_ends_a_cycle_and_is_told_from_its_own_end(
    #[case] phase: &str,
    #[case] outcome: Option<Outcome>,
) {
    let bench = bench(&does(&[says(200, JOB)]));
    let (ask, requests) = tokio::sync::mpsc::unbounded_channel();
    let mut observer = At(phase, Box::new(|| ask.send("SIGINT").unwrap()));
    let end = Given::new(&bench, CycleKind::Kill, job())
        .run(&mut Signals::from_channel(requests), &mut observer)
        .await;
    assert_eq!((end.interrupted, &end.cycle.outcome), (Some("SIGINT"), &outcome));
    assert_eq!(end.cycle.faults, [], "what a person has ended isn't held against the guest");
    assert_eq!(end.error.is_some(), outcome.is_none());
    bench.assert_given_back();
}

#[tokio::test]
async fn a_device_that_comes_back_sick_makes_a_bad_cycle_with_the_kernels_words() {
    let bench = bench(&does(&[says(20, "ready\n")]));
    let line = "vfio-pci 0000:81:00.0: not ready 65535ms after FLR; giving up";
    let mut observer = At(
        "Ended",
        Box::new(|| {
            std::fs::write(bench.fake.path(&format!("/sys/bus/pci/devices/{GPU}/config")), [0xff; 256])
                .unwrap();
            bench.fake.says_now(line).unwrap();
        }),
    );
    let given = Given::new(&bench, CycleKind::Clean, expects("ready"));
    let cycle = given.run(&mut nobody(), &mut observer).await.cycle;
    assert_eq!((cycle.verdict(), &cycle.faults[..]), (CycleVerdict::Bad, &[][..]), "the verdict tells of it");
    let sick = &cycle.devices[0];
    assert_eq!((sick.judgement.verdict, &sick.kernel[..]), (Verdict::Unreachable, &[line.to_owned()][..]));
    assert_eq!(sick.drift, [], "the verdict has found all of it");
    assert_eq!(
        (cycle.devices[1].judgement.verdict, &cycle.devices[1].kernel[..]),
        (Verdict::Healthy, &[][..])
    );
}

#[tokio::test]
async fn what_has_changed_since_the_first_cycle_degrades_one_that_is_healthy_by_itself() {
    let bench = bench(&does(&[says(20, "ready\n")]));
    let given = Given::new(&bench, CycleKind::Clean, expects("ready"));
    let path = bench.fake.path(&format!("/sys/bus/pci/devices/{GPU}/config"));
    let mut config = std::fs::read(&path).unwrap();
    config[0x08] = 0xa1;
    std::fs::write(&path, config).unwrap();
    let cycle = given.run(&mut nobody(), &mut Told::default()).await.cycle;
    let device = &cycle.devices[0];
    assert_eq!(device.judgement.verdict, Verdict::Healthy);
    assert_eq!(device.drift.iter().map(|finding| finding.check).collect::<Vec<_>>(), [Check::Class]);
    assert_eq!(cycle.verdict(), CycleVerdict::Degraded);
}

#[tokio::test]
async fn errors_and_the_kernels_resets_are_those_of_the_cycle() {
    let bench = bench(&does(&[says(100, "ready\n")]));
    let count = |errors: u32| {
        for (kind, total, errors) in
            [("correctable", "COR", errors), ("nonfatal", "NONFATAL", 0), ("fatal", "FATAL", 0)]
        {
            let path = format!("/sys/bus/pci/devices/{GPU}/aer_dev_{kind}");
            bench.fake.file(&path, format!("Undefined 0\nTOTAL_ERR_{total} {errors}\n"));
        }
    };
    count(5);
    bench.fake.says_at(1_000, "vfio-pci 0000:81:00.0: resetting").unwrap();
    let mut observer = At(
        "Running",
        Box::new(|| {
            count(8);
            for (at, line) in [
                (9_000, "reset done"),
                (20_000, "resetting"),
                (124_000, "reset done"),
                (130_000, "resetting"),
            ] {
                bench.fake.says_at(at, &format!("vfio-pci {GPU}: {line}")).unwrap();
            }
        }),
    );
    let given = Given::new(&bench, CycleKind::Clean, expects("ready"));
    let cycle = given.run(&mut nobody(), &mut observer).await.cycle;
    let device = &cycle.devices[0];
    assert_eq!(device.errors.correctable, 3);
    let resets: Vec<_> = device.resets.iter().map(|reset| (reset.by, reset.method, reset.ms)).collect();
    assert_eq!(resets, [(ResetWay::Kernel, None, 104)]);
    assert_eq!(cycle.devices[1].resets, []);
    assert_eq!(cycle.verdict(), CycleVerdict::Degraded, "{device:?}");
}

/// Firmware resets a machine once more right after a reset; a guest that does so later has rebooted by itself.
#[tokio::test]
async fn a_reset_right_after_the_start_is_the_firmwares_own() {
    let bench = bench(&does(&[reboots(50), reboots(70), says(120, "ready\n")]));
    let cycle = run(&bench, CycleKind::Clean, Ready { after_ms: 100, ..at_once() }).await.cycle;
    assert_eq!((&cycle.faults[..], cycle.verdict()), (&[][..], CycleVerdict::Healthy));
}

#[rstest]
#[case::shown(Serial::Console, "ready\n")]
#[case::kept(Serial::Log, "")]
#[tokio::test]
async fn a_console_is_watched_whether_or_not_it_is_shown(#[case] serial: Serial, #[case] shown: &str) {
    let mut bench = bench(&does(&[says(20, "ready\n")]));
    bench.plan.serial = serial;
    let given = Given::new(&bench, CycleKind::Clean, expects("ready"));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let copy: Sink = Box::new(move |bytes: &[u8]| {
        sink.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    });
    let end = given.run_into(Some(copy), &mut nobody(), &mut Told::default()).await;
    assert_eq!(end.cycle.verdict(), CycleVerdict::Healthy);
    assert_eq!(String::from_utf8_lossy(&seen.lock().unwrap()), shown);
}

#[tokio::test]
async fn a_console_that_nobody_takes_any_more_is_watched_on() {
    let bench = bench(&does(&[says(20, "one\n"), says(60, "ready\n")]));
    let given = Given::new(&bench, CycleKind::Clean, expects("ready"));
    let gone: Sink = Box::new(|_: &[u8]| Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
    let end = given.run_into(Some(gone), &mut nobody(), &mut Told::default()).await;
    assert_eq!(end.cycle.verdict(), CycleVerdict::Healthy);
}
