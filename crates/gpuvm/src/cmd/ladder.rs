//! Ladders in words: what would be tried with devices that are sick, and what not.

use std::fmt::Write;

use gpuvm_core::reset::Rejected;
use gpuvm_core::reset::repair::Ladder;

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}

/// Lists each device's rungs in the order in which they are tried, then those that are left out; devices with the same ones together.
pub(super) fn text(ladders: &[Ladder]) -> String {
    let mut text = String::new();
    let same = |one: &Ladder, other: &Ladder| (&one.rungs, &one.left_out) == (&other.rungs, &other.left_out);
    for ladders in ladders.chunk_by(same) {
        let devices: Vec<String> = ladders.iter().map(|ladder| ladder.bdf.to_string()).collect();
        line!(text, "  {}", devices.join(", "));
        let Some(ladder) = ladders.first() else { continue };
        for (number, climb) in (1..).zip(&ladder.rungs) {
            line!(text, "    {number}. {}: {}", climb.rung, climb.reason);
        }
        for Rejected { method, reason } in &ladder.left_out {
            line!(text, "    not {method}: {reason}");
        }
    }
    text
}
