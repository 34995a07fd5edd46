//! What a soak came to, verdict first.

use std::path::Path;

use gpuvm_core::pci::Bdf;
use gpuvm_core::qemu::cmdline::quote;
use gpuvm_core::soak::report::harmless;
use gpuvm_core::soak::tally::Origin;
use gpuvm_core::soak::{CycleVerdict, Standing, Tally, Why};

use super::book::Book;
use super::progress::{seconds, verdicts};
use crate::exit::Exit;
use crate::{hints, out};

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
    for line in sick(&book.tally).map(hints::sick).iter().flat_map(|hint| hint.lines()) {
        out::note(&format!("  hint: {line}"));
    }
    if !matches!(book.headway.why(), Some(Why::Done | Why::Time)) {
        out::note(&format!("  hint: {}", go_on(book)));
    }
}

/// Finds the device that came back sick from the cycle that the soak was stopped after.
fn sick(tally: &Tally) -> Option<Bdf> {
    let Some(Why::Stopped { cycle, .. }) = &tally.why else { return None };
    tally.worst.as_ref().filter(|worst| worst.verdict == CycleVerdict::Bad)?;
    let mut found = tally.findings.iter().filter(|(key, found)| {
        key.origin == Origin::Verdict
            && key.weight.is_some_and(|weight| weight.is_bad())
            && found.cycles.contains(cycle)
    });
    found.next().map(|(key, _)| key.device)
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
            .filter_map(|(phase, times)| Some(format!("{phase} {}", seconds(times.percentile(50)?))))
            .collect();
        lines.push(format!("at the median a cycle takes {}: {}", seconds(cycle), phases.join(", ")));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests;
