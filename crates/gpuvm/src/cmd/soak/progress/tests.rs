use gpuvm_core::soak::{Fault, Line, StopOn, Why};
use gpuvm_testkit::soak::Made;
use rstest::rstest;

use super::*;

fn settings(lines: &[Line]) -> Settings {
    let Some(Line::Begun(begun)) = lines.first() else { panic!("a record begins") };
    begun.settings.clone()
}

#[test]
fn the_live_line_tells_cycle_rate_percentiles_verdicts_and_what_is_left() {
    let lines = Made::new(200).healthy(36).ended(Why::Done);
    let (tally, settings) = (Tally::of(&lines), settings(&lines));
    let line = live(37, CycleKind::Kill, &tally, &settings);
    let parts: Vec<&str> = line.split(" · ").collect();
    assert_eq!((parts.len(), parts[0], parts[3]), (5, "cycle 37/200 kill", "36 healthy"), "{line}");
    assert!(
        parts[1].ends_with("/min") && parts[2].starts_with("cycle p50 ") && parts[2].contains(" s p95 "),
        "{line}"
    );
    assert!(parts[4].starts_with("ETA ") && parts[4].ends_with(" min"), "{line}");
    assert!(line.chars().count() < 100, "{line}");
}

#[test]
fn before_the_first_cycle_is_over_nothing_is_made_up() {
    let lines = Made::new(200).ended(Why::Done);
    let mut settings = settings(&lines[..1]);
    let tally = Tally::of(&lines[..1]);
    assert_eq!(live(1, CycleKind::Clean, &tally, &settings), "cycle 1/200 clean");
    (settings.cycles, settings.seconds, settings.stop_on) = (None, Some(8 * 3600), StopOn::Bad);
    assert_eq!(live(1, CycleKind::Clean, &tally, &settings), "cycle 1 clean · ETA 8 h 0 min");
}

#[test]
fn a_cycle_that_is_over_is_told_with_its_verdict_and_why() {
    let lines = Made::new(9)
        .healthy(1)
        .cycle(|cycle| {
            cycle.ms = 8_765;
            cycle.faults.push(Fault::Job { message: "3 of 4 sums are wrong".to_owned() });
        })
        .ended(Why::Done);
    let tally = Tally::of(&lines);
    let told: Vec<String> = lines
        .iter()
        .filter_map(|line| if let Line::Cycle(cycle) = line { Some(over(cycle, &tally)) } else { None })
        .collect();
    assert!(told[0].starts_with("cycle 1/9 clean: healthy after "), "{}", told[0]);
    assert_eq!(told[1], "cycle 2/9 clean: failed after 8.7 s: the guest's job failed: 3 of 4 sums are wrong");
    assert_eq!(verdicts(&tally), "1 healthy, 1 failed");
}

#[rstest]
#[case(0, "0 s")]
#[case(89, "89 s")]
#[case(90, "2 min")]
#[case(5399, "90 min")]
#[case(5400, "1 h 30 min")]
fn a_guess_is_told_roughly(#[case] seconds: u64, #[case] told: &str) {
    assert_eq!(rough(seconds), told);
}
