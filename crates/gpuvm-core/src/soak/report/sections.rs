//! What the parts of the report hold, as the template writes it.

use serde::Serialize;

use super::slots::Slots;
use super::words::{self, duration};
use crate::date;
use crate::facts::LinkFacts;
use crate::reset::Finding;
use crate::reset::repair::Climbed;
use crate::soak::tally::{Found, FoundKey, Origin, Spread, Times};
use crate::soak::{Begun, Cycle, CycleVerdict, Line, StopOn, Tally};

/// The most lines of a log, rows of a table and findings that are shown; of more, their number.
const LOG: usize = 40;
const ROWS: usize = 200;
const FINDINGS: usize = 60;

/// A name and what it is.
pub(super) type Fact = (&'static str, String);

/// Lines of the kernel's log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Log {
    pub(super) lines: Vec<String>,
    pub(super) left_out: usize,
}

impl Log {
    pub(super) fn of(lines: &[String]) -> Self {
        // No line of a kernel is longer than a few hundred letters, unless somebody wants it to be.
        let line = |line: &String| line.chars().take(500).collect();
        Self { lines: lines.iter().take(LOG).map(line).collect(), left_out: lines.len().saturating_sub(LOG) }
    }
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct FindingRow {
    /// What it comes to; `worth knowing` for what comes to nothing.
    pub(super) weight: String,
    pub(super) is_bad: bool,
    pub(super) bdf: String,
    pub(super) register: String,
    pub(super) before: Option<String>,
    pub(super) after: String,
    pub(super) meaning: String,
    pub(super) origin: Option<&'static str>,
    pub(super) check: String,
}

impl FindingRow {
    pub(super) fn of(origin: Origin, finding: &Finding) -> Self {
        Self {
            weight: finding.weight.map_or_else(|| "worth knowing".to_owned(), |weight| weight.to_string()),
            is_bad: finding.weight.is_some_and(crate::reset::Verdict::is_bad),
            bdf: finding.bdf.to_string(),
            register: finding.register.clone(),
            before: finding.before.clone(),
            after: finding.after.clone(),
            meaning: finding.meaning.clone(),
            origin: match origin {
                Origin::Verdict => None,
                Origin::BeforeRepair => Some("before its repair"),
                Origin::Drift => Some("against the first cycle's beginning"),
            },
            check: finding.check.name(),
        }
    }
}

/// What was found of a device in the same cycles.
#[derive(Debug, Serialize)]
pub(super) struct FoundRow {
    device: String,
    findings: Vec<FindingRow>,
    count: String,
    cycles: String,
    log: Log,
}

/// Lists what was found, the worst first, and says how many findings there are beyond those.
pub(super) fn findings(tally: &Tally) -> (Vec<FoundRow>, usize) {
    let mut found: Vec<(&FoundKey, &Found)> = tally.findings.iter().collect();
    found.sort_by_key(|(key, found)| (std::cmp::Reverse(key.weight), found.cycles.first().copied()));
    let mut rows: Vec<(&FoundKey, &Found, FoundRow)> = Vec::new();
    for (key, found) in found.iter().take(FINDINGS) {
        let finding = FindingRow::of(key.origin, &found.first);
        let same = |row: &&mut (&FoundKey, &Found, FoundRow)| {
            row.0.device == key.device && row.1.cycles == found.cycles
        };
        match rows.iter_mut().find(same) {
            Some((_, _, row)) => row.findings.push(finding),
            None => {
                let row = FoundRow {
                    device: key.device.to_string(),
                    findings: vec![finding],
                    count: words::counted(found.cycles.len(), "cycle", "cycles"),
                    cycles: words::numbers(&found.cycles),
                    log: Log::of(&found.kernel),
                };
                rows.push((key, found, row));
            }
        }
    }
    (rows.into_iter().map(|(_, _, row)| row).collect(), found.len().saturating_sub(FINDINGS))
}

/// Percentiles of something, spelt.
#[derive(Debug, Serialize)]
pub(super) struct SpreadRow {
    pub(super) name: String,
    pub(super) count: usize,
    pub(super) times: [String; 4],
}

impl SpreadRow {
    fn of(name: String, times: &Times) -> Option<Self> {
        let Spread { count, p50, p95, p99, max } = times.spread()?;
        Some(Self { name, count, times: [p50, p95, p99, max].map(duration) })
    }
}

/// Lists the percentiles of the cycle and of each of its parts.
pub(super) fn percentiles(tally: &Tally) -> Vec<SpreadRow> {
    let whole = SpreadRow::of("whole cycle".to_owned(), &tally.cycle);
    let phases = tally.phases.iter().filter_map(|(phase, times)| SpreadRow::of(phase.to_string(), times));
    whole.into_iter().chain(phases).collect()
}

/// Says what was asked for.
pub(super) fn asked(begun: &Begun) -> Vec<Fact> {
    let settings = &begun.settings;
    let mut facts = vec![("VM", begun.vm.to_string()), ("profile", settings.profile.clone())];
    if !settings.set.is_empty() {
        facts.push(("set", settings.set.join(" ")));
    }
    let most = match (settings.cycles, settings.seconds) {
        (Some(cycles), None) => words::cycles(cycles),
        (None, Some(seconds)) => duration(seconds.saturating_mul(1000)),
        (Some(cycles), Some(seconds)) => {
            format!(
                "{}, or {} if that is sooner",
                words::cycles(cycles),
                duration(seconds.saturating_mul(1000))
            )
        }
        (None, None) => "no end".to_owned(),
    };
    facts.push(("how long", most));
    facts.push(("mix", settings.mix.to_string()));
    facts.push(("ready when", ready(&settings.ready)));
    facts.extend(settings.poll.clone().map(|poll| ("poll", poll)));
    let stop = match settings.stop_on {
        StopOn::Degraded => "the first cycle that isn't healthy",
        StopOn::Bad => "a sick device, a host that isn't as it was, or three failed cycles in a row",
    };
    facts.push(("stops at", stop.to_owned()));
    facts
}

/// Says when a guest is ready.
pub fn ready(ready: &crate::soak::Ready) -> String {
    let mut parts = Vec::new();
    if let Some(expect) = &ready.expect {
        parts.push(format!("its console matches `{expect}`"));
    }
    if ready.job {
        parts.push("its job has reported".to_owned());
    }
    if ready.after_ms > 0 || parts.is_empty() {
        parts.push(format!("{} have passed", duration(ready.after_ms)));
    }
    let most = duration(ready.timeout_seconds.saturating_mul(1000));
    format!("{}; that may take {most}", parts.join(", then "))
}

/// Says what the machine is.
pub(super) fn machine(begun: &Begun) -> Vec<Fact> {
    let machine = &begun.machine;
    let told = |value: &Option<String>| value.clone().unwrap_or_else(|| "not told".to_owned());
    vec![
        ("gpuvm", machine.gpuvm.clone()),
        ("kernel", machine.kernel.clone()),
        ("kernel build", machine.kernel_build.clone()),
        ("kernel command line", machine.cmdline.clone()),
        ("QEMU", told(&machine.qemu)),
        ("machine", told(&machine.product)),
        ("firmware", told(&machine.firmware)),
        ("CPU", told(&machine.cpu)),
        ("boot", machine.boot_id.clone()),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .collect()
}

/// Says when things were.
pub(super) fn times(lines: &[Line]) -> Vec<Fact> {
    let mut facts = Vec::new();
    for line in lines {
        match line {
            Line::Begun(begun) if facts.is_empty() => facts.push(("begun", date::readable(begun.at))),
            Line::Begun(begun) => facts.push(("went on", date::readable(begun.at))),
            Line::Ended(ended) => facts.push(("over", date::readable(ended.at))),
            Line::Cycle(_) | Line::Cut(_) | Line::Newer(_) => {}
        }
    }
    // Of a soak that was stopped again and again, the beginning and what came last.
    if facts.len() > 8 {
        facts.drain(4..facts.len() - 4);
    }
    facts
}

/// A device before the first cycle.
#[derive(Debug, Serialize)]
pub(super) struct DeviceRow {
    bdf: String,
    id: String,
    name: String,
    link: String,
    resets: String,
}

pub(super) fn devices(begun: &Begun) -> Vec<DeviceRow> {
    let row = |device: &crate::soak::DeviceStart| DeviceRow {
        bdf: device.bdf.to_string(),
        id: device.id.to_string(),
        name: device.name.clone().unwrap_or_default(),
        link: device.link.map_or_else(|| "not told".to_owned(), link),
        resets: device.reset_methods.join(" "),
    };
    begun.devices.iter().take(ROWS).map(row).collect()
}

fn link(link: LinkFacts) -> String {
    let end = |speed: Option<crate::facts::LinkSpeed>, width: Option<u8>| {
        let speed = speed.map_or_else(|| "?".to_owned(), |speed| speed.to_string());
        format!("{speed} x{}", width.map_or_else(|| "?".to_owned(), |width| width.to_string()))
    };
    format!("{} of {}", end(link.speed, link.width), end(link.max_speed, link.max_width))
}

/// A cycle that isn't healthy.
#[derive(Debug, Serialize)]
pub(super) struct CycleRow {
    number: u32,
    kind: String,
    verdict: String,
    sign: String,
    class: &'static str,
    at: String,
    reason: String,
    faults: Vec<String>,
    outcome: String,
}

/// Lists the cycles that aren't healthy, and says how many more there are.
pub(super) fn not_healthy(slots: &Slots<'_>) -> (Vec<CycleRow>, usize) {
    let cycles = || slots.cycles().filter(|cycle| cycle.verdict() > CycleVerdict::Healthy);
    let row = |cycle: &Cycle| {
        let (verdict, reason) = (cycle.verdict(), cycle.reason().unwrap_or_default());
        CycleRow {
            number: cycle.number,
            kind: cycle.kind.to_string(),
            verdict: verdict.to_string(),
            sign: super::chart::overview::sign(verdict, 7.0, 7.0),
            class: super::chart::overview::class(verdict),
            at: date::readable(cycle.at),
            faults: cycle.faults.iter().map(ToString::to_string).filter(|fault| *fault != reason).collect(),
            reason,
            outcome: cycle.outcome.as_ref().map_or_else(|| "never ran".to_owned(), ToString::to_string),
        }
    };
    (cycles().take(ROWS).map(row).collect(), cycles().count().saturating_sub(ROWS))
}

/// A cycle that gpuvm didn't see the end of.
#[derive(Debug, Serialize)]
pub(super) struct CutRow {
    number: u32,
    kind: String,
    at: String,
    found: Vec<String>,
    left: Vec<String>,
}

pub(super) fn cuts(lines: &[Line]) -> Vec<CutRow> {
    let cut = |line: &Line| match line {
        Line::Cut(cut) => Some(CutRow {
            number: cut.number,
            kind: cut.kind.to_string(),
            at: date::readable(cut.at),
            found: cut.found.clone(),
            left: cut.left.clone(),
        }),
        _ => None,
    };
    lines.iter().filter_map(cut).take(ROWS).collect()
}

/// A repair.
#[derive(Debug, Serialize)]
pub(super) struct RepairRow {
    cycle: u32,
    device: String,
    before: String,
    steps: Vec<String>,
    after: String,
}

pub(super) fn repairs(slots: &Slots<'_>) -> Vec<RepairRow> {
    let devices = slots.cycles().flat_map(|cycle| cycle.devices.iter().map(move |device| (cycle, device)));
    let tried = devices.filter(|(_, device)| device.before_repair.is_some() || !device.repair.is_empty());
    let row = |(cycle, device): (&Cycle, &crate::soak::DeviceCycle)| RepairRow {
        cycle: cycle.number,
        device: device.bdf.to_string(),
        before: device.before_repair.as_ref().map_or_else(String::new, |before| before.verdict.to_string()),
        steps: device.repair.iter().map(climbed).collect(),
        after: device.judgement.verdict.to_string(),
    };
    tried.take(ROWS).map(row).collect()
}

/// Says how many devices each rung brought back.
pub(super) fn rungs(slots: &Slots<'_>) -> Vec<String> {
    let devices = || slots.cycles().flat_map(|cycle| &cycle.devices);
    let told = |rung: crate::reset::repair::Rung| {
        let tried = devices().flat_map(|device| &device.repair).filter(|climbed| climbed.rung == rung);
        let (tried, helped) = tried
            .fold((0, 0), |(tried, helped), climbed| (tried + 1, helped + usize::from(climbed.helped())));
        (tried > 0).then(|| format!("{rung}: helped {helped} of {}", words::counted(tried, "time", "times")))
    };
    crate::reset::repair::Rung::ALL.into_iter().filter_map(told).collect()
}

/// Says what came of a rung.
pub(super) fn climbed(climbed: &Climbed) -> String {
    let (rung, ms) = (climbed.rung, duration(climbed.ms));
    match (&climbed.failure, climbed.judgement.verdict) {
        (Some(failure), after) => format!("{rung}: failed after {ms} ({failure}); {after} afterwards"),
        (None, after) => format!("{rung}: {ms}; {after} afterwards"),
    }
}

/// What came of polling.
#[derive(Debug, Serialize)]
pub(super) struct Poll {
    summary: String,
    said: Vec<(u32, String)>,
}

pub(super) fn poll(slots: &Slots<'_>) -> Option<Poll> {
    let polled = || slots.cycles().filter_map(|cycle| Some((cycle.number, cycle.polled.as_ref()?)));
    polled().next()?;
    let sum = |of: fn(&crate::soak::Polled) -> u32| -> u64 {
        polled().map(|(_, polled)| u64::from(of(polled))).sum()
    };
    let longest = polled().map(|(_, polled)| polled.longest_ms).max().unwrap_or_default();
    let hung: Vec<u32> = polled().filter(|(_, polled)| polled.hangs).map(|(number, _)| number).collect();
    // One that hasn't come back by the end is no run that is over.
    let under_way = polled().last().is_some_and(|(_, polled)| polled.hangs);
    let (over, failed) = (sum(|polled| polled.runs), sum(|polled| polled.failed));
    let mut summary = match (over, under_way) {
        (0, true) => {
            format!("It was run once, and has not come back: it hangs, for {} so far.", duration(longest))
        }
        (over, _) => {
            let last = if under_way { ", and the run after those has not come back: it hangs" } else { "" };
            format!(
                "It was run {over} times and failed {failed} times; the longest took {}{last}.",
                duration(longest)
            )
        }
    };
    if !hung.is_empty() {
        summary
            .push_str(&format!(" In these cycles it didn't come back in time: {}.", words::numbers(&hung)));
    }
    let said = polled().filter_map(|(number, polled)| Some((number, polled.said.clone()?)));
    Some(Poll { summary, said: said.take(20).collect() })
}
