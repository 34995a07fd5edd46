//! What a run tells: on its way, and at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use gpuvm_core::lifecycle::{Halt, Outcome, Stage, State};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Warning;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::repair::{Climbed, Rung};
use gpuvm_core::reset::{Heard, Judgement, Method, Snapshot};
use gpuvm_host::HostError;
use gpuvm_host::kernel_log::KernelSaid;
use gpuvm_qmp::verbs::VcpuThread;
use serde::Serialize;

use crate::error::below;

/// A step on the way, reported when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The devices are reserved.
    Reserving,
    /// The host is being changed.
    Preparing {
        /// How many operations.
        operations: usize,
    },
    /// One change.
    Operation {
        /// It in words.
        what: String,
    },
    /// The kernel is asked whether the groups can be used.
    Checking {
        /// How many groups.
        groups: usize,
    },
    /// QEMU is being started.
    Starting,
    /// The vCPUs are being pinned.
    Pinning {
        /// How many.
        vcpus: usize,
    },
    /// The guest runs.
    Running {
        /// QEMU's process.
        pid: i32,
        /// Its version.
        qemu: String,
    },
    /// The guest of a gpuvm that is dead goes on, and is seen to by this one.
    Adopted {
        /// QEMU's process.
        pid: i32,
        /// Its version.
        qemu: String,
    },
    /// The machine was reset, by its guest or because that was asked for, and goes on.
    Rebooting {
        /// For the how many-th time.
        count: u32,
    },
    /// QEMU has said that it shuts down.
    Leaving {
        /// Why, in its words.
        reason: String,
    },
    /// The guest is being ended.
    Stopping {
        /// By what.
        stage: Stage,
    },
    /// QEMU is gone.
    Ended,
    /// A device is being reset, as the plan wants it.
    Resetting {
        /// The device.
        bdf: Bdf,
        /// By what.
        method: Method,
    },
    /// The devices are being looked at.
    Judging,
    /// A device has come back sick, and a rung of the ladder is tried.
    Repairing {
        /// The device.
        bdf: Bdf,
        /// The rung.
        rung: Rung,
    },
    /// The guest has rebooted, and QEMU is being started again.
    Relaunching {
        /// For the how many-th time.
        count: u32,
    },
    /// The host is being given back.
    GivingBack,
    /// A VM whose launcher is dead is taken over by a cleanup.
    TakingOver {
        /// The VM.
        vm: VmName,
    },
    /// The QEMU of a dead launcher is being ended.
    EndingQemu {
        /// Its process.
        pid: i32,
    },
    /// One change is being undone.
    Undoing {
        /// The change in words.
        what: String,
    },
    /// All changes are undone: the devices are given free.
    Releasing,
}

/// Something worth telling that is no step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note(pub String);

/// Who is told while a VM runs.
pub trait Observer {
    /// A step begins.
    fn phase(&mut self, phase: &Phase);
    /// Something happened that the user should know.
    fn note(&mut self, note: &Note);
    /// The VM's life stands somewhere else; why its vCPUs don't run, of a guest that is paused.
    fn state(&mut self, _state: State, _halt: Option<&Halt>) {}
    /// The VM is reserved, and its folder is made.
    fn reserved(&mut self) {}
    /// QEMU was started.
    fn started(&mut self, _pid: i32) {}
    /// The threads of the vCPUs are known.
    fn threads(&mut self, _threads: &[VcpuThread]) {}
    /// A device was judged: before the run, between two boots, or after it.
    fn judged(&mut self, _bdf: Bdf, _judgement: &Judgement) {}
    /// QEMU said something unasked.
    fn qmp(&mut self, _event: &gpuvm_qmp::Event) {}
}

/// How long a part took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timing {
    /// The part.
    pub phase: &'static str,
    /// Its length in ms.
    pub ms: u128,
}

impl Timing {
    /// Makes an entry.
    pub fn new(phase: &'static str, took: Duration) -> Self {
        Self { phase, ms: took.as_millis() }
    }
}

/// How a run ended.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The VM.
    pub name: VmName,
    /// Why the guest ended.
    pub outcome: Outcome,
    /// How often it rebooted and went on, in place or by being started again.
    pub reboots: u32,
    /// How each device came back.
    pub devices: Vec<DeviceReport>,
    /// Of devices that came back otherwise than healthy from a boot before the last, how they did when it was worst.
    #[serde(skip)]
    pub between_boots: BTreeMap<Bdf, DeviceReport>,
    /// The resets that the kernel made for QEMU, by its log: when QEMU opened a device or reset it, in ms.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kernel_resets: BTreeMap<Bdf, Vec<u64>>,
    /// What of the host is not as it was, in words; empty when all is given back.
    pub not_given_back: Vec<String>,
    /// What was asked for and wasn't had, and what is to be known.
    pub warnings: Vec<Warning>,
    /// How long each part took.
    pub timings: Vec<Timing>,
    /// What QEMU and the kernel said, of a guest that ended badly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_words: Option<LastWords>,
    /// What is not given back, for those who add remedies.
    #[serde(skip)]
    pub left: Vec<HostError>,
}

/// What was said before a guest ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastWords {
    /// The end of what QEMU said.
    pub qemu: String,
    /// What the kernel said about the VM's devices.
    pub kernel: KernelSaid,
}

impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.qemu.trim() {
            "" => write!(f, "QEMU said nothing{}", self.kernel),
            text => write!(f, "QEMU said:\n{text}{}", below(&self.kernel)),
        }
    }
}

/// How one device came back.
#[derive(Debug)]
pub struct DeviceReport {
    /// The device.
    pub bdf: Bdf,
    /// The verdict: that after its repair, of one that was repaired.
    pub judgement: Judgement,
    /// The reset that gpuvm made before it, if the plan wanted one.
    pub reset: Option<ResetReport>,
    /// The rungs of the ladder that were tried, of a device that came back sick and may be repaired.
    pub repair: Vec<Climbed>,
    /// The verdict before the repair, of a device that was to be repaired.
    pub before_repair: Option<Judgement>,
    /// What the verdict rests on; nothing where another process has judged it. `--json` has it of a device that isn't healthy.
    pub evidence: Option<Box<Evidence>>,
}

impl Serialize for DeviceReport {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            bdf: Bdf,
            #[serde(flatten)]
            judgement: &'a Judgement,
            #[serde(skip_serializing_if = "Option::is_none")]
            reset: Option<&'a ResetReport>,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            repair: &'a [Climbed],
            #[serde(skip_serializing_if = "Option::is_none")]
            before_repair: Option<&'a Judgement>,
            #[serde(flatten, skip_serializing_if = "Option::is_none")]
            evidence: Option<&'a Evidence>,
        }
        let Self { bdf, judgement, reset, repair, before_repair, evidence } = self;
        let healthy = judgement.reason().is_none();
        let evidence = evidence.as_deref().filter(|_| !healthy);
        let (reset, before_repair) = (reset.as_ref(), before_repair.as_ref());
        Shown { bdf: *bdf, judgement, reset, repair, before_repair, evidence }.serialize(serializer)
    }
}

impl DeviceReport {
    /// Returns the rung that has brought it back, of a device that came back sick.
    pub fn repaired_by(&self) -> Option<&Climbed> {
        self.repair.last().filter(|last| last.helped())
    }
}

/// A reset that gpuvm made itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResetReport {
    /// How.
    pub method: Method,
    /// How long it took, in ms.
    pub ms: u64,
    /// Why it failed; nothing of one that the kernel says succeeded.
    pub failure: Option<String>,
}

/// What a verdict rests on.
#[derive(Debug, Clone, Serialize)]
pub struct Evidence {
    /// The device before anything was done.
    pub before: Snapshot,
    /// The device when it was judged.
    pub after: Snapshot,
    /// What the kernel said of it between; nothing where it was judged before anything was done.
    pub heard: Option<Heard>,
}

impl Report {
    /// Tells whether no device is sick.
    pub fn all_well(&self) -> bool {
        self.devices.iter().all(|device| !device.judgement.verdict.is_bad())
    }
}
