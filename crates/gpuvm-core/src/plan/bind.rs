//! What `gpuvm bind` and `gpuvm unbind` do: whole groups to VFIO and back, without a VM.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::group::{self, Origin, Taken};
use super::obstacle::{Obstacles, Warning};
use super::{Ownership, PlannedGroup, PlannedOp, Refusal, is_vfio_driver, operations};
use crate::facts::{DeviceFacts, Gravity, HostFacts, Presence};
use crate::host_ops::HostOp;
use crate::pci::{Bdf, ClassCode, DriverName, GroupId, PciId, Slot};
use crate::profile::DeviceRequest;

/// What a user names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One function; a display card's other functions come along.
    Function(Bdf),
    /// All functions of a slot.
    Slot(Slot),
    /// The devices of a profile, with what it holds.
    Profile(Vec<DeviceRequest>),
}

/// What is done about those who use a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InUse {
    /// The device is refused.
    Refused,
    /// It is taken all the same.
    Overruled,
}

/// What will be bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindPlan {
    /// The groups, with all their members.
    pub groups: Vec<PlannedGroup>,
    /// The functions that are on a VFIO driver in the end.
    pub devices: Vec<BoundDevice>,
    /// What is bound together, and can be given back by itself.
    pub sets: Vec<PlannedSet>,
    /// What is to be known.
    pub warnings: Vec<Warning>,
    /// What would have been refused, had it not been overruled.
    #[serde(skip)]
    pub overruled: Vec<Refusal>,
}

/// A function that is bound to a VFIO driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundDevice {
    /// Its address.
    pub bdf: Bdf,
    /// Its ids.
    pub id: PciId,
    /// Its class.
    pub class: ClassCode,
    /// Its group.
    pub group: Option<GroupId>,
    /// Who binds it.
    pub ownership: Ownership,
    /// The driver that it has in the end.
    pub driver: DriverName,
    /// Why it is bound.
    pub reason: String,
}

/// Functions that belong together, by their groups or their card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSet {
    /// The functions that change their driver, in order; the first names the set.
    pub devices: Vec<Bdf>,
    /// Their groups.
    pub groups: Vec<GroupId>,
    /// The changes, in order.
    pub operations: Vec<PlannedOp>,
}

/// Decides what is bound.
///
/// # Errors
/// Returns every reason why it can't be.
pub fn bind(targets: &[Target], in_use: InUse, facts: &HostFacts) -> Result<BindPlan, Vec<Refusal>> {
    let mut obstacles = Obstacles::default();
    let (named, listed): (Vec<_>, Vec<_>) =
        targets.iter().partition(|target| !matches!(target, Target::Profile(_)));
    let mut resolved = group::Groups::default();
    for (targets, origin) in [(named, Origin::CommandLine), (listed, Origin::Profile)] {
        let requests = requests(&targets, facts, &mut obstacles);
        let groups = group::resolve(&requests, origin, facts, &mut obstacles);
        resolved.taken.extend(groups.taken);
        resolved.groups.extend(groups.groups);
    }
    let mut seen = BTreeSet::new();
    resolved.taken.retain(|taken| seen.insert(taken.bdf));
    let ours = |taken: &&Taken| matches!(taken.ownership, Ownership::BoundByUs { .. });
    let generic = resolved.taken.iter().filter(ours).any(|taken| taken.vfio.name == DriverName::vfio_pci());
    if generic && facts.vfio.pci_driver == Presence::Absent {
        obstacles.refuse(Refusal::NoVfioDriver);
    }
    let (overruled, mut refusals): (_, Vec<_>) =
        obstacles.refusals.into_iter().partition(|refusal| in_use.overrules(refusal));
    if !refusals.is_empty() {
        refusals.sort();
        refusals.dedup();
        return Err(refusals);
    }
    let taken: Vec<&Taken> = resolved.taken.iter().filter(ours).collect();
    Ok(BindPlan {
        devices: resolved.taken.iter().filter_map(|taken| bound_device(taken, facts)).collect(),
        sets: sets(&taken, facts),
        groups: resolved.groups,
        warnings: obstacles.warnings,
        overruled,
    })
}

impl InUse {
    /// Tells whether a refusal is one that the user has overruled: of what the device is used for, not of what can't be.
    fn overrules(self, refusal: &Refusal) -> bool {
        let of_use =
            matches!(refusal, Refusal::Critical { .. } | Refusal::InUse { .. } | Refusal::BootDisplay { .. });
        self == Self::Overruled && of_use
    }
}

fn requests(targets: &[&Target], facts: &HostFacts, obstacles: &mut Obstacles) -> Vec<DeviceRequest> {
    let mut requests: Vec<DeviceRequest> = Vec::new();
    for target in targets {
        match target {
            Target::Function(bdf) => requests.push(DeviceRequest::new(*bdf)),
            Target::Slot(slot) => {
                let functions = functions_of(*slot, facts);
                if functions.is_empty() {
                    obstacles.refuse(Refusal::EmptySlot { slot: *slot });
                }
                requests.extend(functions.into_iter().map(DeviceRequest::new));
            }
            Target::Profile(devices) => requests.extend(devices.iter().cloned()),
        }
    }
    let mut seen = BTreeSet::new();
    requests.retain(|request| seen.insert(request.bdf));
    requests
}

pub(super) fn functions_of(slot: Slot, facts: &HostFacts) -> Vec<Bdf> {
    facts.devices.keys().copied().filter(|bdf| bdf.slot() == slot).collect()
}

fn bound_device(taken: &Taken, facts: &HostFacts) -> Option<BoundDevice> {
    let device = facts.devices.get(&taken.bdf)?;
    let driver = match &taken.ownership {
        Ownership::BoundByUs { .. } => taken.vfio.name.clone(),
        Ownership::WasVfio => DriverName::vfio_pci(),
        Ownership::KeepDriver { driver } => driver.clone(),
    };
    Some(BoundDevice {
        bdf: taken.bdf,
        id: device.id,
        class: device.class,
        group: device.group,
        ownership: taken.ownership.clone(),
        driver,
        reason: taken.reason.clone(),
    })
}

/// Parts functions into those that share a group or a card, directly or by others.
fn sets(taken: &[&Taken], facts: &HostFacts) -> Vec<PlannedSet> {
    let group = |taken: &Taken| facts.devices.get(&taken.bdf).and_then(|device| device.group);
    let mut parts: Vec<Vec<&Taken>> = Vec::new();
    for one in taken {
        let together = |other: &&Taken| other.bdf.slot() == one.bdf.slot() || group(other) == group(one);
        let (joined, apart): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.iter().any(together));
        parts = apart;
        parts.push(joined.into_iter().flatten().chain([*one]).collect());
    }
    let set = |part: Vec<&Taken>| PlannedSet {
        devices: part.iter().map(|taken| taken.bdf).collect(),
        groups: part.iter().filter_map(|taken| group(taken)).collect::<BTreeSet<_>>().into_iter().collect(),
        operations: part.iter().flat_map(|taken| operations::of_device(taken, None, facts)).collect(),
    };
    parts.into_iter().map(set).collect()
}

/// What will be given back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnbindPlan {
    /// The functions that are given back.
    pub devices: Vec<Returning>,
    /// Functions that are on no VFIO driver, with the driver that they have.
    pub already: Vec<(Bdf, Option<DriverName>)>,
    /// What would have been refused, had it not been overruled.
    #[serde(skip)]
    pub overruled: Vec<Refusal>,
}

/// A function that is given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returning {
    /// Its address.
    pub bdf: Bdf,
    /// Its group.
    pub group: Option<GroupId>,
    /// How.
    pub way: WayBack,
    /// Why it is given back.
    pub reason: String,
}

/// How a function is given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum WayBack {
    /// By what `gpuvm bind` has written down.
    Record {
        /// The driver that it had.
        was: Option<DriverName>,
    },
    /// By asking the kernel for a driver: somebody else bound it.
    Kernel {
        /// What stands for the binding that nobody wrote down.
        operations: Vec<HostOp>,
    },
}

/// Decides what is given back: the targets, with all that was bound of their groups and their cards.
///
/// # Errors
/// Returns every reason why it can't be.
pub fn unbind(targets: &[Target], in_use: InUse, facts: &HostFacts) -> Result<UnbindPlan, Vec<Refusal>> {
    let mut obstacles = Obstacles::default();
    let mut plan = UnbindPlan::default();
    let requests = requests(&targets.iter().collect::<Vec<_>>(), facts, &mut obstacles);
    let mut asked: Vec<(Bdf, String)> = Vec::new();
    for request in &requests {
        let Some(device) = group::takeable(request.bdf, facts, &mut obstacles) else { continue };
        asked.push((request.bdf, "asked for".to_owned()));
        asked.extend(request.hold.iter().map(|held| (*held, format!("held with {}", request.bdf))));
        let mates = group::brings_along(request.bdf, device, facts);
        let mates =
            mates.into_iter().map(|mate| (mate, format!("another function of the card of {}", request.bdf)));
        asked.extend(mates);
    }
    for (bdf, _) in asked.clone() {
        let Some(group) = facts.devices.get(&bdf).and_then(|device| device.group) else { continue };
        let members = facts.groups.get(&group).into_iter().flatten();
        asked.extend(members.map(|member| (*member, format!("in IOMMU group {group} with {bdf}"))));
    }
    let mut seen = BTreeSet::new();
    for (bdf, reason) in asked.into_iter().filter(|(bdf, _)| seen.insert(*bdf)) {
        let Some(device) = facts.devices.get(&bdf).filter(|device| !device.class.is_bridge()) else {
            continue;
        };
        let Some(way) = way_back(bdf, device, facts) else {
            plan.already.push((bdf, device.driver.clone()));
            continue;
        };
        for holder in device.holders.iter().filter(|holder| holder.gravity() == Gravity::Busy) {
            let (driver, holder) = (device.driver.clone(), holder.clone());
            obstacles.refuse(Refusal::InUse { bdf, driver, holder });
        }
        plan.devices.push(Returning { bdf, group: device.group, way, reason });
    }
    let (overruled, mut refusals): (_, Vec<_>) =
        obstacles.refusals.into_iter().partition(|refusal| in_use.overrules(refusal));
    plan.overruled = overruled;
    refusals.sort();
    refusals.dedup();
    if refusals.is_empty() { Ok(plan) } else { Err(refusals) }
}

/// Tells how a function is given back; nothing for one that neither gpuvm nor anybody else has bound to VFIO.
fn way_back(bdf: Bdf, device: &DeviceFacts, facts: &HostFacts) -> Option<WayBack> {
    if let Some(bound) = facts.bound.get(&bdf) {
        return Some(WayBack::Record { was: bound.was.clone() });
    }
    let driver = device.driver.clone().filter(is_vfio_driver)?;
    let mut operations = vec![HostOp::Adopt { bdf }];
    let set = device.driver_override.clone();
    operations.extend(set.map(|driver| HostOp::SetDriverOverride { bdf, driver }));
    operations.push(HostOp::Bind { bdf, driver });
    Some(WayBack::Kernel { operations })
}
