//! The record of a soak: what each line of its file holds.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Mix, StopOn};
use crate::facts::{ErrorCounters, LinkFacts, LinkSpeed};
use crate::lifecycle::Outcome;
use crate::pci::{Bdf, PciId};
use crate::profile::VmName;
use crate::reset::repair::Climbed;
use crate::reset::{Finding, Judgement, Method, Snapshot};

/// The version of the record's language.
pub const VERSION: u32 = 1;

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "line")]
pub enum Line {
    /// The soak begins, or goes on after it was stopped.
    Begun(Box<Begun>),
    /// A cycle is over.
    Cycle(Box<Cycle>),
    /// A cycle that gpuvm didn't see the end of: written by the soak that goes on after it.
    Cut(Cut),
    /// The soak is over.
    Ended(Ended),
    /// Something that this gpuvm doesn't know, of a newer one: kept as it was written.
    #[serde(untagged)]
    Newer(Map<String, Value>),
}

impl Line {
    /// Returns the number of the cycle that it tells of.
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Cycle(cycle) => Some(cycle.number),
            Self::Cut(cut) => Some(cut.number),
            Self::Begun(_) | Self::Ended(_) | Self::Newer(_) => None,
        }
    }
}

/// The beginning of a soak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// The version of the record's language.
    pub version: u32,
    /// When, in seconds since 1970-01-01 UTC.
    pub at: u64,
    /// The VM.
    pub vm: VmName,
    /// The cycles that were over before: 0 of a soak that begins.
    #[serde(default)]
    pub done_before: u32,
    /// What was asked for.
    pub settings: Settings,
    /// The machine that it runs on.
    pub machine: Machine,
    /// The devices, as they were before the first cycle.
    pub devices: Vec<DeviceStart>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The profile's path, as it was given.
    pub profile: String,
    /// Its text.
    pub profile_text: String,
    /// What was set beside it (`--set`).
    #[serde(default)]
    pub set: Vec<String>,
    /// The most cycles, those before the soak went on counted.
    #[serde(default)]
    pub cycles: Option<u32>,
    /// The longest time, in seconds; the cycle that runs when it is over is the last.
    #[serde(default)]
    pub seconds: Option<u64>,
    /// The kinds of cycles.
    #[serde(default)]
    pub mix: Mix,
    /// When a guest is ready to be ended.
    pub ready: Ready,
    /// The host's command that is run again and again meanwhile.
    #[serde(default)]
    pub poll: Option<String>,
    /// What stops it before its time.
    #[serde(default)]
    pub stop_on: StopOn,
    /// How long a guest may take to power off when asked to, in seconds; nothing where that is as the profile says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_timeout: Option<u32>,
}

/// When a guest is ready to be ended: when everything that is asked for here has come to pass, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// A line of its console matches this.
    #[serde(default)]
    pub expect: Option<String>,
    /// Its job has reported.
    #[serde(default)]
    pub job: bool,
    /// So long has passed since, in ms.
    #[serde(default)]
    pub after_ms: u64,
    /// How long the first two may take, in seconds.
    pub timeout_seconds: u64,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// This gpuvm's version.
    pub gpuvm: String,
    /// The boot.
    #[serde(default)]
    pub boot_id: String,
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's build, as /proc/version has it.
    #[serde(default)]
    pub kernel_build: String,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// QEMU's version; nothing until one has greeted.
    #[serde(default)]
    pub qemu: Option<String>,
    /// Who made the machine and what it is, as DMI has it.
    #[serde(default)]
    pub product: Option<String>,
    /// Its firmware: vendor, version, date.
    #[serde(default)]
    pub firmware: Option<String>,
    /// The CPU's model.
    #[serde(default)]
    pub cpu: Option<String>,
}

/// A device before the first cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStart {
    /// It.
    pub bdf: Bdf,
    /// Its ids.
    pub id: PciId,
    /// What it is called, where that is known.
    #[serde(default)]
    pub name: Option<String>,
    /// Its link.
    #[serde(default)]
    pub link: Option<LinkFacts>,
    /// The kernel's reset methods of it.
    #[serde(default)]
    pub reset_methods: Vec<String>,
    /// All that it said of itself: what later cycles are held against, so that a slow decay isn't taken for normal.
    pub snapshot: Box<Snapshot>,
}

/// A cycle that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cycle {
    /// Its number; the first one is 1.
    pub number: u32,
    /// How its guest was to end.
    pub kind: super::CycleKind,
    /// When it began, in seconds since 1970-01-01 UTC.
    pub at: u64,
    /// How long it took, in ms.
    pub ms: u64,
    /// How long it was waited before, for what somebody else had, in ms.
    #[serde(default, skip_serializing_if = "is_none")]
    pub waited_ms: u64,
    /// How long each part took, in the order in which they came; one that comes twice is there twice.
    pub phases: Vec<PhaseTime>,
    /// How the guest ended; nothing of one that never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What went wrong besides the devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    /// How each device came back.
    pub devices: Vec<DeviceCycle>,
    /// What the guest's job reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobReport>,
    /// What came of the command that polls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub polled: Option<Polled>,
    /// What gpuvm itself used when it was over.
    pub own: OwnUse,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_none(ms: &u64) -> bool {
    *ms == 0
}

/// How long a part of a cycle took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// The part.
    pub phase: Phase,
    /// Its length, in ms.
    pub ms: u64,
}

/// A part of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The host is read, and everything is decided.
    Plan,
    /// Devices are reserved and looked at, and the host is changed.
    Prepare,
    /// From QEMU's start to the guest's.
    Start,
    /// From the guest's start to when it is ready.
    Boot,
    /// From when it is ready to when its end, or its reset, is asked for.
    Work,
    /// From the guest's reset to when it is ready again.
    Reboot,
    /// From when its end is asked for, or has come unasked, to QEMU's end.
    Stop,
    /// gpuvm's own resets.
    Reset,
    /// Devices are looked at.
    Judge,
    /// Sick devices are repaired.
    Repair,
    /// The host is given back.
    GiveBack,
}

impl Phase {
    /// All parts, in the order in which they usually come.
    pub const ALL: [Self; 11] = [
        Self::Plan,
        Self::Prepare,
        Self::Start,
        Self::Boot,
        Self::Work,
        Self::Reboot,
        Self::Stop,
        Self::Reset,
        Self::Judge,
        Self::Repair,
        Self::GiveBack,
    ];

    /// Returns its name in the record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Boot => "boot",
            Self::Work => "work",
            Self::Reboot => "reboot",
            Self::Stop => "stop",
            Self::Reset => "reset",
            Self::Judge => "judge",
            Self::Repair => "repair",
            Self::GiveBack => "give-back",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What went wrong in a cycle besides the devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "fault")]
pub enum Fault {
    /// The guest didn't get ready in time.
    NotReady {
        /// What was waited for, in words.
        waited_for: String,
        /// How long, in ms.
        ms: u64,
    },
    /// The guest ended before it was ready, or otherwise than it was to.
    EndedOtherwise {
        /// How, in words.
        how: String,
    },
    /// Its job reported a failure.
    Job {
        /// What it said.
        message: String,
    },
    /// The guest never ran.
    Refused {
        /// Why.
        message: String,
        /// The exit code that `up` would have ended with.
        exit_code: u8,
    },
    /// Something of the host is not as it was.
    NotGivenBack {
        /// What.
        message: String,
    },
}

/// How a device came back from a cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceCycle {
    /// It.
    pub bdf: Bdf,
    /// The verdict, against the baseline of this cycle; after the repair, of one that was repaired.
    #[serde(flatten)]
    pub judgement: Judgement,
    /// What is otherwise than before the first cycle, and wasn't found by the verdict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<Finding>,
    /// The speed of its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<LinkSpeed>,
    /// The lanes of its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u8>,
    /// The errors that were counted in this cycle, by the device and its root port.
    #[serde(default, skip_serializing_if = "no_errors")]
    pub errors: ErrorCounters,
    /// The resets whose times are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resets: Vec<ResetTime>,
    /// The steps of its repair.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repair: Vec<Climbed>,
    /// The verdict before its repair, of one that was repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_repair: Option<Judgement>,
    /// What the kernel said of it, where it isn't healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<String>,
}

fn no_errors(errors: &ErrorCounters) -> bool {
    *errors == ErrorCounters::default()
}

/// A reset, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetTime {
    /// Who made it.
    pub by: ResetWay,
    /// How, where that is known for certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// How long it took, in ms.
    pub ms: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Who made a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetWay {
    /// gpuvm, as the plan wanted it or for a repair.
    Gpuvm,
    /// The kernel, for QEMU: when it opened the device or reset it (`resetting` and `reset done` of the kernel's log).
    Kernel,
}

/// What a guest's job reported: one line of its console that begins with `gpuvm-job:`, followed by a JSON object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// Its exit code: 0 if all went well.
    pub exit: i32,
    /// What it has to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Its figures, under names of its own.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub figures: Map<String, Value>,
}

/// What came of the command that polls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Polled {
    /// How often it ended in this cycle.
    pub runs: u32,
    /// How often it failed.
    pub failed: u32,
    /// The longest that it took, in ms; of one that hasn't ended, so far.
    pub longest_ms: u64,
    /// The end of what the last one that failed said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// Whether one hasn't come back for longer than it may: no other is started meanwhile.
    #[serde(default)]
    pub hangs: bool,
}

/// What gpuvm itself used when a cycle was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OwnUse {
    /// Its memory (VmRSS), in KiB.
    pub rss_kib: u64,
    /// Its open files.
    pub fds: u32,
}

/// A cycle that gpuvm didn't see the end of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Its number; it is not run again.
    pub number: u32,
    /// How its guest was to end.
    pub kind: super::CycleKind,
    /// When that was found, in seconds since 1970-01-01 UTC.
    pub at: u64,
    /// What had to be given back of it, and what came of that, in words.
    pub found: Vec<String>,
    /// What is not as it was for all that: sick devices, and what couldn't be given back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

/// The end of a soak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When, in seconds since 1970-01-01 UTC.
    pub at: u64,
    /// Why.
    #[serde(flatten)]
    pub why: Why,
}

/// Why a soak is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum Why {
    /// All cycles were run.
    Done,
    /// Its time is over.
    Time,
    /// A cycle was as bad as it may not be.
    Stopped {
        /// The cycle.
        cycle: u32,
        /// What was found.
        reason: String,
    },
    /// It was asked to end.
    Interrupted {
        /// By which signal.
        signal: String,
    },
}
