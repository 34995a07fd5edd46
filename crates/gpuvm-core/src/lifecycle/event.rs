//! What can happen to a VM, and what is to be done about it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::state::Ask;

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The host is prepared.
    Prepared,
    /// There is no QEMU and none will come: the host could not be prepared, QEMU could not be started, or somebody didn't want it.
    NeverStarted,
    /// QEMU has greeted; its guest is paused.
    Greeted,
    /// QEMU was started and is of no use: it does not greet, or can't be brought to where its guest runs.
    StartFailed,
    /// The vCPUs run: the monitor confirmed `cont`, or said so by itself (RESUME).
    Continued,
    /// The vCPUs were stopped (STOP), and QEMU's word for its state was asked; `internal-error` comes as [`Event::Failed`].
    Halted {
        /// That word (QAPI RunState), known or not.
        status: String,
    },
    /// Somebody asked for the guest's end: SIGINT, SIGTERM, or `down`. Asked again, it hurries.
    StopRequested,
    /// A crash was asked for: QEMU is to die now, with no word to the guest.
    CrashRequested,
    /// A reset of the machine was asked for, as by its reset button.
    ResetRequested,
    /// A pause of the guest was asked for.
    PauseRequested,
    /// A paused guest is to go on.
    ResumeRequested,
    /// The deadline of this stage has passed.
    Deadline(Stage),
    /// QEMU announced its end, with the reason it gives (QAPI ShutdownCause).
    Shutdown {
        /// The reason.
        reason: String,
    },
    /// The guest panicked.
    Panicked,
    /// The guest's watchdog wasn't fed; QEMU says what it does about it (QAPI WatchdogAction).
    Watchdog {
        /// That, known or not.
        action: String,
    },
    /// A disk gave an error.
    DiskError(DiskError),
    /// Memory of the host that holds the guest, or QEMU itself, is broken; QEMU says what it does about it (QAPI MemoryFailureAction).
    MemoryFailure {
        /// That, known or not.
        action: String,
    },
    /// QEMU stopped the guest because of an error it can't go on from.
    Failed(Fault),
    /// The monitor's connection ended.
    MonitorLost,
    /// The monitor refused or didn't answer the command of this stage.
    CommandFailed(Stage),
    /// QEMU is gone, and was reaped.
    Exited(Exit),
    /// The guest had rebooted, its devices are well, and QEMU is started again.
    StartedAgain,
    /// The devices are judged, and the host was given back.
    GivenBack(GivenBack),
}

impl Event {
    /// Returns what is asked for, of one that is a request.
    pub fn ask(&self) -> Option<Ask> {
        Some(match self {
            Self::StopRequested => Ask::Stop,
            Self::CrashRequested => Ask::Crash,
            Self::ResetRequested => Ask::Reset,
            Self::PauseRequested => Ask::Pause,
            Self::ResumeRequested => Ask::Resume,
            _ => return None,
        })
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with a status.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// In a way that nobody saw: it was no child of the gpuvm that waited for it.
    Unseen,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unseen => f.write_str("a status that nobody saw"),
        }
    }
}

/// An error of a disk, as QEMU tells it (QAPI BLOCK_IO_ERROR).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskError {
    /// QEMU's name for the disk; nothing if it gave none.
    pub disk: Option<String>,
    /// `read` or `write`, or what may come.
    pub operation: String,
    /// The error in the system's words; nothing if it gave none.
    pub reason: Option<String>,
    /// What QEMU does about it: `stop` (the guest is paused), `report` (the guest is told), `ignore`, or what may come.
    pub action: String,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk.as_deref().unwrap_or("a disk");
        write!(f, "{} failed on {disk}", self.operation)?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

/// Why the vCPUs of a guest that has run don't.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Halt {
    /// Somebody asked for it, here or at another monitor of QEMU.
    User,
    /// A disk gave an error that the guest must not see; QEMU does it again when the guest goes on.
    Disk {
        /// The error, if QEMU told.
        error: Option<DiskError>,
    },
    /// The guest's watchdog wasn't fed.
    Watchdog,
    /// Something that QEMU has this word for.
    Other {
        /// The word.
        status: String,
    },
}

impl fmt::Display for Halt {
    /// Says why, in words that go after "paused".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("as asked"),
            Self::Disk { error: Some(error) } => write!(f, "by QEMU: {error}"),
            Self::Disk { error: None } => f.write_str("by QEMU: a disk gave an error"),
            Self::Watchdog => f.write_str("by QEMU: its watchdog was not fed"),
            Self::Other { status } => write!(f, "by QEMU, whose word for it is `{status}`"),
        }
    }
}

/// How the host was given back once QEMU was gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GivenBack {
    /// Wholly.
    Wholly,
    /// But for devices that came back sick.
    ButSick,
    /// Something else is left, whatever the devices are.
    Partly,
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
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs go on.
    Resume,
    /// Report [`Event::Deadline`] of this stage after so long.
    Arm(Stage, Duration),
}
