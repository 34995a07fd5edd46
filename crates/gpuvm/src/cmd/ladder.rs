//! A ladder in words: what would be tried with a device that is sick, and what not.

use std::fmt::Write;

use gpuvm_core::reset::Rejected;
use gpuvm_core::reset::repair::{Climbed, Ladder};

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

/// Lists the rungs in the order in which they are tried, then those that are left out.
pub(crate) fn text(ladder: &Ladder, indent: &str) -> String {
    let mut text = String::new();
    for (number, climb) in (1..).zip(&ladder.rungs) {
        line!(text, "{indent}{number}. {}: {}", climb.rung, climb.reason);
        if climb.functions.len() > 1 {
            let functions: Vec<String> = climb.functions.iter().map(ToString::to_string).collect();
            line!(text, "{indent}   it reaches {}", functions.join(", "));
        }
    }
    for Rejected { method, reason } in &ladder.left_out {
        line!(text, "{indent}not {method}: {reason}");
    }
    text
}

/// Says of a rung what has come of it.
pub(crate) fn tried(climbed: &Climbed) -> String {
    let Climbed { rung, ms, failure, judgement } = climbed;
    let failed = failure.as_ref().map(|why| format!(", which failed ({why})")).unwrap_or_default();
    let finding = judgement.reason().map(|finding| format!(": {finding}")).unwrap_or_default();
    format!("repair by {rung}, {ms} ms{failed}: it is {}{finding}", judgement.verdict)
}
