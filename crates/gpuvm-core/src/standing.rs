//! Where a VM stands by what is written down of it, whether or not anybody answers for it.
//!
//! A supervisor tells more, and what it says is newer. What is here holds without one: a launcher that was killed, one that hangs, and
//! a host that has rebooted are told apart by records and by which of their processes are alive.

use serde::{Deserialize, Serialize};

/// Whether a process is alive that a record names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alive {
    /// It is.
    Yes,
    /// It has ended, or was never started.
    No,
}

impl From<bool> for Alive {
    fn from(alive: bool) -> Self {
        if alive { Self::Yes } else { Self::No }
    }
}

/// A VM's reservation, as far as it says where the VM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// There is none.
    No,
    /// It was made in this boot.
    Now {
        /// Its supervisor.
        supervisor: Alive,
        /// Its QEMU; nothing before that is started.
        qemu: Option<Alive>,
        /// Whether a write to the kernel has not come back.
        in_flight: Alive,
    },
    /// The host has rebooted since.
    BeforeReboot,
    /// It can't be read.
    Unreadable,
}

/// A VM's journal, as far as it says where the VM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journaled {
    /// There is none, or it is closed.
    Nothing,
    /// So many changes of this boot are not undone.
    Open(usize),
    /// The host has rebooted since.
    BeforeReboot,
    /// It can't be read.
    Unreadable,
}

/// What is written down of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records {
    /// Its reservation.
    pub reserved: Reserved,
    /// Its journal.
    pub journal: Journaled,
    /// Other files that a run has left: its folder, or overlays of its disks.
    pub files: Files,
}

/// Whether there are files of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// There are.
    Left,
    /// There are none.
    None,
}

/// Where a VM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its supervisor is alive, and so is its QEMU.
    Running,
    /// Its supervisor is alive and has not started QEMU yet.
    Starting,
    /// QEMU is gone, and its supervisor gives the host back.
    Stopping,
    /// Its QEMU is alive and nobody sees to it.
    Unsupervised,
    /// All of its processes are dead, and it has left something behind.
    Stale,
    /// Nothing tells of a run.
    None,
    /// What is written down of it can't be read.
    Unknown,
}

impl Standing {
    /// Names it as programs read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::Unsupervised => "unsupervised",
            Self::Stale => "stale",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }

    /// Tells whether somebody is there who can be asked.
    pub fn has_supervisor(self) -> bool {
        matches!(self, Self::Running | Self::Starting | Self::Stopping)
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Says where a VM stands.
///
/// A live process decides; the journal and the files count only where none is left. A reservation that can't be read hides whether one
/// is: then nothing is said to be stale, since `gpuvm cleanup` would be the advice.
pub fn standing(records: &Records) -> Standing {
    let left = |records: &Records| match (records.journal, records.files) {
        (Journaled::Nothing, Files::None) => Standing::None,
        _ => Standing::Stale,
    };
    match records.reserved {
        Reserved::Now { supervisor: Alive::Yes, qemu: None, .. } => Standing::Starting,
        Reserved::Now { supervisor: Alive::Yes, qemu: Some(Alive::Yes), .. } => Standing::Running,
        Reserved::Now { supervisor: Alive::Yes, qemu: Some(Alive::No), .. } => Standing::Stopping,
        Reserved::Now { supervisor: Alive::No, qemu: Some(Alive::Yes), .. } => Standing::Unsupervised,
        Reserved::Now { supervisor: Alive::No, .. } | Reserved::BeforeReboot => Standing::Stale,
        Reserved::No => left(records),
        Reserved::Unreadable => Standing::Unknown,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use rstest::rstest;

    use super::*;

    const CLOSED: Journaled = Journaled::Nothing;

    fn now(supervisor: bool, qemu: Option<bool>, in_flight: bool) -> Reserved {
        Reserved::Now {
            supervisor: supervisor.into(),
            qemu: qemu.map(Alive::from),
            in_flight: in_flight.into(),
        }
    }

    #[rstest]
    #[case::nothing_is_written(Reserved::No, CLOSED, Files::None, Standing::None)]
    #[case::before_qemu(now(true, None, false), Journaled::Open(2), Files::Left, Standing::Starting)]
    #[case::before_qemu_and_its_journal(now(true, None, false), CLOSED, Files::None, Standing::Starting)]
    #[case::while_a_write_hangs(now(true, None, true), Journaled::Open(2), Files::Left, Standing::Starting)]
    #[case::the_guest_runs(now(true, Some(true), false), Journaled::Open(2), Files::Left, Standing::Running)]
    #[case::without_devices(now(true, Some(true), false), CLOSED, Files::Left, Standing::Running)]
    #[case::qemu_is_gone(now(true, Some(false), false), Journaled::Open(2), Files::Left, Standing::Stopping)]
    #[case::launcher_killed(
        now(false, Some(true), false),
        Journaled::Open(2),
        Files::Left,
        Standing::Unsupervised
    )]
    #[case::launcher_killed_and_a_write_hangs(
        now(false, Some(true), true),
        Journaled::Open(2),
        Files::Left,
        Standing::Unsupervised
    )]
    #[case::both_killed(now(false, Some(false), false), Journaled::Open(2), Files::Left, Standing::Stale)]
    #[case::killed_before_qemu(now(false, None, false), Journaled::Open(1), Files::Left, Standing::Stale)]
    #[case::killed_before_release(now(false, Some(false), false), CLOSED, Files::None, Standing::Stale)]
    #[case::killed_while_a_write_hangs(
        now(false, None, true),
        Journaled::Open(1),
        Files::Left,
        Standing::Stale
    )]
    #[case::rebooted(Reserved::BeforeReboot, Journaled::BeforeReboot, Files::Left, Standing::Stale)]
    #[case::rebooted_with_run_gone(Reserved::No, CLOSED, Files::Left, Standing::Stale)]
    #[case::journal_without_reservation(Reserved::No, Journaled::Open(1), Files::None, Standing::Stale)]
    #[case::unreadable_journal(Reserved::No, Journaled::Unreadable, Files::Left, Standing::Stale)]
    #[case::unreadable_journal_of_a_live_one(
        now(true, Some(true), false),
        Journaled::Unreadable,
        Files::Left,
        Standing::Running
    )]
    #[case::unreadable_reservation(Reserved::Unreadable, CLOSED, Files::Left, Standing::Unknown)]
    fn records_and_live_processes_say_where_a_vm_stands(
        #[case] reserved: Reserved,
        #[case] journal: Journaled,
        #[case] files: Files,
        #[case] expected: Standing,
    ) {
        assert_eq!(standing(&Records { reserved, journal, files }), expected);
    }

    #[test]
    fn a_vm_with_a_live_process_is_never_stale_or_none() {
        let journals =
            [Journaled::Nothing, Journaled::Open(1), Journaled::BeforeReboot, Journaled::Unreadable];
        for (supervisor, qemu) in [(true, None), (true, Some(true)), (true, Some(false)), (false, Some(true))]
        {
            for journal in journals {
                for files in [Files::Left, Files::None] {
                    let records = Records { reserved: now(supervisor, qemu, false), journal, files };
                    let standing = standing(&records);
                    assert!(!matches!(standing, Standing::Stale | Standing::None), "{records:?}");
                    assert_eq!(standing.has_supervisor(), supervisor, "{records:?}");
                }
            }
        }
    }
}
