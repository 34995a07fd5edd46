//! What keeps a device's DMA where it belongs: groups, and the ports that they rest on.

mod acs_override;
mod acs_path;
mod group_members;
mod group_viable;
mod iommu_group;
mod kernel_bugs;
mod sriov;

use std::collections::BTreeSet;

use super::{Case, Definition};
use crate::pci::{Bdf, GroupId};
use crate::plan::may_stay;

pub(super) const CHECKS: &[Definition] = &[
    iommu_group::CHECK,
    group_members::CHECK,
    group_viable::CHECK,
    acs_path::CHECK,
    acs_override::CHECK,
    sriov::CHECK,
    kernel_bugs::CHECK,
];

/// Lists the groups of the functions that are to be passed.
fn groups(case: &Case<'_>) -> BTreeSet<GroupId> {
    case.targets.iter().filter_map(|bdf| case.facts.devices.get(bdf)?.group).collect()
}

/// Lists the members of a group that are neither taken nor bridges of the kind that VFIO leaves to the kernel.
fn foreign(case: &Case<'_>, group: GroupId) -> Vec<Bdf> {
    let stranger = |member: &&Bdf| {
        let stays = case.facts.devices.get(member).is_some_and(may_stay);
        !stays && !case.takes(**member)
    };
    case.facts.groups.get(&group).into_iter().flatten().filter(stranger).copied().collect()
}
