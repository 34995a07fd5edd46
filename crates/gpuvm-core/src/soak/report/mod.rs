//! The report of a soak: one file that a browser shows, with everything in it.

use super::{Line, Ready, Tally};

/// Writes the report of a record.
pub fn html(lines: &[Line]) -> String {
    let tally = Tally::of(lines);
    format!("<!DOCTYPE html>\n<title>{}</title>\n", tally.done())
}

/// Says when a guest is ready.
pub fn ready(ready: &Ready) -> String {
    let mut parts = Vec::new();
    if let Some(expect) = &ready.expect {
        parts.push(format!("its console matches `{expect}`"));
    }
    if ready.job {
        parts.push("its job has reported".to_owned());
    }
    if ready.after_ms > 0 || parts.is_empty() {
        parts.push(format!("{} s have passed", super::tally::float(ready.after_ms) / 1000.0));
    }
    format!("{} (at most {} s)", parts.join(", then "), ready.timeout_seconds)
}
