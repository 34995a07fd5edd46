//! Output that survives a closed pipe: `gpuvm plan | head` is no crash.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// Prints text on standard output.
pub(crate) fn text(text: &str) {
    let mut stdout = anstream::stdout().lock();
    // A closed pipe ends the output, and is no error of ours.
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).ok();
}

/// Prints one JSON document on standard output.
pub(crate) fn json(document: &impl Serialize) {
    let mut line = serde_json::to_string_pretty(document)
        .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string());
    line.push('\n');
    text(&line);
}

/// Prints a line on standard error.
pub(crate) fn note(line: &str) {
    let mut stderr = anstream::stderr().lock();
    writeln!(stderr, "{line}").ok();
}

/// Tells whether standard error is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
