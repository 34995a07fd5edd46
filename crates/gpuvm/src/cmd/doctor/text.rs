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
    for check in &examination.checks {
        if layer != Some(check.layer) {
            line!(text, "{}{}", if layer.is_some() { "\n" } else { "" }, check.layer);
            layer = Some(check.layer);
        }
        one(&mut text, check, name, detail);
    }
    line!(text, "\n{}", summary(examination));
    text
}

fn one(text: &mut String, check: &Check, name: usize, detail: Detail) {
    let subject = match &check.subject {
        Subject::Host => String::new(),
        subject => format!("{subject}: "),
    };
    let (colour, plain) = colour(check.verdict);
    let verdict = check.verdict.to_string();
    line!(text, "  {colour}{verdict:VERDICT$}{plain}  {:name$}  {subject}{}", check.name, check.found);
    let well = matches!(check.verdict, Verdict::Ok | Verdict::NotApplicable);
    if well && detail == Detail::Findings {
        return;
    }
    let indent = " ".repeat(VERDICT + name + 6);
    for read in &check.read {
        line!(text, "{indent}read: {}", one_line(read));
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
