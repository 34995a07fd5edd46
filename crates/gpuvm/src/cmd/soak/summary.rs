//! What a soak came to, verdict first.

use std::path::Path;

use gpuvm_core::qemu::cmdline::quote;
use gpuvm_core::soak::report::harmless;
use gpuvm_core::soak::{Phase, Standing, Tally, Why};

use super::book::Book;
use super::progress::{seconds, verdicts};
use crate::exit::Exit;
use crate::out;

/// Returns what gpuvm ends with.
pub(super) fn exit(standing: Standing) -> Exit {
    match standing {
        Standing::Healthy => Exit::Ok,
        Standing::NotHealthy => Exit::Guest,
        Standing::Bad => Exit::NotGivenBack,
    }
}

/// Tells a person.
pub(super) fn tell(book: &Book, report: &Path) {
    text(book.headway.why(), &book.tally)
        .iter()
        .for_each(|line| out::note(&format!("gpuvm: {}", harmless(line))));
    out::note(&format!("gpuvm: report: {}", report.display()));
    out::note(&format!("gpuvm: record: {}", book.record.path().display()));
    if !matches!(book.headway.why(), Some(Why::Done | Why::Time)) {
        out::note(&format!("  hint: {}", go_on(book)));
    }
}

fn go_on(book: &Book) -> String {
    let (profile, folder) = (quote(book.settings.profile.as_ref()), quote(book.record.folder().as_os_str()));
    format!("go on with: gpuvm soak {profile} --resume --out {folder}")
}

/// Spells it: what the cycles came to, the first of the worst, why it is over, and how long things took.
fn text(why: Option<&Why>, tally: &Tally) -> Vec<String> {
    let cycles = match tally.done() {
        1 => "1 cycle".to_owned(),
        count => format!("{count} cycles"),
    };
    let counts = verdicts(tally);
    let mut lines = vec![if counts.is_empty() { cycles } else { format!("{cycles}: {counts}") }];
    if let Some(worst) = &tally.worst {
        lines.push(format!("cycle {} is {}: {}", worst.cycle, worst.verdict, worst.reason));
    }
    lines.extend(match why {
        Some(Why::Stopped { cycle, reason })
            if tally.worst.as_ref().is_none_or(|worst| worst.cycle != *cycle) =>
        {
            Some(format!("stopped after cycle {cycle}: {reason}"))
        }
        Some(Why::Stopped { cycle, .. }) => Some(format!("stopped after cycle {cycle}")),
        Some(Why::Interrupted { signal }) => Some(format!("ended by {signal}")),
        Some(Why::Done | Why::Time) | None => None,
    });
    if let Some(cycle) = tally.cycle.percentile(50) {
        let phases: Vec<String> = tally
            .phases
            .iter()
            .filter_map(|(phase, times)| Some(format!("{} {}", name(*phase), seconds(times.percentile(50)?))))
            .collect();
        lines.push(format!("at the median a cycle takes {}: {}", seconds(cycle), phases.join(", ")));
    }
    lines
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Plan => "plan",
        Phase::Prepare => "prepare",
        Phase::Start => "start",
        Phase::Boot => "boot",
        Phase::Work => "work",
        Phase::Reboot => "reboot",
        Phase::Stop => "stop",
        Phase::Reset => "reset",
        Phase::Judge => "judge",
        Phase::Repair => "repair",
        Phase::GiveBack => "give back",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests;
