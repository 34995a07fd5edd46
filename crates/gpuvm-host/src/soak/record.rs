//! The record of a soak: lines that are appended and synced one by one, and a note of the cycle that runs.
//!
//! ```text
//! begun -> [note: cycle 1 runs] -> cycle 1 -> [note: cycle 2 runs] -> cycle 2 -> ... -> ended -> [no note]
//! ```
//!
//! The note is written and synced before a cycle begins. A note of a cycle that has no line, in a record that isn't ended, is of a
//! cycle whose gpuvm was killed: whoever goes on writes a line for it that says so. A note of a cycle that has its line is old.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gpuvm_core::soak::{self, BadRecord, CycleKind, Line};
use serde::{Deserialize, Serialize};

use super::{Holding, take};
use crate::HostError;
use crate::lock::make_dir;

/// The name of the record's file.
pub const RECORD: &str = "record.jsonl";
/// The name of the note.
const RUNNING: &str = "running";
/// The length of the note: always the same, so that it is written over in place.
const NOTE: usize = 128;
/// The most that is read of a record: some 100,000 cycles.
const RECORD_MAX: u64 = 1 << 30;

/// The note of the cycle that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    number: u32,
    kind: CycleKind,
}

/// A record that is written.
#[derive(Debug)]
pub struct Record {
    folder: PathBuf,
    file: File,
    note: File,
    _holding: Holding,
}

/// What is in a record that a soak goes on with.
#[derive(Debug)]
pub struct Resumed {
    /// Its lines.
    pub lines: Vec<Line>,
    /// A cycle that was begun and whose end nobody has seen.
    pub cut: Option<(u32, CycleKind)>,
    /// The length of what a crash had left of a line, and was taken off.
    pub torn: u64,
}

/// A record that was read.
#[derive(Debug, PartialEq)]
pub struct Written {
    /// Its lines.
    pub lines: Vec<Line>,
    /// The length of what is whole.
    whole: u64,
    /// The length of what a crash, or a soak that is just writing, has left of a last line.
    pub torn: u64,
}

impl Record {
    /// Starts a record in a folder that has none.
    ///
    /// # Errors
    /// Returns failures to make it; that there is one already is one.
    pub fn begin(folder: &Path) -> Result<Self, HostError> {
        make_dir(folder)?;
        let holding = hold(folder)?;
        let path = folder.join(RECORD);
        let file = File::options().create_new(true).append(true).open(&path);
        let file = file.map_err(HostError::file("make", &path))?;
        Self::of(folder, file, holding)
    }

    /// Opens the record of a soak that is to go on, and takes off what a crash has left of a line.
    ///
    /// # Errors
    /// Returns failures to read, that another gpuvm writes it, and that it has no line or makes no sense.
    pub fn resume(folder: &Path) -> Result<(Self, Resumed), HostError> {
        let path = folder.join(RECORD);
        // Looked at before the lock, which would make the folder.
        fs::metadata(&path).map_err(HostError::file("open", &path))?;
        let holding = hold(folder)?;
        let Written { lines, whole, torn } =
            read(folder)?.unwrap_or(Written { lines: Vec::new(), whole: 0, torn: 0 });
        let file = File::options().append(true).open(&path).map_err(HostError::file("open", &path))?;
        // What has no line at all may be something else.
        if torn > 0 && !lines.is_empty() {
            file.set_len(whole).and_then(|()| file.sync_all()).map_err(HostError::file("shorten", &path))?;
        }
        let note = fs::read_to_string(folder.join(RUNNING)).ok();
        // A note that makes no sense was being written when its gpuvm was killed: that cycle had not begun.
        let note = note.and_then(|note| serde_json::from_str::<Running>(note.trim_end()).ok());
        let last = lines.iter().filter_map(Line::number).max().unwrap_or(0);
        let ended = matches!(lines.last(), Some(Line::Ended(_)));
        let cut = note.filter(|note| !ended && note.number > last);
        let cut = cut.map(|note| (note.number, note.kind));
        Ok((Self::of(folder, file, holding)?, Resumed { lines, cut, torn }))
    }

    fn of(folder: &Path, file: File, holding: Holding) -> Result<Self, HostError> {
        let path = folder.join(RUNNING);
        let note = File::options().create(true).truncate(false).write(true).open(&path);
        let note = note.map_err(HostError::file("make", &path))?;
        let record = Self { folder: folder.to_owned(), file, note, _holding: holding };
        record.sync_folder()?;
        Ok(record)
    }

    /// Returns its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns its file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(RECORD)
    }

    /// Appends a line, and returns its text once it is synced.
    ///
    /// # Errors
    /// Returns failures to write or sync.
    pub fn append(&mut self, line: &Line) -> Result<String, HostError> {
        let path = self.path();
        let mut text = serde_json::to_string(line).map_err(|error| HostError::content(&path, "", error))?;
        text.push('\n');
        let before = self.file.metadata().map_err(HostError::file("read", &path))?.len();
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| {
            // A part of a line, of a full disk, would spoil the next one. If even this fails, the error is the same one.
            self.file.set_len(before).ok();
            HostError::file("write", &path)(error)
        })?;
        Ok(text)
    }

    /// Notes that a cycle is about to begin.
    ///
    /// # Errors
    /// Returns failures to write or sync: then it must not begin.
    pub fn note(&mut self, number: u32, kind: CycleKind) -> Result<(), HostError> {
        let path = self.folder.join(RUNNING);
        let text = serde_json::to_string(&Running { number, kind });
        let text = text.map_err(|error| HostError::content(&path, "", error))?;
        let text = format!("{text:<width$}\n", width = NOTE - 1);
        let written = self.note.write_all_at(text.as_bytes(), 0).and_then(|()| self.note.sync_data());
        written.map_err(HostError::file("write", &path))
    }

    /// Takes the note away: the cycle that it tells of, if any, has its line, or is to be run again.
    ///
    /// # Errors
    /// Returns failures to write or sync.
    pub fn clear_note(&mut self) -> Result<(), HostError> {
        let path = self.folder.join(RUNNING);
        self.note.set_len(0).and_then(|()| self.note.sync_all()).map_err(HostError::file("shorten", &path))
    }

    /// Removes the note of a record whose last line says that it is over: nothing more is noted then.
    ///
    /// # Errors
    /// Returns failures to remove it.
    pub fn close(&self) -> Result<(), HostError> {
        crate::lock::remove(&self.folder.join(RUNNING))?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), HostError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(HostError::file("sync", &self.folder))
    }
}

fn hold(folder: &Path) -> Result<Holding, HostError> {
    take(&folder.join("lock"), &format!("the soak in {}", folder.display()))
}

/// Reads the record in a folder; nothing where there is none. It may be that of a soak that runs.
///
/// # Errors
/// Returns failures to read, and lines that make no sense; of the last one that is no failure.
pub fn read(folder: &Path) -> Result<Option<Written>, HostError> {
    read_file(&folder.join(RECORD))
}

/// The same, of a record that may lie anywhere under any name.
///
/// # Errors
/// As [`read`].
pub fn read_file(path: &Path) -> Result<Option<Written>, HostError> {
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::file("read", path)(error)),
        Ok(file) if file.len() > RECORD_MAX => {
            return Err(HostError::content(path, "", format!("it is larger than {} MiB", RECORD_MAX >> 20)));
        }
        Ok(_) => fs::read(path).map_err(HostError::file("read", path))?,
    };
    parse(path, &text).map(Some)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Written, HostError> {
    let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let mut whole = &bytes[..end(bytes)];
    let lines = loop {
        let before = &whole[..end(whole.strip_suffix(b"\n").unwrap_or(whole))];
        match soak::read(whole) {
            Ok(lines) => break lines,
            Err(BadRecord::Empty) => break Vec::new(),
            // The first line never came to the disk, or this is something else.
            Err(BadRecord::NoBeginning) if before.is_empty() => whole = before,
            // A crash may leave a line's end without what goes before it: those blocks never came to the disk.
            Err(BadRecord::Line { .. }) if whole.len() == end(bytes) && soak::read(before).is_ok() => {
                whole = before
            }
            Err(problem) => return Err(HostError::content(path, &String::from_utf8_lossy(whole), problem)),
        }
    };
    let length = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    Ok(Written { lines, whole: length(whole.len()), torn: length(bytes.len() - whole.len()) })
}

#[cfg(test)]
mod tests;
