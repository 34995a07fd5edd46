//! The firmware, and the IOMMU that it switches on.

mod interrupt_remapping;
mod iommu_active;
mod iommu_groups;
mod iommu_options;
mod iommu_tables;
mod iommu_width;

use super::Definition;

pub(super) const CHECKS: &[Definition] = &[
    iommu_tables::CHECK,
    iommu_options::CHECK,
    iommu_active::CHECK,
    iommu_groups::CHECK,
    interrupt_remapping::CHECK,
    iommu_width::CHECK,
];

/// What is said where no device is passed.
const NO_DEVICES: &str = "the profile passes no device";
