//! What was done with a function, and how it came back.

use std::collections::BTreeMap;
use std::fmt::Write;

use gpuvm_core::date;
use gpuvm_core::lifecycle::{self, Fault, Outcome, Stage};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Refusal;
use gpuvm_core::reset::repair::{Climbed, Rung};
use gpuvm_core::reset::{Deed, Entry, Grounds, Identity, Judgement, Quarantine, quarantine};
use gpuvm_host::ledger::{self, Ledger};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Cli;
use crate::cmd::quarantine::{device_of, needs_ledger, told_of};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, out};

/// What all entries come to.
#[derive(Debug, Serialize)]
struct Summary {
    runs: usize,
    bad_verdicts: usize,
    /// By method.
    resets: BTreeMap<String, Resets>,
    /// By rung of the ladder.
    repairs: BTreeMap<Rung, Repairs>,
}

/// The repairs by one rung.
#[derive(Debug, Default, Serialize)]
struct Repairs {
    count: usize,
    helped: usize,
}

/// The resets by one method.
#[derive(Debug, Default, Serialize)]
struct Resets {
    count: usize,
    failed: usize,
    median_ms: u64,
}

pub(super) fn run(cli: &Cli, bdf: Bdf) -> Result<Exit, Failure> {
    needs_ledger(cli)?;
    let (snapshot, ledgers) = told_of(cli, bdf)?;
    let Some(device) = device_of(&ledgers).or_else(|| ledger::identity(&snapshot)) else {
        return Err(vec![Refusal::UnknownDevice { bdf }].into());
    };
    let entries = ledger::merged(&ledgers);
    let held = ledgers.iter().find_map(|ledger| quarantine(&ledger.entries));
    let summary = Summary::of(&entries);
    let damaged: Vec<String> = ledgers.iter().filter_map(Ledger::problem).collect();
    let torn: Vec<_> = ledgers.iter().filter(|ledger| ledger.torn).map(|ledger| &ledger.path).collect();
    if cli.json {
        let entries: Vec<Value> = entries.iter().map(document).collect();
        out::json(&json!({
            "bdf": bdf, "device": device, "summary": summary, "quarantine": held, "entries": entries, "torn": torn,
            "unreadable": damaged,
        }))?;
        return Ok(Exit::Ok);
    }
    out::text(&text(&device, &summary, held.as_ref(), &entries))?;
    if let Some(held) = &held {
        out::note(&format!("hint: {}", hints::quarantined(bdf, held.reset_since)));
    }
    for path in torn {
        out::note(&format!(
            "note: {}: the last line was cut short, by a crash or a full disk, and is left out",
            path.display()
        ));
    }
    for problem in damaged {
        out::note(&format!("note: this may not be all: {problem}\n  hint: {}", hints::damaged_ledger()));
    }
    Ok(Exit::Ok)
}

impl Summary {
    fn of(entries: &[Entry]) -> Self {
        let bad = |entry: &&Entry| entry.deed.judgement().is_some_and(|judgement| judgement.verdict.is_bad());
        let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut resets: BTreeMap<String, Resets> = BTreeMap::new();
        for entry in entries {
            let Deed::Reset { method, ms, failure, .. } = &entry.deed else { continue };
            let found = resets.entry(method.to_string()).or_default();
            found.count += 1;
            found.failed += usize::from(failure.is_some());
            times.entry(method.to_string()).or_default().push(*ms);
        }
        let mut repairs: BTreeMap<Rung, Repairs> = BTreeMap::new();
        for entry in entries {
            let Deed::Repair { climbed, .. } = &entry.deed else { continue };
            let found = repairs.entry(climbed.rung).or_default();
            found.count += 1;
            found.helped += usize::from(climbed.helped());
        }
        for (method, times) in &mut times {
            if let Some(found) = resets.get_mut(method) {
                found.median_ms = median(times);
            }
        }
        Self {
            runs: entries.iter().filter(|entry| matches!(entry.deed, Deed::Run { .. })).count(),
            bad_verdicts: entries.iter().filter(bad).count(),
            resets,
            repairs,
        }
    }

    fn words(&self) -> String {
        let runs = counted(self.runs, "run", "runs");
        let resets = match self.resets.is_empty() {
            true => "no resets".to_owned(),
            false => {
                self.resets.iter().map(|(method, resets)| resets.words(method)).collect::<Vec<_>>().join(", ")
            }
        };
        let repairs = self.repairs.iter().map(|(rung, repairs)| {
            let tried = counted(repairs.count, "repair", "repairs");
            format!(
                "; {tried} by {rung} ({} helped)",
                if repairs.helped == 0 { "none".to_owned() } else { repairs.helped.to_string() }
            )
        });
        let repairs: String = repairs.collect();
        format!("{runs}; {resets}{repairs}; {}", counted(self.bad_verdicts, "bad verdict", "bad verdicts"))
    }
}

impl Resets {
    fn words(&self, method: &str) -> String {
        let failed = if self.failed == 0 { String::new() } else { format!(", {} failed", self.failed) };
        let resets = counted(self.count, "reset", "resets");
        format!("{resets} by {method} (median {} ms{failed})", self.median_ms)
    }
}

/// Returns the middle of times, and of an even number the mean of the two in the middle.
fn median(times: &mut [u64]) -> u64 {
    times.sort_unstable();
    let half = times.len() / 2;
    match (times.get(half), times.len() % 2, half.checked_sub(1).and_then(|before| times.get(before))) {
        (Some(middle), 0, Some(before)) => middle.midpoint(*before),
        (middle, ..) => middle.copied().unwrap_or(0),
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    match count {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}

/// Renders an entry for a program: as it is written down, with the time as people read it.
fn document(entry: &Entry) -> Value {
    let mut document = json!(entry);
    document["time"] = json!(date::readable(entry.at));
    document
}

fn text(device: &Identity, summary: &Summary, held: Option<&Quarantine>, entries: &[Entry]) -> String {
    let mut text = format!("{device}: {}\n", summary.words());
    if let Some(held) = held {
        let reset = if held.reset_since { "; it was reset since and came back well" } else { "" };
        writeln!(text, "in quarantine since {}: {}{reset}", date::readable(held.since), held.finding).ok();
    }
    if entries.is_empty() {
        text.push_str("nothing is written down of it yet\n");
    }
    for entry in entries {
        writeln!(text, "\n{}  {}", date::readable(entry.at), deed(&entry.deed)).ok();
        for finding in entry.deed.judgement().iter().flat_map(|judgement| &judgement.findings) {
            writeln!(text, "    {finding}").ok();
        }
        writeln!(text, "    {}", around(device, entry)).ok();
    }
    text
}

fn deed(deed: &Deed) -> String {
    match deed {
        Deed::Run { vm, outcome, ms, judgement, .. } => {
            let ended = outcome.as_ref().map_or_else(|| "never seen to end".to_owned(), ended);
            format!("run of VM {vm}, {}, {ended}: {}", time(*ms), came_back(judgement))
        }
        Deed::Reset { method, ms, failure, judgement } => {
            let failed = failure.as_ref().map(|why| format!(", which failed ({why})")).unwrap_or_default();
            format!("reset by {method}, {}{failed}: {}", time(*ms), came_back(judgement))
        }
        Deed::Repair { climbed, .. } => {
            let Climbed { rung, ms, failure, judgement } = climbed;
            let failed = failure.as_ref().map(|why| format!(", which failed ({why})")).unwrap_or_default();
            format!("repair by {rung}, {}{failed}: {}", time(*ms), came_back(judgement))
        }
        Deed::Cleared { grounds: Grounds::GoodReset } => {
            "cleared, since it came back well from a reset".to_owned()
        }
        Deed::Cleared { grounds: Grounds::Accepted } => "cleared, accepted as it was".to_owned(),
        Deed::Newer(fields) => {
            let name = fields.get("deed").and_then(Value::as_str).unwrap_or("?");
            format!("`{name}`, which a newer gpuvm wrote: see --json")
        }
    }
}

fn came_back(judgement: &Judgement) -> String {
    judgement.verdict.to_string()
}

fn ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Rebooted { .. } => "rebooted".to_owned(),
        Outcome::PoweredOff => "powered off by itself".to_owned(),
        Outcome::Stopped { stage: Stage::Acpi } => "powered off when asked".to_owned(),
        Outcome::Stopped { stage: Stage::Quit } => "ended by QEMU's quit".to_owned(),
        Outcome::Stopped { stage: Stage::Kill } => "killed".to_owned(),
        Outcome::Panicked => "panicked".to_owned(),
        Outcome::InternalError { fault: Fault::Device { bdf, .. } } => {
            format!("stopped by an error of {bdf}")
        }
        Outcome::InternalError { fault: Fault::Kvm { .. } } => "stopped by an error of KVM".to_owned(),
        Outcome::InternalError { fault: Fault::Unknown } => "stopped by an internal error".to_owned(),
        Outcome::MemoryFailure => "ended by broken memory".to_owned(),
        Outcome::Watchdog => "ended by its watchdog".to_owned(),
        Outcome::QemuDied { exit: lifecycle::Exit::Code(code) } => format!("QEMU died with status {code}"),
        Outcome::QemuDied { exit: lifecycle::Exit::Signal(signal) } => {
            format!("QEMU died of signal {signal}")
        }
        Outcome::QemuDied { exit: lifecycle::Exit::Unseen } => "QEMU died, and nobody saw how".to_owned(),
    }
}

/// Spells a duration: milliseconds while they matter.
fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..10 => format!("{ms} ms"),
        10..600 => format!("{seconds} s"),
        600..36_000 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// Says with what it was done: kernel, driver, QEMU, and where it sat if that was elsewhere.
fn around(device: &Identity, entry: &Entry) -> String {
    let mut parts = Vec::new();
    if entry.device.bdf != device.bdf {
        parts.push(format!("at {}", entry.device.bdf));
    }
    parts.push(format!("kernel {}", if entry.kernel.is_empty() { "?" } else { &entry.kernel }));
    if let Deed::Run { qemu: Some(qemu), .. } = &entry.deed {
        parts.push(format!("QEMU {qemu}"));
    }
    parts.push(
        entry.driver.as_ref().map_or_else(|| "no driver".to_owned(), |driver| format!("driver {driver}")),
    );
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], 0)]
    #[case(&[7], 7)]
    #[case(&[900, 100, 102], 102)]
    #[case(&[100, 102], 101)]
    fn the_median_is_in_the_middle(#[case] times: &[u64], #[case] expected: u64) {
        assert_eq!(median(&mut times.to_vec()), expected);
    }

    #[rstest]
    #[case(102, "102 ms")]
    #[case(70_100, "70 s")]
    #[case(3_600_000, "60 min")]
    #[case(86_400_000, "24 h")]
    fn a_duration_is_spelt_as_exactly_as_matters(#[case] ms: u64, #[case] spelt: &str) {
        assert_eq!(time(ms), spelt);
    }
}
