use gpuvm_core::soak::{Fault, Line};
use gpuvm_testkit::soak::Made;
use rstest::rstest;

use super::*;

fn told(lines: &[Line]) -> Vec<String> {
    let Some(Line::Ended(ended)) = lines.last() else { panic!("it is over") };
    text(Some(&ended.why), &Tally::of(lines))
}

#[test]
fn of_healthy_cycles_the_verdict_and_the_times_are_told() {
    let lines = told(&Made::new(12).healthy(12).ended(Why::Done));
    assert_eq!((lines.len(), &*lines[0]), (2, "12 cycles: 12 healthy"));
    assert!(
        lines[1].starts_with("at the median a cycle takes ") && lines[1].contains(", boot "),
        "{}",
        lines[1]
    );
}

#[test]
fn the_verdict_comes_first_then_the_first_of_the_worst_then_why_it_is_over() {
    let fault = |cycle: &mut gpuvm_core::soak::Cycle| {
        cycle.faults.push(Fault::NotGivenBack { message: "a claim".to_owned() });
    };
    let why = Why::Stopped { cycle: 3, reason: "the host is not as it was: a claim".to_owned() };
    let lines = told(&Made::new(12).healthy(2).cycle(fault).ended(why));
    assert_eq!(
        lines[..3],
        [
            "3 cycles: 2 healthy, 1 bad",
            "cycle 3 is bad: the host is not as it was: a claim",
            "stopped after cycle 3"
        ]
    );
}

#[test]
fn a_cycle_that_was_cut_short_and_a_signal_are_told() {
    let why = Why::Interrupted { signal: "SIGTERM".to_owned() };
    let lines = told(&Made::new(12).healthy(2).killed_and_resumed(|_| {}).healthy(1).ended(why));
    assert_eq!(lines[..2], ["3 cycles: 3 healthy, 1 cut short", "ended by SIGTERM"]);
}

#[rstest]
#[case(Standing::Healthy, 0)]
#[case(Standing::NotHealthy, 1)]
#[case(Standing::Bad, 74)]
fn the_exit_code_is_that_of_the_record(#[case] standing: Standing, #[case] code: u8) {
    assert_eq!(exit(standing) as u8, code);
}
