//! Profiles: what the user wrote, and what it means.
//!
//! `text --tree--> Tree --raw--> RawProfile --check--> Profile`. Each step collects all its problems, so that a
//! user sees every mistake at once. TOML 1.1 is taken, since the `toml` crate parses it. Each table of the language has a
//! file of its own in `section/`, with its keys, its reader and its rules.

mod check;
pub mod language;
mod name;
mod problem;
mod raw;
pub(crate) mod read;
pub mod schema;
mod section;
pub(crate) mod tree;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use name::VmName;
pub use problem::{Problem, ProblemKind};
pub use raw::RawProfile;
pub use read::Located;
pub use section::cpu::{Cpu, CpuFlag, FlagState, HvVendorId, Pin};
pub use section::device::{DeviceChoice, DeviceRequest, PortAddress};
pub use section::disk::{Disk, DiskFormat, DiskMode, Media};
pub use section::display::{Display, Listen};
pub use section::kernel::KernelBoot;
pub use section::memory::{Hugepages, Memory};
pub use section::network::{Forward, Network, Protocol};
pub use section::ready::{Ready, Said};
pub use section::select::{DeviceClass, Selector};
pub use tree::{Place, Sources};

use crate::reset::RebootPolicy;
use crate::reset::repair::RepairPolicy;
use crate::units::ByteSize;

/// The version of the profile language that this gpuvm speaks.
pub const VERSION: i64 = 1;

/// The most vCPUs taken: the Q35 machine's limit of 288 up to QEMU 7.2 (hw/i386/pc_q35.c; later versions take more).
pub const VCPUS_MAX: u32 = 288;

/// The least memory taken: below it neither SeaBIOS nor OVMF gets to boot anything.
pub const GUEST_MEMORY_MIN: ByteSize = ByteSize::mib(32);

/// The longest time that a guest may be given to power off: a day.
pub const SHUTDOWN_TIMEOUT_MAX: u32 = 86_400;

/// Parses and checks a profile.
///
/// `sources` holds the profile's text and the `--set` overrides; `base` is the folder that relative paths in it start
/// from, the profile's own.
///
/// # Errors
/// Returns every problem that the text has, in the order of the text.
pub fn parse(sources: &Sources, base: &Path) -> Result<Profile, Vec<Problem>> {
    let mut problems = Vec::new();
    let profile = tree::parse(sources, &mut problems).and_then(|tree| {
        let raw = RawProfile::read(&tree, &mut problems);
        check::check(raw, base, &mut problems)
    });
    problems.sort_by_key(|problem| problem.place.clone());
    match profile {
        Some(profile) if problems.is_empty() => Ok(profile),
        _ => Err(problems),
    }
}

/// A checked profile: every default filled in, nothing contradictory left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The VM's name.
    pub name: VmName,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// The guest's firmware.
    pub firmware: FirmwareKind,
    /// The guest's memory.
    pub memory: Memory,
    /// The guest's CPUs.
    pub cpu: Cpu,
    /// A kernel that is booted directly, without a boot loader.
    pub kernel: Option<KernelBoot>,
    /// The devices that are passed through.
    pub devices: Vec<DeviceRequest>,
    /// The devices that are described and not named: [`crate::select::resolve`] turns them into the former. Whoever plans a
    /// profile has done so before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<DeviceChoice>,
    /// The disks and CD-ROMs, in the order of the file.
    pub disks: Vec<Disk>,
    /// The network.
    pub network: Network,
    /// The host's ports that lead to the guest.
    pub forwards: Vec<Forward>,
    /// Where the serial port's output goes.
    pub serial: Serial,
    /// What the guest shows its picture on.
    pub display: Display,
    /// What the guest's clock shows at its start.
    pub rtc: Rtc,
    /// How long the guest may take to power off when asked to, before QEMU is told to quit, in seconds.
    pub shutdown_timeout: u32,
    /// When the VM counts as up.
    #[serde(default)]
    pub ready: Ready,
    /// What happens when the guest reboots.
    #[serde(default)]
    pub reboot: RebootPolicy,
    /// How far a device that came back sick is repaired.
    #[serde(default)]
    pub repair: RepairPolicy,
    /// Words that are added to QEMU's command line as they are; nothing is known of what they do.
    pub extra_args: Vec<String>,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The host's hardware, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator; slow, but it runs anywhere.
    Tcg,
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The kind of firmware that a guest starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareKind {
    /// UEFI (OVMF), found by QEMU's firmware descriptors.
    Uefi,
    /// SeaBIOS, which comes with QEMU.
    Bios,
}

/// Where the serial port's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serial {
    /// To the log and to gpuvm's standard output.
    Console,
    /// To the log only.
    Log,
}

/// What the guest's clock shows at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rtc {
    /// Coordinated Universal Time, as Linux expects it.
    Utc,
    /// The host's local time, as Windows expects it.
    Local,
}

/// What happens when a resource can't be had as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It fails, with the figure that is missing.
    Strict,
    /// It goes on without, with a warning that stays.
    Prefer,
}
