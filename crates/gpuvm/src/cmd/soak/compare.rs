//! `gpuvm soak compare`: two records, held against each other.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use gpuvm_core::soak::compare::{Compared, Comparison, Difference, LEAST, Outcome, Side, compare};
use gpuvm_core::soak::report;
use gpuvm_core::soak::tally::{Found, Spread};

use super::report::lines_of;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// What `soak compare` takes.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The folder of the first soak, or its record.jsonl
    a: PathBuf,

    /// The folder of the second one, or its record.jsonl
    b: PathBuf,
}

pub(super) fn run(cli: &Cli, args: &CompareArgs) -> Result<Exit, Failure> {
    let comparison = compare(&lines_of(&args.a)?, &lines_of(&args.b)?);
    // Whoever asks whether an upgrade has made things worse must not take "nothing was run" for a yes or a no.
    for (path, side) in [(&args.a, &comparison.a), (&args.b, &comparison.b)] {
        if side.cycles == 0 {
            let message = format!("{}: no cycle is over: there is nothing to compare", path.display());
            return Err(Failure::one(Exit::Usage, message, None));
        }
    }
    let code = if comparison.worse.is_empty() { Exit::Ok } else { Exit::Guest };
    match cli.json {
        true => out::json(&comparison)?,
        // A record holds what a kernel and a guest have said: a terminal must not obey it.
        false => out::text(&report::harmless(&text(&comparison)))?,
    }
    Ok(code)
}

/// Spells a comparison, what it comes to first.
fn text(of: &Comparison) -> String {
    let mut text = String::new();
    match of.worse.as_slice() {
        [] if fewest(of) < LEAST => {
            writeln!(text, "B is no worse than A, as far as {} can tell", cycles(fewest(of))).ok();
        }
        [] => text.push_str("B is no worse than A\n"),
        worse => {
            text.push_str("B is worse than A:\n");
            lines(&mut text, "  ", worse);
        }
    }
    writeln!(text, "\nA: {}\nB: {}", side(&of.a), side(&of.b)).ok();
    if !of.differences.is_empty() {
        text.push_str("\nWhat is otherwise:\n");
        of.differences.iter().for_each(|one| difference(&mut text, one));
    }
    text.push_str("\nTimes (A and B: median, p95):\n");
    let widest = of.times.iter().map(|row| row.what.len()).max().unwrap_or_default();
    for row in &of.times {
        let columns = format!("  {:widest$}  {:>22}  {:>22}", row.what, spread(row.a), spread(row.b));
        writeln!(text, "{columns}  {}", outcome(row)).ok();
    }
    for (name, found) in [("A", &of.only_in_a), ("B", &of.only_in_b)] {
        if !found.is_empty() {
            writeln!(text, "\nFound in {name} alone:").ok();
            lines(&mut text, "  ", found.iter().map(finding));
        }
    }
    text
}

/// Returns the number of cycles of the side that has fewer.
fn fewest(of: &Comparison) -> usize {
    usize::try_from(of.a.cycles.min(of.b.cycles)).unwrap_or(usize::MAX)
}

fn cycles(count: usize) -> String {
    if count == 1 { "1 cycle".to_owned() } else { format!("{count} cycles") }
}

fn side(side: &Side) -> String {
    let verdicts: Vec<String> =
        side.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    let cycles = if side.cycles == 1 { "1 cycle".to_owned() } else { format!("{} cycles", side.cycles) };
    let mut text = if verdicts.is_empty() { cycles } else { format!("{cycles}: {}", verdicts.join(", ")) };
    if side.cut > 0 {
        write!(text, "; {} cut short", side.cut).ok();
    }
    text
}

fn difference(text: &mut String, one: &Difference) {
    let spell = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let (a, b) = (spell(&one.a), spell(&one.b));
    if !a.contains('\n') && !b.contains('\n') {
        writeln!(text, "  {}: {a} -> {b}", one.what).ok();
        return;
    }
    // Of a text of many lines, those that are in one alone.
    writeln!(text, "  {}:", one.what).ok();
    lines(text, "    - ", alone(&a, &b));
    lines(text, "    + ", alone(&b, &a));
}

/// Returns the lines that one text has and the other hasn't.
fn alone<'a>(of: &'a str, than: &'a str) -> impl Iterator<Item = &'a str> {
    of.lines().filter(move |line| !than.lines().any(|other| other == *line))
}

fn lines(text: &mut String, before: &str, lines: impl IntoIterator<Item = impl std::fmt::Display>) {
    for line in lines {
        writeln!(text, "{}", format!("{before}{line}").trim_end()).ok();
    }
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{}, {} ms", spread.p50, spread.p95))
}

fn outcome(row: &Compared) -> String {
    let change = match row.difference() {
        Some((ms, Some(part))) => format!("{ms:+} ms, {:+.1} %", part * 100.0),
        Some((ms, None)) => format!("{ms:+} ms"),
        None => String::new(),
    };
    match row.outcome {
        Outcome::Same => "no difference that these cycles show".to_owned(),
        Outcome::Slower => format!("slower: {change}"),
        Outcome::Faster => format!("faster: {change}"),
        Outcome::TooFew => format!("fewer than {LEAST}: too few to tell"),
        Outcome::OnlyOne => "only there".to_owned(),
    }
}

fn finding(found: &Found) -> String {
    let cycles = match found.cycles.as_slice() {
        [one] => format!("cycle {one}"),
        [first, ..] => format!("{} cycles from {first} on", found.cycles.len()),
        [] => String::new(),
    };
    let weight = found.first.weight.map_or_else(|| "worth knowing".to_owned(), |weight| weight.to_string());
    format!("{weight}: {} ({cycles})", found.first)
}
