//! How long the parts of a run may take, as who waits is told.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bench;

use std::time::Duration;

use bench::Bench;
use gpuvm_core::lifecycle::{Patience, Stage};
use gpuvm_run::{Longest, Phase};
use gpuvm_testkit::fake_qemu::Script;
use rstest::rstest;

const MINUTE: Duration = Duration::from_secs(60);

/// A card of two functions, whose guest has ten minutes to power off.
fn longest() -> Longest {
    let bench = Bench::new(&Script::default());
    assert_eq!(bench.plan.owned().count(), 2);
    Longest::of(&bench.plan, Patience { acpi: 10 * MINUTE, ..Patience::with_functions(2) })
}

#[rstest]
#[case::power_button(Phase::Stopping { stage: Stage::Acpi }, 10 * MINUTE)]
#[case::quit_with_dead_functions(Phase::Stopping { stage: Stage::Quit }, Duration::from_secs(2 * 70))]
#[case::kill_with_dead_functions(Phase::Stopping { stage: Stage::Kill }, Duration::from_secs(2 * 70))]
#[case::qemu_on_its_way_out(Phase::Leaving { reason: String::new() }, Duration::from_secs(2 * 70))]
#[case::look_with_dead_functions(Phase::Judging, Duration::from_secs(2 * 70))]
#[case::start_with_dead_functions(Phase::Starting, Duration::from_secs(2 * 70))]
#[case::driver_that_hangs(Phase::Operation { what: String::new() }, MINUTE)]
#[case::giving_back(Phase::GivingBack, MINUTE)]
fn a_part_of_a_run_has_longer_than_what_it_waits_for(#[case] phase: Phase, #[case] waits: Duration) {
    let time = longest().of_phase(&phase).unwrap();
    assert!(time > waits && time < Duration::from_secs(3600), "{time:?}");
}

#[rstest]
#[case::running(Phase::Running { pid: 1, qemu: String::new() })]
#[case::rebooting(Phase::Rebooting { count: 1 })]
fn what_is_up_to_the_guest_has_no_limit(#[case] phase: Phase) {
    assert_eq!(longest().of_phase(&phase), None);
}

#[test]
fn a_terabyte_has_longer_than_its_pages_may_take() {
    let bench = Bench::new(&Script::default());
    let mut plan = bench.plan.clone();
    plan.memory[0].size = "1T".parse().unwrap();
    let of = |plan| Longest::of(plan, Patience::default());
    let operation = Phase::Operation { what: String::new() };
    // Twice a second per GiB to resize the pool, as often again for another VM that is at it.
    let more = of(&plan).of_phase(&operation).unwrap() - of(&bench.plan).of_phase(&operation).unwrap();
    assert!(more > Duration::from_secs(4 * 1023), "{more:?}");
    assert!(of(&plan).of_phase(&Phase::Starting) > of(&bench.plan).of_phase(&Phase::Starting));
}
