//! What a record says of the machine and of the devices before the first cycle.

use std::collections::BTreeMap;

use gpuvm_core::facts::{HostFacts, QemuProbe};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::reset::Snapshot;
use gpuvm_core::soak::{DeviceStart, Machine};
use gpuvm_host::root::{HostRoot, read_text};

/// Describes the machine.
pub(super) fn machine(root: &HostRoot, facts: &HostFacts) -> Machine {
    let system = &facts.platform.system;
    let join = |parts: [&Option<String>; 3]| {
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    };
    let qemu = match &facts.qemu_probe {
        QemuProbe::Answered(qemu) => {
            let (major, minor, micro) = qemu.version;
            Some(format!("{major}.{minor}.{micro}"))
        }
        QemuProbe::NotAsked | QemuProbe::Late { .. } | QemuProbe::Failed { .. } => None,
    };
    Machine {
        gpuvm: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: facts.kernel.boot_id.clone(),
        kernel: facts.kernel.release.clone(),
        kernel_build: facts.kernel.build.clone(),
        cmdline: facts.kernel.cmdline.clone(),
        qemu,
        product: join([&system.vendor, &system.product, &None]),
        firmware: join([&system.bios_vendor, &system.bios_version, &system.bios_date]),
        cpu: cpu(root),
    }
}

/// Reads the model of the first CPU; machines without one there have none to tell.
fn cpu(root: &HostRoot) -> Option<String> {
    let text = read_text(&root.path("/proc/cpuinfo")).ok()??;
    let model = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(model.trim_start().strip_prefix(':')?.trim().to_owned())
}

/// Describes the devices of a plan, each with what it said of itself before the first cycle.
pub(super) fn devices(plan: &Plan, facts: &HostFacts, first: &BTreeMap<Bdf, Snapshot>) -> Vec<DeviceStart> {
    let start = |bdf: Bdf| {
        let (device, snapshot) = (facts.devices.get(&bdf)?, first.get(&bdf)?);
        Some(DeviceStart {
            bdf,
            id: device.id,
            name: facts.names.devices.get(&device.id).and_then(|names| names.name.clone()),
            link: device.link,
            reset_methods: device.reset_methods.clone(),
            snapshot: Box::new(snapshot.clone()),
        })
    };
    plan.owned().filter_map(|device| start(device.bdf)).collect()
}
