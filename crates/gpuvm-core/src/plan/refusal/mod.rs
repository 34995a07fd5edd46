//! Why a host can't run a profile, typed so that the edge can add the remedy and the exit code.

mod role;

use std::path::PathBuf;

pub use self::role::{FileRole, MemoryMeasure};

use crate::cpulist::{CpuSet, NodeSet};
use crate::date;
use crate::facts::Holder;
use crate::lock::LockedFunction;
use crate::pci::{Bdf, ClassCode, DriverName, GroupId, PciId, Slot};
use crate::profile::DiskFormat;
use crate::profile::{PortAddress, Selector};
use crate::reset::ResetPolicy;
use crate::units::{ByteSize, PageSize};

/// One reason why this host can't run this profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such device.
    #[error("{bdf}: there is no such PCI device on this host")]
    UnknownDevice {
        /// The device asked for.
        bdf: Bdf,
    },
    /// A description that fits no device.
    #[error(
        "device.select {{ {selector} }} fits no device of this host{}",
        if unread.is_empty() { String::new() } else { format!("; the serial numbers of {} can't be read", list(unread)) }
    )]
    NoneFits {
        /// The description.
        selector: Selector,
        /// Devices that fit the rest of it, and whose serial numbers can't be read.
        unread: Vec<Bdf>,
    },
    /// A description that fits several devices.
    #[error("device.select {{ {selector} }} fits {} devices: {}", fit.len(), words(fit))]
    SeveralFit {
        /// The description.
        selector: Selector,
        /// The devices.
        fit: Vec<LockedFunction>,
    },
    /// A description of one of more devices than there are.
    #[error("device.select {{ {selector} }} counts from 0, and {} fit: {}", fit.len(), words(fit))]
    TooFewFit {
        /// The description.
        selector: Selector,
        /// The devices that fit.
        fit: Vec<LockedFunction>,
    },
    /// A description of a device that another entry has.
    #[error("device.select {{ {selector} }} fits {bdf}, which the profile has already")]
    ChosenTwice {
        /// The description.
        selector: Selector,
        /// The device.
        bdf: Bdf,
    },
    /// Devices that can't be where they are to be in the guest.
    #[error(
        "{bdf} can't be at guest-address {address} beside {other}: a card has one place, and a place one card"
    )]
    ChosenForOnePlace {
        /// The device.
        bdf: Bdf,
        /// The other one.
        other: Bdf,
        /// The place asked for.
        address: PortAddress,
    },
    /// A description that nobody has looked for yet.
    #[error("device.select {{ {selector} }} was not resolved")]
    NotResolved {
        /// The description.
        selector: Selector,
    },
    /// The kernel drives no IOMMU, so nothing would keep the device's DMA inside the guest.
    #[error(
        "no IOMMU is active on this host, so nothing would keep {} from reaching the host's memory",
        list(bdfs)
    )]
    NoIommu {
        /// The devices asked for.
        bdfs: Vec<Bdf>,
    },
    /// The IOMMU doesn't cover the device.
    #[error("{bdf} has no IOMMU group: the active IOMMUs don't cover it")]
    NoGroup {
        /// The device asked for.
        bdf: Bdf,
    },
    /// A bridge can't be passed.
    #[error("{bdf} is a {class}: bridges belong to the host", class = class.name())]
    Bridge {
        /// The device asked for.
        bdf: Bdf,
        /// Its class.
        class: ClassCode,
    },
    /// A function that has nothing to do with the device it is to be held with.
    #[error(
        "{held} can't be held with {bdf}: it is neither in its IOMMU group nor a function of its card{}",
        group.map(|group| format!(" (it is in group {group})")).unwrap_or_default()
    )]
    HeldElsewhere {
        /// The device.
        bdf: Bdf,
        /// The function that is to be held.
        held: Bdf,
        /// The group of that one.
        group: Option<GroupId>,
    },
    /// The group has a member that nobody asked for.
    #[error(
        "IOMMU group {group} of {bdf} also holds {member} ({class} {id}, {driver}), which {unlisted}{held}; \
         a group can only be given whole",
        class = class.name(), driver = driver_words(driver.as_ref()),
        unlisted = if wanted.is_empty() { "the profile doesn't list" } else { "isn't asked for" },
        held = holder.as_ref().map(|h| format!(" and the host itself uses: {h}")).unwrap_or_default()
    )]
    ForeignMember {
        /// The device asked for.
        bdf: Bdf,
        /// The group.
        group: GroupId,
        /// The other member.
        member: Bdf,
        /// Its ids.
        id: PciId,
        /// Its class.
        class: ClassCode,
        /// Its driver.
        driver: Option<DriverName>,
        /// What of the host sits on it.
        holder: Option<Holder>,
        /// All that must be asked for, where that is done on the command line.
        wanted: Vec<Bdf>,
    },
    /// There is nothing in a slot.
    #[error("{slot}: there is no PCI device in this slot")]
    EmptySlot {
        /// The slot.
        slot: Slot,
    },
    /// A group has a member that nothing is known about, so that nobody can tell whether the host needs it.
    #[error(
        "IOMMU group {group} of {bdf} also holds {member}, of which nothing could be read; a group can only be given whole"
    )]
    UnreadMember {
        /// The device asked for.
        bdf: Bdf,
        /// The group.
        group: GroupId,
        /// The other member.
        member: Bdf,
    },
    /// Something that the plan rests on couldn't be read when the facts were taken down.
    #[error("a plan rests on what couldn't be read: {what}")]
    Unread {
        /// What, with its path.
        what: String,
    },
    /// A physical function whose virtual functions are in use: vfio-pci refuses it.
    #[error("{bdf} ({driver}) has {count} virtual functions enabled", driver = driver_words(driver.as_ref()))]
    HasVirtualFunctions {
        /// The device.
        bdf: Bdf,
        /// Its driver.
        driver: Option<DriverName>,
        /// How many.
        count: u32,
    },
    /// The host itself can't do without the device.
    #[error("{bdf} ({driver}) is in use by the host itself: {holder}", driver = driver_words(driver.as_ref()))]
    Critical {
        /// The device.
        bdf: Bdf,
        /// Its driver.
        driver: Option<DriverName>,
        /// What sits on it.
        holder: Holder,
    },
    /// Somebody uses the device: its driver would not let go of it before they are done.
    #[error("{bdf} ({driver}) is in use: {holder}", driver = driver_words(driver.as_ref()))]
    InUse {
        /// The device.
        bdf: Bdf,
        /// Its driver.
        driver: Option<DriverName>,
        /// Who uses it.
        holder: Holder,
    },
    /// gpuvm or the kernel has the device in hand.
    #[error("{bdf} can't be taken now: {why}")]
    Kept {
        /// The device.
        bdf: Bdf,
        /// Why, in words.
        why: String,
    },
    /// A run or a reset left the device sick, and nobody has cleared it.
    #[error("{bdf} is in quarantine since {}: {finding}", date::day(*since))]
    Quarantined {
        /// The device.
        bdf: Bdf,
        /// What was found, in words.
        finding: String,
        /// When, in seconds since 1970-01-01 UTC.
        since: u64,
        /// Whether it was reset since and came back well.
        reset_since: bool,
    },
    /// A device can't be reset, or not as it is asked for.
    #[error("{bdf} can't be reset: {reason}")]
    NoReset {
        /// The device.
        bdf: Bdf,
        /// Why not.
        reason: String,
    },
    /// It can't be known whether the device is in quarantine.
    #[error("{bdf} may be in quarantine, which can't be known: {problem}")]
    LedgerUnread {
        /// The device.
        bdf: Bdf,
        /// Its file in the ledger, and what is wrong with it.
        problem: String,
    },
    /// The boot display.
    #[error("{bdf} ({driver}) is the boot display of this host", driver = driver_words(driver.as_ref()))]
    BootDisplay {
        /// The device.
        bdf: Bdf,
        /// Its driver.
        driver: Option<DriverName>,
    },
    /// Somebody else decided which driver the device is to have.
    #[error(
        "{bdf} ({driver}) has driver_override set to `{set}` by somebody else",
        driver = driver_words(driver.as_ref())
    )]
    Overridden {
        /// The device.
        bdf: Bdf,
        /// Its driver.
        driver: Option<DriverName>,
        /// The override.
        set: DriverName,
    },
    /// A device can't be reset as it is to be.
    #[error("{bdf} can't have reset = \"{policy}\": {reason}")]
    NoSuchReset {
        /// The device.
        bdf: Bdf,
        /// How it is to be reset.
        policy: ResetPolicy,
        /// Why it can't be.
        reason: String,
    },
    /// The driver vfio-pci isn't loaded.
    #[error("the driver vfio-pci isn't loaded")]
    NoVfioDriver,
    /// The VFIO driver that was made for a device isn't loaded.
    #[error("{bdf} has a VFIO driver of its own, and its module {module} isn't loaded")]
    VariantNotLoaded {
        /// The device.
        bdf: Bdf,
        /// The module.
        module: String,
    },
    /// The kernel has no VFIO container device.
    #[error("/dev/vfio/vfio is missing: the kernel's VFIO isn't loaded")]
    NoVfio,
    /// The kernel offers VFIO through iommufd only.
    #[error("/dev/vfio/vfio is missing and only /dev/iommu is there; this gpuvm speaks the group API")]
    IommufdOnly,
    /// A device node is not for this user.
    #[error("{path}: permission denied", path = path.display())]
    Denied {
        /// The node.
        path: PathBuf,
    },
    /// No hardware virtualisation.
    #[error("/dev/kvm is missing, and the profile asks for accel = \"kvm\"")]
    NoKvm,
    /// No QEMU.
    #[error("qemu-system-x86_64 was not found in PATH")]
    NoQemu,
    /// No fitting UEFI firmware.
    #[error("no UEFI firmware for Q35 was found among {descriptors} firmware descriptors")]
    NoUefi {
        /// How many descriptors were read.
        descriptors: usize,
    },
    /// Nothing tells which CPUs are near each other.
    #[error("no NUMA node with CPUs is online, so vCPUs can't be pinned to one")]
    NoNode,
    /// Hugepages are asked for, and there is no node that they could come from.
    #[error(
        "memory.hugepages asks for {page} pages of a node, and the kernel shows no NUMA nodes (CONFIG_NUMA)"
    )]
    NoNodeOfPages {
        /// The page size.
        page: PageSize,
    },
    /// vCPUs can't be split over the devices' nodes.
    #[error("cpu.count is {count}, and the devices sit on nodes {nodes}: each node gets as many vCPUs, so it must be a multiple of {}", nodes.len())]
    UnevenCpus {
        /// vCPUs asked for.
        count: u32,
        /// The nodes.
        nodes: NodeSet,
    },
    /// Memory can't be split over the devices' nodes.
    #[error("memory.size is {size}, and the guest lives on nodes {nodes}: each node gives as much, so it must be a multiple of {} x {unit}", nodes.len())]
    UnevenMemory {
        /// Memory asked for.
        size: ByteSize,
        /// The nodes.
        nodes: NodeSet,
        /// What each part must be a multiple of.
        unit: ByteSize,
    },
    /// Explicit pinning that makes no guest nodes.
    #[error(
        "cpu.pin lists CPUs of nodes {nodes} in a mixture: list as many of each node, one node after the other, so that the \
         guest can be given such nodes"
    )]
    MixedNodes {
        /// The nodes.
        nodes: NodeSet,
    },
    /// Listed CPUs that can't be scheduled on.
    #[error("{key} lists CPU {offline}, but online are {online}")]
    OfflineCpus {
        /// The profile's key.
        key: &'static str,
        /// Those that aren't online.
        offline: CpuSet,
        /// Those that are.
        online: CpuSet,
    },
    /// Listed CPUs that other VMs have.
    #[error("{key} lists CPU {taken}, which other VMs have pinned")]
    TakenCpus {
        /// The profile's key.
        key: &'static str,
        /// Those that are taken.
        taken: CpuSet,
    },
    /// The node has too few CPUs.
    #[error(
        "cpu.count is {count}{share}, but node {node} has {free}{taken}",
        share = if need == count { String::new() } else { format!(", {need} of them on node {node}") },
        free = if cpus.is_empty() { "no CPU free".to_owned() } else { format!("{} CPUs free ({cpus})", cpus.len()) },
        taken = if taken.is_empty() { String::new() } else { format!(", and other VMs have pinned {taken}") }
    )]
    TooFewCpus {
        /// The node.
        node: u32,
        /// vCPUs that are to run there.
        need: u32,
        /// vCPUs asked for.
        count: u32,
        /// The node's CPUs that are free.
        cpus: CpuSet,
        /// Those that other VMs have pinned.
        taken: CpuSet,
    },
    /// The host has fewer CPUs than vCPUs.
    #[error("cpu.count is {need}, but the host has {have} CPUs online")]
    TooFewCpusOnHost {
        /// vCPUs asked for.
        need: u32,
        /// CPUs online.
        have: usize,
    },
    /// The node has too little memory.
    #[error(
        "memory.size is {size}{share}, but node {node} has {have} MiB {measure}",
        share = if need == size { String::new() } else { format!(", {need} of it on node {node}") },
        have = have.as_mib_ceil()
    )]
    NodeTooSmall {
        /// The node.
        node: u32,
        /// Memory asked for.
        size: ByteSize,
        /// Memory that is to come from there.
        need: ByteSize,
        /// The node's memory.
        have: ByteSize,
        /// What of it was counted.
        measure: MemoryMeasure,
    },
    /// The host has too little memory.
    #[error("memory.size is {need}, but the host has {have} MiB that are free or only cache", have = have.as_mib_ceil())]
    TooLittleMemory {
        /// Memory that may come from any node.
        need: ByteSize,
        /// What all nodes have.
        have: ByteSize,
    },
    /// The kernel has no hugepages of this size.
    #[error("node {node} has no pool of {page} hugepages")]
    NoPool {
        /// The node.
        node: u32,
        /// The page size.
        page: PageSize,
    },
    /// Too many devices for the guest's root ports.
    #[error("the guest would need {need} PCIe root ports; Q35's root bus has room for {have}")]
    TooManyPorts {
        /// Ports needed.
        need: usize,
        /// Ports there are.
        have: usize,
    },
    /// A root port where an expander bridge sits.
    #[error(
        "{} can't be at guest-address {address}: an expander bridge is there, one for each node of the guest",
        list(bdfs)
    )]
    ExpanderThere {
        /// The functions of the card.
        bdfs: Vec<Bdf>,
        /// The place asked for.
        address: PortAddress,
    },
    /// The guest's addresses don't reach far enough for its memory and its BARs.
    #[error(
        "the guest needs addresses up to {need:#x} for its memory and {bars} of BARs, but its CPUs have {bits} address bits"
    )]
    AddressSpace {
        /// The last address that is needed.
        need: u64,
        /// The room for 64-bit BARs.
        bars: ByteSize,
        /// The width of physical addresses.
        bits: u8,
    },
    /// No tool for overlays.
    #[error("qemu-img was not found in PATH; it makes the overlay that disk.mode = \"overlay\" asks for")]
    NoQemuImg,
    /// A disk's format isn't the one that is written down.
    #[error(
        "disk.path {path} is {it} qcow2 image, and its format is \"{}\"", format.as_str(),
        path = path.display(), it = if *found == DiskFormat::Qcow2 { "a" } else { "no" }
    )]
    DiskFormat {
        /// The image.
        path: PathBuf,
        /// The format written down.
        format: DiskFormat,
        /// What it looks like.
        found: DiskFormat,
    },
    /// A block device that the host itself uses can't be a guest's disk: both would write to it.
    #[error("disk.path {path} is in use by the host itself (mounted, swap, or part of a volume, an array or a pool)", path = path.display())]
    DiskInUse {
        /// The block device.
        path: PathBuf,
    },
    /// A file that the profile names can't be used.
    #[error("{role} {path}: {problem}", path = path.display())]
    File {
        /// What the file is for, by its key.
        role: FileRole,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that the profile names is not for this user.
    #[error("{role} {path}: {}", errno_words(*errno), path = path.display())]
    FileDenied {
        /// What the file is for, by its key.
        role: FileRole,
        /// The file.
        path: PathBuf,
        /// EACCES or EPERM.
        errno: i32,
    },
}

/// Spells an errno as the C library does, with its number.
pub(super) fn errno_words(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// What a refusal means for whoever started gpuvm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The profile asks for what isn't there: another profile would run.
    Profile,
    /// The user may not.
    Permission,
    /// The host can't.
    Unfit,
    /// Another VM has what is needed: later it may do.
    Busy,
}

impl Refusal {
    /// Returns what the refusal means for whoever started gpuvm.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::File { role: FileRole::Firmware, .. } => RefusalKind::Unfit,
            Self::File { .. }
            | Self::DiskFormat { .. }
            | Self::UnknownDevice { .. }
            | Self::EmptySlot { .. }
            | Self::NoneFits { .. }
            | Self::SeveralFit { .. }
            | Self::TooFewFit { .. }
            | Self::ChosenTwice { .. }
            | Self::ChosenForOnePlace { .. }
            | Self::Bridge { .. }
            | Self::HeldElsewhere { .. }
            | Self::ExpanderThere { .. }
            | Self::UnevenCpus { .. }
            | Self::UnevenMemory { .. }
            | Self::MixedNodes { .. } => RefusalKind::Profile,
            Self::TakenCpus { .. } | Self::InUse { .. } | Self::Kept { .. } => RefusalKind::Busy,
            Self::TooFewCpus { need, cpus, taken, .. } if *need as usize <= cpus.len() + taken.len() => {
                RefusalKind::Busy
            }
            Self::Denied { .. } | Self::FileDenied { .. } => RefusalKind::Permission,
            _ => RefusalKind::Unfit,
        }
    }

    fn order(&self) -> (RefusalKind, String) {
        (self.kind(), self.to_string())
    }
}

impl PartialOrd for Refusal {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Refusal {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

fn words(functions: &[LockedFunction]) -> String {
    functions.iter().map(LockedFunction::words).collect::<Vec<_>>().join(", ")
}

fn list(bdfs: &[Bdf]) -> String {
    bdfs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Says which driver has a device.
fn driver_words(driver: Option<&DriverName>) -> String {
    driver.map_or_else(|| "no driver".to_owned(), |driver| format!("driver {driver}"))
}
