//! A ladder in words: what would be tried with a device that is sick, and what not.

use std::fmt::Write;

use gpuvm_core::reset::Rejected;
use gpuvm_core::reset::repair::Ladder;

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

/// Lists the rungs in the order in which they are tried, then those that are left out.
pub(super) fn text(ladder: &Ladder, indent: &str) -> String {
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
