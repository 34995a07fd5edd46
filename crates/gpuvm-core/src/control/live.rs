//! A VM as it is now.

use serde::{Deserialize, Serialize};

use super::Entry;
use crate::lifecycle::Exit;
use crate::pci::Bdf;
use crate::plan::Warning;
use crate::profile::VmName;
use crate::reset::Verdict;
use crate::units::ByteSize;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The devices are being reserved, the host is being changed.
    Preparing,
    /// QEMU is being started; the guest doesn't run yet.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's vCPUs are stopped, and can go on.
    Paused,
    /// The guest was asked to power off.
    PoweringDown,
    /// QEMU was told to quit, or is on its way out.
    Quitting,
    /// QEMU was killed.
    Killing,
    /// QEMU is gone; the devices are being looked at.
    Judging,
    /// The host is being given back.
    GivingBack,
    /// It is all over.
    Over,
    /// One that a newer gpuvm has.
    #[serde(other)]
    Other,
}

impl State {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::PoweringDown => "powering-down",
            Self::Quitting => "quitting",
            Self::Killing => "killing",
            Self::Judging => "judging",
            Self::GivingBack => "giving-back",
            Self::Over => "over",
            Self::Other => "other",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What is to be known of a VM that has a supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// The VM.
    pub name: VmName,
    /// Where its run stands.
    pub state: State,
    /// Why it is there, where there is more to say: what stopped the guest, or who asked for its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Since when it is there, in ms since 1970.
    pub since_ms: u64,
    /// When the run began, in ms since 1970.
    pub begun_ms: u64,
    /// The boot of the host.
    pub boot_id: String,
    /// Its supervisor.
    pub supervisor: Gpuvm,
    /// Its QEMU, while there is one.
    pub qemu: Option<Qemu>,
    /// How often the guest has rebooted.
    pub reboots: u32,
    /// How long the parts of the run took that are over.
    pub timings: Vec<Timing>,
    /// The vCPUs with their threads, once there are any.
    pub vcpus: Vec<Vcpu>,
    /// The devices that the guest has.
    pub devices: Vec<Device>,
    /// The guest's memory, one entry per guest node.
    pub memory: Vec<Node>,
    /// What was asked for and isn't had, and what is to be known.
    pub warnings: Vec<Warning>,
    /// The last things that happened, the newest last.
    pub events: Vec<Entry>,
}

/// A supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpuvm {
    /// Its process.
    pub pid: i32,
    /// Its version.
    pub version: String,
    /// Whether it runs on without a terminal.
    pub detached: bool,
}

/// A QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// Its process.
    pub pid: i32,
    /// Its version, once it has said it.
    pub version: Option<String>,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// How long a part of a run took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The part.
    pub phase: String,
    /// Its length in ms.
    pub ms: u64,
}

/// A vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub vcpu: u32,
    /// Its thread on the host.
    pub thread: i32,
    /// The CPU that it is pinned to; nothing where it isn't.
    pub cpu: Option<u32>,
}

/// A device of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// It.
    pub bdf: Bdf,
    /// Its name, where one is known, or its ids.
    pub name: String,
    /// The driver that has it now.
    pub driver: Option<String>,
    /// Its link as the kernel has it now, such as `16.0 GT/s x16`.
    pub link: Option<String>,
    /// How it was when it was last looked at: before the run, between two boots, or after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// What was found of it then; nothing of one that is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<String>,
}

/// Memory of one guest node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The guest's node.
    pub guest_node: u32,
    /// The host's node that it is to come from; nothing where that is left to the kernel.
    pub host_node: Option<u32>,
    /// Its size.
    pub size: ByteSize,
    /// What pages it is made of, such as `2M`.
    pub pages: String,
}
