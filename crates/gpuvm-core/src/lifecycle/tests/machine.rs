//! The machine as a whole: every event in every state, and that every life can come to its end.

use proptest::prelude::*;
use proptest::sample::select;
use rstest::rstest;

use State::{
    Exited, HostReady, Killing, NeedsOperator, Paused, PausedByError, PausedByUser, PoweringDown, Preparing,
    Quarantined, Quitting, Released, Running,
};

use super::super::*;
use super::shutdown;

fn halted(status: &str) -> Event {
    Event::Halted { status: status.to_owned() }
}

fn disk_error(action: &str) -> Event {
    let (disk, reason) = (Some("disk0".to_owned()), Some("No space left on device".to_owned()));
    Event::DiskError(DiskError { disk, operation: "write".to_owned(), reason, action: action.to_owned() })
}

fn after(events: &[Event]) -> Life {
    let mut life = Life::new(Patience::default());
    events.iter().for_each(|event| drop(life.step(event.clone())));
    life
}

/// A life that stands in a state, on the shortest way there.
fn at(state: State) -> Life {
    let running = [Event::Prepared, Event::Greeted, Event::Continued];
    let then = |more: &[Event]| after(&[&running[..], more].concat());
    let exited = Event::Exited(Exit::Code(0));
    let life = match state {
        Preparing => after(&[]),
        HostReady => after(&running[..1]),
        Paused => after(&running[..2]),
        Running => then(&[]),
        PausedByUser => then(&[halted("paused")]),
        PausedByError => then(&[halted("io-error")]),
        PoweringDown => then(&[Event::StopRequested]),
        Quitting => then(&[Event::Panicked]),
        Killing => then(&[Event::CrashRequested]),
        Exited => then(&[exited]),
        Released => then(&[exited, Event::GivenBack(GivenBack::Wholly)]),
        NeedsOperator => then(&[exited, Event::GivenBack(GivenBack::Partly)]),
        Quarantined => then(&[exited, Event::GivenBack(GivenBack::ButSick)]),
    };
    assert_eq!(life.state(), state);
    life
}

/// Every event, and where it leads from which state; from all others it leads nowhere.
fn table() -> Vec<(Event, Vec<(State, State)>)> {
    let to = |to: State, from: &[State]| from.iter().map(|from| (*from, to)).collect::<Vec<_>>();
    let greeted = [Paused, Running, PausedByUser, PausedByError, PoweringDown];
    let ended = || [vec![(HostReady, Killing)], to(Quitting, &greeted)].concat();
    let goes = || [vec![(HostReady, Quitting)], to(Quitting, &greeted)].concat();
    let alive = [&[HostReady], &greeted[..], &[Quitting]].concat();
    let stands_still =
        || vec![(Running, PausedByError), (PausedByUser, PausedByError), (PoweringDown, Quitting)];
    let stopped = [
        to(PoweringDown, &[Running, PausedByUser, PausedByError]),
        vec![(HostReady, Killing), (Paused, Quitting), (PoweringDown, Quitting), (Quitting, Killing)],
    ];
    let memory = |action: &str| Event::MemoryFailure { action: action.to_owned() };
    vec![
        (Event::Prepared, vec![(Preparing, HostReady)]),
        (Event::NeverStarted, to(Exited, &[Preparing, HostReady])),
        (Event::Greeted, vec![(HostReady, Paused)]),
        (Event::StartFailed, to(Killing, &[HostReady, Paused])),
        (Event::Continued, to(Running, &[Paused, PausedByUser, PausedByError])),
        (halted("paused"), to(PausedByUser, &[Running, PausedByError])),
        (halted("io-error"), stands_still()),
        (halted("watchdog"), stands_still()),
        (halted("new-in-qemu-12"), stands_still()),
        (halted("guest-panicked"), ended()),
        (halted("internal-error"), ended()),
        (halted("running"), vec![]),
        (halted("suspended"), vec![]),
        (halted("shutdown"), vec![]),
        (Event::StopRequested, stopped.concat()),
        (Event::CrashRequested, to(Killing, &alive)),
        (Event::ResetRequested, vec![]),
        (Event::PauseRequested, vec![]),
        (Event::ResumeRequested, vec![]),
        (Event::Deadline(Stage::Acpi), vec![(PoweringDown, Quitting)]),
        (Event::Deadline(Stage::Quit), vec![(Quitting, Killing)]),
        (Event::Deadline(Stage::Kill), vec![(Killing, NeedsOperator)]),
        (Event::CommandFailed(Stage::Acpi), vec![(PoweringDown, Quitting)]),
        (Event::CommandFailed(Stage::Quit), vec![(Quitting, Killing)]),
        (shutdown("guest-shutdown"), goes()),
        (shutdown("guest-reset"), goes()),
        (shutdown("new-in-qemu-12"), goes()),
        (Event::Panicked, ended()),
        (Event::Failed(Fault::Unknown), ended()),
        (Event::Watchdog { action: "poweroff".to_owned() }, vec![]),
        (Event::Watchdog { action: "new-in-qemu-12".to_owned() }, vec![]),
        (disk_error("stop"), vec![]),
        (disk_error("report"), vec![]),
        (memory("fatal"), ended()),
        (memory("inject"), vec![]),
        (Event::MonitorLost, goes()),
        (Event::Exited(Exit::Code(0)), to(Exited, &[&[Preparing, Killing], &alive[..]].concat())),
        (Event::Exited(Exit::Unseen), to(Exited, &[&[Preparing, Killing], &alive[..]].concat())),
        (Event::Exited(Exit::Signal(9)), to(Exited, &[&[Preparing, Killing], &alive[..]].concat())),
        (Event::StartedAgain, vec![]),
        (Event::GivenBack(GivenBack::Wholly), vec![(Exited, Released)]),
        (Event::GivenBack(GivenBack::ButSick), vec![(Exited, Quarantined)]),
        (Event::GivenBack(GivenBack::Partly), vec![(Exited, NeedsOperator)]),
    ]
}

#[test]
fn every_event_in_every_state_leads_where_the_table_says() {
    for (event, ways) in table() {
        for from in State::ALL {
            let expected = ways.iter().find(|way| way.0 == from).map_or(from, |way| way.1);
            let mut life = at(from);
            let effects = life.step(event.clone());
            assert_eq!(life.state(), expected, "{event:?} in {from:?}");
            assert!(!from.is_final() || effects.is_empty(), "{event:?} in {from:?}: {effects:?}");
        }
    }
}

#[rstest]
#[case(Event::PauseRequested, Effect::Pause, &[Running])]
#[case(Event::ResumeRequested, Effect::Resume, &[PausedByUser, PausedByError])]
#[case(Event::ResetRequested, Effect::Reset, &[Running])]
fn what_is_asked_is_done_where_it_is_not_refused(
    #[case] event: Event,
    #[case] effect: Effect,
    #[case] allowed: &[State],
) {
    for state in State::ALL {
        let effects = at(state).step(event.clone());
        let refused = state.refuses(event.ask().unwrap());
        assert_eq!(refused.is_none(), allowed.contains(&state), "{state:?}");
        assert_eq!(effects, if refused.is_none() { vec![effect.clone()] } else { vec![] }, "{state:?}");
    }
}

#[rstest]
#[case(Ask::Pause, PausedByUser, "it can't be paused: it is paused")]
#[case(Ask::Reset, Quitting, "it can't be reset: it is quitting")]
#[case(Ask::Stop, Exited, "it can't be stopped: it is gone, and its devices are being looked at")]
fn a_refusal_says_what_and_why(#[case] ask: Ask, #[case] state: State, #[case] words: &str) {
    assert_eq!(state.refuses(ask).unwrap().to_string(), words);
}

#[rstest]
#[case::by_somebody(&[halted("paused")], Some("as asked"))]
#[case::by_a_disk(&[disk_error("stop"), halted("io-error")], Some("by QEMU: write failed on disk0: No space left on device"))]
#[case::by_a_disk_unsaid(&[disk_error("report"), halted("io-error")], Some("by QEMU: a disk gave an error"))]
#[case::of_before(&[disk_error("stop"), halted("io-error"), Event::Continued, halted("io-error")], Some("by QEMU: a disk gave an error"))]
#[case::goes_on(&[halted("watchdog"), Event::Continued], None)]
#[case::ended(&[halted("watchdog"), Event::Exited(Exit::Code(0))], None)]
fn a_pause_has_its_reason_as_long_as_it_lasts(#[case] events: &[Event], #[case] words: Option<&str>) {
    let mut life = at(Running);
    events.iter().for_each(|event| drop(life.step(event.clone())));
    assert_eq!(life.halt().map(ToString::to_string).as_deref(), words);
}

#[test]
fn a_guest_that_is_paused_while_it_powers_off_is_let_go_on() {
    assert_eq!(at(PoweringDown).step(halted("paused")), [Effect::Resume]);
}

#[rstest]
#[case::rebooted("guest-reset", HostReady)]
#[case::powered_off("guest-shutdown", Exited)]
fn only_a_guest_that_rebooted_is_started_again(#[case] reason: &str, #[case] state: State) {
    let mut life = at(Running);
    for event in [shutdown(reason), Event::Exited(Exit::Code(0)), Event::StartedAgain] {
        life.step(event);
    }
    assert_eq!(life.state(), state);
}

#[rstest]
#[case(State::Paused, "paused")]
#[case(State::NeedsOperator, "needs-operator")]
fn states_have_one_name_everywhere(#[case] state: State, #[case] name: &str) {
    assert_eq!(state.name(), name);
    for state in State::ALL {
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let all: Vec<Event> = table().into_iter().map(|(event, _)| event).collect();
    // Most random events come too early to matter, so most lives begin with a guest that runs.
    let begin = select(vec![3_usize, 3, 3, 2, 1, 0]);
    (begin, proptest::collection::vec(select(all), 0..25)).prop_map(|(begin, events)| {
        let running = [Event::Prepared, Event::Greeted, Event::Continued];
        running.into_iter().take(begin).chain(events).collect()
    })
}

/// Lives through events; the stage whose deadline was armed last is returned too.
fn lived(events: &[Event]) -> (Life, Option<Stage>) {
    let (mut life, mut armed) = (Life::new(Patience::default()), None);
    for event in events {
        for effect in life.step(event.clone()) {
            if let Effect::Arm(stage, _) = effect {
                armed = Some(stage);
            }
        }
    }
    (life, armed)
}

proptest! {
    #[test]
    fn qemus_exit_and_a_verdict_end_every_life(
        events in events(),
        given_back in select(vec![GivenBack::Wholly, GivenBack::ButSick, GivenBack::Partly]),
    ) {
        let (mut life, _) = lived(&events);
        let before = life.state();
        life.step(Event::Exited(Exit::Code(0)));
        life.step(Event::GivenBack(given_back));
        prop_assert!(life.state().is_final());
        let told = match given_back {
            GivenBack::Wholly => Released,
            GivenBack::ButSick => Quarantined,
            GivenBack::Partly => NeedsOperator,
        };
        prop_assert_eq!(life.state(), if before.is_final() { before } else { told });
    }

    #[test]
    fn deadlines_of_left_stages_change_nothing(events in events()) {
        let (life, armed) = lived(&events);
        for stage in [Stage::Acpi, Stage::Quit, Stage::Kill] {
            let mut late = life.clone();
            let waits = matches!(life.state(), PoweringDown | Quitting | Killing) && armed == Some(stage);
            if !waits {
                prop_assert_eq!(late.step(Event::Deadline(stage)), []);
                prop_assert_eq!(&late, &life);
            }
        }
    }

    #[test]
    fn no_state_is_without_a_way_out(events in events()) {
        let (life, armed) = lived(&events);
        let out = match life.state() {
            Released | NeedsOperator | Quarantined => return Ok(()),
            Preparing => Event::NeverStarted,
            Exited => Event::GivenBack(GivenBack::Wholly),
            // These end by themselves: QEMU and guest owe nothing.
            PoweringDown | Quitting | Killing => Event::Deadline(armed.unwrap()),
            HostReady | Paused | Running | PausedByUser | PausedByError => Event::StopRequested,
        };
        let mut next = life.clone();
        next.step(out);
        prop_assert_ne!(next.state(), life.state());
    }

    #[test]
    fn with_nothing_but_deadlines_a_guest_that_was_asked_to_end_comes_to_an_end(events in events()) {
        let (mut life, mut armed) = lived(&events);
        prop_assume!(life.state() != Preparing && life.state() != Exited);
        let mut next = Event::StopRequested;
        for _ in 0..5 {
            for effect in life.step(next) {
                if let Effect::Arm(stage, _) = effect {
                    armed = Some(stage);
                }
            }
            if life.state().is_final() {
                break;
            }
            next = Event::Deadline(armed.unwrap());
        }
        prop_assert_eq!(life.state().is_final(), true, "{:?}", life.state());
    }

    #[test]
    fn only_a_guest_that_is_paused_has_a_reason_for_it(events in events()) {
        let (life, _) = lived(&events);
        prop_assert_eq!(life.halt().is_some(), matches!(life.state(), PausedByUser | PausedByError));
    }

    #[test]
    fn a_guest_that_stands_still_goes_on_before_its_power_button_is_pressed(events in events()) {
        let (mut life, _) = lived(&events);
        let stood = matches!(life.state(), PausedByUser | PausedByError);
        let effects = life.step(Event::StopRequested);
        if stood {
            prop_assert_eq!(&effects[..2], &[Effect::Resume, Effect::PowerDown]);
        }
    }
}
