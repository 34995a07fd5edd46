//! The first thing that is told: what the soak came to, in plain words, and what it rests on.

use serde::Serialize;

use super::sections::{FindingRow, Log};
use super::words;
use crate::soak::{Cut, Cycle, CycleVerdict, DeviceCycle, Line, Tally, Why};

/// What the soak came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Headline {
    /// `good`, `open`, `warn` or `bad`.
    pub(super) standing: &'static str,
    /// A sign for those who don't see colours.
    pub(super) sign: &'static str,
    pub(super) title: String,
    /// What else belongs to it.
    pub(super) beside: Vec<String>,
    pub(super) lead: Option<Lead>,
}

/// What the verdict rests on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Lead {
    pub(super) title: String,
    /// Why the cycle isn't healthy, and what else went wrong in it.
    pub(super) reasons: Vec<String>,
    pub(super) findings: Vec<FindingRow>,
    pub(super) log: Log,
    pub(super) repair: Vec<String>,
}

impl Headline {
    pub(super) fn of(lines: &[Line], tally: &Tally) -> Self {
        let done = tally.done();
        let stopped = match &tally.why {
            Some(Why::Stopped { cycle, .. }) => Some(*cycle),
            _ => None,
        };
        let (standing, sign) = standing(tally);
        let beside = beside(tally);
        let title = match &tally.why {
            _ if done == 0 && tally.cut.is_empty() => "No cycle has come to its end".to_owned(),
            Some(Why::Stopped { cycle, reason }) => format!("Stopped at cycle {cycle}: {reason}"),
            Some(Why::Interrupted { signal }) => {
                format!("Interrupted by {signal} after {}", outcome(tally))
            }
            Some(Why::Done | Why::Time) => outcome(tally),
            None => format!("Not over: {} so far", outcome(tally)),
        };
        // What it was stopped for; else the first of the worst. A record may have been written by hand: it may not be there.
        let at = stopped.or_else(|| tally.worst.as_ref().map(|worst| worst.cycle));
        let lead = lines.iter().rev().find_map(|line| match line {
            Line::Cycle(cycle) if Some(cycle.number) == at => Some(Lead::of(cycle, stopped)),
            Line::Cut(cut) if Some(cut.number) == at => Some(Lead::of_cut(cut, stopped)),
            _ => None,
        });
        Self { standing, sign, title, beside, lead: lead.flatten() }
    }
}

fn standing(tally: &Tally) -> (&'static str, &'static str) {
    let worst = tally.worst.as_ref().map(|worst| worst.verdict);
    match (&tally.why, worst) {
        (Some(Why::Stopped { .. }), _) => ("bad", "✗"),
        (_, Some(CycleVerdict::Bad | CycleVerdict::Failed)) => ("bad", "✗"),
        (_, Some(_)) => ("warn", "!"),
        _ if tally.is_all_healthy() => ("good", "✓"),
        _ => ("open", "…"),
    }
}

/// Says how many cycles there were, and how they came out.
fn outcome(tally: &Tally) -> String {
    let done = tally.done();
    let cycles = words::cycles(done);
    let healthy = tally.count(CycleVerdict::Healthy);
    if healthy == done {
        return match done {
            0 => "no cycle".to_owned(),
            1 => "1 cycle, healthy".to_owned(),
            _ => format!("{cycles}, all healthy"),
        };
    }
    let others = tally.verdicts.iter().rev().filter(|(verdict, _)| **verdict > CycleVerdict::Healthy);
    let others: Vec<String> = others.map(|(verdict, count)| format!("{count} {verdict}")).collect();
    format!("{cycles}, {} not healthy: {}", done - healthy, others.join(", "))
}

fn beside(tally: &Tally) -> Vec<String> {
    let mut beside = Vec::new();
    let all = u64::from(tally.done()) + u64::try_from(tally.cut.len()).unwrap_or(u64::MAX);
    match (&tally.why, tally.asked) {
        (Some(Why::Time), _) => beside.push("Its time was over.".to_owned()),
        (_, Some(asked)) if u64::from(asked) > all => {
            beside.push(format!("Not run: {} of {}.", u64::from(asked) - all, words::cycles(asked)));
        }
        _ => {}
    }
    if let Some(Why::Stopped { .. }) = tally.why {
        beside.push(format!("Before its end: {}.", outcome(tally)));
    }
    if !tally.cut.is_empty() {
        let cut = words::counted(tally.cut.len(), "cycle was", "cycles were");
        let numbers = words::numbers(&tally.cut);
        beside.push(format!(
            "{cut} cut short because gpuvm itself was stopped (number {numbers}): it has no verdict."
        ));
    }
    if tally.resumed > 0 {
        beside.push(match tally.resumed {
            1 => "It was stopped and went on once.".to_owned(),
            times => format!("It was stopped and went on {times} times."),
        });
    }
    if let Some(per_minute) = tally.per_minute() {
        let elapsed = words::duration(tally.elapsed_ms());
        beside.push(format!("It ran for {elapsed}: {} cycles a minute.", words::figure(per_minute)));
    }
    beside
}

impl Lead {
    fn of(cycle: &Cycle, stopped: Option<u32>) -> Option<Self> {
        if cycle.verdict() == CycleVerdict::Healthy {
            return None;
        }
        let device = cycle.worst_device().filter(|device| device.comes_to() > CycleVerdict::Healthy);
        let findings = device.into_iter().flat_map(DeviceCycle::found);
        let findings = findings.filter(|(_, finding)| finding.weight.is_some());
        let repair = device.into_iter().flat_map(|device| &device.repair);
        let reason = cycle.reason();
        let faults =
            cycle.faults.iter().map(ToString::to_string).filter(|fault| Some(fault) != reason.as_ref());
        // What it was stopped for is in the title already.
        let reasons = reason.clone().filter(|_| stopped.is_none()).into_iter();
        Some(Self {
            title: title(stopped, cycle.number, &cycle.verdict().to_string()),
            reasons: reasons.chain(faults).collect(),
            findings: findings.take(6).map(|(origin, finding)| FindingRow::of(origin, finding)).collect(),
            log: Log::of(device.map_or(&[], |device| &device.kernel)),
            repair: repair.map(super::sections::climbed).collect(),
        })
    }

    fn of_cut(cut: &Cut, stopped: Option<u32>) -> Option<Self> {
        (!cut.left.is_empty()).then(|| Self {
            title: title(stopped, cut.number, "cut short"),
            reasons: cut.left.clone(),
            findings: Vec::new(),
            log: Log::of(&[]),
            repair: Vec::new(),
        })
    }
}

fn title(stopped: Option<u32>, cycle: u32, what: &str) -> String {
    match stopped {
        Some(_) => format!("What it was stopped for: cycle {cycle} ({what})"),
        None => format!("The first of the worst: cycle {cycle} ({what})"),
    }
}
