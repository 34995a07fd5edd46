//! Repairs that are killed anywhere, and their cleanups too.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::rc::Rc;

use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::repair::{RepairPolicy, Rung};
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::process::ProcessId;
use gpuvm_host::repair::{book, finish, repair};
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::undo::undo_all;
use gpuvm_host::{HostError, bound};
use gpuvm_testkit::fake_host::{Cure, FakeHost, PowerAttributes, kernel_at};
use proptest::prelude::*;
use rstest::rstest;

use crate::bench::*;

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
        detached: false,
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
