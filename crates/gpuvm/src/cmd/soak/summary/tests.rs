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
fn parts_of_a_cycle_are_called_as_in_the_record() {
    let made = Made::new(1).cycle(|cycle| {
        cycle.phases =
            gpuvm_core::soak::Phase::ALL.map(|phase| gpuvm_core::soak::PhaseTime { phase, ms: 7 }).to_vec();
    });
    let lines = told(&made.ended(Why::Done));
    for phase in gpuvm_core::soak::Phase::ALL {
        assert!(lines[1].contains(&format!(" {phase} 7 ms")), "{phase}: {}", lines[1]);
    }
}

#[test]
fn a_soak_that_a_sick_device_has_stopped_names_the_device_for_the_way_out() {
    let finding = |weight| gpuvm_core::reset::Finding {
        check: gpuvm_core::reset::Check::Bars,
        weight: Some(weight),
        bdf: "0000:81:00.0".parse().unwrap(),
        register: "BAR 0".to_owned(),
        before: None,
        after: "0".to_owned(),
        meaning: "it is lost".to_owned(),
    };
    let of = |weight| {
        let made = Made::new(3).healthy(1).cycle(|cycle| {
            cycle.devices[1].judgement = gpuvm_core::reset::Judgement::new(vec![finding(weight)]);
        });
        let why = Why::Stopped { cycle: 2, reason: "it is lost".to_owned() };
        let lines = made.ended(why);
        let Line::Cycle(cycle) = &lines[2] else { panic!("a cycle") };
        (sick(&Tally::of(&lines)), cycle.devices[1].bdf)
    };
    let (sick, device) = of(gpuvm_core::reset::Verdict::Impaired);
    assert_eq!(sick, Some(device));
    assert!(hints::sick(device).contains(&format!("gpuvm reset --repair rescan {device}")));
    assert_eq!(of(gpuvm_core::reset::Verdict::Degraded).0, None);
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
