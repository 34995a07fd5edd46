//! Reads a record's text.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

use super::{Begun, Cut, Cycle, Ended, Line, VERSION};

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
            Err(BadRecord::Line { .. }) if lines.is_empty() => return Err(BadRecord::NoBeginning),
            Err(error) => return Err(error),
        }
        if !matches!(lines.first(), Some(Line::Begun(_))) {
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
            Some("begun") => Err(bad(problem::<Begun>("begun", fields))),
            Some("cycle") => Err(bad(problem::<Cycle>("cycle", fields))),
            Some("cut") => Err(bad(problem::<Cut>("cut", fields))),
            Some("ended") => Err(bad(problem::<Ended>("ended", fields))),
            Some(_) => Ok(line),
            None => Err(bad("it has no `line` that says what it is".to_owned())),
        },
        _ => Ok(line),
    }
}

/// Says why a line isn't what it calls itself.
fn problem<T: DeserializeOwned>(name: &str, fields: &Map<String, Value>) -> String {
    let error = serde_json::from_value::<T>(Value::Object(fields.clone())).err();
    format!(
        "it isn't what a line `{name}` is{}",
        error.map_or_else(String::new, |error| format!(": {error}"))
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const BEGUN: &str = r#"{"line":"begun","version":1,"at":1,"vm":"lab","settings":{"profile":"a.toml","profile_text":"",
        "ready":{"timeout_seconds":1}},"machine":{"gpuvm":"0.1.0","kernel":"6.12"},"devices":[]}"#;
    const ENDED: &str = r#"{"line":"ended","at":2,"why":"done"}"#;

    fn begun() -> String {
        BEGUN.replace("\n        ", "")
    }

    #[rstest]
    #[case::whole(&format!("{ENDED}\n"), 2)]
    #[case::without_the_last_line_feed(ENDED, 2)]
    #[case::torn(r#"{"line":"ended","#, 1)]
    #[case::torn_in_a_text("{\"line\":\"\u{fc}", 1)]
    #[case::of_a_newer_gpuvm("{\"line\":\"weather\",\"rain\":true}\n", 2)]
    #[case::empty_lines(&format!("\n\n{ENDED}\n\n"), 2)]
    fn a_record_is_read_and_its_torn_end_left_out(#[case] rest: &str, #[case] lines: usize) {
        assert_eq!(read(format!("{}\n{rest}", begun()).as_bytes()).unwrap().len(), lines);
    }

    #[rstest]
    #[case::empty("", "it is empty")]
    #[case::blank("\n \n", "it is empty")]
    #[case::another_file("[package]\nname = \"x\"\n", "line 1: a record begins with")]
    #[case::other_json("{\"plan\":{}}\n", "line 1: a record begins with")]
    #[case::json_of_another_kind("[1,2]\n", "line 1: a record begins with")]
    #[case::no_beginning(&format!("{ENDED}\n"), "line 1: a record begins with")]
    #[case::damaged(&format!("{}\nx\n{ENDED}\n", begun()), "line 2: expected value")]
    #[case::damaged_cycle(&format!("{}\n{{\"line\":\"cycle\"}}\n", begun()), "line 2: it isn't what a line `cycle` is: missing field")]
    #[case::no_line(&format!("{}\n{{\"at\":1}}\n", begun()), "line 2: it has no `line`")]
    #[case::newer(&begun().replace("\"version\":1", "\"version\":2"), "line 1: it is of version 2")]
    fn what_is_no_record_is_told_with_its_line(#[case] text: &str, #[case] expected: &str) {
        let error = read(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
