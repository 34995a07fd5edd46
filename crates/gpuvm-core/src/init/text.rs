//! The profile's text: each value with the reason that it has.

use std::fmt::Write;

use super::Draft;
use super::share::{Cpus, Memory, Pinned};
use crate::facts::{DeviceFacts, HostFacts};
use crate::firmware::choose_uefi;
use crate::pci::Bdf;
use crate::plan::{Plan, Refusal, Role};
use crate::profile::{FirmwareKind, Hugepages, VERSION, VmName};

/// Where comments begin behind values.
const COLUMN: usize = 28;

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

/// What a profile is written of.
pub(super) struct Settings<'a> {
    pub(super) facts: &'a HostFacts,
    /// The least of guests with the device: its groups and its place.
    pub(super) plan: &'a Plan,
    pub(super) device: Bdf,
    pub(super) name: VmName,
    pub(super) firmware: FirmwareKind,
    pub(super) cpus: Cpus,
    pub(super) memory: Memory,
}

impl Settings<'_> {
    /// Gives the profile out.
    pub(super) fn draft(self, text: String, not_ready: Vec<Refusal>) -> Draft {
        Draft {
            name: self.name,
            device: self.device,
            vcpus: self.cpus.count,
            memory: self.memory.size,
            hugepages: self.memory.hugepages,
            firmware: self.firmware,
            text,
            not_ready,
        }
    }
}

/// Writes the profile.
pub(super) fn render(settings: &Settings<'_>) -> String {
    let Settings { name, cpus, memory, .. } = settings;
    let mut text = String::new();
    line!(
        text,
        "# A guest for {}, as gpuvm init found this host. Look: gpuvm plan FILE; run it: gpuvm up FILE.",
        settings.device
    );
    value(
        &mut text,
        &format!("version = {VERSION}"),
        "of the profile language, which the README shows whole",
    );
    value(&mut text, &format!("name = \"{name}\""), "names its folders and sockets; each name runs once");
    firmware(settings, &mut text);
    value(&mut text, "network = \"user\"", "behind QEMU's own NAT; \"none\" for a guest without a network");
    line!(text, "\n[memory]");
    value(&mut text, &format!("size = \"{}\"", memory.size), &memory.reason);
    let pages = match memory.hugepages {
        Hugepages::Off => "off".to_owned(),
        Hugepages::Size(page) => page.to_string(),
    };
    value(&mut text, &format!("hugepages = \"{pages}\""), &memory.pages);
    line!(text, "\n[cpu]");
    value(&mut text, &format!("count = {}", cpus.count), &cpus.reason);
    if cpus.pinned == Pinned::Off {
        value(&mut text, "pin = \"off\"", "the kernel moves vCPUs between all CPUs");
    }
    device(settings, &mut text);
    disk(name, &mut text);
    text
}

/// Writes a value with its comment at the usual column.
fn value(text: &mut String, value: &str, comment: &str) {
    // A comment is one line, whatever a name on this host holds.
    let comment = comment.replace(|letter: char| letter.is_control(), " ");
    line!(text, "{value:COLUMN$}# {comment}");
}

fn firmware(settings: &Settings<'_>, text: &mut String) {
    let found = choose_uefi(&settings.facts.firmware);
    match (settings.firmware, found) {
        (FirmwareKind::Uefi, Some(uefi)) => {
            value(text, "firmware = \"uefi\"", &format!("{}; \"bios\" for SeaBIOS", uefi.code.display()));
        }
        (FirmwareKind::Uefi, None) => value(text, "firmware = \"uefi\"", "none is installed yet"),
        (FirmwareKind::Bios, Some(_)) => {
            value(text, "firmware = \"bios\"", "SeaBIOS, which comes with QEMU; \"uefi\" for OVMF");
        }
        (FirmwareKind::Bios, None) => value(
            text,
            "firmware = \"bios\"",
            "SeaBIOS, which comes with QEMU; no UEFI firmware is installed here, and many GPUs want it",
        ),
    }
}

fn device(settings: &Settings<'_>, text: &mut String) {
    let (facts, own) = (settings.facts, settings.device);
    line!(text, "\n[[device]]");
    value(text, &format!("bdf = \"{own}\""), &facts.devices.get(&own).map(words).unwrap_or_default());
    let members = settings
        .plan
        .groups
        .iter()
        .flat_map(|group| group.members.iter().map(move |member| (group.id, member)));
    let mut held = Vec::new();
    let mut told = Vec::new();
    for (group, member) in members.filter(|(_, member)| member.bdf != own) {
        let what = facts.devices.get(&member.bdf).map(words).unwrap_or_default();
        match member.role {
            Role::Pass => {
                told.push(format!("{} comes along, as another function of the card: {what}", member.bdf))
            }
            Role::Bridge => told
                .push(format!("{} is a bridge in IOMMU group {group}, and stays with the host", member.bdf)),
            Role::Hold => {
                held.push(format!("\"{}\"", member.bdf));
                told.push(format!(
                    "{} is in IOMMU group {group} too, and held: neither host nor guest has it. {what}",
                    member.bdf
                ));
            }
        }
    }
    if !held.is_empty() {
        value(
            text,
            &format!("hold = [{}]", held.join(", ")),
            "list one as a [[device]] of its own to give it to the guest",
        );
    }
    for line in told {
        line!(text, "# {}", line.replace(|letter: char| letter.is_control(), " "));
    }
}

/// Says what a function is and who has it.
fn words(device: &DeviceFacts) -> String {
    let driver = device
        .driver
        .as_ref()
        .map_or_else(|| "without a driver".to_owned(), |driver| format!("now on {driver}"));
    let node = device.node.map_or_else(|| "no node".to_owned(), |node| format!("node {node}"));
    format!("{} {}, {driver}, {node}", device.class.name(), device.id)
}

fn disk(name: &VmName, text: &mut String) {
    line!(
        text,
        "\n# The guest's disk. Make one (qemu-img create -f qcow2 {name}.qcow2 40G), or name an image or a block device"
    );
    line!(
        text,
        "# that holds an installed system with its console on the serial port (console=ttyS0); then take the # away:"
    );
    line!(text, "#[[disk]]");
    line!(text, "#path = \"{name}.qcow2\"       # from the profile's folder on, unless it begins with /");
    line!(text, "#format = \"qcow2\"");
}
