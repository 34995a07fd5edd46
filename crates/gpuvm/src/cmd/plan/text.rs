//! A plan as a person reads it.

use std::fmt::Write;

use gpuvm_core::facts::BarKind;
use gpuvm_core::plan::{
    Firmware, NodeBinding, Ownership, Plan, PlannedDisk, Role, RootBus, RootPort, SlotUse,
};
use gpuvm_core::profile::{Display, Listen, Media};
use gpuvm_core::reset::repair::RepairPolicy;
use gpuvm_core::reset::{PlannedReset, RebootPolicy, ResetWish};
use gpuvm_core::units::ByteSize;

use crate::cmd::ladder;

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

/// Writes everything that is planned, each decision with its reason.
pub(in crate::cmd) fn text(plan: &Plan, command: &str) -> String {
    let mut text = String::new();
    line!(text, "VM {} on {}, accel {}", plan.name, plan.qemu.display(), plan.accel);
    remarks(plan, &mut text);
    groups(plan, &mut text);
    placement(plan, &mut text);
    addresses(plan, &mut text);
    guest(plan, &mut text);
    line!(text, "\nChanges to the host, in this order (undone in the reverse):");
    for (number, planned) in (1..).zip(&plan.operations) {
        line!(text, "  {number}. {}\n     {}", planned.op, planned.reason);
    }
    if plan.operations.is_empty() {
        line!(text, "  none");
    }
    line!(text, "\nQEMU:\n{command}");
    text
}

/// What a reader must know first: what isn't had, and where the guest differs from the plain one.
fn remarks(plan: &Plan, text: &mut String) {
    if !plan.warnings.is_empty() {
        line!(text, "\nWarnings:");
    }
    for warning in &plan.warnings {
        line!(text, "  {}: {}", warning.about, warning.message);
    }
    if !plan.deviations.is_empty() {
        line!(text, "\nDeviations from the plain guest, as the profile says:");
    }
    for deviation in &plan.deviations {
        line!(text, "  {}: {}", deviation.key, deviation.what);
    }
}

fn groups(plan: &Plan, text: &mut String) {
    line!(text, "\nDevices:");
    for group in &plan.groups {
        line!(text, "  IOMMU group {}", group.id);
        for member in &group.members {
            let role = match member.role {
                Role::Pass => "passed",
                Role::Hold => "held",
                Role::Bridge => "stays",
            };
            line!(text, "    {} {role}: {}", member.bdf, member.reason);
            if let Some(device) = plan.devices.iter().find(|device| device.bdf == member.bdf) {
                let node = device.node.map_or_else(|| "no node".to_owned(), |node| format!("node {node}"));
                let (class, driver) = (device.class.name(), driver(&device.ownership));
                line!(text, "      {class} {}, {node}; {driver}", device.id);
                resets(device.reset.as_ref(), text);
            }
            if let Some(held) = plan.held.iter().find(|held| held.bdf == member.bdf) {
                line!(text, "      {} {}; {}", held.class.name(), held.id, driver(&held.ownership));
            }
        }
    }
    if plan.groups.is_empty() {
        line!(text, "  none");
    }
}

/// What resets a device, in which order, and what doesn't.
fn resets(reset: Option<&PlannedReset>, text: &mut String) {
    let Some(PlannedReset { wish, plan, reason, .. }) = reset else { return };
    let asked = if *wish == ResetWish::default() { String::new() } else { format!(" ({wish})") };
    line!(text, "      reset{asked}: {}; {reason}", plan.reason);
    for step in &plan.steps {
        line!(text, "        {}: {}", step.method, step.reason);
    }
    for rejected in &plan.rejected {
        line!(text, "        not {}: {}", rejected.method, rejected.reason);
    }
}

fn driver(ownership: &Ownership) -> String {
    match ownership {
        Ownership::BoundByUs { was: Some(was) } => format!("taken from {was}, and given back to it"),
        Ownership::BoundByUs { was: None } => "has no driver, and gets none back".to_owned(),
        Ownership::WasVfio => "is on vfio-pci, and stays there".to_owned(),
        Ownership::KeepDriver { driver } => format!("keeps its VFIO driver {driver}"),
    }
}

fn placement(plan: &Plan, text: &mut String) {
    line!(text, "\nPlacement: {}", plan.placement.reason);
    for (node, cell) in plan.memory.iter().enumerate() {
        let whose = if plan.memory.len() > 1 { format!("guest node {node}: ") } else { String::new() };
        let from = match (cell.host_node, cell.binding) {
            (None, _) => "any node".to_owned(),
            (Some(node), NodeBinding::Bind) => format!("node {node}"),
            (Some(node), NodeBinding::Preferred) => format!("node {node} as long as it lasts"),
        };
        let pages =
            cell.hugepages.map_or_else(|| "ordinary pages".to_owned(), |page| format!("{page} pages"));
        line!(text, "  {whose}{} of memory in {pages} on {from}: {}", cell.size, cell.reason);
    }
    for pin in &plan.placement.vcpus {
        line!(text, "  vCPU {} on CPU {}: {}", pin.vcpu, pin.cpu, pin.reason);
    }
    match (plan.placement.vcpus.is_empty(), plan.placement.emulator.to_string()) {
        (true, _) => line!(text, "  vCPUs aren't pinned"),
        (false, cpus) => line!(text, "  QEMU's other threads on CPU {cpus}"),
    };
    let shape = plan.placement.topology;
    let (sockets, cores, threads) = (shape.sockets, shape.cores, shape.threads);
    line!(text, "  the guest sees sockets={sockets}, cores={cores}, threads={threads}");
}

fn addresses(plan: &Plan, text: &mut String) {
    let addresses = &plan.addresses;
    let bits = addresses.phys_bits.map_or_else(|| "width unknown".to_owned(), |bits| format!("{bits} bits"));
    line!(text, "\nGuest's addresses ({bits}):");
    line!(text, "  0x0-{:#x} memory", addresses.low_end.saturating_sub(1));
    if let Some((begin, end)) = addresses.high {
        line!(text, "  {begin:#x}-{:#x} memory", end - 1);
    }
    if addresses.low_need != ByteSize::default() {
        line!(text, "  below 4 GiB: {} of BARs", addresses.low_need);
    }
    line!(text, "  {}", addresses.reason);
    for bar in addresses.bars.iter().filter(|bar| bar.kind != BarKind::Io) {
        let place = match bar.kind {
            BarKind::High => "64-bit, prefetchable",
            _ => "below 4 GiB",
        };
        line!(text, "  {} BAR {}: {}, {place}", bar.bdf, bar.index, bar.size);
    }
}

fn guest(plan: &Plan, text: &mut String) {
    line!(text, "\nGuest's PCIe:");
    for expander in &plan.pcie.expanders {
        let (node, bus, slot) = (expander.node, expander.bus, expander.slot);
        line!(text, "  expander pxb{node} (00:{slot:02x}.0): root bus {bus:02x} of guest node {node}");
    }
    for port in &plan.pcie.ports {
        line!(text, "  root port rp{} ({}): {}", port.index, place(port), behind(plan, port));
    }
    for (index, disk) in plan.disks.iter().enumerate().filter(|(_, disk)| disk.disk.media == Media::Cdrom) {
        line!(text, "  SATA: CD-ROM disk{index} {}", image(disk));
    }
    match &plan.firmware {
        Firmware::Bios => line!(text, "Firmware: SeaBIOS"),
        Firmware::Uefi(uefi) => {
            line!(text, "Firmware: UEFI {}, by {}", uefi.code.display(), uefi.descriptor.display())
        }
    };
    let picture = match plan.display {
        Display::None => "none".to_owned(),
        Display::Virtual(Listen::Unix) => "VNC on a unix socket in the VM's folder".to_owned(),
        Display::Virtual(Listen::Vnc(address)) => format!("VNC on {address}"),
    };
    line!(text, "Display: {picture}");
    let reboot = match plan.reboot {
        RebootPolicy::InPlace => "in place: QEMU resets the machine and its devices",
        RebootPolicy::Relaunch => {
            "relaunch: QEMU ends, the devices are reset and looked at, and it is started again"
        }
        RebootPolicy::Stop => "stop: the VM ends",
    };
    line!(text, "Reboot: {reboot}");
    repair(plan, text);
    for forward in &plan.forwards {
        let (protocol, address) = (forward.protocol.as_str(), forward.host_address);
        line!(
            text,
            "Forward: {protocol} {address}:{} to the guest's {}",
            forward.host_port,
            forward.guest_port
        );
    }
}

/// What is tried with a device that comes back sick, where the profile wants that.
fn repair(plan: &Plan, text: &mut String) {
    if plan.repair == RepairPolicy::Never {
        return;
    }
    line!(text, "Repair: a device that comes back sick is repaired, up to {}", plan.repair);
    text.push_str(&ladder::text(&plan.ladders));
}

fn place(port: &RootPort) -> String {
    let root = match port.root {
        RootBus::Main => "00".to_owned(),
        RootBus::Expander(node) => format!("pxb{node}"),
    };
    format!("{root}:{:02x}.{}", port.slot, port.function)
}

fn behind(plan: &Plan, port: &RootPort) -> String {
    match &port.holds {
        SlotUse::Passthrough { functions } => {
            functions.iter().map(|(f, bdf)| format!("00.{f} = {bdf}")).collect::<Vec<_>>().join(", ")
        }
        SlotUse::Disk { index } => {
            let image = plan.disks.get(*index).map(image).unwrap_or_default();
            format!("00.0 = VirtIO disk{index} {image}")
        }
        SlotUse::Net => "00.0 = VirtIO network".to_owned(),
        SlotUse::Rng => "00.0 = VirtIO random numbers".to_owned(),
        SlotUse::Usb => "00.0 = USB controller with keyboard and tablet".to_owned(),
        SlotUse::Nothing => {
            "nothing: a guest looks at the slot's other functions only beside a function 0".to_owned()
        }
    }
}

fn image(disk: &PlannedDisk) -> String {
    let (path, format) = (disk.disk.path.display(), disk.disk.format.as_str());
    let mode = match (&disk.overlay, disk.disk.mode) {
        (Some(overlay), _) => format!("below a throw-away overlay, {}", overlay.display()),
        (None, gpuvm_core::profile::DiskMode::ReadOnly) => "read-only".to_owned(),
        (None, _) => "writable".to_owned(),
    };
    format!("{path} ({format}, {mode}, boots as number {})", disk.bootindex)
}
