//! Repairs on a host whose devices come back well by one rung of the ladder, or by none; hanging, failing and cut short anywhere.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::rc::Rc;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName, GroupId};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::repair::{Ladder, RepairPolicy, Rung, ladder};
use gpuvm_core::reset::{Method, Snapshot as Baseline, Verdict};
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::{Journal, OpState};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::lock::make_dir;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::repair::{Repaired, book, finish, repair};
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::undo::undo_all;
use gpuvm_host::{HostError, bound, facts, snapshot};
use gpuvm_sys::errno::{EBUSY, ENODEV, ENOTTY};
use gpuvm_testkit::fake_host::{
    Cure, FakeDevice, FakeHost, Fault, PowerAttributes, Snapshot, gpu, kernel_at,
};
use proptest::prelude::*;
use rstest::rstest;

const BOOT: &str = "boot-1";
const PORT: &str = "0000:80:01.0";
const CARD: [&str; 2] = ["0000:81:00.0", "0000:81:00.1"];
const AUTOPROBE: &str = "/sys/bus/pci/drivers_autoprobe";

/// A card of two functions below a port, which a VM has taken from its drivers.
struct Bench {
    fake: FakeHost,
    kernel: Kernel,
    places: Places,
    vm: VmName,
    baselines: BTreeMap<Bdf, Baseline>,
    before: Snapshot,
}

/// What a kernel does with a device that it finds while `drivers_autoprobe` is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// It leaves it alone: Linux 6.19 and newer.
    Leaves,
    /// It gives it to its driver all the same.
    Probes,
}

impl Finding {
    fn of(self, fake: &FakeHost) {
        if self == Self::Probes {
            fake.probes_what_it_finds();
        }
    }
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn driver(name: &str) -> DriverName {
    DriverName::new(name).unwrap()
}

impl Bench {
    fn new() -> Self {
        Self::with(PowerAttributes { control: "auto", d3cold_allowed: Some("1") }, None)
    }

    /// Makes the card with these attributes, and with an override that somebody has set.
    fn with(power: PowerAttributes, set: Option<&str>) -> Self {
        let fake = FakeHost::new();
        let port = Some(PORT);
        fake.device(&FakeDevice { port, power, ..gpu(CARD[0], 7, 1) });
        let audio = FakeDevice { class: 0x04_0300, driver: Some("snd_hda_intel"), ..gpu(CARD[1], 8, 1) };
        fake.device(&FakeDevice { port, ..audio });
        // A bus reset that never was one isn't put back: see reset_methods.rs.
        for at in CARD {
            fake.file(&format!("/sys/bus/pci/devices/{at}/reset_method"), "flr pm\n");
        }
        if let Some(set) = set {
            fake.file(&format!("/sys/bus/pci/devices/{}/driver_override", CARD[0]), format!("{set}\n"));
        }
        let before = fake.snapshot().unwrap().of_host();
        let baselines = CARD.map(|at| (bdf(at), snapshot::take(&fake.root(), bdf(at)))).into();
        let places = Places::below(&fake.prefix());
        Self { kernel: fake.kernel(), places, vm: VmName::new("vm").unwrap(), baselines, before, fake }
    }

    fn host<'a>(&'a self, kernel: &'a Kernel) -> Host<'a> {
        Host { kernel, places: &self.places, boot_id: BOOT, vm: &self.vm, baselines: &self.baselines }
    }

    fn journal(&self) -> Journal {
        make_dir(&self.places.vm(&self.vm)).unwrap();
        Journal::begin(&self.places.journal(&self.vm), BOOT).unwrap()
    }

    /// Opens the journal as a cleanup does; none where nothing was written.
    fn reopen(&self) -> Option<Journal> {
        Journal::reopen(&self.places.journal(&self.vm), BOOT).unwrap()
    }

    /// Takes the card, as a VM does.
    fn taken(&self) -> Journal {
        let mut journal = self.journal();
        for (at, native) in CARD.into_iter().zip(["nvidia", "snd_hda_intel"]) {
            let (bdf, vfio) = (bdf(at), driver("vfio-pci"));
            for op in [
                HostOp::KeepAwake { bdf },
                HostOp::SetResetMethods { bdf, methods: vec![Method::Flr] },
                HostOp::Unbind { bdf, driver: driver(native) },
                HostOp::SetDriverOverride { bdf, driver: vfio.clone() },
                HostOp::Bind { bdf, driver: vfio },
            ] {
                apply(&self.host(&self.kernel), &mut journal, &op).unwrap();
            }
        }
        journal
    }

    fn facts(&self) -> HostFacts {
        facts::read_devices(&self.fake.root(), CARD.map(bdf).into()).unwrap()
    }

    fn ladders(&self, policy: RepairPolicy) -> Vec<Ladder> {
        let facts = self.facts();
        CARD.map(|at| ladder(bdf(at), policy, &CARD.map(bdf).into(), &facts)).into()
    }

    fn sick(&self) -> BTreeMap<Bdf, Baseline> {
        [(bdf(CARD[0]), snapshot::take(&self.fake.root(), bdf(CARD[0])))].into()
    }

    fn repair(&self, journal: &mut Journal, policy: RepairPolicy) -> Repaired {
        let ladders = self.ladders(policy);
        repair(&self.host(&self.kernel), journal, &ladders, &self.sick(), &|| false, &mut |_| {})
    }

    /// Ends a VM, or what is left of it.
    fn give_back(&self, journal: &mut Journal) -> Vec<HostError> {
        let host = self.host(&self.kernel);
        let mut left = finish(&host, journal, &mut |_| {});
        left.extend(undo_all(&host, journal, &mut |_| {}));
        left
    }

    /// Lists what of the host is not as it was, but for what is wrong with the card itself.
    fn changes(&self) -> Vec<String> {
        let mut changes = self.before.differences(&self.fake.snapshot().unwrap().of_host());
        changes.retain(|change| !change.starts_with("fake-kernel/") && !change.contains("/config:"));
        changes
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.fake.path(path)).unwrap().trim().to_owned()
    }

    fn writes_to(&self, part: &str) -> usize {
        self.fake.writes().iter().filter(|write| write.contains(part)).count()
    }
}

/// The rungs that were tried with a function, and whether each has helped.
fn tried(repaired: &Repaired, at: &str) -> Vec<(Rung, bool)> {
    let own = repaired.climbed.iter().filter(|(of, _)| *of == bdf(at));
    own.map(|(_, climbed)| (climbed.rung, climbed.helped())).collect()
}

#[rstest]
#[case::hot(Rung::Hot)]
#[case::subordinate(Rung::Subordinate)]
#[case::rescan(Rung::Rescan)]
fn the_first_rung_that_helps_is_the_last_that_is_tried(
    #[case] cure: Rung,
    #[values(Finding::Leaves, Finding::Probes)] finding: Finding,
) {
    let bench = Bench::new();
    finding.of(&bench.fake);
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(cure));
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    assert_eq!(repaired.helped(bdf(CARD[0])), Some(cure), "{repaired:#?}");
    let expected: Vec<(Rung, bool)> =
        Rung::ALL.into_iter().filter(|rung| *rung <= cure).map(|rung| (rung, rung == cure)).collect();
    assert_eq!(tried(&repaired, CARD[0]), expected);
    // Its mate was reached each time, and is well.
    assert!(tried(&repaired, CARD[1]).iter().all(|(_, helped)| *helped), "{repaired:#?}");
    assert!(repaired.left.is_empty() && repaired.in_flight.is_empty(), "{repaired:?}");
    for at in CARD {
        assert_eq!(bench.fake.driver(at).unwrap().as_deref(), Some("vfio-pci"));
    }
    assert!(bench.give_back(&mut journal).is_empty());
    assert_eq!(bench.changes(), [""; 0]);
}

#[test]
fn what_the_policy_forbids_is_not_tried() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    let repaired = bench.repair(&mut journal, RepairPolicy::Subordinate);
    assert_eq!(tried(&repaired, CARD[0]), [(Rung::Hot, false), (Rung::Subordinate, false)]);
    assert_eq!(repaired.helped(bdf(CARD[0])), None);
    assert_eq!(bench.writes_to("/remove"), 0);
}

#[test]
fn a_rescan_is_made_with_autoprobe_off_and_leaves_what_the_vm_had_set() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    let attributes = ["driver_override", "power/control", "d3cold_allowed", "reset_method"];
    let set =
        || CARD.map(|at| attributes.map(|name| bench.read(&format!("/sys/bus/pci/devices/{at}/{name}"))));
    let (as_taken, begun) = (set(), bench.fake.writes().len());
    bench.repair(&mut journal, RepairPolicy::Rescan);
    assert_eq!(set(), as_taken);
    let writes = bench.fake.writes()[begun..].to_vec();
    let first = writes.iter().position(|write| write.contains("autoprobe")).unwrap();
    let device = |at: &str| format!("/sys/bus/pci/devices/{at}");
    assert_eq!(
        writes[first..first + 5],
        [
            format!("{AUTOPROBE}=0"),
            format!("{}/remove=1", device(CARD[1])),
            format!("{}/remove=1", device(CARD[0])),
            "/sys/class/pci_bus/0000:81/rescan=1".to_owned(),
            format!("{}/driver_override=vfio-pci", device(CARD[0])),
        ]
    );
    assert_eq!(writes.last(), Some(&format!("{AUTOPROBE}=1")));
    assert_eq!(writes.iter().filter(|write| write.contains("rescan")).count(), 1, "once for the whole card");
    assert_eq!(bench.writes_to("drivers/nvidia/bind"), 0, "its own driver never had it meanwhile");
    assert!(journal.open_records().iter().all(|record| !record.op.is_repair()));
}

#[test]
fn a_kernel_that_probes_what_it_finds_has_the_device_taken_from_its_driver_again() {
    let bench = Bench::new();
    bench.fake.probes_what_it_finds();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    let begun = bench.fake.writes().len();
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    assert_eq!(repaired.helped(bdf(CARD[0])), Some(Rung::Rescan), "{repaired:#?}");
    let writes = bench.fake.writes()[begun..].to_vec();
    let at = |part: &str| writes.iter().position(|write| write.contains(part)).unwrap();
    // With the override first, so that no other driver takes it in between.
    let order = ["/rescan", "81:00.0/driver_override", "nvidia/unbind", "vfio-pci/bind"].map(at);
    assert!(order.is_sorted(), "{writes:#?}");
}

#[test]
fn a_device_that_somebody_has_had_found_meanwhile_stays_on_its_driver() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::Lost);
    bench.repair(&mut journal, RepairPolicy::Rescan);
    bench.fake.file(&format!("/fake-kernel/cure/{}", CARD[0]), "rescan");
    let scan = bench.fake.path("/sys/bus/pci/rescan");
    bench.kernel.write("scan", &scan, "1", std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(bench.fake.driver(CARD[0]).unwrap().as_deref(), Some("nvidia"));
    let begun = bench.fake.writes().len();
    let left = bench.give_back(&mut journal);
    assert!(left.is_empty(), "{left:?}");
    assert!(!bench.fake.writes()[begun..].iter().any(|write| write.contains("nvidia/")), "it may be in use");
    assert_eq!(bench.changes(), [""; 0]);
}

#[test]
fn a_card_of_two_sick_functions_is_climbed_for_once() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    for at in CARD {
        bench.fake.sicken(at, Cure::By(Rung::Rescan));
    }
    let sick = CARD.map(|at| (bdf(at), snapshot::take(&bench.fake.root(), bdf(at)))).into();
    let ladders = bench.ladders(RepairPolicy::Rescan);
    let host = bench.host(&bench.kernel);
    let repaired = repair(&host, &mut journal, &ladders, &sick, &|| false, &mut |_| {});
    assert_eq!(CARD.map(|at| repaired.helped(bdf(at))), [Some(Rung::Rescan); 2], "{repaired:#?}");
    assert_eq!((bench.writes_to("HOT_RESET"), bench.writes_to("reset_subordinate")), (1, 1));
    assert_eq!(bench.writes_to("/rescan"), 1);
}

#[test]
fn a_device_that_nothing_helps_stays_sick_and_in_hand() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::Nothing);
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    assert_eq!(tried(&repaired, CARD[0]), Rung::ALL.map(|rung| (rung, false)));
    let (_, last) = repaired.climbed.iter().rfind(|(of, _)| *of == bdf(CARD[0])).unwrap();
    assert_eq!((last.judgement.verdict, &last.failure), (Verdict::Impaired, &None), "{last:?}");
    assert_eq!(bench.fake.driver(CARD[0]).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(bench.read(AUTOPROBE), "1");
}

#[test]
fn a_device_that_is_not_found_again_is_told_and_found_by_a_later_cleanup() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::Lost);
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    let (_, last) = repaired.climbed.iter().rfind(|(of, _)| *of == bdf(CARD[0])).unwrap();
    let failure = last.failure.clone().unwrap();
    assert!(failure.contains("doesn't find it by scanning bus 0000:81"), "{failure}");
    assert_eq!(last.judgement.verdict, Verdict::Unreachable, "{last:?}");
    // Its mate is back, and other devices that are found get their drivers.
    assert_eq!(bench.fake.driver(CARD[1]).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(bench.read(AUTOPROBE), "1");
    let left = bench.give_back(&mut journal);
    assert!(matches!(&left[..], [HostError::NotFoundAnew { .. }, ..]), "{left:?}");
    assert_eq!(bench.read(AUTOPROBE), "1");

    bench.fake.file(&format!("/fake-kernel/cure/{}", CARD[0]), "rescan");
    let mut journal = bench.reopen().unwrap();
    let left = bench.give_back(&mut journal);
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(bench.changes(), [""; 0]);
    assert_eq!(bench.writes_to("drivers/nvidia/bind"), 1, "it never had it before its turn");
}

#[test]
fn a_removal_that_hangs_is_told_and_finished_once_it_has_come_back() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.fault("81:00.0/remove", Fault::Hang);
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    assert!(matches!(repaired.in_flight[..], [HostError::InFlight { .. }]), "{repaired:?}");
    assert_eq!(repaired.hanging.keys().copied().collect::<Vec<_>>(), CARD.map(bdf));
    let open = journal.open_records();
    let in_flight = |state: &OpState| matches!(state, OpState::InFlight { .. });
    assert!(open.iter().any(|record| record.op.is_repair() && in_flight(&record.state)), "{open:?}");
    assert_eq!(bench.read(AUTOPROBE), "1", "the rest of the host isn't kept waiting");
    // Nobody scans meanwhile: that would hang too.
    assert_eq!(bench.writes_to("/rescan"), 0);

    let left = bench.give_back(&mut journal);
    assert!(left.iter().any(|error| matches!(error, HostError::InFlight { .. })), "{left:?}");
    bench.fake.release();
    let left = bench.give_back(&mut bench.reopen().unwrap());
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(bench.changes(), [""; 0]);
}

#[rstest]
#[case::remove_refused("81:00.0/remove", Fault::Errno(EBUSY), "Device or resource busy")]
#[case::remove_without_effect("81:00.0/remove", Fault::Lie, "its place in sysfs still")]
#[case::rescan_refused("/rescan", Fault::Errno(EBUSY), "scan bus 0000:81 anew")]
#[case::rescan_without_effect("/rescan", Fault::Lie, "doesn't find it")]
#[case::override_refused("81:00.0/driver_override", Fault::Errno(EBUSY), "driver_override")]
#[case::bind_refused("vfio-pci/bind", Fault::Errno(ENODEV), "vfio-pci/bind")]
#[case::autoprobe_refused("drivers_autoprobe", Fault::Errno(EBUSY), "drivers_autoprobe")]
#[case::autoprobe_without_effect("drivers_autoprobe", Fault::Lie, "kept this one")]
fn a_rescan_that_fails_says_why_and_the_host_is_given_back_all_the_same(
    #[case] part: &str,
    #[case] fault: Fault,
    #[case] words: &str,
    #[values(Finding::Leaves, Finding::Probes)] finding: Finding,
) {
    let bench = Bench::new();
    finding.of(&bench.fake);
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.fault(part, fault);
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    let (_, last) = repaired.climbed.iter().rfind(|(of, _)| *of == bdf(CARD[0])).unwrap();
    assert!(last.failure.as_deref().is_some_and(|failure| failure.contains(words)), "{last:#?}");
    bench.give_back(&mut journal);
    let left = bench.reopen().map(|mut journal| bench.give_back(&mut journal)).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(bench.changes(), [""; 0]);
}

#[rstest]
#[case::no_link("reset_subordinate", Fault::Errno(ENOTTY), "Inappropriate ioctl")]
#[case::hangs("reset_subordinate", Fault::Hang, "has not come back")]
fn a_subordinate_reset_that_fails_is_told(#[case] part: &str, #[case] fault: Fault, #[case] words: &str) {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.fault(part, fault);
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    let (_, second) = &repaired.climbed.iter().filter(|(of, _)| *of == bdf(CARD[0])).nth(1).unwrap();
    assert!(second.failure.as_deref().is_some_and(|failure| failure.contains(words)), "{second:?}");
    // What hangs has the locks of all below the port, and is the last that is tried.
    let rescans = usize::from(fault != Fault::Hang);
    assert_eq!((bench.writes_to("/rescan"), repaired.in_flight.len()), (rescans, 1 - rescans));
}

#[test]
fn a_kernel_without_reset_subordinate_has_no_such_rung() {
    let bench = Bench::new();
    bench.fake.remove(&format!("/sys/bus/pci/devices/{PORT}/reset_subordinate"));
    let ladders = bench.ladders(RepairPolicy::Rescan);
    let rungs: Vec<Rung> = ladders[0].rungs.iter().map(|climb| climb.rung).collect();
    assert_eq!(rungs, [Rung::Hot, Rung::Rescan]);
    assert!(ladders[0].left_out[0].reason.contains("Linux 6.12.5"), "{ladders:?}");
}

#[test]
fn a_function_that_appeared_since_is_not_reset_nor_removed() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    let ladders = bench.ladders(RepairPolicy::Rescan);
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.device(&FakeDevice { port: Some(PORT), ..gpu("0000:81:00.2", 9, 1) });
    let host = bench.host(&bench.kernel);
    let repaired = repair(&host, &mut journal, &ladders, &bench.sick(), &|| false, &mut |_| {});
    let own = repaired.climbed.iter().filter(|(of, _)| *of == bdf(CARD[0]));
    let failures: Vec<_> = own.filter_map(|(_, climbed)| climbed.failure.clone()).collect();
    let told = failures.iter().filter(|failure| failure.contains("0000:81:00.2 is reached too")).count();
    assert_eq!(told, 2, "{failures:?}");
    assert_eq!((bench.writes_to("/remove"), bench.writes_to("reset_subordinate")), (0, 0));
}

#[test]
fn a_device_with_another_group_and_other_addresses_after_a_rescan_is_well() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.regroups(CARD[0], 12);
    bench.fake.moves(CARD[0], 0xd000_0000);
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    assert_eq!(repaired.helped(bdf(CARD[0])), Some(Rung::Rescan), "{repaired:#?}");
    let groups = CARD.map(bdf).into_iter().zip([Some(GroupId(12)), Some(GroupId(8))]);
    assert_eq!(repaired.groups, groups.collect());
    assert!(bench.give_back(&mut journal).is_empty());
}

#[test]
fn stop_is_asked_before_each_rung() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::Nothing);
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) > 0;
    let ladders = bench.ladders(RepairPolicy::Rescan);
    let host = bench.host(&bench.kernel);
    let repaired = repair(&host, &mut journal, &ladders, &bench.sick(), &stop, &mut |_| {});
    assert_eq!(tried(&repaired, CARD[0]), [(Rung::Hot, false)]);
}

/// Two repairs at once, and somebody else's hand in it.
#[rstest]
#[case::on_in_the_beginning("1", None, "1", 0)]
#[case::off_in_the_beginning("0", None, "0", 0)]
#[case::switched_on_by_somebody("0", Some("1"), "1", 1)]
#[case::switched_on_where_it_was_on("1", Some("1"), "1", 0)]
fn the_last_claim_on_autoprobe_restores_what_was_there(
    #[case] before: &str,
    #[case] meanwhile: Option<&str>,
    #[case] after: &str,
    #[case] told: usize,
) {
    for order in [[0, 1], [1, 0]] {
        let bench = Bench::new();
        bench.fake.file(AUTOPROBE, format!("{before}\n"));
        let vms = ["a", "b"].map(|name| VmName::new(name).unwrap());
        let host = |vm| Host { vm, ..bench.host(&bench.kernel) };
        let mut journals = vms.each_ref().map(|vm| {
            make_dir(&bench.places.vm(vm)).unwrap();
            let mut journal = Journal::begin(&bench.places.journal(vm), BOOT).unwrap();
            apply(&host(vm), &mut journal, &HostOp::HoldAutoprobe).unwrap();
            journal
        });
        assert_eq!(bench.read(AUTOPROBE), "0");
        let mut left = undo_all(&host(&vms[order[0]]), &mut journals[order[0]], &mut |_| {});
        assert_eq!(bench.read(AUTOPROBE), "0", "the other one needs it off");
        if let Some(value) = meanwhile {
            bench.fake.file(AUTOPROBE, format!("{value}\n"));
        }
        left.extend(undo_all(&host(&vms[order[1]]), &mut journals[order[1]], &mut |_| {}));
        assert_eq!((bench.read(AUTOPROBE), left.len()), (after.to_owned(), told), "{left:?}");
        assert!(left.iter().all(|error| matches!(error, HostError::ChangedByOthers { .. })));
        assert!(!bench.places.claims().exists());
    }
}

/// A repair that no VM makes, of devices that are bound for good.
#[test]
fn a_repair_with_a_journal_of_its_own_leaves_nothing_of_it() {
    let bench = Bench::new();
    drop(bench.taken());
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    let on = (&bench.kernel, &bench.places, BOOT);
    let ladders = bench.ladders(RepairPolicy::Rescan);
    let repaired =
        book::repair_alone(on, &bench.baselines, &ladders, &bench.sick(), &|| false, &mut |_| {}).unwrap();
    assert_eq!(repaired.helped(bdf(CARD[0])), Some(Rung::Rescan), "{repaired:#?}");
    assert!(book::open(&bench.places, BOOT).unwrap().is_empty());
    assert_eq!(gpuvm_host::root::list(&bench.places.repairs()).unwrap(), [""; 0]);
}

/// The VM that has the devices is dead as well, and `gpuvm cleanup` may be asked for it alone.
#[rstest]
#[case::of_devices_that_are_bound(None)]
#[case::of_devices_of_a_dead_vm(Some("vm"))]
fn a_repair_that_died_is_finished_by_cleanup_under_a_reservation(#[case] left_behind: Option<&str>) {
    let bench = Bench::new();
    drop(bench.taken());
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    let ladders = bench.ladders(RepairPolicy::Rescan);
    let dead = ProcessId { pid: 1, start_time: 1 };
    let of = |vm: &str| Reservation {
        vm: VmName::new(vm).unwrap(),
        bind: None,
        supervisor: dead,
        ..Reservation::of_bind(bdf(CARD[0]), BOOT, vec![GroupId(7)], CARD.map(bdf).into())
    };
    if let Some(vm) = left_behind {
        reservation::reserve(&bench.places, &of(vm)).unwrap();
    }
    let reset = Reservation::of_reset(bdf(CARD[0]), BOOT, vec![GroupId(7)], CARD.map(bdf).into(), Vec::new());
    reservation::reserve(&bench.places, &reset).unwrap();
    let kernel = deadly(&bench.fake, Death::After(12));
    let (sick, baselines) = (bench.sick(), &bench.baselines);
    let climb = || {
        let on = (&kernel, &bench.places, BOOT);
        book::repair_alone(on, baselines, &ladders, &sick, &|| false, &mut |_| {}).unwrap();
    };
    assert!(catch_unwind(AssertUnwindSafe(climb)).is_err());
    reservation::update(&bench.places, &Reservation { supervisor: dead, ..reset }).unwrap();
    // Nobody else gets the devices before that.
    let wanted = Reservation::of_bind(bdf(CARD[0]), BOOT, Vec::new(), CARD.map(bdf).into());
    let refused = reservation::check(&bench.places, &wanted).unwrap_err();
    assert!(matches!(refused, HostError::Reserved { .. }), "{refused}");

    let reports = bound::cleanup(&bench.kernel, &bench.places, BOOT, &mut |_| {}).unwrap();
    assert!(matches!(&reports[..], [report] if report.result == bound::Cleaned::Done), "{reports:#?}");
    for at in CARD {
        assert_eq!(bench.fake.driver(at).unwrap().as_deref(), Some("vfio-pci"));
    }
    assert_eq!(bench.read(AUTOPROBE), "1");
    let held = reservation::all(&bench.places, BOOT).unwrap();
    assert_eq!(held.len(), usize::from(left_behind.is_some()), "{held:?}");
    assert_eq!(gpuvm_host::root::list(&bench.places.repairs()).unwrap(), [""; 0]);
}

#[test]
fn a_repair_whose_journal_makes_no_sense_is_told_and_is_in_nobody_elses_way() {
    let bench = Bench::new();
    bench.fake.file(&format!("/gpuvm/run/repairs/{}/journal", CARD[0]), "nonsense\n");
    let reports = bound::cleanup(&bench.kernel, &bench.places, BOOT, &mut |_| {}).unwrap();
    assert!(matches!(&reports[..], [report] if report.result == bound::Cleaned::Left), "{reports:#?}");
    assert!(reports[0].not_given_back[0].contains("nonsense"), "{reports:#?}");
    let other = Reservation::of_bind(bdf(PORT), BOOT, Vec::new(), vec![bdf(PORT)]);
    reservation::reserve(&bench.places, &other).unwrap();
}

/// Where a process dies: before or after one of its writes to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Before(usize),
    After(usize),
    Never,
}

/// A kernel at a write to which its process dies.
fn deadly(fake: &FakeHost, death: Death) -> Kernel {
    let (write, check) = kernel_at(&fake.path("/"));
    let begun = Rc::new(Cell::new(0));
    let killing = move |path: &Path, bytes: &[u8], deadline| {
        let number = begun.replace(begun.get() + 1);
        // A panic would say so; nothing is said by a process that is killed.
        if death == Death::Before(number) {
            resume_unwind(Box::new(()));
        }
        let outcome = write(path, bytes, deadline);
        if death == Death::After(number) {
            resume_unwind(Box::new(()));
        }
        outcome
    };
    Kernel::new(fake.root(), Box::new(killing), check)
}

impl Bench {
    /// Climbs to the last rung alone, and dies; tells whether it came to its end all the same.
    fn dies_in_repair(&self, journal: Journal, death: Death) -> bool {
        let mut ladders = self.ladders(RepairPolicy::Rescan);
        ladders.iter_mut().for_each(|ladder| ladder.rungs.retain(|climb| climb.rung == Rung::Rescan));
        let kernel = deadly(&self.fake, death);
        let mut journal = AssertUnwindSafe(journal);
        let climb = || {
            repair(&self.host(&kernel), &mut journal, &ladders, &self.sick(), &|| false, &mut |_| {});
        };
        catch_unwind(AssertUnwindSafe(climb)).is_ok()
    }

    /// Cleans up and dies; tells whether it came to its end all the same.
    fn dies_in_cleanup(&self, death: Death) -> bool {
        let kernel = deadly(&self.fake, death);
        let clean = || {
            let Some(mut journal) = self.reopen() else { return };
            let host = self.host(&kernel);
            finish(&host, &mut journal, &mut |_| {});
            undo_all(&host, &mut journal, &mut |_| {});
        };
        catch_unwind(AssertUnwindSafe(clean)).is_ok()
    }

    fn assert_cleanup_restores(&self, what: &str) {
        let mut journal = self.reopen().unwrap();
        let left = self.give_back(&mut journal);
        assert!(left.is_empty(), "{what}: {left:?}");
        assert_eq!(self.changes(), [""; 0], "{what}");
        assert!(!self.places.claims().exists(), "{what}");
    }
}

#[rstest]
fn a_repair_killed_before_or_after_any_write_is_cleaned_up_after(
    #[values(Finding::Leaves, Finding::Probes)] finding: Finding,
) {
    let mut writes = 0;
    loop {
        for death in [Death::Before(writes), Death::After(writes)] {
            let bench = Bench::new();
            finding.of(&bench.fake);
            let journal = bench.taken();
            bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
            if bench.dies_in_repair(journal, death) {
                // Autoprobe twice, two removals, one scan; of each function its override, its methods, its driver and its power.
                assert!(writes >= 11, "{writes} writes");
                return;
            }
            bench.assert_cleanup_restores(&format!("{death:?}"));
        }
        writes += 1;
    }
}

#[rstest]
fn a_repair_with_its_own_journal_killed_anywhere_is_finished_and_nothing_else_is_undone(
    #[values(Finding::Leaves, Finding::Probes)] finding: Finding,
) {
    for writes in 0..64 {
        for death in [Death::Before(writes), Death::After(writes)] {
            let bench = Bench::new();
            finding.of(&bench.fake);
            drop(bench.taken());
            bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
            let as_taken = bench.fake.snapshot().unwrap().of_host();
            let mut ladders = bench.ladders(RepairPolicy::Rescan);
            ladders.iter_mut().for_each(|ladder| ladder.rungs.retain(|climb| climb.rung == Rung::Rescan));
            let kernel = deadly(&bench.fake, death);
            let (sick, baselines) = (bench.sick(), &bench.baselines);
            let climb = || {
                let on = (&kernel, &bench.places, BOOT);
                book::repair_alone(on, baselines, &ladders, &sick, &|| false, &mut |_| {}).unwrap();
            };
            if catch_unwind(AssertUnwindSafe(climb)).is_ok() {
                assert!(writes >= 11, "{writes} writes");
                return;
            }
            let open = book::open(&bench.places, BOOT).unwrap();
            let known: BTreeSet<Bdf> = CARD.map(bdf).into();
            assert!(open.values().flatten().all(|bdf| known.contains(bdf)) && open.len() < 2, "{open:?}");
            let mut left = Vec::new();
            for first in open.into_keys() {
                left.extend(book::resume((&bench.kernel, &bench.places, BOOT), first, &mut |_| {}).unwrap());
            }
            let own = CARD.iter().any(|at| bench.fake.driver(at).unwrap().as_deref() != Some("vfio-pci"));
            if finding == Finding::Probes && own {
                // Nobody knows whether the kernel has given it to its driver for our scan, or for somebody's later.
                assert!(
                    left.iter().all(|error| matches!(error, HostError::ChangedByOthers { .. })),
                    "{left:?}"
                );
                assert!(!left.is_empty(), "{death:?}");
                continue;
            }
            assert!(left.is_empty(), "{death:?}: {left:?}");
            let mut changes = as_taken.differences(&bench.fake.snapshot().unwrap().of_host());
            changes.retain(|change| !change.starts_with("fake-kernel/") && !change.contains("/config:"));
            assert_eq!(changes, [""; 0], "{death:?}");
            assert!(book::open(&bench.places, BOOT).unwrap().is_empty());
        }
    }
    panic!("it never came to its end");
}

fn death() -> impl Strategy<Value = Death> {
    prop_oneof![
        4 => (0usize..16).prop_map(Death::Before),
        4 => (0usize..16).prop_map(Death::After),
        1 => Just(Death::Never),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_repair_killed_anywhere_with_its_cleanups_killed_anywhere_is_cleaned_up_after(
        control in prop::sample::select(vec!["on", "auto"]),
        d3cold_allowed in prop::sample::select(vec![None, Some("0"), Some("1")]),
        set in prop::sample::select(vec![None, Some("nvidia")]),
        methods in prop::sample::select(vec!["flr pm", "pm flr", "flr", "af_flr flr"]),
        cure in prop::sample::select(vec![Cure::By(Rung::Rescan), Cure::Nothing]),
        finding in prop::sample::select(vec![Finding::Leaves, Finding::Probes]),
        first in death(),
        cleanups in prop::collection::vec(death(), 0..3),
    ) {
        let bench = Bench::with(PowerAttributes { control, d3cold_allowed }, set);
        finding.of(&bench.fake);
        let list = format!("/sys/bus/pci/devices/{}/reset_method", CARD[1]);
        bench.fake.file(&list, format!("{methods}\n"));
        let bench = Bench { before: bench.fake.snapshot().unwrap().of_host(), ..bench };
        let journal = bench.taken();
        bench.fake.sicken(CARD[0], cure);
        bench.dies_in_repair(journal, first);
        for death in &cleanups {
            bench.dies_in_cleanup(*death);
        }
        if bench.reopen().is_some() {
            bench.assert_cleanup_restores(&format!("{first:?} {cleanups:?}"));
        }
    }
}
