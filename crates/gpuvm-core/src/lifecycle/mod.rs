//! The life of a VM as a pure function: what happened, and what is to be done about it.
//!
//! ```text
//! Preparing --Prepared--> HostReady --Greeted--> Paused --Continued--> Running --Halted, asked--> PausedByUser  --Continued--> Running
//!     |                    ^    |                   |                     |   \---Halted, error--> PausedByError --Continued--> Running
//!     |                    |    |                   |                     |                              |
//!     |                    |    |                   |                     \--------- stop asked --------/--> PoweringDown
//!     |                    |    |                   |                                                              |
//!     |                    |    |                   \-- stop asked; or from any of these: QEMU's own word, panic,   v
//!     |                    |    |                       fault, monitor lost, deadline of the power button ----> Quitting
//!     |                    |    |                                                                                  | deadline
//!     |                    |    \-- stop asked, start failed; or from any with a QEMU: crash asked --------------> Killing
//!     |                    |                                                                                       |     |
//!     |                    | started again                              from any with a QEMU: QEMU's exit -> Exited |     | deadline
//!     \-- never started --------------------------------------------------------------------------------> Exited  |     |
//!                          \------------------------------------------------------------------------------ Exited <-/     |
//!                                                                                                            |           |
//!                                                   given back: Released, Quarantined or NeedsOperator <-----/           |
//!                                                                                        NeedsOperator <-----------------/
//! ```
//!
//! What is done about what QEMU tells:
//!
//! | QEMU | what is done | why |
//! |---|---|---|
//! | GUEST_PANICKED, or STOP with `guest-panicked` | the guest is ended | it does nothing more |
//! | STOP with `internal-error` | the guest is ended; a device's error, KVM's and others are told apart | QEMU refuses to go on with it |
//! | STOP with `io-error` (BLOCK_IO_ERROR before) | paused by error; `resume` does the disk's work again | a full disk can be mended |
//! | STOP with `watchdog` | paused by error; resumable | whoever has QEMU pause it wants to look |
//! | STOP with `paused` and the like | paused by user | somebody asked, here or at another monitor |
//! | STOP with a word that nobody knows | paused by error; resumable | it may be mended |
//! | MEMORY_FAILURE: `fatal` | the guest is ended | QEMU ends itself then |
//! | MEMORY_FAILURE, WATCHDOG: all else | nothing | the guest sees to it, or a STOP, RESET or SHUTDOWN follows |
//!
//! A crash can be asked for at any time: QEMU is killed then, and nothing of that is called a stop.
//!
//! No clock is read here: a deadline comes in as an event, once for each [`Effect::Arm`]. Timeouts and signals that come
//! late, for a stage already left, change nothing.

mod event;
mod fault;
mod outcome;
mod patience;
mod state;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use event::{DiskError, Effect, Event, Exit, GivenBack, Halt, Stage};
pub use fault::Fault;
pub use outcome::{NotAgain, Outcome};
pub use patience::{Patience, Reboots};
pub use state::{Ask, Refusal, State};

/// A VM's life: the state, and what has been learnt about its end.
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
    /// Whether it has said that it shuts down: one that dies doesn't, and closes its monitor all the same.
    word: Word,
    /// Why the vCPUs don't run, of a guest that is paused.
    halt: Option<Halt>,
    /// The last error of a disk since the vCPUs run: what a STOP means is told before it.
    disk_error: Option<DiskError>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    None,
    Said,
}

impl Life {
    /// Starts with a host that is being prepared.
    pub fn new(patience: Patience) -> Self {
        Self {
            state: State::Preparing,
            patience,
            stage: None,
            used: None,
            asked: Asked::No,
            leaving: Leaving::No,
            word: Word::None,
            halt: None,
            disk_error: None,
            cause: None,
        }
    }

    /// Goes on with a guest that another gpuvm has brought to run.
    pub fn adopted(patience: Patience) -> Self {
        Self { state: State::Running, ..Self::new(patience) }
    }

    /// Returns the state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns why the vCPUs don't run, of a guest that is paused.
    pub fn halt(&self) -> Option<&Halt> {
        self.halt.as_ref()
    }

    /// Returns why the guest ended, once it has; nothing where there was no QEMU.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.cause.as_ref().filter(|_| self.state == State::Exited || self.state.is_final())
    }

    /// Takes one event in and returns what is to be done.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let effects = match self.state {
            State::Released | State::NeedsOperator | State::Quarantined => Vec::new(),
            State::Exited => self.after_exit(event),
            State::Preparing => self.prepare(event),
            _ => self.live(event),
        };
        if !matches!(self.state, State::PausedByUser | State::PausedByError) {
            self.halt = None;
        }
        effects
    }

    /// While the host is being prepared there is no QEMU: who asks for the guest's end has it when that is given up.
    fn prepare(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Prepared => self.state = State::HostReady,
            Event::NeverStarted => self.state = State::Exited,
            Event::StopRequested | Event::CrashRequested => self.asked = Asked::Yes,
            Event::Exited(exit) => self.finish(exit),
            _ => {}
        }
        Vec::new()
    }

    /// Once QEMU is gone, what is left is to give the host back, or to start QEMU again.
    fn after_exit(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::GivenBack(GivenBack::Wholly) => self.state = State::Released,
            Event::GivenBack(GivenBack::ButSick) => self.state = State::Quarantined,
            Event::GivenBack(GivenBack::Partly) => self.state = State::NeedsOperator,
            Event::StartedAgain if self.cause == Some(REBOOTED) => {
                *self = Self { state: State::HostReady, ..Self::new(self.patience) };
            }
            _ => {}
        }
        Vec::new()
    }

    /// While there is a QEMU, or one is being started.
    fn live(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Prepared | Event::StartedAgain | Event::GivenBack(_) => Vec::new(),
            Event::NeverStarted => {
                // One that has greeted was started.
                if self.state == State::HostReady {
                    self.state = State::Exited;
                }
                Vec::new()
            }
            Event::Greeted => {
                if self.state == State::HostReady {
                    self.state = State::Paused;
                }
                Vec::new()
            }
            Event::StartFailed if matches!(self.state, State::HostReady | State::Paused) => self.kill(),
            Event::StartFailed => Vec::new(),
            Event::Continued => self.continued(),
            Event::Halted { status } => self.halted(status),
            Event::StopRequested | Event::CrashRequested => self.end_asked(&event),
            Event::ResetRequested => self.asked_for(Ask::Reset, Effect::Reset),
            Event::PauseRequested => self.asked_for(Ask::Pause, Effect::Pause),
            Event::ResumeRequested => self.asked_for(Ask::Resume, Effect::Resume),
            // A command that fails because QEMU is on its way out was not needed any more.
            Event::CommandFailed(_) if self.leaving == Leaving::Yes => Vec::new(),
            // The kernel doesn't let go of it: it still has the devices.
            Event::Deadline(Stage::Kill) if self.stage == Some(Stage::Kill) => {
                self.state = State::NeedsOperator;
                Vec::new()
            }
            Event::Deadline(stage) | Event::CommandFailed(stage) if self.stage == Some(stage) => {
                self.escalate()
            }
            Event::Deadline(_) | Event::CommandFailed(_) => Vec::new(),
            Event::Shutdown { reason } => {
                self.word = Word::Said;
                self.learn(shutdown_cause(&reason));
                self.leave(self.patience.exit)
            }
            Event::Panicked => self.end_for(Outcome::Panicked),
            Event::Failed(fault) => self.end_for(Outcome::InternalError { fault }),
            Event::Watchdog { action } => {
                // QEMU's own `poweroff` is an exit with status 0 and no word.
                self.learn((action == "poweroff").then_some(Outcome::Watchdog));
                Vec::new()
            }
            Event::MemoryFailure { action } if action == "fatal" => self.end_for(Outcome::MemoryFailure),
            Event::MemoryFailure { .. } => Vec::new(),
            Event::DiskError(error) => {
                // Of the others the guest is told.
                self.disk_error =
                    Some(error).filter(|error| error.action == "stop").or(self.disk_error.take());
                Vec::new()
            }
            // QEMU closes the monitor on its way out; if it doesn't go, nobody can speak to it any more.
            Event::MonitorLost if self.stage < Some(Stage::Quit) => self.leave(self.patience.quit),
            Event::MonitorLost => Vec::new(),
            Event::Exited(exit) => {
                self.finish(exit);
                Vec::new()
            }
        }
    }

    fn learn(&mut self, cause: Option<Outcome>) {
        if self.cause.is_none() {
            self.cause = cause;
        }
    }

    /// The vCPUs run.
    fn continued(&mut self) -> Vec<Effect> {
        if matches!(self.state, State::Paused | State::PausedByUser | State::PausedByError) {
            self.state = State::Running;
            self.disk_error = None;
        }
        Vec::new()
    }

    /// The vCPUs were stopped, for the reason that QEMU's word for its state gives.
    fn halted(&mut self, status: String) -> Vec<Effect> {
        let halt = match status.as_str() {
            "guest-panicked" => return self.end_for(Outcome::Panicked),
            "internal-error" => return self.end_for(Outcome::InternalError { fault: Fault::Unknown }),
            // It runs again; it sleeps, and wakes by itself; QEMU is on its way out and says so.
            "running" | "suspended" | "shutdown" => return Vec::new(),
            // All of these come of commands.
            "paused" | "debug" | "save-vm" | "restore-vm" | "finish-migrate" | "postmigrate"
            | "prelaunch" => Halt::User,
            "io-error" => Halt::Disk { error: self.disk_error.clone() },
            "watchdog" => Halt::Watchdog,
            _ => Halt::Other { status },
        };
        match (self.state, &halt) {
            (State::Running | State::PausedByUser | State::PausedByError, Halt::User) => {
                self.pause(State::PausedByUser, halt)
            }
            (State::Running | State::PausedByUser | State::PausedByError, _) => {
                self.pause(State::PausedByError, halt)
            }
            // Asked to pause and then to end, or paused by somebody else: one that stands still can't power off.
            (State::PoweringDown, Halt::User) => vec![Effect::Resume],
            // What stands still for an error would not get there.
            (State::PoweringDown, _) => self.quit(),
            _ => Vec::new(),
        }
    }

    fn pause(&mut self, state: State, halt: Halt) -> Vec<Effect> {
        (self.state, self.halt) = (state, Some(halt));
        Vec::new()
    }

    /// Does what was asked for, where the state allows it.
    fn asked_for(&self, ask: Ask, effect: Effect) -> Vec<Effect> {
        if self.state.refuses(ask).is_none() { vec![effect] } else { Vec::new() }
    }

    /// Ends a guest that can't go on.
    fn end_for(&mut self, outcome: Outcome) -> Vec<Effect> {
        self.learn(Some(outcome));
        match self.state {
            // Nobody listens at its monitor.
            State::HostReady => self.kill(),
            _ => self.quit(),
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

    fn end_asked(&mut self, event: &Event) -> Vec<Effect> {
        if *event == Event::CrashRequested {
            return self.kill();
        }
        let before = std::mem::replace(&mut self.asked, Asked::Yes);
        // What is on its way out already needs no push, unless it is asked for again.
        if before == Asked::No && self.leaving == Leaving::Yes { Vec::new() } else { self.stop() }
    }

    fn stop(&mut self) -> Vec<Effect> {
        match self.state {
            State::HostReady => self.kill(),
            // A guest that never ran has nothing to save.
            State::Paused => self.quit(),
            State::Running => self.power_down(Vec::new()),
            // One that stands still doesn't see its power button.
            State::PausedByUser | State::PausedByError => self.power_down(vec![Effect::Resume]),
            State::PoweringDown | State::Quitting => self.escalate(),
            _ => Vec::new(),
        }
    }

    fn power_down(&mut self, mut first: Vec<Effect>) -> Vec<Effect> {
        self.state = State::PoweringDown;
        (self.stage, self.used) = (Some(Stage::Acpi), Some(Stage::Acpi));
        first.extend([Effect::PowerDown, Effect::Arm(Stage::Acpi, self.patience.acpi)]);
        first
    }

    /// Kills QEMU, which is no use of a stage: what comes of it is told as QEMU's death.
    fn kill(&mut self) -> Vec<Effect> {
        if self.stage == Some(Stage::Kill) {
            return Vec::new();
        }
        self.stage = Some(Stage::Kill);
        self.state = State::Killing;
        vec![Effect::Kill, Effect::Arm(Stage::Kill, self.patience.killed)]
    }

    fn escalate(&mut self) -> Vec<Effect> {
        match self.stage {
            None | Some(Stage::Acpi) => self.quit(),
            Some(Stage::Quit) => {
                self.used = Some(Stage::Kill);
                self.kill()
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
        self.state = State::Exited;
        let cause = self.cause.take();
        let died = matches!(exit, Exit::Signal(_) | Exit::Code(1..));
        self.cause = Some(match (cause, self.asked, self.used) {
            (Some(cause), ..) if is_final_word(&cause) => cause,
            // Its guest was asked, and it says of a guest that powers off.
            (None, Asked::Yes, Some(Stage::Acpi)) if exit == Exit::Unseen && self.word == Word::None => {
                Outcome::QemuDied { exit }
            }
            (_, Asked::Yes, Some(stage)) if stage == Stage::Kill || !died => Outcome::Stopped { stage },
            _ if died => Outcome::QemuDied { exit },
            // Whoever asked for its end doesn't want it started again.
            (Some(Outcome::Rebooted { .. }), Asked::Yes, _) => {
                Outcome::Rebooted { not_again: Some(NotAgain::Asked) }
            }
            (Some(cause), ..) => cause,
            // It said nothing on its way out.
            (None, ..) if exit == Exit::Unseen && self.word == Word::None => Outcome::QemuDied { exit },
            // It quit with status 0 and no word: somebody else told it to, by a signal or another monitor.
            (None, ..) => Outcome::Stopped { stage: Stage::Quit },
        });
    }
}

/// A guest that rebooted and may be started again.
const REBOOTED: Outcome = Outcome::Rebooted { not_again: Some(NotAgain::Policy) };

/// Tells whether an outcome stands however QEMU goes, and whoever wanted it to.
fn is_final_word(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Panicked | Outcome::InternalError { .. } | Outcome::MemoryFailure)
}

/// Reads QAPI's ShutdownCause; what the guest didn't do itself is known from what we did.
fn shutdown_cause(reason: &str) -> Option<Outcome> {
    match reason {
        "guest-shutdown" => Some(Outcome::PoweredOff),
        // With `-action reboot=shutdown` alone; a guest that reboots in place goes on.
        "guest-reset" | "host-qmp-system-reset" => Some(REBOOTED),
        "guest-panic" => Some(Outcome::Panicked),
        "host-error" => Some(Outcome::InternalError { fault: Fault::Unknown }),
        _ => None,
    }
}
