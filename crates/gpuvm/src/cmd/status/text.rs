//! A VM's status for people.

use gpuvm_core::control::{Device, Live};
use gpuvm_core::date;
use gpuvm_host::standing::{Known, Seen};

use crate::asked::Told;
use crate::cmd::{events, list};
use crate::failure::Item;

/// How many of the last events are shown.
const EVENTS: usize = 8;

/// Describes a VM.
pub(super) fn of(told: &Told, problems: &[Item]) -> String {
    let known = &told.known;
    let mut text = String::new();
    let live = told.live.as_ref().and_then(|live| live.as_ref().ok());
    let since = match live {
        Some(live) => Some(live.since_ms / 1000),
        None => known.begun,
    };
    let since = since.map(|at| format!(" since {}", date::readable(at))).unwrap_or_default();
    let why = live.and_then(|live| live.why.as_ref()).map(|why| format!(": {why}")).unwrap_or_default();
    text.push_str(&format!("{}  {}{since}{why}\n", known.name, list::state(told)));
    match live {
        Some(live) => answered(&mut text, live),
        None => recorded(&mut text, known),
    }
    for item in problems {
        text.push_str(&format!("  problem: {}\n", item.message));
        let hints = item.hint.iter().flat_map(|hint| hint.lines());
        hints.for_each(|hint| text.push_str(&format!("    hint: {hint}\n")));
    }
    text
}

fn row(text: &mut String, name: &str, words: &str) {
    text.push_str(&format!("  {name:<11} {words}\n"));
}

/// Adds what a supervisor has told.
fn answered(text: &mut String, live: &Live) {
    let gpuvm = &live.supervisor;
    let how = if gpuvm.detached { "detached" } else { "in the foreground" };
    row(text, "supervisor", &format!("process {}, gpuvm {}, {how}", gpuvm.pid, gpuvm.version));
    if let Some(qemu) = &live.qemu {
        let version = qemu.version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
        let exit = qemu.exit.map(|exit| format!(", ended with {exit}")).unwrap_or_default();
        row(text, "QEMU", &format!("process {}{version}{exit}", qemu.pid));
    }
    row(text, "up since", &date::readable(live.begun_ms / 1000));
    if live.reboots > 0 {
        row(text, "reboots", &live.reboots.to_string());
    }
    if !live.timings.is_empty() {
        let timings: Vec<String> =
            live.timings.iter().map(|timing| format!("{} {} ms", timing.phase, timing.ms)).collect();
        row(text, "took", &timings.join(", "));
    }
    for vcpu in &live.vcpus {
        let cpu = vcpu.cpu.map_or_else(|| "not pinned".to_owned(), |cpu| format!("on CPU {cpu}"));
        row(text, &format!("vCPU {}", vcpu.vcpu), &format!("thread {}, {cpu}", vcpu.thread));
    }
    for node in &live.memory {
        let host = node.host_node.map(|host| format!(" on host node {host}")).unwrap_or_default();
        let words = format!("{}{host}, {} pages", node.size, node.pages);
        row(text, &format!("node {}", node.guest_node), &words);
    }
    live.devices.iter().for_each(|it| row(text, "device", &device(it)));
    live.warnings.iter().for_each(|it| row(text, "warning", &format!("{}: {}", it.about, it.message)));
    let skipped = live.events.len().saturating_sub(EVENTS);
    for entry in live.events.iter().skip(skipped) {
        row(text, "event", &events::line(entry));
    }
}

fn device(device: &Device) -> String {
    let driver = device.driver.as_deref().unwrap_or("no driver");
    let link = device.link.as_ref().map(|link| format!(", {link}")).unwrap_or_default();
    let verdict = device.verdict.map(|verdict| format!(", {verdict}")).unwrap_or_default();
    let finding = device.finding.as_ref().map(|finding| format!(": {finding}")).unwrap_or_default();
    format!("{}  {}, {driver}{link}{verdict}{finding}", device.bdf, device.name)
}

/// Adds what is on record.
fn recorded(text: &mut String, known: &Known) {
    let process = |seen: Seen| {
        let alive = if seen.alive { "alive" } else { "dead" };
        format!("process {}, {alive}", seen.pid)
    };
    if let Some(supervisor) = known.supervisor {
        row(text, "supervisor", &process(supervisor));
    }
    if let Some(qemu) = known.qemu {
        row(text, "QEMU", &process(qemu));
    }
    for pid in &known.in_flight {
        row(text, "in flight", &format!("process {pid} waits for the kernel"));
    }
    known.devices.iter().for_each(|bdf| row(text, "device", &bdf.to_string()));
    if known.not_undone > 0 {
        let changes = if known.not_undone == 1 { "change" } else { "changes" };
        row(text, "not undone", &format!("{} {changes} to the host", known.not_undone));
    }
    if let Some(plan) = &known.plan {
        plan.warnings.iter().for_each(|it| row(text, "warning", &format!("{}: {}", it.about, it.message)));
    }
}
