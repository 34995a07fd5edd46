//! What happens to devices at boot.

use gpuvm_core::facts::BootFacts;

use super::Reading;
use crate::HostError;
use crate::root::HostRoot;

/// The modules that matter to passthrough.
const MODULES: [&str; 6] = ["vfio", "vfio_iommu_type1", "vfio_pci", "iommufd", "kvm_intel", "kvm_amd"];

/// Reads modules and rules.
pub(super) fn read(root: &HostRoot, _reading: &Reading) -> Result<BootFacts, HostError> {
    let there = |module: &str| root.path(format!("/sys/module/{module}")).is_dir();
    let modules = MODULES.into_iter().filter(|module| there(module)).map(str::to_owned);
    Ok(BootFacts { modules: modules.collect() })
}
