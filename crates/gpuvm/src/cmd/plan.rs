//! `gpuvm plan`: what would be done, and why.

use std::fmt::Write;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::plan::{Firmware, Ownership, Plan, Role, SlotUse};
use gpuvm_host::HostError;
use gpuvm_host::reservation::{self, Reservation};
use serde_json::json;

use super::argv;
use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::{load, out};

pub(super) fn run(cli: &Cli, args: &ProfileArgs) -> Result<Exit, Failure> {
    let loaded = load::profile(args)?;
    let (plan, facts) = load::planned(cli, &loaded.profile)?;
    let busy = busy(cli, &plan, &facts);
    let command = argv::command(&plan, &cli.places());
    if cli.json {
        let words: Vec<_> = command.words.iter().map(|word| word.to_string_lossy()).collect();
        out::json(&json!({ "plan": plan, "argv": words, "busy": busy.map(|error| error.to_string()) }));
    } else {
        out::text(&text(&plan, &command.to_string()));
        if let Some(error) = busy {
            failure::print_item("note: `up` would refuse this now", &failure::left(&error));
        }
    }
    Ok(Exit::Ok)
}

/// Looks whether `up` could reserve what the plan needs. It is no part of the plan: it may be otherwise in a minute.
fn busy(cli: &Cli, plan: &Plan, facts: &HostFacts) -> Option<HostError> {
    if cli.is_recorded() {
        return None;
    }
    let wanted = Reservation::new(plan, &facts.kernel.boot_id);
    reservation::check(&cli.places(), &wanted).err().filter(|error| error.errno().is_none())
}

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

fn text(plan: &Plan, command: &str) -> String {
    let mut text = String::new();
    line!(text, "VM {} on {}, accel {}", plan.name, plan.qemu.display(), plan.accel);
    groups(plan, &mut text);
    placement(plan, &mut text);
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

fn groups(plan: &Plan, text: &mut String) {
    line!(text, "\nDevices:");
    for group in &plan.groups {
        line!(text, "  IOMMU group {}", group.id);
        for member in &group.members {
            let role = match member.role {
                Role::Pass => "passed",
                Role::Bridge => "stays",
            };
            line!(text, "    {} {role}: {}", member.bdf, member.reason);
            if let Some(device) = plan.devices.iter().find(|device| device.bdf == member.bdf) {
                let driver = match &device.ownership {
                    Ownership::BoundByUs { was: Some(was) } => {
                        format!("taken from {was}, and given back to it")
                    }
                    Ownership::BoundByUs { was: None } => "has no driver, and gets none back".to_owned(),
                    Ownership::WasVfio => "is on vfio-pci, and stays there".to_owned(),
                    Ownership::KeepDriver { driver } => format!("keeps its VFIO driver {driver}"),
                };
                let node = device.node.map_or_else(|| "no node".to_owned(), |node| format!("node {node}"));
                line!(text, "      {} {}, {node}; {driver}", device.class.name(), device.id);
            }
        }
    }
    if plan.groups.is_empty() {
        line!(text, "  none");
    }
}

fn placement(plan: &Plan, text: &mut String) {
    line!(text, "\nPlacement: {}", plan.placement.reason);
    for cell in &plan.memory {
        let node = cell.host_node.map_or_else(|| "any node".to_owned(), |node| format!("node {node}"));
        let pages =
            cell.hugepages.map_or_else(|| "ordinary pages".to_owned(), |page| format!("{page} pages"));
        line!(text, "  {} of memory in {pages} on {node}: {}", cell.size, cell.reason);
    }
    for pin in &plan.placement.vcpus {
        line!(text, "  vCPU {} on CPU {}: {}", pin.vcpu, pin.cpu, pin.reason);
    }
    match (plan.placement.vcpus.is_empty(), plan.placement.emulator.to_string()) {
        (true, _) => line!(text, "  vCPUs aren't pinned"),
        (false, cpus) => line!(text, "  QEMU's other threads on CPU {cpus}"),
    };
}

fn guest(plan: &Plan, text: &mut String) {
    line!(text, "\nGuest's PCIe:");
    for port in &plan.pcie.ports {
        let holds = match &port.holds {
            SlotUse::Passthrough { functions } => {
                functions.iter().map(|(f, bdf)| format!("00.{f} = {bdf}")).collect::<Vec<_>>().join(", ")
            }
            SlotUse::Disk { index } => {
                let path = plan.disks.get(*index).map(|disk| disk.disk.path.display().to_string());
                format!("00.0 = VirtIO disk {}", path.unwrap_or_default())
            }
            SlotUse::Net => "00.0 = VirtIO network".to_owned(),
            SlotUse::Rng => "00.0 = VirtIO random numbers".to_owned(),
        };
        line!(text, "  root port rp{} (00:{:02x}.{}): {holds}", port.index, port.slot, port.function);
    }
    match &plan.firmware {
        Firmware::Bios => line!(text, "Firmware: SeaBIOS"),
        Firmware::Uefi(uefi) => {
            line!(text, "Firmware: UEFI {}, by {}", uefi.code.display(), uefi.descriptor.display())
        }
    };
}
