//! The life of a guest as a pure function: what happened, and what is to be done about it.
//!
//! ```text
//! Paused --Continued--> Running --stop asked--> PoweringDown --deadline--> Quitting --deadline--> Killing
//!    \______________________\________________________\________________________\_____ QEMU's exit --> Exited
//! ```
//!
//! A crash can be asked for at any time: QEMU is killed then, and nothing of that is called a stop.
//!
//! No clock is read here: a deadline comes in as an event, once for each [`Effect::Arm`]. Timeouts and signals that come
//! late, for a stage already left, change nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::reset::wait;

/// Where a guest's life stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// QEMU is up, the guest has not run yet.
    Paused,
    /// The guest runs.
    Running,
    /// The guest was asked to power off, by its ACPI power button.
    PoweringDown,
    /// QEMU was told to quit.
    Quitting,
    /// QEMU was killed; what is left is to wait for its end.
    Killing,
    /// QEMU is gone.
    Exited,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The monitor confirmed `cont`.
    Continued,
    /// Somebody asked for the guest's end: SIGINT, SIGTERM, or `down`. Asked again, it hurries.
    StopRequested,
    /// A crash was asked for: QEMU is to die now, with no word to the guest.
    CrashRequested,
    /// A reset of the machine was asked for, as by its reset button.
    ResetRequested,
    /// The deadline of this stage has passed.
    Deadline(Stage),
    /// QEMU announced its end, with the reason it gives (QAPI ShutdownCause).
    Shutdown {
        /// The reason.
        reason: String,
    },
    /// The guest panicked.
    Panicked,
    /// QEMU stopped the guest because of an error it can't go on from.
    InternalError,
    /// The monitor's connection ended.
    MonitorLost,
    /// The monitor refused or didn't answer the command of this stage.
    CommandFailed(Stage),
    /// QEMU is gone, and was reaped.
    Exited(Exit),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with a status.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The ways to end a guest, from gentle to rough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The ACPI power button.
    Acpi,
    /// The monitor's `quit`.
    Quit,
    /// SIGKILL.
    Kill,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Press the guest's power button.
    PowerDown,
    /// Tell QEMU to quit.
    Quit,
    /// Kill QEMU.
    Kill,
    /// Reset the machine.
    Reset,
    /// Report [`Event::Deadline`] of this stage after so long.
    Arm(Stage, Duration),
}

/// Why a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Outcome {
    /// It powered itself off, unasked.
    PoweredOff,
    /// It ended because it was asked to; the stage that it took.
    Stopped {
        /// The roughest stage that was used.
        stage: Stage,
    },
    /// It rebooted, and QEMU ended so that it could be started again.
    Rebooted {
        /// Why it was not; nothing of one that was.
        not_again: Option<NotAgain>,
    },
    /// Its kernel panicked.
    Panicked,
    /// QEMU stopped it for an error, such as a fatal error of a passed-through device.
    InternalError,
    /// QEMU died.
    QemuDied {
        /// How.
        exit: Exit,
    },
}

impl std::fmt::Display for Outcome {
    /// Says what became of the guest, in a sentence without its subject.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PoweredOff => "powered itself off",
            Self::Stopped { stage: Stage::Acpi } => "powered off when its power button was pressed",
            Self::Stopped { stage: Stage::Quit } => "was ended by telling QEMU to quit",
            Self::Stopped { stage: Stage::Kill } => "was ended by killing QEMU",
            Self::Rebooted { not_again: None } => "rebooted",
            Self::Rebooted { not_again: Some(why) } => {
                return write!(f, "rebooted, and is not started again: {why}");
            }
            Self::Panicked => "panicked",
            Self::InternalError => "was stopped by QEMU because of an error that it can't go on from",
            Self::QemuDied { exit } => return write!(f, "ended because QEMU died ({exit})"),
        })
    }
}

/// Why a guest that rebooted was not started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotAgain {
    /// The profile says that a reboot is the end (`reboot = "stop"`).
    Policy,
    /// Its end was asked for between two starts.
    Asked,
    /// A device didn't come back well.
    SickDevice,
    /// It rebooted again and again, each time soon after its start.
    Looping,
}

impl std::fmt::Display for NotAgain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy => f.write_str("reboot = \"stop\""),
            Self::Asked => f.write_str("gpuvm was asked to end it"),
            Self::SickDevice => f.write_str("a device did not come back well"),
            Self::Looping => write!(
                f,
                "{} times in a row it did so within {} s of its start",
                Reboots::TOO_MANY,
                Reboots::SOON.as_secs()
            ),
        }
    }
}

/// How long each way to end a guest may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From the power button to `quit`.
    pub acpi: Duration,
    /// From `quit` to SIGKILL. A QEMU that takes it says so at once, whatever its devices do.
    pub quit: Duration,
    /// From QEMU's word that it shuts down to SIGKILL: dead cards hold its exit, and a signal does not shorten that.
    pub exit: Duration,
    /// From SIGKILL to the word that the kernel doesn't let go of it.
    pub killed: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self::with_functions(0)
    }
}

impl Patience {
    /// Returns the usual patience with a QEMU that has so many passed-through functions.
    pub fn with_functions(functions: usize) -> Self {
        Self {
            acpi: Duration::from_secs(60),
            quit: Duration::from_secs(15),
            exit: Duration::from_secs(20) + wait::at_exit(functions),
            killed: Duration::from_secs(120) + wait::at_exit(functions),
        }
    }
}

/// A guest that reboots so many times in a row, each within [`Reboots::SOON`] of its start, is not started again.
///
/// An installer or an update reboots a few times, minutes apart; a guest that can't start does nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reboots {
    /// All that were followed by another start.
    total: u32,
    /// The last ones that came soon.
    soon: u32,
}

impl Reboots {
    /// What is soon: a server's firmware alone takes a minute, so a guest that got to work ran for longer.
    pub const SOON: Duration = Duration::from_secs(60);
    /// How many reboots in a row are too many.
    pub const TOO_MANY: u32 = 5;

    /// Takes in a reboot of a guest that had run for so long; says whether it may be started again.
    pub fn again(&mut self, ran: Duration) -> Result<u32, NotAgain> {
        self.soon = if ran < Self::SOON { self.soon + 1 } else { 0 };
        if self.soon >= Self::TOO_MANY {
            return Err(NotAgain::Looping);
        }
        self.total += 1;
        Ok(self.total)
    }
}

/// A guest's life: the state, and what has been learnt about its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    state: State,
    patience: Patience,
    /// The stage whose deadline runs.
    stage: Option<Stage>,
    /// The roughest stage that we made use of ourselves.
    used: Option<Stage>,
    /// Whether the guest's end was asked for.
    asked: Asked,
    /// Whether QEMU is on its way out by its own word.
    leaving: Leaving,
    cause: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Yes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    Yes,
}

impl Life {
    /// Starts with a QEMU that is up and paused.
    pub fn new(patience: Patience) -> Self {
        Self {
            state: State::Paused,
            patience,
            stage: None,
            used: None,
            asked: Asked::No,
            leaving: Leaving::No,
            cause: None,
        }
    }

    /// Returns the state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes one event in and returns what is to be done.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        if self.state == State::Exited {
            return Vec::new();
        }
        match event {
            Event::Continued => {
                if self.state == State::Paused {
                    self.state = State::Running;
                }
                Vec::new()
            }
            Event::StopRequested => {
                let before = std::mem::replace(&mut self.asked, Asked::Yes);
                // What is on its way out already needs no push, unless it is asked for again.
                if before == Asked::No && self.leaving == Leaving::Yes { Vec::new() } else { self.stop() }
            }
            Event::CrashRequested => self.crash(),
            Event::ResetRequested if self.state == State::Running => vec![Effect::Reset],
            // One that is on its way out, or has never run, isn't reset.
            Event::ResetRequested => Vec::new(),
            // A command that fails because QEMU is on its way out was not needed any more.
            Event::CommandFailed(_) if self.leaving == Leaving::Yes => Vec::new(),
            Event::Deadline(stage) | Event::CommandFailed(stage) if self.stage == Some(stage) => {
                self.escalate()
            }
            Event::Deadline(_) | Event::CommandFailed(_) => Vec::new(),
            Event::Shutdown { reason } => {
                self.learn(shutdown_cause(&reason));
                self.leave(self.patience.exit)
            }
            Event::Panicked => {
                self.learn(Some(Outcome::Panicked));
                self.quit()
            }
            Event::InternalError => {
                self.learn(Some(Outcome::InternalError));
                self.quit()
            }
            // QEMU closes the monitor on its way out; if it doesn't go, nobody can speak to it any more.
            Event::MonitorLost if self.stage < Some(Stage::Quit) => self.leave(self.patience.quit),
            Event::MonitorLost => Vec::new(),
            Event::Exited(exit) => {
                self.state = State::Exited;
                self.finish(exit);
                Vec::new()
            }
        }
    }

    /// Returns why the guest ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.cause.as_ref().filter(|_| self.state == State::Exited)
    }

    fn learn(&mut self, cause: Option<Outcome>) {
        if self.cause.is_none() {
            self.cause = cause;
        }
    }

    /// QEMU is on its way out; it is killed if it doesn't get there.
    fn leave(&mut self, patience: Duration) -> Vec<Effect> {
        let before = std::mem::replace(&mut self.leaving, Leaving::Yes);
        if before == Leaving::Yes || self.stage == Some(Stage::Kill) {
            return Vec::new();
        }
        self.stage = Some(Stage::Quit);
        self.state = State::Quitting;
        vec![Effect::Arm(Stage::Quit, patience)]
    }

    fn stop(&mut self) -> Vec<Effect> {
        match self.state {
            // A guest that never ran has nothing to save.
            State::Paused => self.quit(),
            State::Running => {
                self.state = State::PoweringDown;
                (self.stage, self.used) = (Some(Stage::Acpi), Some(Stage::Acpi));
                vec![Effect::PowerDown, Effect::Arm(Stage::Acpi, self.patience.acpi)]
            }
            State::PoweringDown | State::Quitting => self.escalate(),
            State::Killing | State::Exited => Vec::new(),
        }
    }

    /// Kills QEMU, which is no use of a stage: what comes of it is told as QEMU's death.
    fn crash(&mut self) -> Vec<Effect> {
        if self.stage == Some(Stage::Kill) {
            return Vec::new();
        }
        self.stage = Some(Stage::Kill);
        self.state = State::Killing;
        vec![Effect::Kill]
    }

    fn escalate(&mut self) -> Vec<Effect> {
        match self.stage {
            None | Some(Stage::Acpi) => self.quit(),
            Some(Stage::Quit) => {
                (self.stage, self.used) = (Some(Stage::Kill), Some(Stage::Kill));
                self.state = State::Killing;
                vec![Effect::Kill]
            }
            Some(Stage::Kill) => Vec::new(),
        }
    }

    fn quit(&mut self) -> Vec<Effect> {
        if self.stage >= Some(Stage::Quit) {
            return Vec::new();
        }
        (self.stage, self.used) = (Some(Stage::Quit), Some(Stage::Quit));
        self.state = State::Quitting;
        vec![Effect::Quit, Effect::Arm(Stage::Quit, self.patience.quit)]
    }

    fn finish(&mut self, exit: Exit) {
        let cause = self.cause.take();
        let died = matches!(exit, Exit::Signal(_) | Exit::Code(1..));
        self.cause = Some(match (cause, self.asked, self.used) {
            (Some(cause @ (Outcome::Panicked | Outcome::InternalError)), ..) => cause,
            (_, Asked::Yes, Some(stage)) if stage == Stage::Kill || !died => Outcome::Stopped { stage },
            _ if died => Outcome::QemuDied { exit },
            // Whoever asked for its end doesn't want it started again.
            (Some(Outcome::Rebooted { .. }), Asked::Yes, _) => {
                Outcome::Rebooted { not_again: Some(NotAgain::Asked) }
            }
            (Some(cause), ..) => cause,
            // It quit with status 0 and no word: somebody else told it to, by a signal or another monitor.
            (None, ..) => Outcome::Stopped { stage: Stage::Quit },
        });
    }
}

/// Reads QAPI's ShutdownCause; what the guest didn't do itself is known from what we did.
fn shutdown_cause(reason: &str) -> Option<Outcome> {
    match reason {
        "guest-shutdown" => Some(Outcome::PoweredOff),
        // With `-action reboot=shutdown` alone; a guest that reboots in place goes on.
        "guest-reset" | "host-qmp-system-reset" => {
            Some(Outcome::Rebooted { not_again: Some(NotAgain::Policy) })
        }
        "guest-panic" => Some(Outcome::Panicked),
        "host-error" => Some(Outcome::InternalError),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn lived(events: &[Event]) -> (Life, Vec<Effect>) {
        let mut life = Life::new(Patience::default());
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
    #[case::device_error(&[Event::Continued, Event::InternalError, Event::Exited(Exit::Code(0))], Outcome::InternalError)]
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
        let state = life.state().clone();
        assert_eq!(life.step(Event::ResetRequested), effects);
        assert_eq!(life.state(), &state, "a reset ends nothing");
    }

    #[test]
    fn a_deadline_of_a_stage_already_left_changes_nothing() {
        let (mut life, _) = lived(&[Event::Continued, Event::StopRequested, Event::StopRequested]);
        assert_eq!(life.step(Event::Deadline(Stage::Acpi)), []);
        assert_eq!(life.state(), &State::Quitting);
    }

    #[test]
    fn a_first_request_does_not_push_a_guest_that_is_powering_off_already() {
        let (life, effects) = lived(&[Event::Continued, shutdown("guest-shutdown"), Event::StopRequested]);
        assert_eq!(effects, [Effect::Arm(Stage::Quit, Patience::default().exit)]);
        assert_eq!(life.state(), &State::Quitting);
    }

    #[test]
    fn the_power_buttons_command_that_fails_late_kills_nothing() {
        let failed = Event::CommandFailed(Stage::Acpi);
        let (_, effects) =
            lived(&[Event::Continued, Event::StopRequested, shutdown("guest-shutdown"), failed]);
        assert!(!effects.contains(&Effect::Kill) && !effects.contains(&Effect::Quit), "{effects:?}");
    }

    #[test]
    fn qemu_that_says_it_quits_gets_the_time_that_an_exit_takes() {
        let (mut life, _) = lived(&[Event::StopRequested]);
        assert_eq!(
            life.step(shutdown("host-qmp-quit")),
            [Effect::Arm(Stage::Quit, Patience::default().exit)]
        );
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Continued),
            Just(Event::StopRequested),
            Just(Event::CrashRequested),
            Just(Event::ResetRequested),
            prop_oneof![Just(Stage::Acpi), Just(Stage::Quit), Just(Stage::Kill)].prop_map(Event::Deadline),
            prop_oneof![
                Just("guest-shutdown"),
                Just("guest-reset"),
                Just("host-qmp-system-reset"),
                Just("host-qmp-quit"),
                Just("new-in-qemu-12")
            ]
            .prop_map(shutdown),
            Just(Event::Panicked),
            Just(Event::InternalError),
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
            prop_assert_eq!(&crash[..], if killed { &[][..] } else { &[Effect::Kill][..] });
            for event in after {
                prop_assert!(!life.step(event).contains(&Effect::Kill));
            }
            life.step(Event::Exited(Exit::Signal(9)));
            let told = life.outcome().unwrap();
            let bad_already = matches!(told, Outcome::Panicked | Outcome::InternalError);
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
}
