//! What a person sees of a soak while it runs.

mod beat;

use std::io::IsTerminal;
use std::sync::Arc;

use gpuvm_core::soak::{Cycle, CycleKind, CycleVerdict, Settings, Tally, report};
use gpuvm_run::{Note, Observer, Phase};

use crate::cli::Cli;
use crate::cmd::up;
use crate::out;

use beat::{Beat, Beating, Way};

/// Tells of a soak: on a terminal by one line that is written over, else by a line for each cycle.
pub(super) struct Progress {
    style: Style,
    /// What tells of each step of a cycle, with -v.
    steps: Option<up::Progress>,
    /// The cycle that runs.
    cycle: u32,
    /// What says that it still does.
    beat: Arc<Beat>,
    /// For as long as this is there; nothing where nobody sees it.
    _beating: Option<Beating>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// The record's lines on standard output, and nothing else.
    Json,
    /// One line that is written over.
    Live,
    /// A line for each cycle.
    Lines,
}

impl Progress {
    pub(super) fn new(cli: &Cli) -> Self {
        let terminal =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        let style = match (cli.json, terminal && !cli.is_verbose()) {
            (true, _) => Style::Json,
            (false, true) => Style::Live,
            (false, false) => Style::Lines,
        };
        let steps = (cli.is_verbose() && !cli.json).then(|| up::Progress::new(cli));
        let way = match style {
            Style::Live => Way::WrittenOver,
            Style::Json | Style::Lines => Way::Lines,
        };
        let beat = Arc::new(Beat::new(way, Box::new(std::io::stderr())));
        let beating = (style != Style::Json).then(|| Beating::start(&beat));
        Self { style, steps, cycle: 0, beat, _beating: beating.flatten() }
    }

    /// Prints a line of the record.
    pub(super) fn line(&mut self, text: &str) {
        if self.style == Style::Json {
            out::told(out::text(text));
        }
    }

    /// Tells something that stays.
    pub(super) fn tell(&mut self, text: &str) {
        if self.style != Style::Json {
            // A guest's job, its kernel and the poll command have their words in it.
            self.beat.between(|| out::note(&format!("gpuvm: {}", report::harmless(text))));
        }
    }

    /// A cycle begins.
    pub(super) fn begins(&mut self, number: u32, kind: CycleKind, tally: &Tally, settings: &Settings) {
        self.cycle = number;
        self.beat.begins(live(number, kind, tally, settings));
    }

    /// A cycle is over.
    pub(super) fn over(&mut self, cycle: &Cycle, tally: &Tally) {
        self.beat.ends();
        let healthy = cycle.verdict() == CycleVerdict::Healthy;
        match self.style {
            Style::Json => {}
            Style::Live if healthy => {}
            Style::Live | Style::Lines => self.tell(&over(cycle, tally)),
        }
    }

    /// Takes the line that is written over away: nothing runs any more.
    pub(super) fn clear(&mut self) {
        self.beat.clear();
    }
}

impl Observer for Progress {
    fn phase(&mut self, phase: &Phase) {
        if let Some(part) = part(phase) {
            self.beat.is_at(part);
        }
        if let Some(steps) = &mut self.steps {
            steps.phase(phase);
        }
    }

    fn note(&mut self, note: &Note) {
        match &mut self.steps {
            Some(steps) => steps.note(note),
            // That the soak itself asks for a guest's end is no news.
            None if note.0.starts_with("soak: ") => {}
            None => {
                let text = format!("cycle {}: {}", self.cycle, up::hurried(&note.0));
                self.tell(&text);
            }
        }
    }
}

/// Names the part of a cycle that begins with a step, as it is told while it lasts.
fn part(phase: &Phase) -> Option<&'static str> {
    Some(match phase {
        Phase::Reserving | Phase::Preparing { .. } => "preparing the host",
        Phase::Starting => "starting QEMU",
        Phase::Running { .. } => "the guest runs",
        Phase::Rebooting { .. } | Phase::Relaunching { .. } => "the guest reboots",
        Phase::Stopping { .. } | Phase::Leaving { .. } => "ending the guest",
        Phase::Resetting { .. } => "resetting the devices",
        Phase::Ended | Phase::Judging => "looking at the devices",
        Phase::Repairing { .. } => "repairing",
        Phase::GivingBack => "giving the host back",
        _ => return None,
    })
}

/// Spells the line that is written over.
fn live(number: u32, kind: CycleKind, tally: &Tally, settings: &Settings) -> String {
    let mut parts = vec![match settings.cycles {
        Some(cycles) => format!("cycle {number}/{cycles} {kind}"),
        None => format!("cycle {number} {kind}"),
    }];
    parts.extend(tally.per_minute().map(|rate| format!("{rate:.1}/min")));
    if let Some(spread) = tally.cycle.spread() {
        parts.push(format!("cycle p50 {} p95 {}", seconds(spread.p50), seconds(spread.p95)));
        parts.push(verdicts(tally));
    }
    parts.extend(left(tally, settings).map(|left| format!("ETA {}", rough(left))));
    parts.join(" · ")
}

/// Spells the line of a cycle that is over.
fn over(cycle: &Cycle, tally: &Tally) -> String {
    let verdict = cycle.verdict();
    let of = tally.asked.map(|asked| format!("/{asked}")).unwrap_or_default();
    let why = cycle.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("cycle {}{of} {}: {verdict} after {}{why}", cycle.number, cycle.kind, seconds(cycle.ms))
}

/// Counts cycles by what they came to, the best first: `36 healthy, 1 degraded`.
pub(super) fn verdicts(tally: &Tally) -> String {
    let mut parts: Vec<String> =
        tally.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    if !tally.cut.is_empty() {
        parts.push(format!("{} cut short", tally.cut.len()));
    }
    parts.join(", ")
}

/// Estimates how many seconds are left.
fn left(tally: &Tally, settings: &Settings) -> Option<u64> {
    let ran = tally.elapsed_ms();
    let by_time = settings.seconds.map(|most| most.saturating_sub(ran / 1000));
    let done = u64::from(tally.done());
    let by_cycles = settings.cycles.filter(|_| done > 0).map(|cycles| {
        let over = done.saturating_add(u64::try_from(tally.cut.len()).unwrap_or(u64::MAX));
        u64::from(cycles).saturating_sub(over).saturating_mul(ran / done) / 1000
    });
    match (by_time, by_cycles) {
        (Some(time), Some(cycles)) => Some(time.min(cycles)),
        (time, cycles) => time.or(cycles),
    }
}

/// Spells ms as seconds, where there is a tenth of one.
pub(super) fn seconds(ms: u64) -> String {
    match ms {
        0..100 => format!("{ms} ms"),
        _ => format!("{}.{} s", ms / 1000, ms / 100 % 10),
    }
}

/// Spells seconds as roughly as a guess deserves.
fn rough(seconds: u64) -> String {
    match seconds {
        0..=89 => format!("{seconds} s"),
        90..=5399 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests;
