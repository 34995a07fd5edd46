//! A reset in words.

use std::fmt::Write;

use gpuvm_core::plan::{Ownership, ResetJob};
use gpuvm_core::reset::repair::Climbed;
use gpuvm_host::reset::{Attempted, FunctionReport, Report};

use crate::cmd::ladder;

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

/// Says what would be done, and why.
pub(super) fn would(job: &ResetJob) -> String {
    let mut text = String::new();
    for plan in &job.resets {
        line!(text, "{} would be reset {}", plan.bdf, plan.reason);
        for (number, step) in (1..).zip(&plan.steps) {
            line!(text, "  {number}. {}: {}", step.method, step.reason);
            if step.functions.len() > 1 {
                let functions: Vec<String> = step.functions.iter().map(ToString::to_string).collect();
                line!(text, "     it reaches {}", functions.join(", "));
            }
        }
        for rejected in &plan.rejected {
            line!(text, "  not {}: {}", rejected.method, rejected.reason);
        }
    }
    if !job.ladders.is_empty() {
        line!(text, "what is sick after that would be repaired");
        text.push_str(&ladder::text(&job.ladders));
    }
    for device in &job.bind.devices {
        match &device.ownership {
            Ownership::BoundByUs { was: Some(was) } => {
                line!(text, "{} would be on {} meanwhile, and go back to {was}", device.bdf, device.driver)
            }
            Ownership::BoundByUs { was: None } => {
                line!(text, "{} would be on {} meanwhile; it has no driver", device.bdf, device.driver)
            }
            Ownership::WasVfio | Ownership::KeepDriver { .. } => {
                line!(text, "{} is on {}, and is reset where it is", device.bdf, device.driver)
            }
        };
    }
    for warning in &job.bind.warnings {
        line!(text, "warning: {}: {}", warning.about, warning.message);
    }
    text
}

/// Says how each function came back, the verdict first.
pub(super) fn done(report: &Report) -> String {
    let mut text = String::new();
    for function in &report.functions {
        line!(text, "{} is {}: {}", function.bdf, function.judgement.verdict, how(function, report));
        for climbed in &function.repair {
            line!(text, "  {climbed}");
        }
        for finding in &function.judgement.findings {
            line!(text, "  {finding}");
        }
    }
    for attempt in &report.attempts {
        if let Some(now) = attempt.done.as_ref().and_then(|done| done.methods_now.as_ref()) {
            line!(
                text,
                "{}: reset_method lists {now} now: the kernel doesn't take back a bus reset that it can't do",
                attempt.bdf
            );
        }
    }
    if !report.staying.is_empty() {
        let staying: Vec<String> = report.staying.iter().map(ToString::to_string).collect();
        line!(
            text,
            "{} stay{} on VFIO, so that no other driver touches what is sick; give back: gpuvm unbind {}",
            staying.join(", "),
            if staying.len() == 1 { "s" } else { "" },
            staying.join(" ")
        );
    }
    text
}

fn how(function: &FunctionReport, report: &Report) -> String {
    let words = reset(function, report);
    match (function.repaired_by(), &function.before_repair) {
        (Some(Climbed { rung, .. }), Some(before)) => {
            format!("{words}, which left it {}; repaired by {rung}, and out of quarantine", before.verdict)
        }
        (None, Some(_)) if function.repair.is_empty() => {
            format!("{words}; no rung of the ladder could be tried")
        }
        (None, Some(_)) => format!("{words}; no rung of the ladder has helped"),
        _ => words,
    }
}

fn reset(function: &FunctionReport, report: &Report) -> String {
    let reached = |attempt: &&Attempted| attempt.functions.contains(&function.bdf);
    let done =
        report.attempts.iter().filter(reached).find_map(|attempt| Some((attempt, attempt.done.as_ref()?)));
    let Some((attempt, done)) = done else {
        return match report
            .attempts
            .iter()
            .filter(reached)
            .map(|attempt| attempt.method.name())
            .collect::<Vec<_>>()[..]
        {
            [] => "not reset".to_owned(),
            ref tried => format!("not reset; tried: {}", tried.join(", ")),
        };
    };
    let mut words = format!("reset by {} in {} ms", done.method, done.ms);
    if attempt.bdf != function.bdf {
        words.push_str(&format!(", with {}", attempt.bdf));
    }
    if let (Some(open), Some(close)) = (done.open_ms, done.close_ms) {
        words.push_str(&format!(" ({}; opening it took {open} ms and closing it {close} ms)", done.by));
    }
    words
}
