//! Reads a record's text.

use thiserror::Error;

use super::{Line, VERSION};

/// Why a text is no record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadRecord {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It doesn't begin as a record does.
    #[error("line 1: a record begins with `{{\"line\":\"begun\"`, and this doesn't")]
    NoBeginning,
    /// A line can't be read.
    #[error("line {line}: {problem}")]
    Line {
        /// Its number; the first one is 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A newer gpuvm has written it.
    #[error("line {line}: it is of version {version}, and this gpuvm knows {VERSION}")]
    Newer {
        /// The line's number.
        line: usize,
        /// The version that it has.
        version: u32,
    },
}

/// Reads a record. Its last line may be torn, as a crash leaves it: without its line feed it is left out if it can't be read.
///
/// # Errors
/// Returns what keeps the text from being a record.
pub fn read(text: &[u8]) -> Result<Vec<Line>, BadRecord> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
        let is_torn = !line.ends_with(b"\n");
        if line.trim_ascii().is_empty() {
            continue;
        }
        match read_line(number, line) {
            Ok(line) => lines.push(line),
            Err(BadRecord::Line { .. }) if is_torn && !lines.is_empty() => {}
            Err(_) if lines.is_empty() && number == 1 => return Err(BadRecord::NoBeginning),
            Err(error) => return Err(error),
        }
        if number == 1 && !matches!(lines.first(), Some(Line::Begun(_))) {
            return Err(BadRecord::NoBeginning);
        }
    }
    if lines.is_empty() { Err(BadRecord::Empty) } else { Ok(lines) }
}

fn read_line(number: usize, text: &[u8]) -> Result<Line, BadRecord> {
    let bad = |problem: String| BadRecord::Line { line: number, problem };
    let line: Line = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
    match &line {
        Line::Begun(begun) if begun.version > VERSION => {
            Err(BadRecord::Newer { line: number, version: begun.version })
        }
        // A line of a kind that is known, and that isn't what it should be, is not of a newer gpuvm but damaged.
        Line::Newer(fields) => match fields.get("line").and_then(|name| name.as_str()) {
            Some(name @ ("begun" | "cycle" | "cut" | "ended")) => {
                Err(bad(format!("it isn't what a line `{name}` is")))
            }
            Some(_) => Ok(line),
            None => Err(bad("it has no `line` that says what it is".to_owned())),
        },
        _ => Ok(line),
    }
}
