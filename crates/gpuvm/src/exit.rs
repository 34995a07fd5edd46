//! Exit codes as a type: sysexits(3) where they fit, so that systemd and schedulers can tell them apart.

use std::process::ExitCode;

use serde::{Serialize, Serializer};

/// How gpuvm ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// All went well.
    Ok = 0,
    /// The guest ended badly: its kernel panicked, or QEMU died.
    Guest = 1,
    /// The command line makes no sense.
    Usage = 64,
    /// This host can't do it.
    Unfit = 69,
    /// A defect of gpuvm, or of the machine below it.
    Internal = 70,
    /// A device is sick, or the host is not wholly given back.
    NotGivenBack = 74,
    /// Somebody else has it: try later.
    Busy = 75,
    /// The user may not.
    Permission = 77,
    /// The profile is wrong.
    Profile = 78,
    /// It took too long.
    Timeout = 124,
}

impl Exit {
    /// Returns what a code means; nothing for one that no gpuvm ends with.
    pub(crate) fn of(code: u8) -> Option<Self> {
        let all = [
            Self::Ok,
            Self::Guest,
            Self::Usage,
            Self::Unfit,
            Self::Internal,
            Self::NotGivenBack,
            Self::Busy,
            Self::Permission,
            Self::Profile,
            Self::Timeout,
        ];
        all.into_iter().find(|exit| *exit as u8 == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Serialize for Exit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(*self as u8)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    /// Tells whether it may be otherwise the next time, although nobody has changed anything.
    fn may_be_tried_again(exit: Exit) -> bool {
        match exit {
            Exit::Ok | Exit::Guest | Exit::Busy | Exit::Timeout => true,
            Exit::Usage
            | Exit::Unfit
            | Exit::Internal
            | Exit::NotGivenBack
            | Exit::Permission
            | Exit::Profile => false,
        }
    }

    #[test]
    fn the_unit_is_not_restarted_after_what_a_restart_cannot_mend() {
        let unit = include_str!("../../../dist/systemd/gpuvm@.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap();
        let prevented: Vec<u8> = line.split(' ').map(|code| code.parse().unwrap()).collect();
        let final_ones = (0..=u8::MAX).filter_map(Exit::of).filter(|exit| !may_be_tried_again(*exit));
        assert_eq!(prevented, final_ones.map(|exit| exit as u8).collect::<Vec<_>>());
    }
}
