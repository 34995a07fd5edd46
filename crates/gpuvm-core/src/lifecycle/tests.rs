mod machine;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// A life whose QEMU has greeted.
fn greeted() -> Life {
    let mut life = Life::new(Patience::default());
    for event in [Event::Prepared, Event::Greeted] {
        assert_eq!(life.step(event), []);
    }
    life
}

fn lived(events: &[Event]) -> (Life, Vec<Effect>) {
    let mut life = greeted();
    let effects = events.iter().flat_map(|event| life.step(event.clone())).collect();
    (life, effects)
}

fn shutdown(reason: &str) -> Event {
    Event::Shutdown { reason: reason.to_owned() }
}

#[rstest]
#[case::powered_off(&[Event::Continued, shutdown("guest-shutdown"), Event::Exited(Exit::Code(0))], Outcome::PoweredOff)]
#[case::rebooted(
    &[Event::Continued, shutdown("guest-reset"), Event::Exited(Exit::Code(0))],
    Outcome::Rebooted { not_again: Some(NotAgain::Policy) }
)]
#[case::asked_and_rebooted_instead(
    &[Event::Continued, Event::StopRequested, shutdown("guest-reset"), Event::Exited(Exit::Code(0))],
    Outcome::Stopped { stage: Stage::Acpi }
)]
#[case::asked_while_it_leaves_to_reboot(
    &[Event::Continued, shutdown("guest-reset"), Event::StopRequested, Event::Exited(Exit::Code(0))],
    Outcome::Rebooted { not_again: Some(NotAgain::Asked) }
)]
#[case::hangs_while_it_leaves_to_reboot(
    &[Event::Continued, shutdown("guest-reset"), Event::Deadline(Stage::Quit), Event::Exited(Exit::Signal(9))],
    Outcome::QemuDied { exit: Exit::Signal(9) }
)]
#[case::asked_and_obeyed(
    &[Event::Continued, Event::StopRequested, shutdown("guest-shutdown"), Event::Exited(Exit::Code(0))],
    Outcome::Stopped { stage: Stage::Acpi }
)]
#[case::asked_and_ignored(
    &[Event::Continued, Event::StopRequested, Event::Deadline(Stage::Acpi), Event::Exited(Exit::Code(0))],
    Outcome::Stopped { stage: Stage::Quit }
)]
#[case::killed_in_the_end(
    &[Event::Continued, Event::StopRequested, Event::Deadline(Stage::Acpi), Event::Deadline(Stage::Quit), Event::Exited(Exit::Signal(9))],
    Outcome::Stopped { stage: Stage::Kill }
)]
#[case::hangs_after_shutdown(
    &[Event::Continued, shutdown("guest-shutdown"), Event::Deadline(Stage::Quit), Event::Exited(Exit::Signal(9))],
    Outcome::QemuDied { exit: Exit::Signal(9) }
)]
#[case::died(&[Event::Continued, Event::Exited(Exit::Signal(6))], Outcome::QemuDied { exit: Exit::Signal(6) })]
#[case::died_when_asked(
    &[Event::Continued, Event::StopRequested, Event::Exited(Exit::Signal(6))],
    Outcome::QemuDied { exit: Exit::Signal(6) }
)]
#[case::of_another_that_powered_off(&[Event::Continued, shutdown("guest-shutdown"), Event::Exited(Exit::Unseen)], Outcome::PoweredOff)]
#[case::of_another_that_was_told_by_a_signal(&[Event::Continued, shutdown("host-signal"), Event::Exited(Exit::Unseen)], Outcome::Stopped { stage: Stage::Quit })]
#[case::of_another_that_said_nothing(&[Event::Continued, Event::MonitorLost, Event::Exited(Exit::Unseen)], Outcome::QemuDied { exit: Exit::Unseen })]
#[case::of_another_that_crashed_when_asked(
    &[Event::Continued, Event::StopRequested, Event::MonitorLost, Event::Exited(Exit::Unseen)],
    Outcome::QemuDied { exit: Exit::Unseen }
)]
#[case::of_another_that_was_asked(
    &[Event::Continued, Event::StopRequested, Event::Deadline(Stage::Acpi), Event::MonitorLost, Event::Exited(Exit::Unseen)],
    Outcome::Stopped { stage: Stage::Quit }
)]
#[case::refused_to_start(&[Event::Exited(Exit::Code(1))], Outcome::QemuDied { exit: Exit::Code(1) })]
#[case::reset_button(
    &[Event::Continued, Event::ResetRequested, shutdown("host-qmp-system-reset"), Event::Exited(Exit::Code(0))],
    Outcome::Rebooted { not_again: Some(NotAgain::Policy) }
)]
#[case::crashed(
    &[Event::Continued, Event::CrashRequested, Event::MonitorLost, Event::Exited(Exit::Signal(9))],
    Outcome::QemuDied { exit: Exit::Signal(9) }
)]
#[case::crashed_while_it_powers_off(
    &[Event::Continued, Event::StopRequested, Event::CrashRequested, Event::Exited(Exit::Signal(9))],
    Outcome::QemuDied { exit: Exit::Signal(9) }
)]
#[case::asked_to_stop_when_it_had_crashed(
    &[Event::Continued, Event::CrashRequested, Event::StopRequested, Event::Exited(Exit::Signal(9))],
    Outcome::QemuDied { exit: Exit::Signal(9) }
)]
#[case::gone_before_the_crash(
    &[Event::Continued, shutdown("guest-shutdown"), Event::CrashRequested, Event::Exited(Exit::Code(0))],
    Outcome::PoweredOff
)]
#[case::panicked(&[Event::Continued, Event::Panicked, Event::Exited(Exit::Code(0))], Outcome::Panicked)]
#[case::device_error(&[Event::Continued, Event::Failed(Fault::Unknown), Event::Exited(Exit::Code(0))], Outcome::InternalError { fault: Fault::Unknown })]
fn the_outcome_names_what_ended_the_guest(#[case] events: &[Event], #[case] expected: Outcome) {
    assert_eq!(lived(events).0.outcome(), Some(&expected));
}

#[test]
fn stop_asked_three_times_goes_from_the_button_to_the_kill() {
    let (_, effects) =
        lived(&[Event::Continued, Event::StopRequested, Event::StopRequested, Event::StopRequested]);
    let acts: Vec<_> = effects.into_iter().filter(|effect| !matches!(effect, Effect::Arm(..))).collect();
    assert_eq!(acts, [Effect::PowerDown, Effect::Quit, Effect::Kill]);
}

#[rstest]
#[case::running(&[Event::Continued], &[Effect::Reset])]
#[case::before_it_ran(&[], &[])]
#[case::asked_to_end(&[Event::Continued, Event::StopRequested], &[])]
#[case::on_its_way_out(&[Event::Continued, shutdown("guest-shutdown")], &[])]
#[case::killed(&[Event::Continued, Event::CrashRequested], &[])]
fn only_a_guest_that_runs_is_reset(#[case] before: &[Event], #[case] effects: &[Effect]) {
    let (mut life, _) = lived(before);
    let state = life.state();
    assert_eq!(life.step(Event::ResetRequested), effects);
    assert_eq!(life.state(), state, "a reset ends nothing");
}

#[test]
fn a_deadline_of_a_stage_already_left_changes_nothing() {
    let (mut life, _) = lived(&[Event::Continued, Event::StopRequested, Event::StopRequested]);
    assert_eq!(life.step(Event::Deadline(Stage::Acpi)), []);
    assert_eq!(life.state(), State::Quitting);
}

#[test]
fn a_first_request_does_not_push_a_guest_that_is_powering_off_already() {
    let (life, effects) = lived(&[Event::Continued, shutdown("guest-shutdown"), Event::StopRequested]);
    assert_eq!(effects, [Effect::Arm(Stage::Quit, Patience::default().exit)]);
    assert_eq!(life.state(), State::Quitting);
}

#[test]
fn the_power_buttons_command_that_fails_late_kills_nothing() {
    let failed = Event::CommandFailed(Stage::Acpi);
    let (_, effects) = lived(&[Event::Continued, Event::StopRequested, shutdown("guest-shutdown"), failed]);
    assert!(!effects.contains(&Effect::Kill) && !effects.contains(&Effect::Quit), "{effects:?}");
}

#[test]
fn qemu_that_says_it_quits_gets_the_time_that_an_exit_takes() {
    let (mut life, _) = lived(&[Event::StopRequested]);
    assert_eq!(life.step(shutdown("host-qmp-quit")), [Effect::Arm(Stage::Quit, Patience::default().exit)]);
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Continued),
        Just(Event::StopRequested),
        Just(Event::CrashRequested),
        Just(Event::ResetRequested),
        prop_oneof![Just(Stage::Acpi), Just(Stage::Quit)].prop_map(Event::Deadline),
        prop_oneof![
            Just("guest-shutdown"),
            Just("guest-reset"),
            Just("host-qmp-system-reset"),
            Just("host-qmp-quit"),
            Just("new-in-qemu-12")
        ]
        .prop_map(shutdown),
        Just(Event::Panicked),
        Just(Event::Failed(Fault::Unknown)),
        Just(Event::MonitorLost),
        prop_oneof![Just(Stage::Acpi), Just(Stage::Quit)].prop_map(Event::CommandFailed),
    ]
}

proptest! {
    #[test]
    fn every_life_ends_with_an_outcome_and_each_act_comes_at_most_once(events in proptest::collection::vec(any_event(), 0..20)) {
        let (mut life, effects) = lived(&events);
        for act in [Effect::PowerDown, Effect::Quit, Effect::Kill] {
            prop_assert!(effects.iter().filter(|effect| **effect == act).count() <= 1);
        }
        life.step(Event::Exited(Exit::Code(0)));
        prop_assert!(life.outcome().is_some());
    }

    #[test]
    fn a_guest_whose_end_was_asked_for_is_never_started_again(
        events in proptest::collection::vec(any_event(), 0..20),
        at in 0_usize..20,
    ) {
        let mut events = events;
        events.insert(at.min(events.len()), Event::StopRequested);
        let (mut life, _) = lived(&events);
        life.step(Event::Exited(Exit::Code(0)));
        prop_assert_ne!(life.outcome(), Some(&Outcome::Rebooted { not_again: Some(NotAgain::Policy) }));
    }

    #[test]
    fn a_guest_is_started_again_unless_it_rebooted_soon_too_often_in_a_row(
        ran in proptest::collection::vec(0_u64..120, 0..40),
    ) {
        let mut reboots = Reboots::default();
        let soon = |seconds: &u64| Duration::from_secs(*seconds) < Reboots::SOON;
        for (count, seconds) in ran.iter().enumerate() {
            let in_a_row = ran[..=count].iter().rev().take_while(|seconds| soon(seconds)).count();
            let expected = if in_a_row >= Reboots::TOO_MANY as usize {
                Err(NotAgain::Looping)
            } else {
                Ok(u32::try_from(count).unwrap() + 1)
            };
            prop_assert_eq!(reboots.again(Duration::from_secs(*seconds)), expected);
            if expected.is_err() {
                break;
            }
        }
    }

    #[test]
    fn a_crash_that_is_asked_for_kills_at_once_and_is_never_called_a_stop(
        before in proptest::collection::vec(any_event(), 0..20),
        after in proptest::collection::vec(any_event(), 0..20),
    ) {
        let (mut life, effects) = lived(&before);
        let killed = effects.contains(&Effect::Kill);
        let crash = life.step(Event::CrashRequested);
        prop_assert_eq!(crash.contains(&Effect::Kill), !killed, "{:?}", crash);
        for event in after {
            prop_assert!(!life.step(event).contains(&Effect::Kill));
        }
        life.step(Event::Exited(Exit::Signal(9)));
        let told = life.outcome().unwrap();
        let bad_already = matches!(told, Outcome::Panicked | Outcome::InternalError { .. });
        let stopped_before = killed && matches!(told, Outcome::Stopped { stage: Stage::Kill });
        prop_assert!(
            bad_already || stopped_before || *told == Outcome::QemuDied { exit: Exit::Signal(9) },
            "{told:?}"
        );
    }

    #[test]
    fn asking_often_enough_always_reaches_the_kill(events in proptest::collection::vec(any_event(), 0..20)) {
        let (mut life, mut effects) = lived(&events);
        for _ in 0..3 {
            effects.extend(life.step(Event::StopRequested));
        }
        prop_assert!(effects.contains(&Effect::Kill));
    }
}
