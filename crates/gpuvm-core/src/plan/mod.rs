//! The plan: everything that is decided before the host is touched, each decision with its reason in words.

pub mod files;
mod group;
mod memory;
pub mod mmio;
mod numa;
mod pcie;
mod refusal;
mod vfio;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use numa::{CpuTopology, Placement, VcpuPin};
pub use pcie::{GuestAddress, PciTopology, RootPort, SlotUse};
pub use refusal::{FileRole, MemoryMeasure, Refusal, RefusalKind};
pub use vfio::{VfioBackend, is_vfio_driver};

use crate::facts::HostFacts;
use crate::firmware::{UefiFirmware, choose_uefi};
use crate::host_ops::HostOp;
use crate::pci::{Bdf, ClassCode, DriverName, GroupId, PciId};
use crate::profile::{Accel, Disk, FirmwareKind, KernelBoot, Network, Profile, Serial, VmName};
use crate::units::{ByteSize, PageSize};

/// What will be done, for one profile on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The VM's name.
    pub name: VmName,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// The QEMU that will run.
    pub qemu: PathBuf,
    /// How the kernel's VFIO is spoken to.
    pub backend: VfioBackend,
    /// The groups that are taken whole.
    pub groups: Vec<PlannedGroup>,
    /// The functions that the guest gets, in the order of their guest addresses.
    pub devices: Vec<PlannedDevice>,
    /// Where vCPUs and memory go.
    pub placement: Placement,
    /// The guest's memory, one cell per guest node.
    pub memory: Vec<MemoryCell>,
    /// The guest's PCIe ports and what sits behind them.
    pub pcie: PciTopology,
    /// The firmware.
    pub firmware: Firmware,
    /// A kernel that is booted directly.
    pub kernel: Option<KernelBoot>,
    /// The disks.
    pub disks: Vec<PlannedDisk>,
    /// The network.
    pub network: Network,
    /// The serial port.
    pub serial: Serial,
    /// The changes to the host, in order.
    pub operations: Vec<PlannedOp>,
}

/// An IOMMU group that the VM owns while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedGroup {
    /// Its number.
    pub id: GroupId,
    /// All of its members.
    pub members: Vec<Member>,
}

/// A member of a group and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The function.
    pub bdf: Bdf,
    /// What becomes of it.
    pub role: Role,
    /// Why.
    pub reason: String,
}

/// What becomes of a group's member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The guest gets it.
    Pass,
    /// A bridge: it stays with the kernel, which VFIO allows.
    Bridge,
}

/// A function that the guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDevice {
    /// Its address on the host.
    pub bdf: Bdf,
    /// Its ids.
    pub id: PciId,
    /// Its class.
    pub class: ClassCode,
    /// Its group.
    pub group: GroupId,
    /// Its node.
    pub node: Option<u32>,
    /// Who binds it to a VFIO driver.
    pub ownership: Ownership,
    /// Its address in the guest.
    pub guest: GuestAddress,
    /// The secret that a virtual function shares with its physical function's owner, where vfio-pci owns that too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf_token: Option<uuid::Uuid>,
    /// Why it is passed.
    pub reason: String,
}

/// Who binds a function to a VFIO driver, and so who gives it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Ownership {
    /// gpuvm does, and gives it back to the driver it had.
    BoundByUs {
        /// The driver it had.
        was: Option<DriverName>,
    },
    /// It was on vfio-pci before, and stays.
    WasVfio,
    /// It has a VFIO variant driver of its own, and keeps it.
    KeepDriver {
        /// That driver.
        driver: DriverName,
    },
}

/// One guest node's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCell {
    /// How much.
    pub size: ByteSize,
    /// The host node that it is bound to.
    pub host_node: Option<u32>,
    /// The hugepages that back it.
    pub hugepages: Option<PageSize>,
    /// Why there.
    pub reason: String,
}

/// The guest's firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Firmware {
    /// SeaBIOS, which QEMU brings.
    Bios,
    /// UEFI in two flash chips.
    Uefi(UefiFirmware),
}

/// A disk, and what it turned out to be on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDisk {
    /// The disk.
    #[serde(flatten)]
    pub disk: Disk,
    /// What it is.
    pub kind: DiskKind,
}

/// What a disk is made of, for which QEMU has different drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    /// An image in a file.
    File,
    /// A block device of the host.
    BlockDevice,
}

impl PlannedDisk {
    fn new(disk: &Disk, facts: &HostFacts) -> Self {
        let kind = match facts.file(&disk.path) {
            Some(crate::facts::FileFacts::BlockDevice) => DiskKind::BlockDevice,
            _ => DiskKind::File,
        };
        Self { disk: disk.clone(), kind }
    }
}

/// A change to the host and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedOp {
    /// The change.
    #[serde(flatten)]
    pub op: HostOp,
    /// Why.
    pub reason: String,
}

/// Decides everything for a profile on a host.
///
/// # Errors
/// Returns every reason why this host can't run this profile.
pub fn plan(profile: &Profile, facts: &HostFacts) -> Result<Plan, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let backend = vfio::choose(profile, facts, &mut refusals);
    let groups = group::resolve(profile, facts, &mut refusals);
    let devices: Vec<_> = groups.passed.iter().map(|passed| passed.bdf).collect();
    let placement = numa::place(profile, facts, &devices, &mut refusals);
    let memory = memory::cells(profile, facts, &placement, &mut refusals);
    let pcie = pcie::lay_out(profile, &devices, &mut refusals);
    let firmware = firmware(profile, facts, &mut refusals);
    files::check(profile, facts, &mut refusals);
    machine(profile, facts, &mut refusals);
    let (Some(qemu), Some(firmware), true) = (facts.qemu.clone(), firmware, refusals.is_empty()) else {
        refusals.sort();
        return Err(refusals);
    };
    let mut operations = memory::operations(&memory, facts);
    operations.extend(group::operations(&groups.passed, facts));
    Ok(Plan {
        name: profile.name.clone(),
        accel: profile.accel,
        qemu,
        backend,
        devices: planned_devices(&groups.passed, facts, &pcie),
        groups: groups.groups,
        placement,
        memory,
        pcie,
        firmware,
        kernel: profile.kernel.clone(),
        disks: profile.disks.iter().map(|disk| PlannedDisk::new(disk, facts)).collect(),
        network: profile.network,
        serial: profile.serial,
        operations,
    })
}

fn planned_devices(passed: &[group::Passed], facts: &HostFacts, pcie: &PciTopology) -> Vec<PlannedDevice> {
    passed
        .iter()
        .filter_map(|passed| {
            let facts = facts.devices.get(&passed.bdf)?;
            Some(PlannedDevice {
                bdf: passed.bdf,
                id: facts.id,
                class: facts.class,
                group: facts.group?,
                node: facts.node,
                ownership: passed.ownership.clone(),
                guest: pcie.of_device(passed.bdf)?,
                vf_token: None,
                reason: passed.reason.clone(),
            })
        })
        .collect()
}

fn firmware(profile: &Profile, facts: &HostFacts, refusals: &mut Vec<Refusal>) -> Option<Firmware> {
    match profile.firmware {
        FirmwareKind::Bios => Some(Firmware::Bios),
        FirmwareKind::Uefi => {
            let found = choose_uefi(&facts.firmware).map(Firmware::Uefi);
            if found.is_none() {
                refusals.push(Refusal::NoUefi { descriptors: facts.firmware.len() });
            }
            found
        }
    }
}

fn machine(profile: &Profile, facts: &HostFacts, refusals: &mut Vec<Refusal>) {
    use crate::facts::Access;
    if facts.qemu.is_none() {
        refusals.push(Refusal::NoQemu);
    }
    match (profile.accel, facts.kvm) {
        (Accel::Kvm, Access::Missing) => refusals.push(Refusal::NoKvm),
        (Accel::Kvm, Access::Denied) => refusals.push(Refusal::Denied { path: PathBuf::from("/dev/kvm") }),
        _ => {}
    }
}
