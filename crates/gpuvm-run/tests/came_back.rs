//! How devices come back: baselines, verdicts, planned resets, the ledger, and what a reboot of the guest comes to.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bench::{AUDIO, Bench, GPU, Told, action, nobody, shutdown_after};
use gpuvm_core::host_ops::HostOp;
use gpuvm_core::lifecycle::{NotAgain, Outcome, Reboots};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::PlannedOp;
use gpuvm_core::reset::{
    Check, Deed, Entry, Heard, Identity, Method, PlannedReset, Reading, RebootPolicy, ResetPlan, ResetWish,
    Step, Verdict, quarantine,
};
use gpuvm_host::{HostError, ledger};
use gpuvm_run::{
    Cause, Cleaned, DeviceReport, LaunchError, Note, Observer, Phase, Report, Signals, cleanup, up,
};
use gpuvm_sys::reset::{ResetFailure, ResetOutcome, ResetTold, Step as SysStep};
use gpuvm_testkit::fake_host::FakeHost;
use gpuvm_testkit::fake_qemu::{Action, ExitAtStart, Recording, Reply, Script, TimedAction};
use rstest::rstest;
use tokio::sync::mpsc::UnboundedSender;

/// A guest that reboots as soon as it runs, each time.
fn reboots() -> Script {
    Script { after_cont: action(Action::Reboot), ..Script::default() }
}

/// A guest that reboots once, and powers itself off the second time.
fn reboots_once() -> Script {
    let console = |text: &str| text.to_owned();
    let second = Script {
        console_output: console("second boot\n"),
        after_cont: shutdown_after(50),
        ..Script::default()
    };
    Script { console_output: console("first boot\n"), next: Some(Box::new(second)), ..reboots() }
}

fn bench(script: &Script, reboot: RebootPolicy) -> Bench {
    let mut bench = Bench::new(script);
    bench.plan.reboot = reboot;
    bench
}

impl Bench {
    /// Returns the ledger's entries of a function, oldest first.
    fn entries(&self, bdf: &str) -> Vec<Entry> {
        let device = self.baseline(bdf);
        ledger::history(&self.places, &device).unwrap()
    }

    fn baseline(&self, bdf: &str) -> Identity {
        let bdf: Bdf = bdf.parse().unwrap();
        let id = self.plan.owned().find(|device| device.bdf == bdf).unwrap().id;
        Identity { id, subsystem: None, serial: None, bdf }
    }

    fn falls_off(&self, bdf: &str) {
        let path = self.fake.path(&format!("/sys/bus/pci/devices/{bdf}/config"));
        std::fs::write(path, [0xff; 256]).unwrap();
    }

    fn starts(&self) -> u32 {
        Recording::load(&self.record).map_or(0, |recording| recording.starts)
    }
}

/// Returns how the guest ended in each run of an entry list.
fn outcomes(entries: &[Entry]) -> Vec<Option<Outcome>> {
    let outcome = |entry: &Entry| match &entry.deed {
        Deed::Run { outcome, .. } => Some(outcome.clone()),
        _ => None,
    };
    entries.iter().filter_map(outcome).collect()
}

/// Does something when a phase comes for the how many-th time, and remembers what was told.
struct At<'a> {
    phase: &'a str,
    time: usize,
    deed: Box<dyn FnMut() + 'a>,
    seen: usize,
    told: Told,
}

impl<'a> At<'a> {
    fn new(phase: &'a str, time: usize, deed: impl FnMut() + 'a) -> Self {
        Self { phase, time, deed: Box::new(deed), seen: 0, told: Told::default() }
    }
}

impl Observer for At<'_> {
    fn phase(&mut self, phase: &Phase) {
        self.told.phase(phase);
        if format!("{phase:?}").starts_with(self.phase) {
            self.seen += 1;
            if self.seen == self.time {
                (self.deed)();
            }
        }
    }

    fn note(&mut self, note: &Note) {
        self.told.note(note);
    }
}

fn signals() -> (UnboundedSender<&'static str>, Signals) {
    let (ask, requests) = tokio::sync::mpsc::unbounded_channel();
    (ask, Signals::from_channel(requests))
}

#[tokio::test]
async fn a_guest_that_reboots_in_place_goes_on_and_is_told() {
    let mut after_cont = action(Action::Reboot);
    after_cont.extend(shutdown_after(100));
    let bench = bench(&Script { after_cont, ..Script::default() }, RebootPolicy::InPlace);
    let mut told = Told::default();
    let report = bench.up_told(&mut told).await.unwrap();
    assert_eq!((report.outcome, report.reboots, bench.starts()), (Outcome::PoweredOff, 1, 1));
    assert!(told.0.iter().any(|line| line == "Rebooting { count: 1 }"), "{:?}", told.0);
    bench.assert_given_back();
}

/// SeaBIOS resets a machine that was reset up to three times more.
#[tokio::test]
async fn what_the_firmware_resets_right_after_a_reset_is_no_reboot_of_the_guest() {
    let at = |after_ms| TimedAction { after_ms, action: Action::Reboot };
    let mut after_cont = vec![at(20), at(40), at(45), at(3500), at(8600), at(8620)];
    after_cont.extend(shutdown_after(8650));
    let bench = bench(&Script { after_cont, ..Script::default() }, RebootPolicy::InPlace);
    let mut told = Told::default();
    let report = bench.up_told(&mut told).await.unwrap();
    assert_eq!((report.outcome, report.reboots), (Outcome::PoweredOff, 2), "{:?}", told.0);
}

#[tokio::test]
async fn a_guest_that_reboots_is_at_its_end_where_the_policy_is_stop() {
    let bench = bench(&reboots(), RebootPolicy::Stop);
    let report = bench.up().await.unwrap();
    assert_eq!(report.outcome, Outcome::Rebooted { not_again: Some(NotAgain::Policy) });
    assert_eq!((report.reboots, bench.starts()), (0, 1));
    bench.assert_given_back();
}

#[tokio::test]
async fn a_guest_that_reboots_is_started_again_with_what_it_has_once_its_devices_are_judged() {
    let bench = bench(&reboots_once(), RebootPolicy::Relaunch);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let copy = move |bytes: &[u8]| {
        sink.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    };
    let mut told = Told::default();
    let report = up(&bench.run(), &mut nobody(), Some(Box::new(copy)), &mut told).await.unwrap();
    assert_eq!((&report.outcome, report.reboots, bench.starts()), (&Outcome::PoweredOff, 1, 2));
    assert!(report.all_well());
    let count = |phase: &str| told.0.iter().filter(|line| line.starts_with(phase)).count();
    assert_eq!([count("Preparing"), count("Starting"), count("Judging")], [1, 2, 2], "{:?}", told.0);
    assert!(told.0.iter().any(|line| line == "Relaunching { count: 1 }"), "{:?}", told.0);
    assert_eq!(seen.lock().unwrap().as_slice(), b"first boot\nsecond boot\n");
    let logs = bench.places.logs(&bench.plan.name);
    assert_eq!(std::fs::read(logs.join("console.log")).unwrap(), b"first boot\nsecond boot\n");
    let qemu = std::fs::read_to_string(logs.join("qemu.log")).unwrap();
    assert_eq!(qemu.matches("gpuvm runs: ").count(), 2, "{qemu}");
    let ends = [Some(Outcome::Rebooted { not_again: None }), Some(Outcome::PoweredOff)];
    assert_eq!(outcomes(&bench.entries(GPU)), ends);
    assert_eq!(outcomes(&bench.entries(AUDIO)), ends);
    bench.assert_given_back();
}

#[tokio::test]
async fn a_guest_whose_device_comes_back_sick_is_not_started_again() {
    let bench = bench(&reboots_once(), RebootPolicy::Relaunch);
    let mut observer = At::new("Ended", 1, || bench.falls_off(GPU));
    let report = up(&bench.run(), &mut nobody(), None, &mut observer).await.unwrap();
    assert_eq!(report.outcome, Outcome::Rebooted { not_again: Some(NotAgain::SickDevice) });
    assert_eq!(bench.starts(), 1);
    assert!(!report.all_well());
    assert!(matches!(report.left[..], [HostError::Sick { .. }]), "{:?}", report.left);
    let entries = bench.entries(GPU);
    assert_eq!(entries.len(), 1, "it was judged once: {entries:?}");
    assert!(quarantine(&entries).is_some() && quarantine(&bench.entries(AUDIO)).is_none());
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(bench.fake.driver(AUDIO).unwrap().as_deref(), Some("snd_hda_intel"));
    assert_eq!(gpuvm_host::reservation::all(&bench.places, &bench.boot_id).unwrap().len(), 1);
}

/// Between two QEMUs: while the devices are judged, and when the second is being started.
#[rstest]
#[case::while_judging("Judging", 1, 1)]
#[case::before_the_next_start("Starting", 2, 2)]
#[tokio::test]
async fn a_signal_between_two_starts_ends_the_vm_cleanly(
    #[case] phase: &str,
    #[case] time: usize,
    #[case] most_starts: u32,
) {
    let bench = bench(&reboots_once(), RebootPolicy::Relaunch);
    let (ask, mut signals) = signals();
    let mut observer = At::new(phase, time, || ask.send("SIGINT").unwrap());
    let report = up(&bench.run(), &mut signals, None, &mut observer).await.unwrap();
    assert_eq!(report.outcome, Outcome::Rebooted { not_again: Some(NotAgain::Asked) });
    assert!(bench.starts() <= most_starts && report.all_well());
    assert!(bench.entries(GPU).len() <= time, "{:?}", bench.entries(GPU));
    bench.assert_given_back();
}

#[tokio::test]
async fn a_guest_that_does_nothing_but_reboot_is_stopped() {
    let bench = bench(&reboots(), RebootPolicy::Relaunch);
    let report = bench.up().await.unwrap();
    assert_eq!(report.outcome, Outcome::Rebooted { not_again: Some(NotAgain::Looping) });
    assert_eq!((bench.starts(), report.reboots), (Reboots::TOO_MANY, Reboots::TOO_MANY - 1));
    bench.assert_given_back();
}

#[tokio::test]
async fn a_second_start_that_fails_is_an_error_and_gives_the_host_back() {
    let exit_at_start = Some(ExitAtStart { code: 1, stderr: "qemu: vfio 0000:81:00.0: no\n".to_owned() });
    let next = Some(Box::new(Script { exit_at_start, ..Script::default() }));
    let bench = bench(&Script { next, ..reboots() }, RebootPolicy::Relaunch);
    let error = bench.up().await.unwrap_err();
    match &*error.cause {
        Cause::Launch(LaunchError::Died { stderr, .. }) => assert_eq!(stderr, "qemu: vfio 0000:81:00.0: no"),
        other => panic!("{other}"),
    }
    assert!(error.left.is_empty() && error.devices.len() == 2);
    assert_eq!(outcomes(&bench.entries(GPU)), [Some(Outcome::Rebooted { not_again: None }), None]);
    bench.assert_given_back();
}

#[tokio::test]
async fn a_device_that_is_sick_before_the_run_goes_into_the_ledger_and_nothing_is_touched() {
    let bench = Bench::new(&Script::default());
    bench.falls_off(GPU);
    let error = bench.up().await.unwrap_err();
    assert!(matches!(*error.cause, Cause::SickBefore { .. }), "{}", error.cause);
    assert_eq!(error.devices[0].judgement.verdict, Verdict::Unreachable);
    assert!(error.left.is_empty() && bench.fake.writes().is_empty() && bench.starts() == 0);
    let entries = bench.entries(GPU);
    assert!(matches!(entries[..], [Entry { deed: Deed::Run { outcome: None, .. }, .. }]), "{entries:?}");
    assert!(quarantine(&entries).is_some());
    assert_eq!(bench.entries(AUDIO), []);
    bench.assert_given_back_but_for_config();
}

impl Bench {
    fn assert_given_back_but_for_config(&self) {
        assert!(!self.places.vm(&self.plan.name).exists());
        assert_eq!(gpuvm_host::root::list(&self.places.reservations()).unwrap(), [""; 0]);
    }
}

/// Each stage at which a card can fall off the bus, with what becomes of the run.
#[rstest]
#[case::at_greeting("Starting", true)]
#[case::while_it_runs("Running", false)]
#[case::between_exit_and_judgement("Judging", false)]
#[tokio::test]
async fn a_card_that_falls_off_is_found_sick_at_whatever_stage(#[case] phase: &str, #[case] qemu_dies: bool) {
    let exit_at_start = qemu_dies.then(|| ExitAtStart { code: 1, stderr: "qemu: no\n".to_owned() });
    let bench = Bench::new(&Script { exit_at_start, after_cont: shutdown_after(50), ..Script::default() });
    let heard = "vfio-pci 0000:81:00.0: not ready 65535ms after FLR; giving up";
    let mut observer = At::new(phase, 1, || {
        bench.falls_off(GPU);
        bench.fake.says_now(heard).unwrap();
    });
    let (devices, left, outcome) = match up(&bench.run(), &mut nobody(), None, &mut observer).await {
        Ok(report) => (report.devices, report.left, Some(report.outcome)),
        Err(error) => (error.devices, error.left, None),
    };
    assert_eq!(outcome.is_none(), qemu_dies);
    assert_eq!(devices[0].judgement.verdict, Verdict::Unreachable, "{:?}", devices[0]);
    let evidence = devices[0].evidence.as_ref().unwrap();
    match &evidence.heard {
        Some(Heard::Said(lines)) => assert!(lines.contains(&heard.to_owned()), "{lines:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(devices[1].judgement.verdict, Verdict::Healthy);
    let told = |device: &DeviceReport| serde_json::to_value(device).unwrap().get("before").is_some();
    assert!(told(&devices[0]) && !told(&devices[1]));
    assert!(matches!(left[..], [HostError::Sick { .. }]), "{left:?}");
    let entries = bench.entries(GPU);
    assert_eq!(outcomes(&entries), [outcome]);
    assert!(quarantine(&entries).is_some());
    let json = serde_json::to_value(&devices[0]).unwrap();
    for field in ["bdf", "verdict", "findings", "before", "after", "heard"] {
        assert!(json.get(field).is_some(), "{field} isn't in {json}");
    }
    // The card answers again: whoever cleans up gives it back, and it isn't judged a second time.
    let path = bench.fake.path(&format!("/sys/bus/pci/devices/{GPU}/config"));
    let config = evidence.before.config.read().unwrap().bytes().to_vec();
    let clean = || cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    assert_eq!(clean()[0].result, Cleaned::Left);
    std::fs::write(path, config).unwrap();
    let report = &clean()[0];
    assert_eq!((report.result, report.devices.len()), (Cleaned::Done, 0), "{report:?}");
    assert_eq!(bench.entries(GPU).len(), 1);
    bench.assert_given_back();
}

/// The kernel calls such an error repaired; what it counted stays.
#[tokio::test]
async fn an_error_that_stopped_the_guest_is_found_in_the_counters_though_the_kernel_says_it_recovered() {
    let status = serde_json::json!({"running": false, "status": "internal-error"});
    let bench = Bench::new(&Script {
        after_cont: action(Action::Event { name: "STOP".into(), data: serde_json::Value::Null }),
        replies: [("query-status".to_owned(), Reply::Value(status))].into(),
        ..Script::default()
    });
    let count = |kind: &str, total: &str, errors: u32| {
        let path = format!("/sys/bus/pci/devices/{GPU}/aer_dev_{kind}");
        bench.fake.file(&path, format!("Undefined 0\nTOTAL_ERR_{total} {errors}\n"));
    };
    for (kind, total) in [("correctable", "COR"), ("nonfatal", "NONFATAL"), ("fatal", "FATAL")] {
        count(kind, total, 0);
    }
    let mut observer = At::new("Running", 1, || {
        count("nonfatal", "NONFATAL", 1);
        bench.fake.says_now("pcieport 0000:80:01.0: AER: device recovery successful").unwrap();
    });
    let report = up(&bench.run(), &mut nobody(), None, &mut observer).await.unwrap();
    // QEMU's line is missing: the counters alone tell.
    let told = report.outcome.to_string();
    assert!(told.contains(&format!("an error of {GPU} (aer_dev_nonfatal of {GPU}: 1, was 0")), "{told}");
    let judgement = &report.devices[0].judgement;
    let counted = judgement.findings.iter().find(|finding| finding.register.contains("aer_dev_nonfatal"));
    let counted = counted.unwrap_or_else(|| panic!("{judgement:?}"));
    assert!(counted.weight.is_some(), "{counted:?}");
    assert_eq!(outcomes(&bench.entries(GPU)), [Some(report.outcome)]);
}

/// A reset of a function that the plan wants once QEMU is gone.
fn planned(bench: &mut Bench) {
    let bdf: Bdf = GPU.parse().unwrap();
    let step = Step {
        method: Method::Flr,
        functions: vec![bdf],
        groups: Vec::new(),
        reason: "asked for".to_owned(),
    };
    let plan = ResetPlan { bdf, steps: vec![step.clone()], rejected: Vec::new(), reason: String::new() };
    let wish = ResetWish::default();
    let planned =
        PlannedReset { wish, plan, methods: None, after_run: Some(step), reason: "asked for".to_owned() };
    bench.plan.devices.iter_mut().find(|device| device.bdf == bdf).unwrap().reset = Some(planned);
}

fn kernel_that_resets(
    fake: &FakeHost,
    outcome: impl Fn() -> ResetOutcome + 'static,
) -> (gpuvm_host::kernel::Kernel, Rc<RefCell<Vec<String>>>) {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::clone(&asked);
    let kernel = fake.kernel().resetting(Box::new(move |bdf, _way, _deadline| {
        kept.borrow_mut().push(bdf.to_owned());
        Ok(outcome())
    }));
    (kernel, asked)
}

#[tokio::test]
async fn a_planned_reset_is_made_after_the_run_and_written_down_with_its_verdict() {
    let mut bench = Bench::new(&Script { after_cont: shutdown_after(200), ..Script::default() });
    planned(&mut bench);
    let (kernel, asked) = kernel_that_resets(&bench.fake, || ResetOutcome::Done(ResetTold::default()));
    bench.kernel = kernel;
    let mut told = Told::default();
    let report = bench.up_told(&mut told).await.unwrap();
    assert_eq!(*asked.borrow(), [GPU]);
    let reset = report.devices[0].reset.as_ref().unwrap();
    assert_eq!((reset.method, &reset.failure), (Method::Flr, &None));
    let place = |what: &str| told.0.iter().position(|line| line.starts_with(what)).unwrap();
    assert!(place("Ended") < place("Resetting") && place("Resetting") < place("Judging"), "{:?}", told.0);
    match &bench.entries(GPU)[..] {
        [Entry { deed: Deed::Reset { method, failure: None, judgement, .. }, .. }, run] => {
            assert_eq!((*method, judgement.verdict), (Method::Flr, Verdict::Healthy));
            assert!(matches!(run.deed, Deed::Run { outcome: Some(Outcome::PoweredOff), .. }), "{run:?}");
        }
        other => panic!("{other:?}"),
    }
    bench.assert_given_back();
}

/// The kernel says the same of every reset, whoever wanted it.
#[rstest]
#[case::of_a_planned_one("Resetting", &[])]
#[case::of_qemus("Leaving", &[100])]
#[case::before_qemu("Preparing", &[])]
#[tokio::test]
async fn what_the_kernel_says_of_a_reset_is_told_as_qemus_only_if_it_is(
    #[case] phase: &str,
    #[case] told: &[u64],
) {
    let mut bench = Bench::new(&Script { after_cont: shutdown_after(50), ..Script::default() });
    planned(&mut bench);
    bench.kernel = kernel_that_resets(&bench.fake, || ResetOutcome::Done(ResetTold::default())).0;
    bench.fake.says_now("the kernel's log begins").unwrap();
    let mut observer = At::new(phase, 1, || {
        bench.fake.says_at(1_000, "vfio-pci 0000:81:00.0: resetting").unwrap();
        bench.fake.says_at(101_000, "vfio-pci 0000:81:00.0: reset done").unwrap();
    });
    let report = up(&bench.run(), &mut nobody(), None, &mut observer).await.unwrap();
    assert_eq!(observer.seen, 1);
    let resets = report.kernel_resets.get(&GPU.parse().unwrap()).map_or(&[][..], Vec::as_slice);
    assert_eq!(resets, told);
}

/// The kernel's "no method worked" (ENOTTY).
fn failed() -> ResetOutcome {
    ResetOutcome::Failed(ResetFailure {
        step: SysStep::WriteReset,
        group: 0,
        source: std::io::Error::from_raw_os_error(25),
        told: ResetTold::default(),
    })
}

#[tokio::test]
async fn a_planned_reset_that_fails_keeps_its_device_from_its_driver() {
    let mut bench = Bench::new(&Script { after_cont: shutdown_after(200), ..Script::default() });
    planned(&mut bench);
    bench.kernel = kernel_that_resets(&bench.fake, failed).0;
    let report = bench.up().await.unwrap();
    assert!(matches!(report.left[..], [HostError::Sick { .. }]), "{:?}", report.left);
    assert!(report.devices[0].reset.as_ref().unwrap().failure.is_some());
    assert_eq!(report.devices[0].judgement.verdict, Verdict::Impaired);
    let found = quarantine(&bench.entries(GPU)).unwrap();
    assert!(found.finding.contains("not reset as planned"), "{found:?}");
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(bench.fake.driver(AUDIO).unwrap().as_deref(), Some("snd_hda_intel"));
    let clean = || cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    assert_eq!(clean()[0].result, Cleaned::Done);
    bench.assert_given_back();
}

/// The verdict is in and nobody was told: the cleanup does that, and gives nothing sick back by itself.
#[tokio::test]
async fn a_sick_device_stays_where_its_launcher_was_killed_between_verdict_and_report() {
    let mut bench = Bench::new(&Script { after_cont: shutdown_after(200), ..Script::default() });
    planned(&mut bench);
    bench.kernel = kernel_that_resets(&bench.fake, failed).0;
    let judged = bench.places.judged(&bench.plan.name);
    let then = RefCell::new(Vec::new());
    let mut observer = At::new("Undoing", 1, || *then.borrow_mut() = std::fs::read(&judged).unwrap());
    up(&bench.run(), &mut nobody(), None, &mut observer).await.unwrap();
    drop(observer);
    std::fs::write(&judged, then.into_inner()).unwrap();
    let clean = || cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    let report = clean().remove(0);
    assert_eq!(report.result, Cleaned::Left, "{report:?}");
    assert!(matches!(report.left[..], [HostError::Sick { .. }]), "{report:?}");
    assert_eq!(report.devices[0].judgement.verdict, Verdict::Impaired);
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(bench.entries(GPU).len(), 2, "its reset and its run, and nothing of the cleanup");
    let again = clean().remove(0);
    assert_eq!((again.result, again.devices.len()), (Cleaned::Done, 0), "{again:?}");
    bench.assert_given_back();
}

/// A reader of its config space would wait as long as the reset does.
#[tokio::test]
async fn a_device_whose_planned_reset_hangs_is_not_looked_at() {
    let mut bench = Bench::new(&Script { after_cont: shutdown_after(200), ..Script::default() });
    planned(&mut bench);
    let pid = i32::try_from(std::process::id()).unwrap();
    let hangs = move || ResetOutcome::InFlight { pid, step: SysStep::WriteReset };
    bench.kernel = kernel_that_resets(&bench.fake, hangs).0;
    let report = bench.up().await.unwrap();
    let device = &report.devices[0];
    assert_eq!(device.judgement.verdict, Verdict::Impaired);
    let after = &device.evidence.as_ref().unwrap().after;
    assert!(matches!(after.config, Reading::Unread(_)), "{:?}", after.config);
    let in_flight = |error: &HostError| matches!(error, HostError::InFlight { .. });
    assert!(report.left.iter().any(in_flight), "{:?}", report.left);
    assert_eq!(report.devices[1].judgement.verdict, Verdict::Healthy);
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
}

/// A launcher that is killed leaves the verdict to the cleanup: the baselines and the place in the kernel's log are beside the
/// journal. Here the future that drives the VM is dropped, and the record says that its process is dead.
#[tokio::test]
async fn a_run_whose_launcher_was_killed_is_judged_once_by_cleanup() {
    let bench = Bench::new(&Script::default());
    let run = bench.run();
    let (mut nobody, mut told) = (nobody(), Told::default());
    tokio::select! {
        result = up(&run, &mut nobody, None, &mut told) => panic!("{result:?}"),
        () = bench.runs() => {}
    }
    let mut record = gpuvm_host::reservation::all(&bench.places, &bench.boot_id).unwrap().remove(0);
    record.supervisor = gpuvm_host::process::ProcessId { pid: 1, start_time: 1 };
    gpuvm_host::reservation::update(&bench.places, &record).unwrap();
    let line = "vfio-pci 0000:81:00.0: not ready 65535ms after FLR; giving up";
    bench.fake.says_now(line).unwrap();
    bench.falls_off(GPU);
    let clean = || cleanup(&bench.kernel, &bench.places, &bench.boot_id, None, &mut Told::default()).unwrap();
    let report = clean().remove(0);
    assert_eq!(report.result, Cleaned::Left, "{report:?}");
    assert!(matches!(report.left[..], [HostError::Sick { .. }]), "{report:?}");
    let evidence = report.devices[0].evidence.as_ref().unwrap();
    assert_eq!(evidence.heard, Some(Heard::Said(vec![line.to_owned()])));
    assert_eq!(report.devices[1].judgement.verdict, Verdict::Healthy);
    let entries = bench.entries(GPU);
    assert_eq!(outcomes(&entries), [None]);
    assert!(quarantine(&entries).is_some());
    assert_eq!(outcomes(&bench.entries(AUDIO)), [None]);
    let path = bench.fake.path(&format!("/sys/bus/pci/devices/{GPU}/config"));
    std::fs::write(path, evidence.before.config.read().unwrap().bytes()).unwrap();
    let again = clean().remove(0);
    assert_eq!((again.result, again.devices.len()), (Cleaned::Done, 0), "{again:?}");
    assert_eq!(bench.entries(GPU).len(), 1);
    bench.assert_given_back();
}

#[tokio::test]
async fn reset_methods_that_gpuvm_itself_has_cut_down_for_the_run_are_no_finding() {
    let mut bench = Bench::new(&Script { after_cont: shutdown_after(20), ..Script::default() });
    let op = HostOp::SetResetMethods { bdf: GPU.parse().unwrap(), methods: Vec::new() };
    bench.plan.operations.insert(0, PlannedOp { op, reason: "the profile wants it so".to_owned() });
    let report = bench.up().await.unwrap();
    let findings = |report: &Report| -> Vec<Check> {
        let of =
            |device: &DeviceReport| device.judgement.findings.iter().map(|finding| finding.check).collect();
        report.devices.iter().flat_map(|device| -> Vec<Check> { of(device) }).collect()
    };
    assert!(!findings(&report).contains(&Check::ResetMethods), "{:?}", report.devices);

    // Where it is somebody else's doing, it is told as ever.
    let bench = Bench::new(&Script { after_cont: shutdown_after(20), ..Script::default() });
    let list = bench.fake.path(&format!("/sys/bus/pci/devices/{GPU}/reset_method"));
    let mut cut = At::new("Running", 1, || std::fs::write(&list, "bus\n").unwrap());
    let report = up(&bench.run(), &mut nobody(), None, &mut cut).await.unwrap();
    assert!(findings(&report).contains(&Check::ResetMethods), "{:?}", report.devices);
}
