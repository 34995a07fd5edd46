//! The ladder: what can be tried with a device that came back sick, from the mildest to the roughest.
//!
//! Each rung is tried only where the policy allows it and everything that it reaches is in hand, and each ends with a look at the
//! device: what the kernel calls success proves nothing. What is above the last rung only a person can do.

mod ladder;

use serde::{Deserialize, Serialize};

pub use self::ladder::{climbs, ladder};
use super::{Judgement, Reading, Rejected, Snapshot};
use crate::facts::ErrorCounters;
use crate::pci::{Bdf, GroupId};

/// A rung of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// VFIO's reset of the device's bus, with everything on it.
    Hot,
    /// The kernel's reset of everything below the bridge above the device (`reset_subordinate`; since Linux 6.12.5 and 6.13).
    Subordinate,
    /// The device is removed from the kernel, and its bus is scanned anew.
    Rescan,
}

impl Rung {
    /// All rungs, the mildest first.
    pub const ALL: [Self; 3] = [Self::Hot, Self::Subordinate, Self::Rescan];

    /// Returns its name in a profile, on the command line and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Subordinate => "subordinate",
            Self::Rescan => "rescan",
        }
    }
}

/// Who wants a device repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A profile's `repair`, for whatever comes back sick from a guest.
    ByProfile,
    /// A person who names the device and the rung (`gpuvm reset --repair`).
    ByPerson,
}

impl Rung {
    /// Tells whether a device whose planned reset failed may be called well after this rung. Of a profile's device the next guest must
    /// find nothing of the one before: a reset wipes that, and being removed and found anew alone doesn't, so a rescan is no way out
    /// there. A person who asks for a rescan of this very device has weighed that, and wants it to answer again.
    pub fn stands_in_for_a_reset(self, wanted: Wanted) -> bool {
        self != Self::Rescan || wanted == Wanted::ByPerson
    }

    /// Returns what a function is held against after this rung: its baseline, but for the errors that were counted since, before the
    /// rung. A device that was found anew has counted none.
    pub fn yardstick(self, baseline: &Snapshot, sick: Option<&Snapshot>) -> Snapshot {
        let mut yardstick = baseline.clone();
        if let Some(sick) = sick {
            yardstick.errors = counted(&sick.errors, &baseline.errors);
            if let (Some(port), Some(now)) = (yardstick.port.as_mut(), sick.port.as_ref()) {
                port.root_errors = counted(&now.root_errors, &port.root_errors);
            }
        }
        if self == Self::Rescan && yardstick.errors.read().is_some() {
            yardstick.errors = Reading::Read(ErrorCounters::default());
        }
        yardstick
    }
}

/// Takes the later of two counts, if it could be read.
fn counted(later: &Reading<ErrorCounters>, earlier: &Reading<ErrorCounters>) -> Reading<ErrorCounters> {
    if later.read().is_some() { later.clone() } else { earlier.clone() }
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How far the ladder may be climbed: up to this rung, from the mildest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RepairPolicy {
    /// A sick device stays as it is.
    #[default]
    Never,
    /// Its bus may be reset through VFIO.
    Hot,
    /// All below its bridge may be reset too.
    Subordinate,
    /// It may be removed and found anew too.
    Rescan,
}

impl RepairPolicy {
    /// Tells whether none may be tried.
    pub fn is_never(&self) -> bool {
        *self == Self::Never
    }

    /// Tells whether a rung may be tried.
    pub fn allows(self, rung: Rung) -> bool {
        match self {
            Self::Never => false,
            Self::Hot => rung <= Rung::Hot,
            Self::Subordinate => rung <= Rung::Subordinate,
            Self::Rescan => true,
        }
    }
}

impl From<Rung> for RepairPolicy {
    /// Up to a rung.
    fn from(rung: Rung) -> Self {
        match rung {
            Rung::Hot => Self::Hot,
            Rung::Subordinate => Self::Subordinate,
            Rung::Rescan => Self::Rescan,
        }
    }
}

impl std::str::FromStr for Rung {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|rung| rung.name() == text);
        named.ok_or_else(|| "expected hot, subordinate or rescan".to_owned())
    }
}

impl std::fmt::Display for RepairPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Never => "never",
            Self::Hot => "hot",
            Self::Subordinate => "subordinate",
            Self::Rescan => "rescan",
        })
    }
}

/// What can be tried with a device, decided while it was well: a dead one tells nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder {
    /// The device.
    pub bdf: Bdf,
    /// The rungs that may be tried, the mildest first.
    pub rungs: Vec<Climb>,
    /// Those that may not, or can't be, and why.
    pub left_out: Vec<Rejected>,
}

/// One rung, as it would be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Climb {
    /// The rung.
    pub rung: Rung,
    /// All functions that it reaches, bridges among them: they are judged afterwards, but for those.
    pub functions: Vec<Bdf>,
    /// The groups that it needs open: of a hot reset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupId>,
    /// The bridge or root port right above the device.
    #[serde(default)]
    pub port: Option<Bdf>,
    /// Why it is there.
    pub reason: String,
}

/// A rung that was tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Climbed {
    /// The rung.
    pub rung: Rung,
    /// How long it took, the look afterwards left out, in ms.
    pub ms: u64,
    /// Why it failed; nothing of one that the kernel says succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How the device was afterwards.
    pub judgement: Judgement,
}

impl Climbed {
    /// Tells whether the device is fit to be used again.
    pub fn helped(&self) -> bool {
        self.failure.is_none()
            && !self.judgement.verdict.is_bad()
            && self.judgement.verdict != super::Verdict::Unknown
    }
}

impl std::fmt::Display for Climbed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rung, ms, failure, judgement } = self;
        write!(f, "repair by {rung}, {ms} ms")?;
        failure.iter().try_for_each(|why| write!(f, ", which failed ({why})"))?;
        write!(f, ": it is {}", judgement.verdict)?;
        judgement.reason().iter().try_for_each(|finding| write!(f, ": {finding}"))
    }
}

/// Says what only a person can do where the ladder has ended, the mildest first.
pub const BY_HAND: [&str; 3] = [
    "suspend the host to RAM and wake it again (rtcwake -m mem -s 10): some cards come back from that",
    "reboot the host",
    "switch the host off and take its power away for a minute: nothing else resets all of a card",
];
