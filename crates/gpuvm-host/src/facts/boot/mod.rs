//! What happens to devices at boot, and what the boot has left on them.

mod initramfs;
mod rules;
mod screens;

use std::collections::{BTreeMap, BTreeSet};

use gpuvm_core::facts::{BootFacts, BootModule, HostFacts, IdMatches, Rule};
use gpuvm_core::modprobe::{Directive, IdRule, loaded_by_cmdline};
use gpuvm_core::pci::{Bdf, PciId};

pub use initramfs::add_initramfs;

use super::Reading;
use crate::HostError;
use crate::root::{HostRoot, list, read_hex, read_text};

/// The modules that matter to passthrough.
const MODULES: [&str; 6] = ["vfio", "vfio_iommu_type1", "vfio_pci", "iommufd", "kvm_intel", "kvm_amd"];
/// What names the command line as a source.
const CMDLINE: &str = "kernel command line";

/// Reads modules, rules and screens.
pub(super) fn read(root: &HostRoot, facts: &HostFacts, reading: &Reading) -> Result<BootFacts, HostError> {
    let there = |module: &str| root.path(format!("/sys/module/{module}")).is_dir();
    let kernel = &facts.kernel;
    let mut boot = BootFacts {
        modules: MODULES.into_iter().filter(|module| there(module)).map(str::to_owned).collect(),
        builtin: builtin(root, &kernel.release, reading)?,
        at_boot: rules::modules_load(root, reading)?,
        rules: rules::modprobe(root, reading)?,
        framebuffers: screens::read(root, reading)?,
        ..BootFacts::default()
    };
    let source = || CMDLINE.to_owned();
    let loaded = loaded_by_cmdline(&kernel.cmdline).into_iter().filter(|module| matters(module));
    boot.at_boot.extend(loaded.map(|module| BootModule { module, source: source() }));
    let said = gpuvm_core::modprobe::of_cmdline(&kernel.cmdline).into_iter().filter(worth_keeping);
    boot.rules.extend(said.map(|directive| Rule { source: source(), directive }));
    boot.matches = matches(root, &boot.rules, reading)?;
    Ok(boot)
}

/// Tells whether a module is one of those that matter, or a variant of vfio-pci.
fn matters(module: &str) -> bool {
    MODULES.contains(&module) || module.ends_with("_vfio_pci")
}

/// Tells whether a directive may decide who gets a device: all that is about VFIO, and what keeps drivers out.
fn worth_keeping(directive: &Directive) -> bool {
    directive.is_about_vfio() || matches!(directive, Directive::Blacklist { .. } | Directive::Install { .. })
}

/// Reads which of the modules are built in: `kernel/drivers/vfio/vfio.ko` one a line.
fn builtin(root: &HostRoot, release: &str, reading: &Reading) -> Result<BTreeSet<String>, HostError> {
    let text = reading.take(read_text(&root.path(format!("/lib/modules/{release}/modules.builtin"))))?;
    let names =
        text.as_deref().unwrap_or_default().lines().filter_map(module_of_file).filter(|name| matters(name));
    Ok(names.collect())
}

/// Returns the module in a file, `vfio_pci` of `.../vfio-pci.ko.zst`.
fn module_of_file(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let (module, _) = name.split_once(".ko")?;
    Some(gpuvm_core::modprobe::module_name(module))
}

/// Finds the devices of the whole host that rules by id catch. Ids are read only where there is such a rule, and of most devices
/// only the vendor: there may be thousands.
fn matches(root: &HostRoot, rules: &[Rule], reading: &Reading) -> Result<Vec<IdMatches>, HostError> {
    let ids: Vec<IdRule> = rules.iter().flat_map(|rule| rule.directive.ids()).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut caught: BTreeMap<String, Vec<Bdf>> = ids.iter().map(|id| (id.text.clone(), Vec::new())).collect();
    let names = reading.take(list(&root.path("/sys/bus/pci/devices")))?;
    for bdf in names.iter().filter_map(|name| name.parse::<Bdf>().ok()) {
        let folder = root.device(bdf);
        let word = |name: &str| {
            let value = reading.take(read_hex(&folder.join(name)))?;
            Ok::<_, HostError>(value.and_then(|value| u16::try_from(value).ok()))
        };
        let Some(vendor) = word("vendor")?.filter(|vendor| ids.iter().any(|id| id.is_about(*vendor))) else {
            continue;
        };
        let Some(device) = word("device")? else { continue };
        let own = PciId { vendor, device };
        let subsystem = word("subsystem_vendor")?.zip(word("subsystem_device")?);
        let subsystem = subsystem.map(|(vendor, device)| PciId { vendor, device });
        let class = reading.take(read_hex(&folder.join("class")))?;
        for id in ids.iter().filter(|id| id.catches(own, subsystem, class)) {
            let of_id = caught.entry(id.text.clone()).or_default();
            // The same id may stand in two files.
            if of_id.last() != Some(&bdf) {
                of_id.push(bdf);
            }
        }
    }
    Ok(caught.into_iter().map(|(id, devices)| IdMatches { id, devices }).collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("kernel/drivers/vfio/pci/vfio-pci.ko", Some("vfio_pci"))]
    #[case("usr/lib/modules/6.12/kernel/drivers/vfio/vfio.ko.zst", Some("vfio"))]
    #[case("etc/modprobe.d/vfio.conf", None)]
    fn a_module_is_named_by_its_file(#[case] path: &str, #[case] module: Option<&str>) {
        assert_eq!(module_of_file(path).as_deref(), module);
    }
}
