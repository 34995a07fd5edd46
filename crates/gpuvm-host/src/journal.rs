//! The journal: each change to the host is written down and synced before it is made.
//!
//! One JSON object per line, appended. A line that a crash cut short is the last one, and stands for a change that was
//! not begun. The journal belongs to one boot: after a reboot there is nothing to undo.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use gpuvm_core::host_ops::{HostOp, PowerPolicy};
use gpuvm_core::pci::DriverName;
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::process::ProcessId;

/// The version of the journal's format. 1 had neither power policies nor overlays, 2 no repairs; both read as one of today's.
const VERSION: u32 = 3;

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "entry")]
enum Line {
    Begin { version: u32, boot_id: String },
    Intent { seq: usize, op: HostOp, saved: Option<Saved> },
    State { seq: usize, state: OpState },
    Closed,
}

/// How far an operation got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum OpState {
    /// Written down; whether it was made is to be seen on the host.
    Intent,
    /// Made.
    Applied,
    /// The kernel has not answered yet; the child that waits for it.
    InFlight {
        /// That child.
        child: ProcessId,
    },
    /// Undone.
    Undone,
    /// It could not be undone.
    Stuck {
        /// Why.
        message: String,
    },
}

/// A value that an operation replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Saved {
    /// A `driver_override`.
    Driver(DriverName),
    /// A list of reset methods.
    ResetMethods(Vec<String>),
    /// All that is lost of a device that is removed.
    Removed(Removed),
    /// Power attributes.
    Power(PowerPolicy),
}

/// What is lost of a device when it is removed, as it was right before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Its driver.
    pub driver: Option<DriverName>,
    /// Its `driver_override`.
    pub set: Option<DriverName>,
    /// Its power attributes.
    pub power: PowerPolicy,
    /// Its reset methods.
    pub reset_methods: Vec<String>,
}

/// An operation as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the journal.
    pub seq: usize,
    /// The operation.
    pub op: HostOp,
    /// The value that it replaced, for a private operation that replaces one.
    pub saved: Option<Saved>,
    /// How far it got.
    pub state: OpState,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl Journal {
    /// Starts a journal for this boot.
    ///
    /// # Errors
    /// Returns failures to make or write it; one that is there already is one.
    pub fn begin(path: &Path, boot_id: &str) -> Result<Self, HostError> {
        let file = File::options()
            .create_new(true)
            .append(true)
            .open(path)
            .map_err(HostError::file("make", path))?;
        let mut journal = Self { path: path.to_owned(), file, records: Vec::new() };
        journal.append(&Line::Begin { version: VERSION, boot_id: boot_id.to_owned() })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(HostError::file("sync", folder))?;
        Ok(journal)
    }

    /// Opens the journal of a VM that ended without giving the host back; `None` where there is nothing of this boot to
    /// undo.
    ///
    /// # Errors
    /// Returns failures to read, and a journal of a format that this gpuvm doesn't know.
    pub fn reopen(path: &Path, boot_id: &str) -> Result<Option<Self>, HostError> {
        let Some(text) = crate::root::read_text(path)? else { return Ok(None) };
        let Replayed { records, boot, end } = replay(path, &text, boot_id)?;
        if (boot, end) != (Boot::This, End::Open) {
            return Ok(None);
        }
        // What a crash cut short is taken off, so that the next line starts on its own.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let file = File::options().append(true).open(path).map_err(HostError::file("open", path))?;
        file.set_len(u64::try_from(whole).unwrap_or(u64::MAX)).map_err(HostError::file("shorten", path))?;
        let mut journal = Self { path: path.to_owned(), file, records };
        if whole == 0 {
            journal.append(&Line::Begin { version: VERSION, boot_id: boot_id.to_owned() })?;
        }
        Ok(Some(journal))
    }

    /// Writes down an operation that is about to be made, and returns its place.
    ///
    /// # Errors
    /// Returns failures to write or sync: then the operation must not be made.
    pub fn intend(&mut self, op: &HostOp, saved: Option<Saved>) -> Result<usize, HostError> {
        let seq = self.records.len();
        self.append(&Line::Intent { seq, op: op.clone(), saved: saved.clone() })?;
        self.records.push(Record { seq, op: op.clone(), saved, state: OpState::Intent });
        Ok(seq)
    }

    /// Writes down how far an operation got. This process goes by it even where it can't be written.
    ///
    /// # Errors
    /// Returns failures to write or sync.
    pub fn mark(&mut self, seq: usize, state: OpState) -> Result<(), HostError> {
        if let Some(record) = self.records.get_mut(seq) {
            record.state = state.clone();
        }
        self.append(&Line::State { seq, state })
    }

    /// Returns the operations that are still to be undone, last first.
    pub fn open_records(&self) -> Vec<Record> {
        open(&self.records).cloned().collect()
    }

    /// Returns all operations, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Writes down that nothing is left to undo.
    ///
    /// # Errors
    /// Returns failures to write or sync.
    pub fn close(&mut self) -> Result<(), HostError> {
        self.append(&Line::Closed)
    }

    fn append(&mut self, line: &Line) -> Result<(), HostError> {
        let mut text =
            serde_json::to_string(line).map_err(|error| HostError::content(&self.path, "", error))?;
        text.push('\n');
        let before = self.file.metadata().map_err(HostError::file("read", &self.path))?.len();
        let write = |file: &mut File| file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        write(&mut self.file).map_err(|error| {
            // A part of a line, of a full disk, would spoil the next one. If even this fails, the error is the same one.
            self.file.set_len(before).ok();
            HostError::file("write", &self.path)(error)
        })
    }
}

/// Returns what a journal has left to undo in this boot, last first.
///
/// # Errors
/// Returns failures to read, and a journal of an unknown format.
pub fn open_of(path: &Path, boot_id: &str) -> Result<Vec<Record>, HostError> {
    let Some(text) = crate::root::read_text(path)? else { return Ok(Vec::new()) };
    Ok(match replay(path, &text, boot_id)? {
        Replayed { records, boot: Boot::This, end: End::Open } => open(&records).cloned().collect(),
        _ => Vec::new(),
    })
}

/// Counts what a journal has left to undo in this boot.
///
/// # Errors
/// Returns failures to read, and a journal of an unknown format.
pub fn left(path: &Path, boot_id: &str) -> Result<usize, HostError> {
    Ok(open_of(path, boot_id)?.len())
}

/// Returns what a journal of another boot had left to undo, last first; nothing for one of this boot.
///
/// # Errors
/// Returns failures to read, and a journal of an unknown format.
pub fn of_other_boot(path: &Path, boot_id: &str) -> Result<Vec<Record>, HostError> {
    let Some(text) = crate::root::read_text(path)? else { return Ok(Vec::new()) };
    Ok(match replay(path, &text, boot_id)? {
        Replayed { records, boot: Boot::Other, end: End::Open } => open(&records).cloned().collect(),
        _ => Vec::new(),
    })
}

/// Returns the operations that are still to be undone, last first.
fn open(records: &[Record]) -> impl Iterator<Item = &Record> {
    records.iter().rev().filter(|record| record.state != OpState::Undone)
}

/// What the lines of a journal come to.
struct Replayed {
    records: Vec<Record>,
    boot: Boot,
    end: End,
}

/// Which boot a journal belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    This,
    Other,
}

/// Whether a journal has been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Closed,
}

/// Folds the lines of a journal.
fn replay(path: &Path, text: &str, boot_id: &str) -> Result<Replayed, HostError> {
    let mut replayed = Replayed { records: Vec::new(), boot: Boot::This, end: End::Open };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (number, line) in whole.lines().enumerate() {
        let parsed = serde_json::from_str(line).map_err(|error| HostError::content(path, line, error))?;
        let senseless = |problem: &str| HostError::content(path, line, problem);
        if (number == 0) != matches!(parsed, Line::Begin { .. }) {
            return Err(senseless("a journal begins once, with its first line"));
        }
        match parsed {
            Line::Begin { version, .. } if version > VERSION => {
                let problem = format!("journal version {version}; this gpuvm reads up to {VERSION}");
                return Err(senseless(&problem));
            }
            Line::Begin { boot_id: of, .. } if of != boot_id => replayed.boot = Boot::Other,
            Line::Begin { .. } => {}
            Line::Intent { seq, op, saved } => {
                if seq != replayed.records.len() {
                    return Err(senseless("operations are out of order"));
                }
                replayed.records.push(Record { seq, op, saved, state: OpState::Intent });
            }
            Line::State { seq, state } => match replayed.records.get_mut(seq) {
                Some(record) => record.state = state,
                None => return Err(senseless("a state of an operation that was never begun")),
            },
            Line::Closed => replayed.end = End::Closed,
        }
    }
    Ok(replayed)
}

/// Removes a VM's folder once its journal is closed.
///
/// # Errors
/// Returns failures to remove.
pub fn remove_dir(path: &Path) -> Result<(), HostError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(HostError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unbind() -> HostOp {
        HostOp::Unbind { bdf: "81:00.0".parse().unwrap(), driver: DriverName::new("nvidia").unwrap() }
    }

    fn written(dir: &Path) -> PathBuf {
        let path = dir.join("journal");
        let mut journal = Journal::begin(&path, "boot-1").unwrap();
        let first = journal.intend(&unbind(), None).unwrap();
        journal.mark(first, OpState::Applied).unwrap();
        journal.intend(&unbind(), DriverName::new("x").map(Saved::Driver)).unwrap();
        path
    }

    #[test]
    fn reopen_gives_what_is_to_be_undone_last_first() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::reopen(&written(dir.path()), "boot-1").unwrap().unwrap();
        let states: Vec<_> = journal.open_records().into_iter().map(|r| (r.seq, r.state)).collect();
        assert_eq!(states, [(1, OpState::Intent), (0, OpState::Applied)]);
    }

    #[test]
    fn reopen_of_another_boots_journal_undoes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        assert!(Journal::reopen(&path, "boot-2").unwrap().is_none());
        assert_eq!(left(&path, "boot-2").unwrap(), 0);
        assert_eq!(left(&path, "boot-1").unwrap(), 2);
    }

    #[test]
    fn a_closed_journal_has_nothing_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        Journal::reopen(&path, "boot-1").unwrap().unwrap().close().unwrap();
        assert!(Journal::reopen(&path, "boot-1").unwrap().is_none());
    }

    #[test]
    fn a_newer_format_is_refused_and_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs::write(&path, "{\"entry\":\"begin\",\"version\":4,\"boot_id\":\"boot-1\"}\n").unwrap();
        assert!(Journal::reopen(&path, "boot-1").unwrap_err().to_string().contains("version 4"));
    }

    /// A folder where a sync costs nothing, if the machine has one.
    fn in_memory() -> tempfile::TempDir {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
    }

    /// What a journal can be told, with numbers that are brought into range.
    #[derive(Debug, Clone)]
    enum Told {
        Intend(u8),
        Mark(usize, u8),
        Reopen,
    }

    fn told() -> impl Strategy<Value = Told> {
        prop_oneof![
            any::<u8>().prop_map(Told::Intend),
            (0usize..8, any::<u8>()).prop_map(|(seq, state)| Told::Mark(seq, state)),
            Just(Told::Reopen),
        ]
    }

    fn some_op(number: u8) -> (HostOp, Option<Saved>) {
        use gpuvm_core::host_ops::{D3cold, ImageFormat, PowerControl};
        use gpuvm_core::reset::Method;

        let bdf = "81:00.0".parse().unwrap();
        let policy = PowerPolicy { control: Some(PowerControl::Auto), d3cold: Some(D3cold::Allowed) };
        match number % 5 {
            0 => (unbind(), None),
            4 => (
                HostOp::SetResetMethods { bdf, methods: vec![Method::Flr] },
                Some(Saved::ResetMethods(vec!["flr".to_owned(), "bus".to_owned()])),
            ),
            1 => (HostOp::KeepAwake { bdf }, Some(Saved::Power(policy))),
            2 => (
                HostOp::SetDriverOverride { bdf, driver: DriverName::vfio_pci() },
                DriverName::new("nvidia").map(Saved::Driver),
            ),
            _ => {
                let (path, backing, qemu_img) = ("/a \"b\"\n".into(), "/c, d".into(), "/e".into());
                (HostOp::CreateOverlay { path, backing, format: ImageFormat::Qcow2, qemu_img }, None)
            }
        }
    }

    fn some_state(number: u8) -> OpState {
        match number % 4 {
            0 => OpState::Applied,
            1 => OpState::InFlight { child: ProcessId { pid: 7, start_time: 9 } },
            2 => OpState::Undone,
            _ => OpState::Stuck { message: "line\nbreak".to_owned() },
        }
    }

    /// Tells a journal all of it, opening it anew where that is said; returns its records after each line.
    fn tell(path: &Path, told: &[Told]) -> Vec<Vec<Record>> {
        let mut journal = Journal::begin(path, "boot-1").unwrap();
        let mut states = vec![Vec::new()];
        for told in told {
            match told {
                Told::Intend(number) => {
                    let (op, saved) = some_op(*number);
                    journal.intend(&op, saved).unwrap();
                }
                Told::Mark(_, _) if journal.records().is_empty() => continue,
                Told::Mark(seq, state) => {
                    journal.mark(seq % journal.records().len(), some_state(*state)).unwrap();
                }
                Told::Reopen => {
                    journal = Journal::reopen(path, "boot-1").unwrap().unwrap();
                    continue;
                }
            }
            states.push(journal.records().to_vec());
        }
        states
    }

    proptest! {
        #[test]
        fn a_journal_cut_anywhere_reads_as_it_was_after_its_last_whole_line_and_goes_on(
            told in prop::collection::vec(told(), 0..12),
            cut in 0.0..=1.0,
        ) {
            let dir = in_memory();
            let path = dir.path().join("journal");
            let states = tell(&path, &told);
            let text = fs::read(&path).unwrap();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let cut = (cut * text.len() as f64) as usize;
            fs::write(&path, &text[..cut]).unwrap();
            let lines = text[..cut].iter().filter(|byte| **byte == b'\n').count();
            let mut journal = Journal::reopen(&path, "boot-1").unwrap().unwrap();
            // The first line begins the journal; each further one is a state of its own.
            prop_assert_eq!(journal.records(), states[lines.saturating_sub(1)].as_slice());
            journal.intend(&unbind(), None).unwrap();
            let again = Journal::reopen(&path, "boot-1").unwrap().unwrap();
            prop_assert_eq!(again.records(), journal.records());
        }

        #[test]
        fn a_damaged_byte_is_read_or_refused_by_name_and_never_panics(
            told in prop::collection::vec(told(), 1..8),
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let dir = in_memory();
            let path = dir.path().join("journal");
            tell(&path, &told);
            let mut text = fs::read(&path).unwrap();
            let at = at.index(text.len());
            text[at] = byte;
            fs::write(&path, &text).unwrap();
            if let Err(error) = left(&path, "boot-1") {
                prop_assert!(error.to_string().contains(&path.display().to_string()), "{}", error);
            }
        }

        #[test]
        fn a_journal_of_another_boot_is_never_replayed(told in prop::collection::vec(told(), 0..8)) {
            let dir = in_memory();
            let path = dir.path().join("journal");
            let states = tell(&path, &told);
            prop_assert!(Journal::reopen(&path, "boot-2").unwrap().is_none());
            prop_assert_eq!(left(&path, "boot-2").unwrap(), 0);
            let open: Vec<Record> = open(states.last().unwrap()).cloned().collect();
            prop_assert_eq!(of_other_boot(&path, "boot-2").unwrap(), open);
            prop_assert_eq!(of_other_boot(&path, "boot-1").unwrap(), []);
        }
    }
}
