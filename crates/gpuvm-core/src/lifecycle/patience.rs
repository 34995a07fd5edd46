//! How long a guest's end may take, and how often it may reboot.

use std::time::Duration;

use super::outcome::NotAgain;
use crate::reset::wait;

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
