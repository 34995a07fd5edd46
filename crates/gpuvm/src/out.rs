//! Output that survives a closed pipe: `gpuvm plan | head` is no crash.

use std::io::{ErrorKind, IsTerminal, Write};

use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Failure;

/// Prints text on standard output.
///
/// # Errors
/// Returns what keeps it from being written, as a full disk does: nobody should take half a plan for a whole one.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Whether anybody takes what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    There,
    Gone,
}

/// Hands bytes of a stream through to standard output as they are; who prints one stops where nobody reads it any more.
///
/// # Errors
/// As [`text`], but for a closed pipe.
pub(crate) fn stream(bytes: &[u8]) -> Result<Reader, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        result => written(result).map(|()| Reader::There),
    }
}

fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        // A closed pipe ends the output, and is no error of ours.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::one(Exit::Internal, format!("write to standard output: {error}"), None))
        }
        _ => Ok(()),
    }
}

/// Prints one JSON document on standard output.
///
/// # Errors
/// As [`text`].
pub(crate) fn json(document: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string_pretty(document)
        .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string());
    line.push('\n');
    text(&line)
}

/// Tells on standard error what couldn't be written, where the verb's own exit code matters more.
pub(crate) fn told(written: Result<(), Failure>) {
    if let Err(failure) = written {
        failure.print();
    }
}

/// Prints a line on standard error, as a whole: nobody else's comes in between.
pub(crate) fn note(line: &str) {
    anstream::stderr().lock().write_all(format!("{line}\n").as_bytes()).ok();
}

/// Asks on standard error, and leaves the line open for the answer.
pub(crate) fn ask(question: &str) {
    let mut stderr = anstream::stderr().lock();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).ok();
}

/// Tells whether standard error is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
