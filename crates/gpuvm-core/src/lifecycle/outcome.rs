//! Why a guest ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::event::{Exit, Stage};
use super::fault::Fault;
use super::patience::Reboots;

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
    /// QEMU stopped it for an error that it can't go on from.
    InternalError {
        /// What kind of error.
        #[serde(default)]
        fault: Fault,
    },
    /// Memory of the host is broken.
    MemoryFailure,
    /// Its watchdog wasn't fed, and its profile's own arguments have QEMU end it then.
    Watchdog,
    /// QEMU died.
    QemuDied {
        /// How.
        exit: Exit,
    },
}

impl fmt::Display for Outcome {
    /// Says what became of the guest, in a sentence without its subject.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
            Self::InternalError { fault } => {
                return write!(f, "was stopped by QEMU because of {fault}");
            }
            Self::MemoryFailure => "was ended by QEMU because memory of the host is broken",
            Self::Watchdog => "was ended by its watchdog",
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

impl fmt::Display for NotAgain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
