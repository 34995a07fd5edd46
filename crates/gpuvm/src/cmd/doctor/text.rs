//! An examination as a person reads it.

use std::fmt::Write;

use gpuvm_core::doctor::{Check, Examination, Subject, Verdict};

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// What was read and what to do, where something is not well.
    Findings,
    /// What was read everywhere.
    All,
}

/// The longest verdict, `not applicable`.
const VERDICT: usize = 14;

/// Writes all findings by layer.
pub(super) fn text(examination: &Examination, detail: Detail) -> String {
    let mut text = String::new();
    let name = examination.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut layer = None;
    for finding in findings(&examination.checks, detail) {
        let now = finding.check.layer;
        if layer != Some(now) {
            line!(text, "{}{now}", if layer.is_some() { "\n" } else { "" });
            layer = Some(now);
        }
        one(&mut text, &finding, name, detail);
    }
    line!(text, "\n{}", summary(examination));
    text
}

/// A finding, and all that it is about.
struct Finding<'a> {
    check: &'a Check,
    subjects: Vec<&'a Subject>,
}

/// Puts together what a check found alike of several devices, unless all is to be told: a host with eight cards has hundreds.
fn findings(checks: &[Check], detail: Detail) -> Vec<Finding<'_>> {
    let mut findings: Vec<Finding<'_>> = Vec::new();
    for check in checks {
        let alike = |finding: &&mut Finding<'_>| {
            let other = finding.check;
            let same =
                other.name == check.name && other.verdict == check.verdict && other.found == check.found;
            same && (is_well(check) || reads(other) == reads(check) && other.remedy == check.remedy)
        };
        match findings.iter_mut().find(alike).filter(|_| detail == Detail::Findings) {
            Some(finding) => finding.subjects.push(&check.subject),
            None => findings.push(Finding { check, subjects: vec![&check.subject] }),
        }
    }
    findings
}

/// Returns what was read, a path of each device's own with a star.
fn reads(check: &Check) -> Vec<String> {
    match &check.subject {
        Subject::Device { bdf } => {
            check.read.iter().map(|read| read.replace(&bdf.to_string(), "*")).collect()
        }
        _ => check.read.clone(),
    }
}

fn is_well(check: &Check) -> bool {
    matches!(check.verdict, Verdict::Ok | Verdict::NotApplicable)
}

/// Names what a finding is about: a few by name, and how many more.
fn about(subjects: &[&Subject]) -> String {
    const NAMED: usize = 4;
    let named: Vec<String> = subjects.iter().take(NAMED).map(ToString::to_string).collect();
    match subjects {
        [Subject::Host] => String::new(),
        _ if subjects.len() > NAMED + 1 => {
            format!("{} and {} more: ", named.join(", "), subjects.len() - NAMED)
        }
        _ => format!("{}: ", subjects.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn one(text: &mut String, finding: &Finding<'_>, name: usize, detail: Detail) {
    let (check, subject) = (finding.check, about(&finding.subjects));
    let (colour, plain) = colour(check.verdict);
    let verdict = check.verdict.to_string();
    line!(text, "  {colour}{verdict:VERDICT$}{plain}  {:name$}  {subject}{}", check.name, check.found);
    if is_well(check) && detail == Detail::Findings {
        return;
    }
    let indent = " ".repeat(VERDICT + name + 6);
    let read = if finding.subjects.len() > 1 { reads(check) } else { check.read.clone() };
    for read in read {
        line!(text, "{indent}read: {}", one_line(&read));
    }
    line!(text, "{indent}why:  {}", check.why);
    if let Some(remedy) = &check.remedy {
        line!(text, "{indent}do:   {}", remedy.what);
        for command in &remedy.commands {
            line!(text, "{indent}        {command}");
        }
    }
}

/// What the kernel shows may hold a newline.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

/// Returns what comes before and after a word in colour; a terminal shows it, and it is taken out for anything else.
fn colour(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Ok => ("\x1b[32m", "\x1b[0m"),
        Verdict::NotApplicable => ("\x1b[2m", "\x1b[0m"),
        Verdict::Unknown => ("\x1b[36m", "\x1b[0m"),
        Verdict::Warning => ("\x1b[33m", "\x1b[0m"),
        Verdict::Failed => ("\x1b[1;31m", "\x1b[0m"),
    }
}

fn summary(examination: &Examination) -> String {
    let counts: Vec<String> = Verdict::ALL
        .into_iter()
        .rev()
        .map(|verdict| (verdict, examination.count(verdict)))
        .filter(|(_, count)| *count > 0)
        .map(|(verdict, count)| match verdict {
            Verdict::Warning if count != 1 => format!("{count} warnings"),
            verdict => format!("{count} {verdict}"),
        })
        .collect();
    let fit = if examination.is_fit() { "fit" } else { "unfit" };
    format!("{fit}: {}", counts.join(", "))
}
