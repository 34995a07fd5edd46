//! Everything about one function.

use std::fmt::Write;

use gpuvm_core::config_space::{Acs, PortType};
use gpuvm_core::date;
use gpuvm_core::facts::{BarKind, DeviceFacts, HostFacts, NodeFacts, Presence};
use gpuvm_core::host_ops::{D3cold, PowerControl};
use gpuvm_core::inventory::LinkState;
use gpuvm_core::pci::{Bdf, ClassCode, GroupId};
use gpuvm_core::reset::quirks::Found;
use gpuvm_core::reset::{Quarantine, Quirk, plan::in_hand, quirks_of};
use gpuvm_core::reset::{ResetMethod, ResetPlan, ResetWish, methods, reset_plan};
use serde::Serialize;

use super::row::{Row, Verdict};
use crate::hints;

/// Everything about one function.
#[derive(Debug, Serialize)]
pub(super) struct Detail<'a> {
    device: Row,
    facts: &'a DeviceFacts,
    /// What the card is called that it comes on.
    card: Option<String>,
    node: Option<&'a NodeFacts>,
    group: Option<Group>,
    /// The other functions of its slot.
    slot: Vec<Row>,
    /// The bridges above, from the root port down.
    way_up: Vec<Port>,
    link: Option<LinkState>,
    resets: Vec<ResetMethod>,
    /// What they come to while the drivers are as they are.
    reset_plan: ResetPlan,
    /// What others have met with its like.
    quirks: Vec<KnownQuirk<'a>>,
    /// What the ledger holds against it.
    quarantine: Option<&'a Quarantine>,
    /// Why it can't be known what that is.
    ledger_unread: Option<&'a String>,
    unread: &'a [String],
}

/// What others have met with its like.
#[derive(Debug, Serialize)]
struct KnownQuirk<'a> {
    #[serde(flatten)]
    quirk: &'a Quirk,
    /// Whose ids fit: its own, or those of the port above it.
    at: Bdf,
    /// What it comes to, and whose word that is.
    told: String,
}

impl<'a> KnownQuirk<'a> {
    fn of(found: Found<'a>) -> Self {
        Self { quirk: found.quirk, at: found.at, told: found.told() }
    }
}

/// Its group, with all members.
#[derive(Debug, Serialize)]
struct Group {
    id: GroupId,
    members: Vec<Row>,
}

/// A bridge above.
#[derive(Debug, Serialize)]
struct Port {
    bdf: Bdf,
    name: String,
    class: ClassCode,
    port: Option<PortType>,
    link: Option<LinkState>,
    acs: AcsState,
}

/// Whether a port keeps what is below it apart.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum AcsState {
    /// It does: what the kernel asks for is on.
    On,
    /// It has Access Control Services, and they aren't on.
    Off,
    /// It has none.
    None,
    /// Its config space wasn't read whole.
    Unread,
}

impl AcsState {
    fn of(device: &DeviceFacts) -> Self {
        match device.config.as_ref() {
            Some(config) if config.complete == Presence::Present => match config.capabilities.acs {
                Some(acs) if Acs::isolates(acs) => Self::On,
                Some(_) => Self::Off,
                None => Self::None,
            },
            _ => Self::Unread,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::On => "ACS is on",
            Self::Off => "ACS is off, so what is below it shares a group",
            Self::None => "no ACS",
            Self::Unread => "ACS unknown: its config space wasn't read",
        }
    }
}

impl<'a> Detail<'a> {
    /// Puts together what is known of a function; nothing for one that isn't there.
    pub(super) fn of(bdf: Bdf, facts: &'a HostFacts) -> Option<Self> {
        let device = facts.devices.get(&bdf)?;
        let rows = |bdfs: &[Bdf]| bdfs.iter().filter_map(|bdf| Row::of(*bdf, facts)).collect();
        let members = |id| Group { id, members: rows(facts.groups.get(&id).map_or(&[][..], Vec::as_slice)) };
        let mates: Vec<Bdf> = facts.slot_of(bdf).filter(|mate| *mate != bdf).collect();
        let groups = facts.groups.keys().copied().collect();
        Some(Self {
            device: Row::of(bdf, facts)?,
            facts: device,
            card: facts.card_of(device),
            node: device.node.and_then(|node| facts.nodes.get(&node)),
            group: device.group.map(members),
            slot: rows(&mates),
            way_up: device.upstream.iter().filter_map(|bridge| Port::of(*bridge, facts)).collect(),
            link: LinkState::of(device, facts),
            resets: methods(bdf, facts),
            reset_plan: reset_plan(bdf, ResetWish::default(), &in_hand(&groups, facts), facts),
            quirks: quirks_of(bdf, facts).into_iter().map(KnownQuirk::of).collect(),
            quarantine: facts.quarantined.get(&bdf),
            ledger_unread: facts.ledgers_unread.get(&bdf),
            unread: &facts.unread,
        })
    }
}

impl Port {
    fn of(bdf: Bdf, facts: &HostFacts) -> Option<Self> {
        let device = facts.devices.get(&bdf)?;
        Some(Self {
            bdf,
            name: facts.name_of(device),
            class: device.class,
            port: device.config.as_ref().and_then(|config| config.capabilities.express),
            link: LinkState::of(device, facts),
            acs: AcsState::of(device),
        })
    }
}

/// Lines of `label  value`; a value's further lines stand below it.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, label: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "  {label:<14} {value}").ok();
    }

    fn list(&mut self, label: &str, values: impl IntoIterator<Item = String>) {
        for (at, value) in values.into_iter().enumerate() {
            self.add(if at == 0 { label } else { "" }, value);
        }
    }
}

/// Writes everything, for a person.
pub(super) fn text(detail: &Detail<'_>) -> String {
    let mut lines = Lines::default();
    what_it_is(detail, &mut lines);
    where_it_is(detail, &mut lines);
    what_it_has(detail, &mut lines);
    what_it_can(detail, &mut lines);
    let row = &detail.device;
    let vendor = row.vendor.as_ref().map(|vendor| format!(" ({vendor})")).unwrap_or_default();
    format!("{}  {}{vendor}\n{}", row.bdf, row.name, lines.0)
}

fn what_it_is(detail: &Detail<'_>, lines: &mut Lines) {
    let (row, facts) = (&detail.device, detail.facts);
    lines.add("verdict", row.verdict_words());
    if row.verdict == Verdict::Passable && row.with.len() > 2 {
        lines.list("", row.with.iter().map(|with| format!("with {with}")));
    }
    if let Some(held) = detail.quarantine {
        lines.add("quarantine", format!("since {}: {}", date::readable(held.since), held.finding));
        lines.add("", hints::quarantined(row.bdf, held.reset_since));
        lines.add("", format!("what was done with it: gpuvm devices {} --history", row.bdf));
    }
    if let Some(problem) = detail.ledger_unread {
        lines.add("quarantine", format!("not known: {problem}"));
        lines.add("", hints::damaged_ledger());
    }
    let revision = facts.revision.map(|revision| format!(", revision {revision:02x}")).unwrap_or_default();
    lines.add("class", format!("{} ({}){revision}", row.class_name, row.class));
    lines.add("ids", row.id);
    // All zeros stand for no card: bridges say so.
    if let Some(card) = facts.subsystem.filter(|card| (card.vendor, card.device) != (0, 0)) {
        let name = detail.card.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        lines.add("card", format!("{card}{name}"));
    }
    let driver = row.driver.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let set = facts.driver_override.as_ref();
    let set = set.map(|set| format!("; driver_override is `{set}`")).unwrap_or_default();
    lines.add("driver", format!("{driver}{set}"));
    if !facts.nodes.is_empty() {
        lines.add("known as", facts.nodes.join(", "));
    }
    lines.list("used by", facts.holders.iter().map(ToString::to_string));
    if facts.boot_display == Presence::Present {
        lines.add("boot display", "yes: the firmware showed its picture here");
    }
}

fn where_it_is(detail: &Detail<'_>, lines: &mut Lines) {
    match (detail.facts.node, detail.node) {
        (Some(node), Some(facts)) => {
            let cpus =
                if facts.cpus.is_empty() { "no CPUs".to_owned() } else { format!("CPUs {}", facts.cpus) };
            lines.add("node", format!("{node}: {cpus}, {} MiB of memory", facts.memory.as_mib_ceil()));
        }
        (Some(node), None) => lines.add("node", format!("{node}, which isn't online")),
        (None, _) => lines.add("node", "the firmware doesn't tell"),
    }
    let function = |row: &Row| {
        let driver = row.driver.as_ref().map_or("no driver", |driver| driver.as_str());
        format!("{} {}, {driver}: {}", row.bdf, row.class_name, row.verdict_words())
    };
    match &detail.group {
        Some(group) if group.members.len() == 1 => lines.add("group", format!("{}, alone", group.id)),
        Some(group) => {
            lines.add("group", format!("{}, of {} functions:", group.id, group.members.len()));
            lines.list("", group.members.iter().map(function));
        }
        None => lines.add("group", "none"),
    }
    lines.list("same slot", detail.slot.iter().map(function));
    lines.list(
        "way up",
        detail.way_up.iter().map(|port| {
            let kind = port.port.map_or("bridge", port_words);
            let link =
                port.link.and_then(|link| link.label()).map(|label| format!(", {label}")).unwrap_or_default();
            format!("{} {kind}, {}{link}; {}", port.bdf, port.name, port.acs.words())
        }),
    );
    if detail.way_up.is_empty() {
        lines.add("way up", "none: it is part of the root complex");
    }
}

fn port_words(port: PortType) -> &'static str {
    match port {
        PortType::RootPort => "root port",
        PortType::UpstreamPort => "switch, upstream port",
        PortType::DownstreamPort => "switch, downstream port",
        PortType::PcieToPci => "bridge from PCIe to PCI",
        PortType::PciToPcie => "bridge from PCI to PCIe",
        _ => "bridge",
    }
}

fn what_it_has(detail: &Detail<'_>, lines: &mut Lines) {
    if let Some(link) = detail.link {
        let now = link.label().unwrap_or_else(|| "down, or not told".to_owned());
        let lanes = if link.lacks_lanes() { "; lanes are missing that both ends have" } else { "" };
        let speed =
            if link.is_slower() { "; slower than both ends can, which an idle card may be" } else { "" };
        lines.add("link", format!("{now}{lanes}{speed}"));
    } else if let Some(own) = detail.facts.link {
        let label =
            LinkState { now: own, most: own }.label().unwrap_or_else(|| "down, or not told".to_owned());
        lines.add("link below it", label);
    }
    lines.list(
        "BARs",
        detail.facts.bars.iter().map(|bar| {
            let place = match (bar.address, bar.kind) {
                (None, _) => "without an address".to_owned(),
                (Some(address), BarKind::Io) => format!("at I/O port {address:#x}"),
                (Some(address), BarKind::Low) => format!("at {address:#x}, below 4 GiB or not prefetchable"),
                (Some(address), BarKind::High) => format!("at {address:#x}, 64-bit and prefetchable"),
            };
            let sizes = detail.facts.resizable.iter().find(|resizable| resizable.index == bar.index);
            let sizes =
                sizes.map(|found| found.sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
            let sizes = sizes.map(|sizes| format!("; could be {sizes}")).unwrap_or_default();
            format!("{}: {} {place}{sizes}", bar.index, bar.size)
        }),
    );
}

fn what_it_can(detail: &Detail<'_>, lines: &mut Lines) {
    let ResetPlan { steps, rejected, reason, .. } = &detail.reset_plan;
    let steps = steps.iter().map(|step| format!("{}: {}", step.method, step.reason));
    let rejected = rejected.iter().map(|rejected| format!("not {}: {}", rejected.method, rejected.reason));
    lines.add("resets", reason);
    lines.list("", steps.chain(rejected));
    for KnownQuirk { quirk, told, .. } in &detail.quirks {
        lines.add("known quirk", format!("{}: {told}", quirk.name));
        lines.add("", &quirk.advice);
        lines.add("", format!("source: {}", quirk.source));
    }
    lines.add("power", power(detail.facts));
    if detail.facts.virtual_functions_total > 0 {
        let (on, most) = (detail.facts.virtual_functions, detail.facts.virtual_functions_total);
        lines.add("SR-IOV", format!("{on} virtual functions of {most} enabled"));
    }
    if let Some(physical) = detail.facts.physical_function {
        lines.add("SR-IOV", format!("a virtual function of {physical}"));
    }
    let config = detail.facts.config.as_ref();
    if config.is_some_and(|config| config.silent == Presence::Present) {
        lines.add("config space", "all ones: the device doesn't answer, it has fallen off the bus");
        return;
    }
    match config.map(|config| (config.complete, &config.capabilities)) {
        Some((Presence::Present, found)) => {
            lines.add("error reports", if found.aer { "yes (AER)" } else { "none (no AER)" });
            let serial = found.serial.map_or_else(|| "none".to_owned(), |serial| format!("{serial:016x}"));
            lines.add("serial number", serial);
        }
        Some((Presence::Absent, _)) => {
            lines.add(
                "config space",
                "only its header was read, so AER and serial number are unknown: only root may",
            );
        }
        None => lines.add("config space", "not read: it is missing, or the device or a port above it sleeps"),
    }
}

fn power(facts: &DeviceFacts) -> String {
    let control = match facts.power.policy.control {
        Some(PowerControl::On) => "kept awake",
        Some(PowerControl::Auto) => "may sleep while idle",
        None => "policy unknown",
    };
    let cold = match facts.power.policy.d3cold {
        Some(D3cold::Allowed) => ", D3cold allowed",
        Some(D3cold::Forbidden) => ", D3cold forbidden",
        None => "",
    };
    let state = [facts.power.state.as_deref(), facts.power.runtime.as_deref()];
    let state: Vec<&str> = state.into_iter().flatten().collect();
    let now = if state.is_empty() { String::new() } else { format!("; now {}", state.join(", ")) };
    format!("{control}{cold}{now}")
}
