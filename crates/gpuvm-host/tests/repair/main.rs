//! Repairs on a host whose devices come back well by one rung of the ladder, or by none; hanging, failing and cut short anywhere.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;
mod deaths;

use std::cell::Cell;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::GroupId;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::repair::{RepairPolicy, Rung};
use gpuvm_core::reset::{Before, Deed, Verdict};
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::{Journal, OpState};
use gpuvm_host::lock::make_dir;
use gpuvm_host::repair::{Repaired, book, climb, repair};
use gpuvm_host::undo::undo_all;
use gpuvm_host::{HostError, snapshot};
use gpuvm_sys::errno::{EBUSY, ENODEV, ENOTTY};
use gpuvm_testkit::fake_host::{Cure, FakeDevice, Fault, gpu};
use rstest::rstest;

use crate::bench::*;

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

#[test]
fn a_scan_that_hangs_is_made_once_and_told_as_such() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.fault("/rescan", Fault::Hang);
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    assert_eq!(bench.writes_to("/rescan"), 1, "the second would wait for the first");
    assert!(matches!(repaired.in_flight[..], [HostError::InFlight { .. }]), "{repaired:?}");
    assert_eq!(repaired.hanging.keys().copied().collect::<Vec<_>>(), CARD.map(bdf));
    bench.fake.release();
    let left = bench.give_back(&mut bench.reopen().unwrap());
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(bench.changes(), [""; 0]);
}

#[test]
fn what_hangs_while_a_device_is_made_what_it_was_is_the_last_that_is_done_with_it() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.fault("vfio-pci/bind", Fault::Hang);
    let before = bench.fake.writes().len();
    let repaired = bench.repair(&mut journal, RepairPolicy::Rescan);
    let writes = bench.fake.writes()[before..].to_vec();
    let bind = writes.iter().position(|write| write.contains("vfio-pci/bind")).unwrap();
    let own = format!("/devices/{}/", CARD[0]);
    assert!(!writes[bind..].iter().any(|write| write.contains(&own)), "{writes:#?}");
    assert!(matches!(repaired.in_flight[..], [HostError::InFlight { .. }]), "{repaired:?}");
    assert!(repaired.hanging.contains_key(&bdf(CARD[0])), "{repaired:?}");
}

#[test]
fn a_rung_that_fails_makes_none_ill_that_is_well() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    bench.fake.sicken(CARD[0], Cure::By(Rung::Rescan));
    bench.fake.fault("reset_subordinate", Fault::Errno(ENOTTY));
    // The other function is one of another card, whose rescan would be its own.
    let mut ladders = bench.ladders(RepairPolicy::Rescan);
    ladders[0].rungs.retain(|climb| climb.rung == Rung::Subordinate);
    ladders[1].rungs.retain(|climb| climb.rung == Rung::Rescan);
    let host = bench.host(&bench.kernel);
    let repaired = repair(&host, &mut journal, &ladders, &bench.sick(), &|| false, &mut |_| {});
    assert_eq!(tried(&repaired, CARD[1]), [(Rung::Subordinate, false)]);
    assert_eq!(bench.writes_to("/remove"), 0);
    let before = |at: &str| {
        let (_, deed) = repaired.deeds(&bench.sick()).find(|(of, _)| *of == bdf(at)).unwrap();
        matches!(deed, Deed::Repair { before: Before::Sick, .. })
    };
    assert_eq!(CARD.map(before), [true, false]);
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
fn a_subordinate_reset_without_a_bridge_has_reset_nothing_and_says_so() {
    let bench = Bench::new();
    let mut journal = bench.taken();
    let mut climbs = bench.ladders(RepairPolicy::Rescan).into_iter().flat_map(|ladder| ladder.rungs);
    let mut planned = climbs.find(|climb| climb.rung == Rung::Subordinate).unwrap();
    planned.port = None;
    let kernel = bench.fake.kernel();
    let done = climb(&bench.host(&kernel), &mut journal, bdf(CARD[0]), &planned);
    let error = done.result.unwrap_err().to_string();
    assert!(error.contains("no bridge above it"), "{error}");
    assert_eq!(bench.writes_to("reset_subordinate"), 0);
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
