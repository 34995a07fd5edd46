//! What is known about the host: plain data, read once, for the scope of one profile or of the whole host.

mod boot;
mod device;
pub mod file;
mod holder;
mod platform;
mod qemu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cpulist::CpuSet;
use crate::names::PciNames;
use crate::pci::{Bdf, DriverName, GroupId, PciId};
use crate::reset::Quarantine;
use crate::reset::quirks::LocalQuirks;
use crate::units::{ByteSize, PageSize};

pub use boot::{BootFacts, BootModule, Framebuffer, IdMatches, InitramfsFacts, Rule, Viability};
pub use device::{
    BarFacts, BarKind, ConfigFacts, DeviceFacts, ErrorCounters, LinkFacts, LinkSpeed, PowerFacts,
    ResizableBar, VfioAlias,
};
pub use holder::{DEFAULT_ROUTE, Gravity, Holder, ProcessFacts, Users};
pub use platform::{DeviceNode, IommuUnit, PlatformFacts, SystemFacts, UserFacts, VfioParameters};
pub use qemu::{QemuFacts, QemuProbe};

/// The facts that a plan rests on. Serialisable, so that they can go with a bug report.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostFacts {
    /// The running kernel.
    pub kernel: KernelFacts,
    /// The CPUs.
    pub cpus: CpuFacts,
    /// The NUMA nodes by number.
    pub nodes: BTreeMap<u32, NodeFacts>,
    /// The IOMMU units that the kernel uses (`/sys/class/iommu`), such as `dmar0`.
    pub iommus: Vec<String>,
    /// What VFIO offers.
    pub vfio: VfioFacts,
    /// `/dev/kvm`.
    pub kvm: Access,
    /// The devices in scope: those asked for, their slots' and their groups' other functions.
    pub devices: BTreeMap<Bdf, DeviceFacts>,
    /// The groups in scope, with all their members.
    pub groups: BTreeMap<GroupId, Vec<Bdf>>,
    /// The files that the profile names.
    pub files: BTreeMap<PathBuf, FileFacts>,
    /// The QEMU binary, if one was found.
    pub qemu: Option<PathBuf>,
    /// What that QEMU can do.
    #[serde(default)]
    pub qemu_probe: QemuProbe,
    /// QEMU's tool that makes overlays, if it was found.
    #[serde(default)]
    pub qemu_img: Option<PathBuf>,
    /// gpuvm's folder for what of the VM outlives a run: firmware variables and overlays.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// The firmware descriptors, best first (docs/interop/firmware.json of QEMU).
    pub firmware: Vec<FirmwareFacts>,
    /// The machine, its firmware, its distribution, and what of the running system matters to guests.
    #[serde(default)]
    pub platform: PlatformFacts,
    /// What happens to devices at boot: modules, options, rules.
    #[serde(default)]
    pub boot: BootFacts,
    /// The functions that `gpuvm bind` has bound, of all of the host.
    #[serde(default)]
    pub bound: BTreeMap<Bdf, BoundFacts>,
    /// Functions that nobody can take now, with the reason in words: a write to the kernel hangs in them, or what gpuvm wrote down of
    /// them makes no sense.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<Bdf, String>,
    /// Whether the ledger was there to be read; that of a recorded host isn't.
    #[serde(default)]
    pub ledger: Presence,
    /// Functions of which the ledger says that nobody may have them before they are cleared.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quarantined: BTreeMap<Bdf, Quarantine>,
    /// Functions of which the ledger can't be read, with the file and what is wrong with it: they may be in quarantine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ledgers_unread: BTreeMap<Bdf, String>,
    /// What the kernel says of groups; nothing of those that it wasn't asked about.
    #[serde(default)]
    pub viability: BTreeMap<GroupId, Viability>,
    /// What the devices in scope are called (`pci.ids`).
    #[serde(default)]
    pub names: PciNames,
    /// What the bridges above devices in scope are, where they aren't in scope themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<Bdf, PciId>,
    /// What this host's own files say of devices that don't do as they should.
    #[serde(default, skip_serializing_if = "LocalQuirks::is_empty")]
    pub quirks: LocalQuirks,
    /// What couldn't be read, in words: a survey goes on without it, and what rests on it is unknown.
    #[serde(default)]
    pub unread: Vec<String>,
}

/// A function that `gpuvm bind` has bound.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BoundFacts {
    /// The driver that it had.
    pub was: Option<DriverName>,
    /// Why it could not be given back: it is stranded.
    pub stranded: Option<String>,
}

/// The running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// Changes at each boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Which sources it was built from, in its own words (`/proc/version_signature` of Ubuntu, `/proc/version`): a distribution's
    /// release names its own build, and not the stable release that it follows.
    #[serde(default)]
    pub build: String,
}

impl KernelFacts {
    /// Tells whether it is of a series or a later one. A release that isn't known is of none.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(own_major)), Some(Ok(own_minor))) => (own_major, own_minor) >= (major, minor),
            _ => false,
        }
    }
}

impl KernelFacts {
    /// Tells whether the command line has an option with a value, such as `iommu=pt`, alone or in a list with commas.
    pub fn has_option(&self, name: &str, value: &str) -> bool {
        let values = self
            .cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.flat_map(|values| values.split(',')).any(|one| one == value)
    }

    /// Tells whether the command line has a word.
    pub fn has_word(&self, word: &str) -> bool {
        self.cmdline.split_ascii_whitespace().any(|other| other == word)
    }
}

/// The CPUs of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuFacts {
    /// Those that can be scheduled on.
    pub online: CpuSet,
    /// Who made them.
    pub vendor: CpuVendor,
    /// The CPUs that vCPUs of other running VMs are pinned to.
    pub taken: CpuSet,
    /// The threads of each core (`topology/thread_siblings_list`), by lowest CPU.
    pub cores: Vec<CpuSet>,
    /// The width of physical addresses (`address sizes` in /proc/cpuinfo), where it is told.
    #[serde(default)]
    pub phys_bits: Option<u8>,
}

/// Who made a CPU, as far as it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuVendor {
    /// AMD: QEMU shows its threads to a guest only when asked to.
    Amd,
    /// Anybody else.
    #[default]
    Other,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its CPUs, online or not; empty for a node of memory only.
    pub cpus: CpuSet,
    /// Its memory.
    pub memory: ByteSize,
    /// Its memory that nothing uses, or that only caches files.
    pub memory_free: ByteSize,
    /// Its hugepage pools.
    pub hugepages: BTreeMap<PageSize, HugepagePool>,
    /// How far each online node is, in their order, as ACPI's SLIT tells (`distance`; 10 is itself).
    #[serde(default)]
    pub distances: Vec<u8>,
}

/// One node's pool of hugepages of one size, counted in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HugepagePool {
    /// `nr_hugepages`.
    pub total: u64,
    /// `free_hugepages`.
    pub free: u64,
}

/// What VFIO offers on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfioFacts {
    /// `/dev/vfio/vfio`, the container of the group API.
    pub container: Access,
    /// `/dev/iommu`, of iommufd.
    pub iommufd: Access,
    /// Whether the driver vfio-pci is there to bind to.
    pub pci_driver: Presence,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It isn't.
    #[default]
    Absent,
    /// It is.
    Present,
}

impl Presence {
    /// Tells whether there is nothing.
    pub fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

/// What we may do with a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// There is no such node.
    #[default]
    Missing,
    /// It is there, but not for this user.
    Denied,
    /// It can be opened for reading and writing.
    Usable,
}

/// What a file that the profile names turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileFacts {
    /// A file that can be read, or read and written where that was asked.
    Usable {
        /// Its size.
        bytes: u64,
        /// Whether it begins as a qcow2 image does.
        #[serde(default)]
        qcow2: Presence,
    },
    /// A block device that can be read and written.
    BlockDevice,
    /// A block device that the host itself uses: mounted, swap, part of a volume, an array or a pool.
    BlockInUse,
    /// A folder or something else that has no bytes.
    NotAFile,
    /// It can't be opened.
    Unusable {
        /// Why.
        errno: i32,
    },
}

/// One firmware that a descriptor offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareFacts {
    /// The descriptor's file.
    pub descriptor: PathBuf,
    /// Its content.
    pub content: crate::firmware::Descriptor,
}

impl HostFacts {
    /// Returns what is known about a file, or that nothing was read.
    pub fn file(&self, path: &Path) -> Option<FileFacts> {
        self.files.get(path).copied()
    }

    /// Returns what couldn't be read of a path, if anything; of a folder, also what is in it. But what is wrong with one attribute
    /// of a device says nothing about whether the device is there.
    pub fn unread_about(&self, path: &str) -> Option<&str> {
        let of_device = path.strip_prefix("/sys/bus/pci/devices/").is_some_and(|rest| !rest.contains('/'));
        let about = |unread: &&String| {
            unread.match_indices(path).any(|(at, _)| match unread[at + path.len()..].chars().next() {
                None | Some(':' | ' ') => true,
                Some('/') => !of_device,
                Some(_) => false,
            })
        };
        self.unread.iter().find(about).map(String::as_str)
    }

    /// Returns the functions of the slot that a device sits in, itself included.
    pub fn slot_of(&self, bdf: Bdf) -> impl Iterator<Item = Bdf> + '_ {
        self.devices.range(bdf.slot().functions()).map(|(other, _)| *other)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::itself("read /x/sys/class/iommu: Too many levels", "/sys/class/iommu", true)]
    #[case::its_content("/x/proc/swaps holds `a`: no", "/proc/swaps", true)]
    #[case::something_in_it("read /sys/class/iommu/dmar0/cap: no", "/sys/class/iommu", true)]
    #[case::another("read /sys/class/iommu2: no", "/sys/class/iommu", false)]
    #[case::the_device(
        "list /sys/bus/pci/devices/0000:01:00.0: no",
        "/sys/bus/pci/devices/0000:01:00.0",
        true
    )]
    #[case::of_it("read /sys/bus/pci/devices/0000:01:00.0/x: no", "/sys/bus/pci/devices/0000:01:00.0", false)]
    fn what_is_unread_is_about_a_path(#[case] unread: &str, #[case] path: &str, #[case] about: bool) {
        let facts = HostFacts { unread: vec![unread.to_owned()], ..HostFacts::default() };
        assert_eq!(facts.unread_about(path).is_some(), about);
    }
}
