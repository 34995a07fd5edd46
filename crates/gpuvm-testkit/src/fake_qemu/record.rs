//! What the fake was given, heard and did, so that a test can hold the order against what it expects.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A recording, read back by a test; also while the program still runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recording {
    /// How often the program was started.
    pub starts: u32,
    /// The last command line, the program first; bytes that are no UTF-8 are replaced.
    pub argv: Vec<String>,
    /// The commands in the order in which they came.
    pub commands: Vec<RecordedCommand>,
    /// The end, unless a signal brought it.
    pub exit: Option<RecordedExit>,
}

/// A command that came by the monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedCommand {
    /// Milliseconds since the program began.
    pub ms: u64,
    /// Its name.
    pub execute: String,
    /// Its arguments, null without.
    pub arguments: Value,
}

/// The end of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedExit {
    /// Milliseconds since the program began.
    pub ms: u64,
    /// The exit code.
    pub code: i32,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Argv(Vec<String>),
    Command(RecordedCommand),
    Exit(RecordedExit),
}

impl Recording {
    /// Reads a recording.
    ///
    /// # Errors
    /// Those of reading a file, `InvalidData` when it is no recording.
    pub fn load(path: &Path) -> io::Result<Self> {
        let mut recording = Self::default();
        for line in BufReader::new(File::open(path)?).lines() {
            match serde_json::from_str(&line?)? {
                Line::Argv(argv) => {
                    recording.starts += 1;
                    recording.argv = argv;
                }
                Line::Command(command) => recording.commands.push(command),
                Line::Exit(exit) => recording.exit = Some(exit),
            }
        }
        Ok(recording)
    }

    /// The names of the commands in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.commands.iter().map(|command| command.execute.as_str()).collect()
    }
}

/// Writes a recording line by line, each in one write(2).
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    file: Option<Mutex<File>>,
}

impl Recorder {
    pub(crate) fn new(path: Option<&Path>, argv: &[OsString]) -> io::Result<Self> {
        // A program that is started again goes on below: a run may take several.
        let open = |path| File::options().append(true).create(true).open(path);
        let file = path.map(open).transpose()?.map(Mutex::new);
        let recorder = Self { start: Instant::now(), file };
        recorder.write(&Line::Argv(argv.iter().map(|arg| arg.to_string_lossy().into_owned()).collect()));
        Ok(recorder)
    }

    pub(crate) fn command(&self, execute: &str, arguments: &Value) {
        let (execute, arguments) = (execute.to_owned(), arguments.clone());
        self.write(&Line::Command(RecordedCommand { ms: self.ms(), execute, arguments }));
    }

    pub(crate) fn exit(&self, code: i32) {
        self.write(&Line::Exit(RecordedExit { ms: self.ms(), code }));
    }

    fn ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn write(&self, line: &Line) {
        let Some(file) = &self.file else { return };
        // A line that can't be written is missed by the test that reads it.
        if let Ok(mut bytes) = serde_json::to_vec(line) {
            bytes.push(b'\n');
            let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes);
        }
    }
}
