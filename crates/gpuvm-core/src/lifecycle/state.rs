//! Where a life stands, and what can be asked of it there.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a VM's life stands. The drawing at the top of this module shows the ways between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The host is being prepared.
    Preparing,
    /// The host is prepared; QEMU is being started and has not greeted.
    HostReady,
    /// QEMU is up, the guest has not run yet.
    Paused,
    /// The guest runs.
    Running,
    /// The guest is paused because somebody asked for it.
    PausedByUser,
    /// QEMU has paused the guest because of an error that it can go on from once it is mended.
    PausedByError,
    /// The guest was asked to power off, by its ACPI power button.
    PoweringDown,
    /// QEMU was told to quit, or has said that it goes.
    Quitting,
    /// QEMU was killed; what is left is to wait for its end.
    Killing,
    /// QEMU is gone, or never came: the devices are judged, and the host is given back.
    Exited,
    /// The end: the host is as it was.
    Released,
    /// The end: something of the host isn't given back.
    NeedsOperator,
    /// The end: a device came back sick and is kept aside; all else is given back.
    Quarantined,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Preparing,
        Self::HostReady,
        Self::Paused,
        Self::Running,
        Self::PausedByUser,
        Self::PausedByError,
        Self::PoweringDown,
        Self::Quitting,
        Self::Killing,
        Self::Exited,
        Self::Released,
        Self::NeedsOperator,
        Self::Quarantined,
    ];

    /// Returns its name, as `--json` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::HostReady => "host-ready",
            Self::Paused => "paused",
            Self::Running => "running",
            Self::PausedByUser => "paused-by-user",
            Self::PausedByError => "paused-by-error",
            Self::PoweringDown => "powering-down",
            Self::Quitting => "quitting",
            Self::Killing => "killing",
            Self::Exited => "exited",
            Self::Released => "released",
            Self::NeedsOperator => "needs-operator",
            Self::Quarantined => "quarantined",
        }
    }

    /// Tells whether it is an end.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Released | Self::NeedsOperator | Self::Quarantined)
    }

    /// Tells whether there may be a QEMU that has greeted and isn't on its way out.
    pub fn has_guest(self) -> bool {
        matches!(
            self,
            Self::Paused | Self::Running | Self::PausedByUser | Self::PausedByError | Self::PoweringDown
        )
    }

    /// Says why something can't be asked for here, and nothing of what can. What would change nothing is refused too, but for the
    /// guest's end: whoever asks for that again wants it sooner.
    pub fn refuses(self, ask: Ask) -> Option<Refusal> {
        let allowed = match ask {
            Ask::Stop | Ask::Crash => !self.is_final() && self != Self::Exited,
            Ask::Pause => self == Self::Running,
            Ask::Resume => matches!(self, Self::PausedByUser | Self::PausedByError),
            // One that stands still would be reset and stand still, and one that is on its way out is not wanted any more.
            Ask::Reset => self == Self::Running,
        };
        (!allowed).then_some(Refusal { ask, state: self })
    }
}

impl fmt::Display for State {
    /// Says how the VM is, in words that go after its name and "is".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "being prepared",
            Self::HostReady => "starting",
            Self::Paused => "about to run",
            Self::Running => "running",
            Self::PausedByUser => "paused",
            Self::PausedByError => "paused because of an error",
            Self::PoweringDown => "powering down",
            Self::Quitting => "quitting",
            Self::Killing => "being killed",
            Self::Exited => "gone, and its devices are being looked at",
            Self::Released => "gone, and the host is as it was",
            Self::NeedsOperator => "gone, and the host is not wholly given back",
            Self::Quarantined => "gone, and a device came back sick",
        })
    }
}

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Its end.
    Stop,
    /// That QEMU dies under it.
    Crash,
    /// That its vCPUs stop.
    Pause,
    /// That they go on.
    Resume,
    /// That its machine is reset.
    Reset,
}

impl Ask {
    /// Returns it as a thing.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Stop => "its end",
            Self::Crash => "a crash",
            Self::Pause => "a pause",
            Self::Resume => "that it goes on",
            Self::Reset => "a reset",
        }
    }
}

impl fmt::Display for Ask {
    /// Says it as what the VM would be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stopped",
            Self::Crash => "crashed",
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Reset => "reset",
        })
    }
}

/// Why something that was asked for isn't done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it can't be {ask}: it is {state}")]
pub struct Refusal {
    /// What was asked.
    pub ask: Ask,
    /// Where the life stood.
    pub state: State,
}
