//! The plan: everything that is decided before the host is touched, each decision with its reason in words.

mod bind;
mod deviation;
pub mod files;
mod group;
mod memory;
mod mmio;
mod numa;
mod obstacle;
mod operations;
mod outline;
mod passable;
mod pcie;
mod refusal;
mod reset;
mod unread;
mod variant;
mod vfio;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use bind::{
    BindPlan, BoundDevice, InUse, PlannedSet, Returning, Target, UnbindPlan, WayBack, bind, unbind,
};
pub use deviation::Deviation;
pub(crate) use group::may_stay;
pub use memory::{MemoryCell, NodeBinding};
pub use mmio::{AddressPlan, PlannedBar};
pub use numa::{CpuTopology, Placement, VcpuPin};
pub use obstacle::{Topic, Warning};
pub use outline::{Outline, card_of, outline, targets};
pub use passable::{Passability, host_refusals, passable};
pub use pcie::{Expander, GuestAddress, PciTopology, RootBus, RootPort, SlotUse};
pub use refusal::{FileRole, MemoryMeasure, Refusal, RefusalKind};
pub use reset::{MethodChoice, ResetJob, reset};
pub use variant::{ALIAS as VFIO_ALIAS, fits as fits_alias};
pub use vfio::{VfioBackend, is_vfio_driver};

use crate::facts::HostFacts;
use crate::firmware::{UefiFirmware, choose_uefi};
use crate::host_ops::HostOp;
use crate::pci::{Bdf, ClassCode, DriverName, GroupId, PciId};
use crate::profile::{
    Accel, CpuFlag, DeviceRequest, Disk, DiskMode, Display, FirmwareKind, Forward, HvVendorId, KernelBoot,
    Network, Profile, Rtc, Serial, VmName,
};
use crate::reset::plan::{Asked, Asker, Unavailable, planned_resets};
use crate::reset::quirks::Found;
use crate::reset::repair::{Ladder, RepairPolicy, ladder};
use crate::reset::{
    Confidence, PlannedReset, Quirk, RebootPolicy, ResetDomain, ResetPolicy, ResetWish, quirks_of,
};
use obstacle::Obstacles;

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
    /// The functions that are bound to VFIO with them, and that the guest doesn't get.
    #[serde(default)]
    pub held: Vec<HeldDevice>,
    /// What the guest is told of its CPUs beyond the host's model.
    #[serde(default)]
    pub cpu: CpuModel,
    /// Where vCPUs and memory go.
    pub placement: Placement,
    /// The guest's memory, one cell per guest node.
    pub memory: Vec<MemoryCell>,
    /// How far the guest's nodes are from each other, row by row; empty for one node, and where the host doesn't tell.
    #[serde(default)]
    pub distances: Vec<Vec<u8>>,
    /// Where things lie in the guest's physical address space.
    #[serde(default)]
    pub addresses: AddressPlan,
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
    /// The host's ports that lead to the guest.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// The serial port.
    pub serial: Serial,
    /// What the guest shows its picture on.
    pub display: Display,
    /// What the guest's clock shows at its start.
    pub rtc: Rtc,
    /// How long the guest may take to power off when asked to, in seconds.
    pub shutdown_timeout: u32,
    /// What happens when the guest reboots.
    #[serde(default)]
    pub reboot: RebootPolicy,
    /// How far a device that comes back sick is repaired.
    #[serde(default, skip_serializing_if = "RepairPolicy::is_never")]
    pub repair: RepairPolicy,
    /// What can be tried with each device then, decided while it is well; empty where nothing may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ladders: Vec<Ladder>,
    /// Words that are added to QEMU's command line as they are: where there are any, the VM is tainted.
    #[serde(default)]
    pub extra_args: Vec<String>,
    /// Where the guest differs from the plain one, because the profile says so.
    #[serde(default)]
    pub deviations: Vec<Deviation>,
    /// What was asked for and isn't had, and what is to be known.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// The changes to the host, in order.
    pub operations: Vec<PlannedOp>,
}

impl Plan {
    /// Returns every function that the VM owns while it runs, those that are only held last.
    pub fn owned(&self) -> impl Iterator<Item = Owned<'_>> {
        let devices = self.devices.iter().map(|d| Owned { bdf: d.bdf, id: d.id, ownership: &d.ownership });
        let held = self.held.iter().map(|d| Owned { bdf: d.bdf, id: d.id, ownership: &d.ownership });
        devices.chain(held)
    }

    /// Returns the size of the guest's memory.
    pub fn memory_size(&self) -> crate::units::ByteSize {
        crate::units::ByteSize::bytes(self.memory.iter().map(|cell| cell.size.as_bytes()).sum())
    }
}

/// A function that a VM owns while it runs.
#[derive(Debug, Clone, Copy)]
pub struct Owned<'a> {
    /// Its address on the host.
    pub bdf: Bdf,
    /// Its ids.
    pub id: PciId,
    /// Who binds it to a VFIO driver.
    pub ownership: &'a Ownership,
}

/// A function that VFIO holds, so that its group is whole, and that the guest doesn't get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldDevice {
    /// Its address on the host.
    pub bdf: Bdf,
    /// Its ids.
    pub id: PciId,
    /// Its class.
    pub class: ClassCode,
    /// Its group.
    pub group: GroupId,
    /// Who binds it to a VFIO driver.
    pub ownership: Ownership,
    /// Why it is held.
    pub reason: String,
}

/// What the guest is told of its CPUs beyond the host's model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuModel {
    /// Whether the guest is kept from seeing that it runs on KVM.
    pub kvm_hidden: bool,
    /// Whether the guest gets Hyper-V's interfaces.
    pub hyperv: bool,
    /// The vendor that those name.
    pub hv_vendor_id: Option<HvVendorId>,
    /// Features that are switched on or off.
    pub flags: Vec<CpuFlag>,
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
    /// VFIO holds it, and the guest doesn't get it.
    Hold,
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
    /// An option ROM that the guest sees instead of its own.
    #[serde(default)]
    pub rom_file: Option<PathBuf>,
    /// Whether the guest sees an option ROM at all; QEMU decides where it isn't said.
    #[serde(default)]
    pub rombar: Option<bool>,
    /// Its place in the boot order.
    #[serde(default)]
    pub boot: Option<u32>,
    /// What a bus reset of it reaches; nothing where none can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_domain: Option<ResetDomain>,
    /// What is done about its resets; only a plan of an older gpuvm has nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<PlannedReset>,
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
    /// The overlay that the guest writes to instead.
    #[serde(default)]
    pub overlay: Option<PathBuf>,
    /// Its place in the boot order; `boot` of the profile, or after those that have one.
    #[serde(default)]
    pub bootindex: u32,
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
    let mut obstacles = Obstacles::default();
    let backend = vfio::choose(profile, facts, &mut obstacles);
    let groups = group::resolve(&profile.devices, group::Origin::Profile, facts, &mut obstacles);
    let devices: Vec<_> = groups.passed().map(|passed| passed.bdf).collect();
    let placement = numa::place(profile, facts, &devices, &mut obstacles);
    let memory = memory::cells(profile, facts, &placement, &mut obstacles);
    let addresses = mmio::addresses(profile, facts, &devices, &mut obstacles);
    let pcie = pcie::lay_out(profile, facts, &devices, &placement, &mut obstacles);
    let firmware = firmware(profile, facts, &mut obstacles);
    files::check(profile, facts, &mut obstacles);
    machine(profile, facts, &mut obstacles);
    unread::check(facts, &profile.devices.iter().map(|device| device.bdf).collect(), &mut obstacles);
    for choice in &profile.choices {
        obstacles.refuse(Refusal::NotResolved { selector: choice.select.clone() });
    }
    let disks = files::disks(profile, facts);
    let resets = resets(profile, &groups, facts, &mut obstacles);
    let ladders = ladders(profile.repair, &groups, facts);
    let Obstacles { mut refusals, warnings } = obstacles;
    let (Some(qemu), Some(firmware), true) = (facts.qemu.clone(), firmware, refusals.is_empty()) else {
        refusals.sort();
        refusals.dedup();
        return Err(refusals);
    };
    Ok(Plan {
        name: profile.name.clone(),
        accel: profile.accel,
        qemu,
        backend,
        devices: planned_devices(profile, &groups, facts, &pcie, &resets),
        held: held_devices(&groups, facts),
        cpu: CpuModel {
            kvm_hidden: profile.cpu.kvm_hidden,
            hyperv: profile.cpu.hyperv,
            hv_vendor_id: profile.cpu.hv_vendor_id.clone(),
            flags: profile.cpu.flags.clone(),
        },
        operations: operations::in_order(&memory, &disks, &groups.taken, &resets, facts),
        groups: groups.groups,
        distances: numa::distances(&placement, facts),
        placement,
        memory,
        addresses,
        pcie,
        firmware,
        kernel: profile.kernel.clone(),
        disks,
        network: profile.network,
        forwards: profile.forwards.clone(),
        serial: profile.serial,
        display: profile.display,
        rtc: profile.rtc,
        shutdown_timeout: profile.shutdown_timeout,
        reboot: profile.reboot,
        repair: profile.repair,
        ladders,
        extra_args: profile.extra_args.clone(),
        deviations: deviation::of(profile),
        warnings,
    })
}

fn planned_devices(
    profile: &Profile,
    groups: &group::Groups,
    facts: &HostFacts,
    pcie: &PciTopology,
    resets: &[PlannedReset],
) -> Vec<PlannedDevice> {
    let device = |passed: &group::Taken| {
        let facts = facts.devices.get(&passed.bdf)?;
        let request = profile.devices.iter().find(|device| device.bdf == passed.bdf);
        Some(PlannedDevice {
            bdf: passed.bdf,
            id: facts.id,
            class: facts.class,
            group: facts.group?,
            node: facts.node,
            ownership: passed.ownership.clone(),
            guest: pcie.of_device(passed.bdf)?,
            rom_file: request.and_then(|request| request.rom_file.clone()),
            rombar: request.and_then(|request| request.rombar),
            boot: request.and_then(|request: &DeviceRequest| request.boot),
            reset_domain: ResetDomain::of(passed.bdf, facts),
            reset: resets.iter().find(|reset| reset.plan.bdf == passed.bdf).cloned(),
            vf_token: None,
            reason: passed.reason.clone(),
        })
    };
    groups.passed().filter_map(device).collect()
}

/// Decides what is done about the resets of the functions that the guest gets. Nobody opens those that are only held, so that nobody
/// resets them by themselves; but they are in hand.
fn resets(
    profile: &Profile,
    groups: &group::Groups,
    facts: &HostFacts,
    obstacles: &mut Obstacles,
) -> Vec<PlannedReset> {
    let in_hand: BTreeSet<Bdf> = groups.taken.iter().map(|taken| taken.bdf).collect();
    let asked = |passed: &group::Taken| {
        let bdf = passed.bdf;
        let by_name = profile.devices.iter().find(|request| request.bdf == bdf);
        let by_card = || profile.devices.iter().find(|request| request.bdf.slot() == bdf.slot());
        match (by_name, by_name.is_none().then(by_card).flatten()) {
            (Some(request), _) => Asked { bdf, wish: request.reset, by: Asker::Profile },
            (None, Some(card)) => Asked { bdf, wish: card.reset, by: Asker::CardOf(card.bdf) },
            (None, None) => Asked { bdf, wish: ResetWish::default(), by: Asker::Profile },
        }
    };
    let asked: Vec<Asked> = groups.passed().map(asked).collect();
    let planned = match planned_resets(&asked, &in_hand, facts) {
        Ok(planned) => planned,
        Err(unavailable) => {
            for Unavailable { bdf, policy, reason } in unavailable {
                obstacles.refuse(Refusal::NoSuchReset { bdf, policy, reason });
            }
            Vec::new()
        }
    };
    let bare = |reset: &&PlannedReset| reset.plan.steps.is_empty();
    for PlannedReset { wish, plan, reason, .. } in planned.iter().filter(bare) {
        let (bdf, leaks) = (plan.bdf, "what one guest leaves in it, the next one finds");
        let message = match wish.policy {
            ResetPolicy::None => format!("{bdf} has reset = \"none\" ({reason}): {leaks}"),
            _ => format!("{bdf}: {}: {leaks}", plan.objections()),
        };
        obstacles.warn(Topic::Reset, message);
    }
    quirks(&planned, profile.reboot, facts, obstacles);
    planned
}

/// Warns of what others have met with the same devices, where the profile hasn't got round it. What the kernel's source says is in
/// the resets themselves.
fn quirks(planned: &[PlannedReset], reboot: RebootPolicy, facts: &HostFacts, obstacles: &mut Obstacles) {
    for PlannedReset { wish, plan, .. } in planned {
        let Some(device) = facts.devices.get(&plan.bdf) else { continue };
        let told = |found: &Found<'_>| found.quirk.confidence != Confidence::KernelSource;
        let worries = |found: &Found<'_>| found.worry(device, *wish, reboot, facts).is_some();
        for found in quirks_of(plan.bdf, facts).iter().filter(|found| told(found) && worries(found)) {
            let Quirk { name, advice, .. } = found.quirk;
            obstacles.warn(Topic::Quirk, format!("{} ({name}): {}; {advice}", plan.bdf, found.told()));
        }
    }
}

/// Decides what is tried with each function that comes back sick, those that are only held among them.
fn ladders(policy: RepairPolicy, groups: &group::Groups, facts: &HostFacts) -> Vec<Ladder> {
    if policy.is_never() {
        return Vec::new();
    }
    let in_hand: BTreeSet<Bdf> = groups.taken.iter().map(|taken| taken.bdf).collect();
    in_hand.iter().map(|bdf| ladder(*bdf, policy, &in_hand, facts)).collect()
}

fn held_devices(groups: &group::Groups, facts: &HostFacts) -> Vec<HeldDevice> {
    let device = |held: &group::Taken| {
        let facts = facts.devices.get(&held.bdf)?;
        Some(HeldDevice {
            bdf: held.bdf,
            id: facts.id,
            class: facts.class,
            group: facts.group?,
            ownership: held.ownership.clone(),
            reason: held.reason.clone(),
        })
    };
    groups.taken.iter().filter(|taken| taken.role == Role::Hold).filter_map(device).collect()
}

fn firmware(profile: &Profile, facts: &HostFacts, obstacles: &mut Obstacles) -> Option<Firmware> {
    match profile.firmware {
        FirmwareKind::Bios => Some(Firmware::Bios),
        FirmwareKind::Uefi => {
            let found = choose_uefi(&facts.firmware).map(Firmware::Uefi);
            if found.is_none() {
                obstacles.refuse(Refusal::NoUefi { descriptors: facts.firmware.len() });
            }
            found
        }
    }
}

fn machine(profile: &Profile, facts: &HostFacts, obstacles: &mut Obstacles) {
    use crate::facts::Access;
    if facts.qemu.is_none() {
        obstacles.refuse(Refusal::NoQemu);
    }
    match (profile.accel, facts.kvm) {
        (Accel::Kvm, Access::Missing) => obstacles.refuse(Refusal::NoKvm),
        (Accel::Kvm, Access::Denied) => obstacles.refuse(Refusal::Denied { path: PathBuf::from("/dev/kvm") }),
        _ => {}
    }
    let overlays = profile.disks.iter().any(|disk| disk.mode == DiskMode::Overlay);
    if overlays && facts.qemu_img.is_none() {
        obstacles.refuse(Refusal::NoQemuImg);
    }
}
