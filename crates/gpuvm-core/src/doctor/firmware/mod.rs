//! The firmware, and the IOMMU that it switches on.

mod iommu_active;

use super::Definition;

pub(super) const CHECKS: &[Definition] = &[iommu_active::CHECK];
