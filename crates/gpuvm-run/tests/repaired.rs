//! Devices that come back sick and may be repaired: each rung of the ladder, none of them, one that hangs, and who goes on after it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::cell::RefCell;

use bench::{AUDIO, Bench, GPU, PORT, Told, action, nobody, shutdown_after};
use gpuvm_core::host_ops::HostOp;
use gpuvm_core::lifecycle::{NotAgain, Outcome};
use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::reset::repair::Rung;
use gpuvm_core::reset::{Deed, Entry, Identity, Method, Step as PlannedStep, Verdict, quarantine};
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::{HostError, ledger};
use gpuvm_run::{Cleaned, CleanupReport, DeviceReport, Note, Observer, Phase, Report, cleanup, up};
use gpuvm_sys::errno::ENOTTY;
use gpuvm_sys::reset::{ResetFailure, ResetOutcome, ResetTold, Step, Way};
use gpuvm_testkit::fake_host::{Cure, Fault};
use gpuvm_testkit::fake_qemu::{Action, Recording, Script};
use rstest::rstest;

/// Does something when a phase comes for the how many-th time, and remembers what was told.
struct At<'a> {
    phase: &'a str,
    time: usize,
    deed: Box<dyn FnMut() + 'a>,
    told: Told,
}

impl<'a> At<'a> {
    fn new(phase: &'a str, time: usize, deed: impl FnMut() + 'a) -> Self {
        Self { phase, time, deed: Box::new(deed), told: Told::default() }
    }

    /// Returns the rungs that were told, each with its device.
    fn rungs(&self) -> Vec<&str> {
        let told = self.told.0.iter();
        told.filter_map(|line| line.strip_prefix("Repairing { "))
            .map(|rest| rest.trim_end_matches(" }"))
            .collect()
    }
}

impl Observer for At<'_> {
    fn phase(&mut self, phase: &Phase) {
        self.told.phase(phase);
        if format!("{phase:?}").starts_with(self.phase) {
            self.time = self.time.wrapping_sub(1);
            if self.time == 0 {
                (self.deed)();
            }
        }
    }

    fn note(&mut self, note: &Note) {
        self.told.note(note);
    }
}

fn ends() -> Script {
    Script { after_cont: shutdown_after(50), ..Script::default() }
}

/// A guest that reboots once, and powers itself off the second time.
fn reboots_once() -> Script {
    Script { after_cont: action(Action::Reboot), next: Some(Box::new(ends())), ..Script::default() }
}

fn bench(policy: &str) -> Bench {
    Bench::below_port(&ends(), &format!("repair = \"{policy}\""))
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn rungs(device: &DeviceReport) -> Vec<Rung> {
    device.repair.iter().map(|climbed| climbed.rung).collect()
}

impl Bench {
    /// Returns the ledger's entries of a function, oldest first.
    fn entries(&self, of: &str) -> Vec<Entry> {
        let id = self.plan.owned().find(|device| device.bdf == bdf(of)).unwrap().id;
        let device = Identity { id, subsystem: None, serial: None, bdf: bdf(of) };
        ledger::history(&self.places, &device).unwrap()
    }

    /// Runs the VM, whose card is sick when its QEMU is gone.
    async fn comes_back_sick(&self, cure: Cure) -> (Report, Vec<String>) {
        let mut observer = At::new("Ended", 1, || self.fake.sicken(GPU, cure));
        let report = up(&self.run(), &mut nobody(), None, &mut observer).await.unwrap();
        let rungs = observer.rungs().into_iter().map(str::to_owned).collect();
        (report, rungs)
    }

    /// Runs the VM until its launcher is killed: the future that drives it is dropped, and the record says that its process is dead.
    async fn killed(&self) {
        let run = self.run();
        let (mut nobody, mut told) = (nobody(), Told::default());
        tokio::select! {
            result = up(&run, &mut nobody, None, &mut told) => panic!("{result:?}"),
            () = self.runs() => {}
        }
        let record = self.reserved();
        let supervisor = ProcessId { pid: 1, start_time: 1 };
        reservation::update(&self.places, &Reservation { supervisor, ..record }).unwrap();
    }

    fn reserved(&self) -> Reservation {
        reservation::all(&self.places, &self.boot_id).unwrap().remove(0)
    }

    fn clean(&self) -> CleanupReport {
        cleanup(&self.kernel, &self.places, &self.boot_id, None, &mut Told::default()).unwrap().remove(0)
    }

    fn starts(&self) -> u32 {
        Recording::load(&self.record).map_or(0, |recording| recording.starts)
    }

    fn assert_kept(&self, report: &Report) {
        assert!(!report.all_well());
        assert!(report.left.iter().any(|error| matches!(error, HostError::Sick { .. })), "{:?}", report.left);
        assert!(quarantine(&self.entries(GPU)).is_some());
        assert_eq!(self.fake.driver(AUDIO).unwrap().as_deref(), Some("snd_hda_intel"));
    }
}

#[rstest]
#[case::hot(Rung::Hot)]
#[case::subordinate(Rung::Subordinate)]
#[case::rescan(Rung::Rescan)]
#[tokio::test]
async fn a_sick_device_is_repaired_by_the_mildest_rung_that_helps_and_given_back(#[case] rung: Rung) {
    let bench = bench("rescan");
    let (report, told) = bench.comes_back_sick(Cure::By(rung)).await;
    let tried: Vec<Rung> = Rung::ALL.into_iter().filter(|other| *other <= rung).collect();
    let lines: Vec<String> =
        tried.iter().map(|rung| format!("bdf: {:?}, rung: {rung:?}", bdf(GPU))).collect();
    assert_eq!(told, lines);
    assert_eq!(report.outcome, Outcome::PoweredOff);
    assert!(report.all_well() && report.left.is_empty(), "{report:?}");
    let device = &report.devices[0];
    assert_eq!(device.before_repair.as_ref().unwrap().verdict, Verdict::Impaired);
    assert_eq!((rungs(device), device.repaired_by().unwrap().rung), (tried.clone(), rung));
    assert!(!device.judgement.verdict.is_bad());
    assert!(report.devices[1].before_repair.is_none() && report.devices[1].repair.is_empty());
    assert!(report.timings.iter().any(|timing| timing.phase == "repair"), "{:?}", report.timings);
    let entries = bench.entries(GPU);
    let deeds: Vec<Rung> = entries
        .iter()
        .filter_map(|entry| match &entry.deed {
            Deed::Repair { climbed, .. } => Some(climbed.rung),
            _ => None,
        })
        .collect();
    assert!(matches!(entries[0].deed, Deed::Run { .. }) && entries.len() == 1 + tried.len(), "{entries:?}");
    assert_eq!(deeds, tried);
    assert_eq!(quarantine(&entries), None);
    assert_eq!(quarantine(&bench.entries(AUDIO)), None);
    bench.assert_given_back();
}

#[rstest]
#[case::up_to_hot("hot", &[Rung::Hot])]
#[case::up_to_subordinate("subordinate", &[Rung::Hot, Rung::Subordinate])]
#[tokio::test]
async fn a_rung_that_the_profile_does_not_allow_is_not_tried(#[case] policy: &str, #[case] tried: &[Rung]) {
    let bench = bench(policy);
    let (report, _) = bench.comes_back_sick(Cure::By(Rung::Rescan)).await;
    let device = &report.devices[0];
    assert_eq!((rungs(device), device.repaired_by()), (tried.to_vec(), None));
    assert_eq!(device.judgement.verdict, Verdict::Impaired);
    bench.assert_kept(&report);
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
}

#[tokio::test]
async fn a_sick_device_stays_as_it_is_where_the_profile_says_nothing() {
    let bench = Bench::below_port(&ends(), "");
    let (report, told) = bench.comes_back_sick(Cure::By(Rung::Hot)).await;
    assert_eq!(told, [""; 0]);
    assert!(report.devices[0].before_repair.is_none() && report.devices[0].repair.is_empty());
    bench.assert_kept(&report);
}

#[tokio::test]
async fn a_device_that_no_rung_helps_is_kept_with_all_that_was_tried() {
    let bench = bench("rescan");
    let (report, _) = bench.comes_back_sick(Cure::Nothing).await;
    assert_eq!(rungs(&report.devices[0]), Rung::ALL);
    bench.assert_kept(&report);
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    // Who cleans up was told, and gives it back as it is.
    let clean = bench.clean();
    assert_eq!((clean.result, clean.devices.len()), (Cleaned::Done, 0), "{clean:?}");
}

#[tokio::test]
async fn a_device_that_is_not_found_again_is_kept_until_a_cleanup_finds_it() {
    let bench = bench("rescan");
    let (report, _) = bench.comes_back_sick(Cure::Lost).await;
    bench.assert_kept(&report);
    let last = report.devices[0].repair.last().unwrap();
    assert!(last.failure.as_ref().unwrap().contains("doesn't find it"), "{last:?}");
    assert_eq!(last.judgement.verdict, Verdict::Unreachable);
    assert!(!bench.fake.root().device(bdf(GPU)).exists());
    let clean = bench.clean();
    assert_eq!(clean.result, Cleaned::Left, "{clean:?}");
    std::fs::write(bench.fake.path(&format!("/fake-kernel/cure/{GPU}")), Rung::Rescan.name()).unwrap();
    let clean = bench.clean();
    assert_eq!(clean.result, Cleaned::Done, "{clean:?}");
    bench.assert_given_back();
}

#[tokio::test]
async fn a_rung_that_hangs_keeps_the_reservation_with_its_process_and_ends_the_climb() {
    let mut bench = bench("rescan");
    let pid = i32::try_from(std::process::id()).unwrap();
    let hangs = move || ResetOutcome::InFlight { pid, step: Step::HotReset };
    bench.kernel = bench.fake.kernel().resetting(Box::new(move |_, _, _| Ok(hangs())));
    let (report, told) = bench.comes_back_sick(Cure::By(Rung::Rescan)).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let in_flight = |error: &&HostError| matches!(error, HostError::InFlight { .. });
    assert_eq!(report.left.iter().filter(in_flight).count(), 1, "{:?}", report.left);
    assert_eq!(bench.reserved().in_flight.iter().map(|child| child.pid).collect::<Vec<_>>(), [pid]);
    assert!(quarantine(&bench.entries(GPU)).is_some() && !report.all_well());
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
}

#[tokio::test]
async fn a_guest_that_reboots_goes_on_after_its_device_was_repaired() {
    let bench = Bench::below_port(&reboots_once(), "repair = \"rescan\"\nreboot = \"relaunch\"");
    bench.fake.regroups(GPU, 70);
    let groups = RefCell::new(Vec::new());
    let seen = RefCell::new(0);
    let mut observer = At::new("Ended", 1, || bench.fake.sicken(GPU, Cure::By(Rung::Rescan)));
    let mut both = Both(&mut observer, |phase: &Phase| {
        if matches!(phase, Phase::Running { .. }) {
            *seen.borrow_mut() += 1;
            groups.replace(bench.reserved().groups);
        }
    });
    let report = up(&bench.run(), &mut nobody(), None, &mut both).await.unwrap();
    assert_eq!((&report.outcome, report.reboots, bench.starts()), (&Outcome::PoweredOff, 1, 2));
    assert!(report.all_well() && report.left.is_empty(), "{report:?}");
    assert_eq!(observer.rungs().len(), 3);
    assert_eq!((*seen.borrow(), groups.into_inner()), (2, vec![GroupId(7), GroupId(70)]));
    assert!(observer.told.0.iter().any(|line| line.contains("repair by rescan")), "{:?}", observer.told.0);
    assert!(
        report.warnings.iter().any(|warning| warning.message.contains("repaired by rescan")),
        "{report:?}"
    );
    let between = &report.between_boots[&bdf(GPU)];
    assert!(between.before_repair.is_some() && between.repaired_by().is_some(), "{between:?}");
    assert_eq!(quarantine(&bench.entries(GPU)), None);
}

/// The group is renumbered each time that its device is found anew: none of its former numbers may stay reserved.
#[tokio::test]
async fn of_a_device_that_is_renumbered_twice_no_former_group_stays_reserved() {
    let bench = Bench::below_port(&reboots_once(), "repair = \"rescan\"\nreboot = \"relaunch\"");
    let (groups, kept) = (RefCell::new(Vec::new()), RefCell::new(70));
    let mut observer = At::new("-", 1, || {});
    let mut both = Both(&mut observer, |phase: &Phase| match phase {
        // Both times that QEMU is gone.
        Phase::Ended => {
            bench.fake.regroups(GPU, *kept.borrow());
            *kept.borrow_mut() += 1;
            bench.fake.sicken(GPU, Cure::By(Rung::Rescan));
        }
        Phase::GivingBack => drop(groups.replace(bench.reserved().groups)),
        _ => {}
    });
    let report = up(&bench.run(), &mut nobody(), None, &mut both).await.unwrap();
    assert!(report.all_well() && report.left.is_empty(), "{report:?}");
    assert_eq!((bench.starts(), groups.into_inner()), (2, vec![GroupId(71)]));
}

/// Tells two.
struct Both<'a, 'b, F: FnMut(&Phase)>(&'a mut At<'b>, F);

impl<F: FnMut(&Phase)> Observer for Both<'_, '_, F> {
    fn phase(&mut self, phase: &Phase) {
        self.0.phase(phase);
        (self.1)(phase);
    }

    fn note(&mut self, note: &Note) {
        self.0.note(note);
    }
}

#[tokio::test]
async fn a_guest_whose_device_no_rung_helps_is_not_started_again() {
    let bench = Bench::below_port(&reboots_once(), "repair = \"rescan\"\nreboot = \"relaunch\"");
    let (report, told) = bench.comes_back_sick(Cure::Nothing).await;
    assert_eq!(report.outcome, Outcome::Rebooted { not_again: Some(NotAgain::SickDevice) });
    assert_eq!((told.len(), bench.starts()), (3, 1));
    bench.assert_kept(&report);
}

#[rstest]
#[case::allowed("rescan", Cleaned::Done)]
#[case::never("never", Cleaned::Left)]
#[tokio::test]
async fn a_cleanup_repairs_what_a_killed_launcher_has_left_as_its_profile_allows(
    #[case] policy: &str,
    #[case] expected: Cleaned,
) {
    let bench = Bench::below_port(&Script::default(), &format!("repair = \"{policy}\""));
    bench.killed().await;
    bench.fake.sicken(GPU, Cure::By(Rung::Rescan));
    let clean = bench.clean();
    assert_eq!(clean.result, expected, "{clean:?}");
    let repaired = clean.devices[0].repaired_by().map(|climbed| climbed.rung);
    assert_eq!(repaired.is_some(), expected == Cleaned::Done);
    assert_eq!(quarantine(&bench.entries(GPU)).is_none(), expected == Cleaned::Done);
    if expected == Cleaned::Done {
        bench.assert_given_back();
    }
}

#[tokio::test]
async fn a_cleanup_whose_rung_hangs_leaves_the_process_on_record() {
    let mut bench = Bench::below_port(&Script::default(), "repair = \"hot\"");
    bench.killed().await;
    bench.fake.sicken(GPU, Cure::By(Rung::Hot));
    let pid = i32::try_from(std::process::id()).unwrap();
    let hangs = move || ResetOutcome::InFlight { pid, step: Step::HotReset };
    bench.kernel = bench.fake.kernel().resetting(Box::new(move |_, _, _| Ok(hangs())));
    assert_eq!(bench.clean().result, Cleaned::Left);
    assert_eq!(bench.reserved().in_flight.iter().map(|child| child.pid).collect::<Vec<_>>(), [pid]);
}

/// What a launcher has removed when it is killed isn't sick: it is found anew first.
#[tokio::test]
async fn a_cleanup_finishes_the_repair_that_a_killed_launcher_was_at() {
    let bench = Bench::below_port(&Script::default(), "repair = \"rescan\"");
    bench.killed().await;
    let mut journal =
        Journal::reopen(&bench.places.journal(&bench.plan.name), &bench.boot_id).unwrap().unwrap();
    let baselines = std::collections::BTreeMap::new();
    let host = Host {
        kernel: &bench.kernel,
        places: &bench.places,
        boot_id: &bench.boot_id,
        vm: &bench.plan.name,
        baselines: &baselines,
    };
    for op in [HostOp::HoldAutoprobe, HostOp::Remove { bdf: bdf(GPU), port: None }] {
        apply(&host, &mut journal, &op).unwrap();
    }
    drop(journal);
    let clean = bench.clean();
    assert_eq!(clean.result, Cleaned::Done, "{clean:?}");
    assert!(clean.devices.iter().all(|device| device.before_repair.is_none()), "{clean:?}");
    assert_eq!(quarantine(&bench.entries(GPU)), None);
    bench.assert_given_back();
}

/// The reset that its profile asks for fails, and what its guest left is in it still: a rung that resets it makes that good, and being
/// found anew doesn't.
#[rstest]
#[case::which_works(Ok(()), &[Rung::Hot], true)]
#[case::which_fails_too(Err(ENOTTY), &[Rung::Hot, Rung::Subordinate], false)]
#[tokio::test]
async fn a_device_that_was_not_reset_as_planned_is_made_well_by_another_reset_alone(
    #[case] hot: Result<(), i32>,
    #[case] tried: &[Rung],
    #[case] well: bool,
) {
    let mut bench = bench("rescan");
    let step = PlannedStep {
        method: Method::Flr,
        functions: vec![bdf(GPU)],
        groups: Vec::new(),
        reason: "asked for".to_owned(),
    };
    let device = bench.plan.devices.iter_mut().find(|device| device.bdf == bdf(GPU)).unwrap();
    device.reset.as_mut().unwrap().after_run = Some(step);
    let failed = |step, errno| {
        let source = std::io::Error::from_raw_os_error(errno);
        ResetOutcome::Failed(ResetFailure { step, group: 0, source, told: ResetTold::default() })
    };
    let kernel = bench.fake.kernel().resetting(Box::new(move |_, way, _| {
        Ok(match (way, hot) {
            (Way::Sysfs { .. }, _) => failed(Step::WriteReset, ENOTTY),
            (Way::Vfio { .. }, Err(errno)) => failed(Step::HotReset, errno),
            (Way::Vfio { .. }, Ok(())) => ResetOutcome::Done(ResetTold::default()),
        })
    }));
    bench.kernel = kernel;
    bench.fake.fault(&format!("/sys/bus/pci/devices/{PORT}/reset_subordinate"), Fault::Errno(ENOTTY));
    let report = bench.up().await.unwrap();
    let device = &report.devices[0];
    assert!(device.reset.as_ref().unwrap().failure.is_some());
    assert_eq!((rungs(device), report.all_well()), (tried.to_vec(), well), "{device:?}");
    assert_eq!(quarantine(&bench.entries(GPU)).is_none(), well);
}
