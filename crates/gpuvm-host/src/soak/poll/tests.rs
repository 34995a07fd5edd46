use std::fs;

use rstest::rstest;

use super::*;

const QUICK: Pace = Pace {
    every: Duration::from_millis(50),
    patience: Duration::from_millis(300),
    grace: Duration::from_millis(300),
};

/// Adds up what is seen until it is as wanted.
fn until(poll: &Poll, wanted: impl Fn(&Polled, &[String]) -> bool) -> (Polled, Vec<String>) {
    let begun = Instant::now();
    let (mut all, mut told) = (Polled::default(), Vec::new());
    while !wanted(&all, &told) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{all:?} {told:?}");
        std::thread::sleep(Duration::from_millis(10));
        let (polled, more) = poll.take();
        all.runs += polled.runs;
        all.failed += polled.failed;
        all.longest_ms = all.longest_ms.max(polled.longest_ms);
        all.said = polled.said.or(all.said);
        all.hangs = polled.hangs;
        told.extend(more);
    }
    (all, told)
}

#[test]
fn a_command_that_succeeds_is_run_again_and_again_and_nothing_is_told() {
    let poll = Poll::at(QUICK, "echo fine").unwrap();
    let (polled, told) = until(&poll, |polled, _| polled.runs >= 3);
    assert_eq!((polled.failed, polled.said, polled.hangs, told), (0, None, false, vec![]));
    assert_eq!(poll.end(), None);
}

#[rstest]
#[case::with_words("echo out; echo err >&2; exit 3", "exit 3: out\nerr")]
#[case::without("exit 1", "exit 1")]
#[case::by_a_signal("kill -9 $$", "signal 9")]
#[case::that_is_not_there("/nowhere/probe", "exit 127")]
fn a_command_that_fails_is_told_once_with_what_it_said(#[case] command: &str, #[case] why: &str) {
    let poll = Poll::at(QUICK, command).unwrap();
    let (polled, told) = until(&poll, |polled, _| polled.failed >= 3);
    assert_eq!(polled.runs, polled.failed);
    assert!(polled.said.unwrap().starts_with(why));
    assert!(told.len() == 1 && told[0].starts_with(&format!("poll `{command}` failed: {why}")), "{told:?}");
    assert_eq!(poll.end(), None);
}

#[test]
fn of_what_a_command_says_the_end_is_kept_and_none_of_it_stops_it() {
    let poll = Poll::at(
        QUICK,
        "i=0; while [ $i -lt 9000 ]; do echo 0123456789012345; i=$((i+1)); done; echo END; false",
    )
    .unwrap();
    let (polled, _) = until(&poll, |polled, _| polled.failed >= 1);
    let said = polled.said.unwrap();
    assert!(said.ends_with("END") && said.len() <= SAID_MAX + 20, "{}: {said}", said.len());
    poll.end();
}

#[test]
fn a_command_that_hangs_is_told_once_and_not_started_again_and_ends_with_the_soak() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let poll = Poll::at(QUICK, &format!("echo $$ >> {}; sleep 1000 & wait", pids.display())).unwrap();
    let (polled, told) = until(&poll, |polled, told| polled.hangs && !told.is_empty());
    std::thread::sleep(QUICK.every * 4);
    assert_eq!(polled.runs, 0);
    assert!(polled.longest_ms > 300 && told[0].contains("hangs for more than"), "{told:?}");
    assert_eq!(poll.take().1, Vec::<String>::new());
    let pids = fs::read_to_string(&pids).unwrap();
    let pid: i32 = pids.trim().parse().unwrap();
    let process = crate::process::ProcessId::of(pid).unwrap();
    assert!(process.is_alive());
    assert_eq!(poll.end(), None);
    assert!(!process.is_alive());
}

#[test]
fn a_command_that_ends_for_no_kind_word_is_killed() {
    let poll = Poll::at(QUICK, "trap '' TERM; while :; do sleep 0.1; done").unwrap();
    until(&poll, |polled, _| polled.hangs);
    assert_eq!(poll.end(), None);
}

#[test]
fn a_grandchild_that_keeps_the_output_open_holds_nothing_up() {
    let poll = Poll::at(QUICK, "sleep 3 & exit 0").unwrap();
    let begun = Instant::now();
    until(&poll, |polled, _| polled.runs >= 3);
    assert_eq!(poll.end(), None);
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn one_that_never_stops_talking_hangs_as_others_do_and_is_ended_with_the_soak() {
    let poll = Poll::at(QUICK, "yes").unwrap();
    let (_, told) = until(&poll, |polled, told| polled.hangs && !told.is_empty());
    assert!(told[0].contains("hangs for more than"), "{told:?}");
    let begun = Instant::now();
    assert_eq!(poll.end(), None);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// What is seen when gpuvm is killed: the pipe to the guard ends, and nobody has said that the command is over.
#[test]
fn a_command_whose_gpuvm_is_killed_is_ended_with_all_that_it_has_started() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let command = format!("sleep 1000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", pids.display());
    let mut running = Running::start(&command).unwrap();
    let begun = Instant::now();
    while !pids.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    let pids = fs::read_to_string(&pids).unwrap();
    let all: Vec<_> = pids
        .split_whitespace()
        .map(|pid| crate::process::ProcessId::of(pid.parse().unwrap()).unwrap())
        .collect();
    let mut guard = Guard::start().unwrap();
    guard.watch(Some(running.child.pid()));
    drop(guard.tell);
    running.child.wait_deadline(Duration::from_secs(20)).unwrap().unwrap();
    while all.iter().any(|process| process.is_alive()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{all:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    guard.child.wait_deadline(Duration::from_secs(20)).unwrap().unwrap();
}

#[test]
fn the_guard_goes_with_the_poll_and_ends_nothing_that_is_over() {
    let mut running = Running::start("sleep 1000").unwrap();
    let mut guard = Guard::start().unwrap();
    guard.watch(Some(running.child.pid()));
    guard.watch(None);
    let process = crate::process::ProcessId::of(guard.child.pid()).unwrap();
    guard.end();
    assert!(!process.is_alive());
    assert_eq!(running.child.try_wait().unwrap(), None);
    running.end(Duration::from_secs(5));
}
