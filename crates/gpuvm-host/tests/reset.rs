//! `gpuvm reset` on a host that can hang, fail and lie.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;

use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{self, InUse, MethodChoice, Refusal, ResetJob, Target};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::repair::{RepairPolicy, Rung};
use gpuvm_core::reset::{Check, Deed, Entry, Method, Verdict, quarantine};
use gpuvm_host::HostError;
use gpuvm_host::bound::{self, BindError, Cleaned};
use gpuvm_host::errno::{EACCES, EINVAL, ENOTTY};
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Owner, Reservation};
use gpuvm_host::reset::{Event, Report, run};
use gpuvm_host::{facts, ledger, snapshot};
use gpuvm_testkit::fake_host::{Cure, FakeDevice, FakeHost, Fault, Snapshot, gpu, nvme};
use rstest::rstest;

const PORT: &str = "0000:80:03.1";
const GPU: &str = "0000:81:00.0";
const AUDIO: &str = "0000:81:00.1";
const DISK: &str = "0000:83:00.0";
const HELD: &str = "0000:85:00.0";

struct Bench {
    fake: FakeHost,
    places: Places,
    before: Snapshot,
}

impl Bench {
    /// A card of two functions behind a port, a disk, and one that somebody has bound.
    fn new() -> Self {
        let fake = FakeHost::new();
        let card = FakeDevice { port: Some(PORT), ..gpu(GPU, 7, 1) };
        fake.device(
            &FakeDevice { class: 0x04_0300, driver: Some("snd_hda_intel"), ..card.clone() }.at(AUDIO, 8),
        );
        fake.device(&card);
        fake.device(&FakeDevice { port: Some("0000:80:04.0"), ..nvme(DISK, 9, 1) });
        fake.device(&FakeDevice {
            driver: Some("vfio-pci"),
            port: Some("0000:80:05.0"),
            ..nvme(HELD, 13, 1)
        });
        fake.file(&format!("/sys/bus/pci/devices/{HELD}/driver_override"), "vfio-pci\n");
        for bdf in [GPU, AUDIO, DISK, HELD] {
            // What the kernel has placed nowhere reads as zero, and so do these registers.
            fs::remove_file(fake.path(&format!("/sys/bus/pci/devices/{bdf}/resource"))).unwrap();
        }
        let (places, before) = (Places::below(&fake.prefix()), fake.snapshot().unwrap());
        Self { fake, places, before }
    }

    fn boot_id(&self) -> String {
        facts::boot_id(&self.fake.root()).unwrap()
    }

    fn plan(&self, target: &str, method: &str) -> Result<ResetJob, Vec<Refusal>> {
        self.plan_repair(target, method, RepairPolicy::Never)
    }

    fn plan_repair(
        &self,
        target: &str,
        method: &str,
        repair: RepairPolicy,
    ) -> Result<ResetJob, Vec<Refusal>> {
        let mut facts = facts::read_for_reset(&self.fake.root(), &BTreeSet::from([bdf(target)])).unwrap();
        facts.bound = bound::bound(&self.places, &self.boot_id()).unwrap();
        plan::reset(&[Target::Function(bdf(target))], method.parse().unwrap(), repair, &facts)
    }

    fn reset_by(&self, job: &ResetJob) -> Result<Report, BindError> {
        run(&self.fake.kernel(), &self.places, &self.boot_id(), job, &|| false, &mut |_| {})
    }

    fn reset(&self, target: &str, method: &str) -> Report {
        self.reset_by(&self.plan(target, method).unwrap()).unwrap()
    }

    fn history(&self, of: &str) -> Vec<Entry> {
        let device = ledger::identity(&snapshot::take(&self.fake.root(), bdf(of)));
        // A dead device is told by what the kernel knows of it.
        ledger::history(&self.places, &device.unwrap()).unwrap()
    }

    /// Lists the resets that reached the kernel.
    fn resets(&self) -> Vec<String> {
        let resets =
            self.fake.writes().into_iter().filter(|write| write.contains("reset") || write.contains("RESET"));
        resets.collect()
    }

    fn assert_as_before(&self) {
        assert_eq!(self.before.differences(&self.fake.snapshot().unwrap()), [""; 0]);
        assert!(reservation::all(&self.places, &self.boot_id()).unwrap().is_empty());
    }
}

trait At {
    fn at(self, bdf: &'static str, group: u32) -> Self;
}

impl At for FakeDevice {
    fn at(self, bdf: &'static str, group: u32) -> Self {
        Self { bdf, group: Some(group), ..self }
    }
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn methods(report: &Report) -> Vec<(Method, bool)> {
    report.attempts.iter().map(|attempt| (attempt.method, attempt.done.is_some())).collect()
}

#[test]
fn a_device_is_taken_reset_judged_written_down_and_given_back() {
    let bench = Bench::new();
    let report = bench.reset(DISK, "auto");
    assert!(report.is_good(), "{report:?}");
    assert_eq!(methods(&report), [(Method::Flr, true)]);
    assert_eq!(bench.resets(), [format!("/sys/bus/pci/devices/{DISK}/reset=1 by flr")]);
    let function = &report.functions[0];
    assert_eq!((function.bdf, function.method), (bdf(DISK), Some(Method::Flr)));
    assert_eq!(function.before.driver.as_ref().map(ToString::to_string), Some("vfio-pci".to_owned()));
    bench.assert_as_before();
    let [entry] = &bench.history(DISK)[..] else { panic!("{:?}", bench.history(DISK)) };
    let Deed::Reset { method: Method::Flr, ms: 104, failure: None, judgement } = &entry.deed else {
        panic!("{entry:?}")
    };
    assert!(!judgement.verdict.is_bad());
}

#[test]
fn a_hot_reset_has_every_group_and_judges_every_function() {
    let bench = Bench::new();
    let report = bench.reset(GPU, "hot");
    assert!(report.is_good(), "{report:?}");
    assert_eq!(bench.resets(), [format!("VFIO_DEVICE_PCI_HOT_RESET {GPU} groups 7 8")]);
    let done = report.attempts[0].done.as_ref().unwrap();
    assert_eq!(
        done.affected.iter().map(|f| (f.bdf, f.group.0)).collect::<Vec<_>>(),
        [(bdf(GPU), 7), (bdf(AUDIO), 8)]
    );
    let judged: Vec<_> = report.functions.iter().map(|function| (function.bdf, function.method)).collect();
    assert_eq!(judged, [(bdf(GPU), Some(Method::Hot)), (bdf(AUDIO), Some(Method::Hot))]);
    assert_eq!((bench.history(GPU).len(), bench.history(AUDIO).len()), (1, 1));
    bench.assert_as_before();
}

#[test]
fn another_way_is_tried_only_when_the_kernel_refuses_the_first() {
    let bench = Bench::new();
    bench.fake.fault(&format!("{GPU}/reset"), Fault::Errno(ENOTTY));
    bench
        .fake
        .says(&format!("{GPU}/reset"), &format!("pci {GPU}: not ready 65535ms after FLR; giving up"))
        .unwrap();
    let job = bench.plan(GPU, "auto").unwrap();
    let told = RefCell::new(Vec::new());
    let mut tell = |event: Event<'_>| {
        if let Event::Next { error } = event {
            told.borrow_mut().push(error.to_string());
        }
    };
    let report =
        run(&bench.fake.kernel(), &bench.places, &bench.boot_id(), &job, &|| false, &mut tell).unwrap();
    assert_eq!(methods(&report), [(Method::Flr, false), (Method::Hot, true)]);
    let failure = report.attempts[0].failure.as_ref().unwrap();
    for part in
        [&format!("reset {GPU} by flr: write reset"), "no method worked", "not ready 65535ms after FLR"]
    {
        assert!(failure.contains(part), "{part} isn't in {failure}");
    }
    assert_eq!(told.into_inner(), std::slice::from_ref(failure));
}

#[test]
fn nothing_more_is_tried_once_the_user_wants_to_stop() {
    let bench = Bench::new();
    bench.fake.fault(&format!("{DISK}/reset"), Fault::Errno(ENOTTY));
    let job = bench.plan(DISK, "auto").unwrap();
    assert!(job.resets[0].steps.len() > 1, "the test proves nothing");
    let tried = std::cell::Cell::new(0);
    let stop = || tried.replace(tried.get() + 1) > 0;
    let report =
        run(&bench.fake.kernel(), &bench.places, &bench.boot_id(), &job, &stop, &mut |_| {}).unwrap();
    assert_eq!(methods(&report), [(Method::Flr, false)]);
}

#[test]
fn a_device_that_was_not_reset_is_impaired_written_down_and_stays_on_vfio() {
    let bench = Bench::new();
    bench.fake.fault(&format!("{DISK}/reset"), Fault::Errno(ENOTTY));
    let report = bench.reset(DISK, "flr");
    assert!(!report.is_good());
    let judgement = &report.functions[0].judgement;
    let reset = judgement.findings.iter().find(|finding| finding.check == Check::Reset).unwrap();
    assert_eq!(reset.weight, Some(Verdict::Impaired));
    assert!(judgement.verdict.is_bad());
    assert_eq!(report.staying, [bdf(DISK)]);
    assert_eq!(bench.fake.driver(DISK).unwrap().as_deref(), Some("vfio-pci"));
    assert!(matches!(&bench.history(DISK)[0].deed, Deed::Reset { failure: Some(_), .. }));
    // It is bound as by `gpuvm bind`: cleanup leaves it alone, and a reset that is well leaves it bound too.
    let cleaned = bound::cleanup(&bench.fake.kernel(), &bench.places, &bench.boot_id(), &mut |_| {}).unwrap();
    assert!(cleaned.is_empty(), "{cleaned:?}");
    assert!(bench.reset(DISK, "flr").is_good());
    assert_eq!(bench.fake.driver(DISK).unwrap().as_deref(), Some("vfio-pci"));
    let mut host = facts::read_for_reset(&bench.fake.root(), &BTreeSet::from([bdf(DISK)])).unwrap();
    host.bound = bound::bound(&bench.places, &bench.boot_id()).unwrap();
    let unbind = plan::unbind(&[Target::Function(bdf(DISK))], InUse::Refused, &host).unwrap();
    let given =
        bound::unbind(&bench.fake.kernel(), &bench.places, &bench.boot_id(), &unbind, &mut |_| {}).unwrap();
    assert!(given.left.is_empty(), "{given:?}");
    bench.assert_as_before();
}

#[test]
fn a_reset_that_was_refused_before_it_was_begun_says_nothing_of_the_device() {
    let bench = Bench::new();
    let job = bench.plan(DISK, "bus").unwrap();
    // The kernel has thought better of it since.
    fs::remove_file(bench.fake.path(&format!("/sys/bus/pci/devices/{DISK}/reset"))).unwrap();
    let report = bench.reset_by(&job).unwrap();
    assert_eq!(methods(&report), [(Method::Bus, false)]);
    assert!(!report.is_good(), "it was not reset");
    assert_eq!(report.functions[0].judgement.verdict, Verdict::Unknown);
    assert!(matches!(&bench.history(DISK)[..], [Entry { deed: Deed::Reset { failure: Some(_), .. }, .. }]));
    assert_eq!(gpuvm_core::reset::quarantine(&bench.history(DISK)), None);
    assert!(report.staying.is_empty());
    assert_eq!(bench.fake.driver(DISK).unwrap().as_deref(), Some("nvme"));
}

#[test]
fn a_device_that_nothing_was_tried_with_is_given_back() {
    let bench = Bench::new();
    let job = bench.plan(DISK, "auto").unwrap();
    let report =
        run(&bench.fake.kernel(), &bench.places, &bench.boot_id(), &job, &|| true, &mut |_| {}).unwrap();
    assert!(report.attempts.is_empty() && !report.is_good());
    assert!(bench.history(DISK).is_empty());
    bench.assert_as_before();
}

#[test]
fn a_success_of_the_kernel_with_a_dead_device_is_told_as_dead() {
    let bench = Bench::new();
    bench.fake.fault(&format!("{DISK}/reset"), Fault::KillsDevice);
    let report = bench.reset(DISK, "auto");
    assert_eq!(methods(&report), [(Method::Flr, true)]);
    assert_eq!(report.functions[0].judgement.verdict, Verdict::Unreachable);
    assert_eq!(report.staying, [bdf(DISK)]);
}

#[test]
fn a_reset_that_hangs_is_on_record_and_every_later_verb_names_it() {
    let bench = Bench::new();
    bench.fake.fault(&format!("{DISK}/reset"), Fault::Hang);
    let report = bench.reset(DISK, "auto");
    assert!(!report.is_good());
    assert_eq!(methods(&report), [(Method::Flr, false)], "no other way is tried while one hangs");
    let Some(HostError::InFlight { pid, seconds: 80, .. }) = report.attempts[0].error else {
        panic!("{:?}", report.attempts)
    };
    // Its config space would not be read, nor its port's: the kernel keeps both.
    let after = &report.functions[0].after;
    assert!(after.config.read().is_none());
    assert!(after.port.as_ref().unwrap().config.read().is_none());

    let hangs = reservation::in_flight(&bench.fake.root(), &bench.places, &bench.boot_id()).unwrap();
    assert_eq!(hangs.get(&bdf(DISK)), Some(&pid));
    // The gpuvm that began it has ended.
    let [mut record] =
        <[_; 1]>::try_from(reservation::all(&bench.places, &bench.boot_id()).unwrap()).unwrap();
    record.supervisor = ProcessId { pid: 0, start_time: 0 };
    reservation::update(&bench.places, &record).unwrap();
    let error = bench.reset_by(&bench.plan(DISK, "auto").unwrap()).unwrap_err();
    let text = error.cause.to_string();
    assert!(text.contains("a reset of 0000:83:00.0") && text.contains(&pid.to_string()), "{text}");

    bench.fake.release();
    let again = bench.reset(DISK, "auto");
    assert!(again.is_good(), "{again:?}");
    assert!(reservation::all(&bench.places, &bench.boot_id()).unwrap().is_empty());
}

#[test]
fn what_this_user_may_not_do_says_nothing_of_the_device() {
    let bench = Bench::new();
    bench.fake.fault(&format!("{DISK}/reset"), Fault::Errno(EACCES));
    let error = bench.reset_by(&bench.plan(DISK, "flr").unwrap()).unwrap_err();
    assert_eq!(error.cause.errno(), Some(EACCES));
    assert!(bench.history(DISK).is_empty());
    bench.assert_as_before();
}

#[test]
fn others_are_told_whose_the_device_is() {
    let bench = Bench::new();
    let first = bdf(DISK);
    let held = Reservation::of_reset(first, &bench.boot_id(), vec![], vec![first], vec![]);
    // Another process's: this one would take over its own.
    let held = Reservation { supervisor: ProcessId::of(1).unwrap(), ..held };
    reservation::reserve(&bench.places, &held).unwrap();
    let error = bench.reset_by(&bench.plan(DISK, "auto").unwrap()).unwrap_err();
    let HostError::Reserved { owner: Owner::Reset(bdf), .. } = *error.cause else {
        panic!("{:?}", error.cause)
    };
    assert_eq!(bdf, first);
    assert!(bench.resets().is_empty());
}

#[test]
fn a_bus_that_a_vm_shares_is_not_reset() {
    let bench = Bench::new();
    let job = bench.plan(GPU, "hot").unwrap();
    let vm = VmName::new("other").unwrap();
    let held = Reservation {
        vm: vm.clone(),
        bind: None,
        detached: false,
        reset: false,
        ..Reservation::of_reset(
            bdf("0000:81:00.2"),
            &bench.boot_id(),
            vec![],
            vec![],
            job.reset_domains.clone(),
        )
    };
    reservation::reserve(&bench.places, &held).unwrap();
    let error = bench.reset_by(&job).unwrap_err();
    assert!(
        matches!(&*error.cause, HostError::Reserved { owner: Owner::Vm(name), .. } if *name == vm),
        "{:?}",
        error.cause
    );
}

#[test]
fn what_a_dead_vm_left_behind_is_reset_where_it_is_and_its_cleanup_waits() {
    let bench = Bench::new();
    let vm = VmName::new("dead").unwrap();
    let dead = Reservation {
        vm: vm.clone(),
        bind: None,
        detached: false,
        reset: false,
        supervisor: ProcessId { pid: 0, start_time: 0 },
        ..Reservation::of_bind(bdf(HELD), &bench.boot_id(), vec![], vec![bdf(HELD)])
    };
    reservation::update(&bench.places, &dead).unwrap();
    // Something of it is left to undo.
    let journal = bench.places.journal(&vm);
    fs::create_dir_all(journal.parent().unwrap()).unwrap();
    let mut open = gpuvm_host::journal::Journal::begin(&journal, &bench.boot_id()).unwrap();
    open.intend(&gpuvm_core::host_ops::HostOp::KeepAwake { bdf: bdf(HELD) }, None).unwrap();

    let job = bench.plan(HELD, "auto").unwrap();
    let waits = RefCell::new(None);
    let mut tell = |event: Event<'_>| {
        if matches!(event, Event::Resetting { .. }) {
            *waits.borrow_mut() =
                reservation::take_over(&bench.places, &bench.boot_id(), &vm, reservation::Guest::Spared)
                    .err();
        }
    };
    let report =
        run(&bench.fake.kernel(), &bench.places, &bench.boot_id(), &job, &|| false, &mut tell).unwrap();
    assert!(report.is_good(), "{report:?}");
    assert_eq!(bench.resets(), [format!("/sys/bus/pci/devices/{HELD}/reset=1 by flr")]);
    assert_eq!(bench.fake.driver(HELD).unwrap().as_deref(), Some("vfio-pci"));
    let waits = waits.into_inner().unwrap();
    assert!(matches!(waits, HostError::Reserved { owner: Owner::Reset(_), .. }), "{waits}");
    assert_eq!(
        reservation::take_over(&bench.places, &bench.boot_id(), &vm, reservation::Guest::Spared).unwrap().vm,
        vm
    );
}

#[test]
fn what_a_killed_reset_has_bound_is_given_back_by_cleanup() {
    let bench = Bench::new();
    let job = bench.plan(DISK, "auto").unwrap();
    let mut reservation =
        Reservation::of_reset(bdf(DISK), &bench.boot_id(), job.groups(), job.devices(), vec![]);
    reservation::reserve(&bench.places, &reservation).unwrap();
    bound::bind_for_reset(&bench.fake.kernel(), &bench.places, &job.bind, &mut reservation, &mut |_| {})
        .unwrap();
    assert_eq!(bench.fake.driver(DISK).unwrap().as_deref(), Some("vfio-pci"));
    // While it lives nobody touches that.
    let of_another = Reservation { supervisor: ProcessId::of(1).unwrap(), ..reservation.clone() };
    reservation::update(&bench.places, &of_another).unwrap();
    let clean =
        || bound::cleanup(&bench.fake.kernel(), &bench.places, &bench.boot_id(), &mut |_| {}).unwrap();
    assert_eq!(clean()[0].result, Cleaned::Running);
    // It dies.
    let dead = Reservation { supervisor: ProcessId { pid: 0, start_time: 0 }, ..reservation };
    reservation::update(&bench.places, &dead).unwrap();
    assert_eq!(clean()[0].result, Cleaned::Done);
    bench.assert_as_before();
}

#[rstest]
#[case::audio_alone(AUDIO, "hot", &["can't be reset", GPU, "nvidia"])]
#[case::stale_bus(GPU, "bus", &["can't be reset", AUDIO])]
#[case::not_listed(DISK, "pm", &["no pm", "flr"])]
fn a_method_that_is_not_there_is_refused_with_the_reason(
    #[case] target: &str,
    #[case] method: &str,
    #[case] names: &[&str],
) {
    let bench = Bench::new();
    let refusals = bench.plan(target, method).unwrap_err();
    let text = refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(matches!(refusals[..], [Refusal::NoReset { .. }]), "{text}");
    for name in names {
        assert!(text.contains(name), "{name} isn't in {text}");
    }
}

#[test]
fn a_device_without_any_reset_is_told_as_such() {
    let bench = Bench::new();
    let device = format!("/sys/bus/pci/devices/{AUDIO}");
    for name in ["reset", "reset_method"] {
        fs::remove_file(bench.fake.path(&format!("{device}/{name}"))).unwrap();
    }
    // On its own; the card beside it is nvidia's.
    let text = bench.plan(AUDIO, "auto").unwrap_err()[0].to_string();
    assert!(text.contains("lists no reset method") && text.contains("nvidia"), "{text}");
}

#[test]
fn a_kernel_that_will_not_reset_the_bus_says_which_function_is_in_the_way() {
    let bench = Bench::new();
    bench.fake.fault("PCI_HOT_RESET", Fault::Errno(EINVAL));
    let report = bench.reset(GPU, "hot");
    let failure = report.attempts[0].failure.as_ref().unwrap();
    assert!(failure.contains("by hot: VFIO_DEVICE_PCI_HOT_RESET: Invalid argument"), "{failure}");
    assert_eq!(report.staying, [bdf(GPU), bdf(AUDIO)]);
}

#[test]
fn choices_of_methods_are_the_kernels_names_and_two_more() {
    assert_eq!("auto".parse(), Ok(MethodChoice::Auto));
    assert_eq!("hot".parse(), Ok(MethodChoice::Only(Method::Hot)));
    assert_eq!("af_flr".parse(), Ok(MethodChoice::Only(Method::AfFlr)));
    assert!("FLR".parse::<MethodChoice>().is_err());
}

/// A card of two functions below a port, each of which answers where the kernel has placed it.
fn placed() -> Bench {
    let fake = FakeHost::new();
    let card = FakeDevice { port: Some(PORT), ..gpu(GPU, 7, 1) };
    fake.device(&FakeDevice { class: 0x04_0300, driver: Some("snd_hda_intel"), ..card.clone() }.at(AUDIO, 7));
    fake.device(&card);
    for bdf in [GPU, AUDIO] {
        // A bus reset that never was one isn't put back when the device is found anew.
        fake.file(&format!("/sys/bus/pci/devices/{bdf}/reset_method"), "flr\n");
        fake.file(&format!("/fake-kernel/reset-methods/{bdf}"), "flr\n");
    }
    let (places, before) = (Places::below(&fake.prefix()), fake.snapshot().unwrap().of_host());
    Bench { fake, places, before }
}

fn climbed(report: &Report) -> Vec<Rung> {
    report.functions[0].repair.iter().map(|climbed| climbed.rung).collect()
}

#[rstest]
#[case::by_hot(Rung::Hot)]
#[case::by_subordinate(Rung::Subordinate)]
#[case::by_rescan(Rung::Rescan)]
fn what_a_reset_leaves_sick_is_repaired_by_the_mildest_rung_and_given_back(#[case] rung: Rung) {
    let bench = placed();
    bench.fake.sicken(GPU, Cure::By(rung));
    let report = bench.reset_by(&bench.plan_repair(GPU, "flr", RepairPolicy::Rescan).unwrap()).unwrap();
    assert!(report.is_good(), "{report:?}");
    assert_eq!(methods(&report), [(Method::Flr, true)]);
    let tried: Vec<Rung> = Rung::ALL.into_iter().filter(|other| *other <= rung).collect();
    assert_eq!(climbed(&report), tried);
    let function = &report.functions[0];
    assert_eq!(function.before_repair.as_ref().unwrap().verdict, Verdict::Impaired);
    assert_eq!(function.repaired_by().unwrap().rung, rung);
    let history = bench.history(GPU);
    assert_eq!((history.len(), quarantine(&history)), (1 + tried.len(), None), "{history:?}");
    assert_eq!(bench.history(AUDIO).len(), tried.len(), "what a rung reaches is judged too");
    assert_eq!(bench.before.differences(&bench.fake.snapshot().unwrap().of_host()), [""; 0]);
    assert!(reservation::all(&bench.places, &bench.boot_id()).unwrap().is_empty());
}

#[rstest]
#[case::no_rung_helps(Cure::Nothing, RepairPolicy::Rescan, &Rung::ALL)]
#[case::the_helpful_one_is_not_asked_for(Cure::By(Rung::Rescan), RepairPolicy::Hot, &[Rung::Hot])]
#[case::none_is_asked_for(Cure::By(Rung::Hot), RepairPolicy::Never, &[])]
fn what_stays_sick_stays_in_quarantine_and_on_vfio(
    #[case] cure: Cure,
    #[case] repair: RepairPolicy,
    #[case] tried: &[Rung],
) {
    let bench = placed();
    bench.fake.sicken(GPU, cure);
    let report = bench.reset_by(&bench.plan_repair(GPU, "flr", repair).unwrap()).unwrap();
    assert!(!report.is_good());
    assert_eq!(climbed(&report), tried);
    assert_eq!(report.functions[0].before_repair.is_some(), repair != RepairPolicy::Never);
    assert_eq!(report.functions[0].repaired_by(), None);
    assert!(report.staying.contains(&bdf(GPU)), "{report:?}");
    assert_eq!(bench.fake.driver(GPU).unwrap().as_deref(), Some("vfio-pci"));
    assert!(quarantine(&bench.history(GPU)).is_some());
}

#[test]
fn what_is_well_after_its_reset_is_not_repaired() {
    let bench = placed();
    let report = bench.reset_by(&bench.plan_repair(GPU, "flr", RepairPolicy::Rescan).unwrap()).unwrap();
    assert!(report.is_good() && climbed(&report).is_empty(), "{report:?}");
    assert!(report.functions[0].before_repair.is_none());
}

#[test]
fn what_has_no_reset_is_repaired_instead() {
    let bench = placed();
    for name in ["reset_method", "reset"] {
        fs::remove_file(bench.fake.path(&format!("/sys/bus/pci/devices/{GPU}/{name}"))).ok();
    }
    fs::remove_file(bench.fake.path(&format!("/fake-kernel/reset-methods/{GPU}"))).ok();
    bench.fake.sicken(GPU, Cure::By(Rung::Rescan));
    assert!(bench.plan(GPU, "flr").is_err());
    let report = bench.reset_by(&bench.plan_repair(GPU, "flr", RepairPolicy::Rescan).unwrap()).unwrap();
    assert!(report.is_good() && report.attempts.is_empty(), "{report:?}");
    assert_eq!(climbed(&report), Rung::ALL);
}

#[test]
fn a_rung_that_hangs_keeps_the_reservation_and_nothing_else_is_tried() {
    let bench = placed();
    bench.fake.sicken(GPU, Cure::By(Rung::Rescan));
    let job = bench.plan_repair(GPU, "flr", RepairPolicy::Rescan).unwrap();
    bench.fake.fault(&format!("/sys/bus/pci/devices/{PORT}/reset_subordinate"), Fault::Hang);
    let report = bench.reset_by(&job).unwrap();
    assert!(!report.is_good());
    assert_eq!(climbed(&report), [Rung::Hot, Rung::Subordinate]);
    assert!(report.left.iter().any(|error| matches!(error, HostError::InFlight { .. })), "{:?}", report.left);
    let held = reservation::all(&bench.places, &bench.boot_id()).unwrap();
    assert_eq!(held[0].in_flight.len(), 1, "{held:?}");
}

/// A device whose reset fails is made well by a rescan where a person asks for that rung; a profile's is not (`stands_in_for_a_reset`).
#[test]
fn a_rescan_that_a_person_asks_for_stands_in_for_a_reset_that_failed() {
    let bench = placed();
    bench.fake.fault(&format!("/sys/bus/pci/devices/{GPU}/reset"), Fault::Errno(ENOTTY));
    bench.fake.sicken(GPU, Cure::By(Rung::Rescan));
    let report = bench.reset_by(&bench.plan_repair(GPU, "flr", RepairPolicy::Rescan).unwrap()).unwrap();
    assert!(report.is_good(), "{report:?}");
    assert_eq!((methods(&report), climbed(&report)), (vec![(Method::Flr, false)], Rung::ALL.to_vec()));
}

#[test]
fn nothing_is_climbed_for_a_device_whose_group_somebody_has_opened_meanwhile() {
    let bench = placed();
    bench.fake.sicken(GPU, Cure::By(Rung::Hot));
    let job = bench.plan_repair(GPU, "flr", RepairPolicy::Rescan).unwrap();
    let mut other = None;
    let mut told = |event: Event<'_>| {
        if matches!(event, Event::Judging) && other.is_none() {
            let group = fs::File::open(bench.fake.path("/dev/vfio/7")).unwrap();
            other = Some(std::process::Command::new("sleep").arg("60").stdin(group).spawn().unwrap());
        }
    };
    let kernel = bench.fake.kernel();
    let report = run(&kernel, &bench.places, &bench.boot_id(), &job, &|| false, &mut told).unwrap();
    let mut other = other.unwrap();
    other.kill().and_then(|()| other.wait()).unwrap();
    assert!(!report.is_good() && climbed(&report).is_empty(), "{report:?}");
    let id = other.id().to_string();
    let busy =
        |error: &HostError| matches!(error, HostError::GroupBusy { holder, .. } if holder.starts_with(&id));
    assert!(report.left.iter().any(busy), "{:?}", report.left);
}
