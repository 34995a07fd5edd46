//! What the kernel's VFIO drivers say they are for.

use gpuvm_core::facts::VfioAlias;
use gpuvm_core::pci::DriverName;
use gpuvm_core::plan::{VFIO_ALIAS, fits_alias};

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// Reads the aliases of VFIO's drivers, those of other drivers aside.
pub(super) fn read(root: &HostRoot, release: &str) -> Result<Vec<VfioAlias>, HostError> {
    let text = read_text(&root.path(format!("/lib/modules/{release}/modules.alias")))?.unwrap_or_default();
    let ours =
        text.lines().filter_map(|line| line.strip_prefix("alias ")).filter(|of| of.starts_with(VFIO_ALIAS));
    let parsed = ours.filter_map(|line| {
        let (pattern, module) = line.split_once(' ')?;
        let (pattern, module) = (pattern.to_owned(), module.trim().to_owned());
        Some(VfioAlias { driver: driver(root, &module), pattern, module })
    });
    Ok(parsed.collect())
}

/// Returns the PCI driver of a module that is loaded: their names differ in more than their dashes.
fn driver(root: &HostRoot, module: &str) -> Option<DriverName> {
    let names = list(&root.path(format!("/sys/module/{module}/drivers"))).unwrap_or_default();
    names.iter().find_map(|name| DriverName::new(name.strip_prefix("pci:")?))
}

/// Returns those that fit a device.
pub(super) fn fitting(aliases: &[VfioAlias], modalias: Option<&str>) -> Vec<VfioAlias> {
    let fits = |alias: &&VfioAlias| modalias.is_some_and(|modalias| fits_alias(&alias.pattern, modalias));
    aliases.iter().filter(fits).cloned().collect()
}
