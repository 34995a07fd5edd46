//! The ledger: what was done with each device and how it came back, kept over reboots.
//!
//! One file per device in [`Places::ledger`]: a line that names the format, then one entry a line, appended and synced under the
//! lock of the tables. What a crash or a full disk cut short is the last line: it is left out when the file is read, and cut off
//! by the next entry. Anything else that can't be read makes the file a damaged one: nobody guesses what was in it, so its device
//! counts as unusable until a person has looked.
//!
//! A file belongs to the device that its entries tell of, as [`Identity::is_same`] sees it; its name only makes it easy to find. A
//! card whose serial number can't be read any more is thus found by where it sat last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use gpuvm_core::facts::HostFacts;
use gpuvm_core::pci::{Bdf, PciId};
use gpuvm_core::reset::{Deed, Entry, Grounds, Identity, Quarantine, Snapshot, kept, quarantine};
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::lock;
use crate::places::Places;
use crate::root::HostRoot;
use crate::{facts, snapshot};

/// The version of the format.
const VERSION: u32 = 1;
/// The entries that are kept of a device, and how many more there may be before the oldest go: not every entry costs a rewrite.
const KEPT: usize = 2000;
const SLACK: usize = 200;
/// The most that is read of a file; a ledger of ours stays far below.
const MAX_BYTES: u64 = 64 << 20;

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    ledger: u32,
}

/// One file of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The file.
    pub path: PathBuf,
    /// The device, where its entries or its name tell: as they knew it together, and where it was last.
    pub device: Option<Identity>,
    /// Its entries, oldest first, as far as they could be read.
    pub entries: Vec<Entry>,
    /// What is wrong with the file: then nobody knows what else is in it.
    pub damage: Option<String>,
    /// Whether the last line was cut short. It was never finished, so nothing rests on it.
    pub torn: bool,
}

impl Ledger {
    fn is_of(&self, device: &Identity) -> bool {
        self.device.as_ref().is_some_and(|own| own.is_same(device))
    }

    /// Says what is wrong with the file, naming it.
    pub fn problem(&self) -> Option<String> {
        let damage = self.damage.as_ref()?;
        Some(format!("{}: {damage}", self.path.display()))
    }
}

/// Takes a device's identity out of a snapshot; nothing where not even the kernel knows its ids.
///
/// Of a card that doesn't answer give the baseline, which still has its serial number. Without one the ledger goes by its ids and
/// its place.
pub fn identity(snapshot: &Snapshot) -> Option<Identity> {
    Identity::of_snapshot(snapshot)
}

/// Makes an entry of this moment.
pub fn entry(root: &HostRoot, device: Identity, snapshot: &Snapshot, deed: Deed) -> Entry {
    let kernel = facts::kernel(root).unwrap_or_else(|error| {
        tracing::debug!("which kernel runs isn't known: {error}");
        Default::default()
    });
    let driver = snapshot.driver.clone();
    Entry { at: now(), boot_id: kernel.boot_id, kernel: kernel.release, device, driver, deed }
}

/// Returns the time, in seconds since 1970-01-01 UTC; 0 where the clock is before that.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes an entry down. It takes the lock of the tables, so nobody may call it who has that.
///
/// # Errors
/// Returns failures to lock, read or write. Nothing that was written before is lost by them.
pub fn record(places: &Places, entry: &Entry) -> Result<(), HostError> {
    let _guard = lock::tables(places)?;
    write_down(places, entry)
}

/// What came of a wish to give a device free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clearing {
    /// Nothing was held against it.
    Free,
    /// It is free now.
    Cleared {
        /// What had been held against it.
        was: Quarantine,
        /// On what grounds it was given free.
        grounds: Grounds,
    },
    /// It hasn't come back well from a reset since, and nobody accepts it as it is.
    Held(Quarantine),
    /// A file can't be read, so nobody knows.
    Unreadable(String),
}

/// Whether a person takes a device as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It has to come back well from a reset first.
    AfterReset,
    /// It is taken as it is.
    AsItIs,
}

/// Gives a device free, if it was reset since and came back well, or if it is accepted as it is.
///
/// # Errors
/// As [`record`].
pub fn clear(
    places: &Places,
    root: &HostRoot,
    snapshot: &Snapshot,
    device: &Identity,
    acceptance: Acceptance,
) -> Result<Clearing, HostError> {
    let _guard = lock::tables(places)?;
    let ledgers = of(places, device)?;
    if let Some(problem) = ledgers.iter().find_map(Ledger::problem) {
        return Ok(Clearing::Unreadable(problem));
    }
    let mut held: Vec<Quarantine> = ledgers.iter().filter_map(|ledger| quarantine(&ledger.entries)).collect();
    // One that was not reset since speaks for all.
    held.sort_by_key(|quarantine| quarantine.reset_since);
    let Some(was) = held.into_iter().next() else { return Ok(Clearing::Free) };
    let grounds = match (was.reset_since, acceptance) {
        (true, _) => Grounds::GoodReset,
        (false, Acceptance::AsItIs) => Grounds::Accepted,
        (false, Acceptance::AfterReset) => return Ok(Clearing::Held(was)),
    };
    write_down(places, &entry(root, device.clone(), snapshot, Deed::Cleared { grounds }))?;
    Ok(Clearing::Cleared { was, grounds })
}

/// Returns the files that tell of whatever sits at a place: of the device that is there, or else of the last that sat there.
///
/// # Errors
/// Returns failures to read the folder.
pub fn at(places: &Places, bdf: Bdf, present: Option<&Identity>) -> Result<Vec<Ledger>, HostError> {
    let own = present.map_or_else(|| Ok(Vec::new()), |present| of(places, present))?;
    if !own.is_empty() {
        return Ok(own);
    }
    let mut all = all(places)?;
    all.retain(|ledger| ledger.device.as_ref().is_some_and(|device| device.bdf == bdf));
    Ok(all)
}

/// Writes an entry down for who has the lock.
fn write_down(places: &Places, entry: &Entry) -> Result<(), HostError> {
    let folder = places.ledger();
    lock::make_dir(&folder)?;
    let ids = BTreeSet::from([entry.device.id]);
    let own: Vec<Ledger> =
        of_models(places, &ids)?.into_iter().filter(|ledger| ledger.is_of(&entry.device)).collect();
    let usable: Vec<&Ledger> = own.iter().filter(|ledger| ledger.damage.is_none()).collect();
    if usable.is_empty() {
        return begin(&folder, entry);
    }
    // Two files can be of one device: one that was begun when its serial number couldn't be read. An entry counts for both.
    let mut first = Ok(());
    for ledger in usable {
        first = first.and(append(&ledger.path, entry).and_then(|()| shorten(ledger, entry)));
    }
    first
}

/// Returns a device's entries, oldest first.
///
/// # Errors
/// Returns failures to read the folder. A file that can't be read is told, and left out.
pub fn history(places: &Places, device: &Identity) -> Result<Vec<Entry>, HostError> {
    Ok(merged(&of(places, device)?))
}

/// Puts the entries of several files of one device together. Only between files the clock decides; an entry that is in both is one.
pub fn merged(ledgers: &[Ledger]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for ledger in ledgers {
        if let Some(problem) = ledger.problem() {
            tracing::warn!("the ledger isn't whole: {problem}");
        }
        let known: BTreeSet<u64> = entries.iter().map(|entry| entry.at).collect();
        let is_new = |entry: &&Entry| !(known.contains(&entry.at) && entries.contains(entry));
        let new: Vec<Entry> = ledger.entries.iter().filter(is_new).cloned().collect();
        entries.extend(new);
    }
    if ledgers.len() > 1 {
        entries.sort_by_key(|entry| entry.at);
    }
    entries
}

/// Returns the files of one device.
///
/// # Errors
/// Returns failures to read the folder.
pub fn of(places: &Places, device: &Identity) -> Result<Vec<Ledger>, HostError> {
    let mut ledgers = of_models(places, &BTreeSet::from([device.id]))?;
    ledgers.retain(|ledger| ledger.is_of(device));
    Ok(ledgers)
}

/// Returns the files of all devices that ever had an entry.
///
/// # Errors
/// Returns failures to read the folder; what is wrong with a file is in it.
pub fn all(places: &Places) -> Result<Vec<Ledger>, HostError> {
    read_all(places, |_| true)
}

/// What the ledger says of the devices in scope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Those that nobody may have.
    pub quarantined: BTreeMap<Bdf, Quarantine>,
    /// Those of which it can't be known, with the file and what is wrong with it.
    pub unreadable: BTreeMap<Bdf, String>,
    /// Files that make no sense and tell no device.
    pub strays: Vec<String>,
}

/// Looks which of the devices in scope nobody may have.
///
/// Only files of such devices' ids are read. A serial number is read where it decides, and only then: that may wake a device.
///
/// # Errors
/// Returns failures to read the folder.
pub fn quarantined(places: &Places, root: &HostRoot, host: &HostFacts) -> Result<Standing, HostError> {
    let ids: BTreeSet<PciId> = host.devices.values().map(|device| device.id).collect();
    let mut standing = Standing::default();
    if ids.is_empty() {
        return Ok(standing);
    }
    let suspects: Vec<(Ledger, Option<Quarantine>)> = of_models(places, &ids)?
        .into_iter()
        .map(|ledger| (quarantine(&ledger.entries), ledger))
        .filter(|(found, ledger)| found.is_some() || ledger.damage.is_some())
        .map(|(found, ledger)| (ledger, found))
        .collect();
    let stray = |(ledger, _): &(Ledger, _)| ledger.problem().filter(|_| ledger.device.is_none());
    standing.strays = suspects.iter().filter_map(stray).collect();
    for (bdf, device) in &host.devices {
        let alike =
            |(ledger, _): &&(Ledger, _)| ledger.device.as_ref().is_some_and(|own| own.id == device.id);
        let suspects: Vec<_> = suspects.iter().filter(alike).collect();
        let numbered =
            |(ledger, _): &&(Ledger, _)| ledger.device.as_ref().is_some_and(|own| own.serial.is_some());
        let mut identity = Identity::of_device(*bdf, device);
        if device.config.is_none() && suspects.iter().any(numbered) {
            let config = snapshot::config(root, *bdf);
            identity = identity.with_config(config.read().map_or(&[], |config| config.bytes()));
        }
        for (ledger, found) in suspects.into_iter().filter(|(ledger, _)| ledger.is_of(&identity)) {
            standing.unreadable.extend(ledger.problem().map(|problem| (*bdf, problem)));
            standing.quarantined.extend(found.clone().map(|found| (*bdf, found)));
        }
    }
    Ok(standing)
}

fn of_models(places: &Places, ids: &BTreeSet<PciId>) -> Result<Vec<Ledger>, HostError> {
    read_all(places, |name| Identity::from_key(name).is_none_or(|own| ids.contains(&own.id)))
}

fn read_all(places: &Places, wanted: impl Fn(&str) -> bool) -> Result<Vec<Ledger>, HostError> {
    let folder = places.ledger();
    let mut ledgers = Vec::new();
    for name in crate::root::list(&folder)? {
        if name.strip_suffix(".jsonl").is_some_and(&wanted) {
            ledgers.extend(read(&folder.join(name))?);
        }
    }
    Ok(ledgers)
}

/// Reads one file; nothing where it has gone meanwhile.
fn read(path: &Path) -> Result<Option<Ledger>, HostError> {
    let mut bytes = Vec::new();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if crate::root::is_absent(&error) => return Ok(None),
        Err(error) => {
            let device = Identity::from_key(&name);
            let damage = Some(format!("it can't be read: {error}"));
            return Ok(Some(Ledger {
                path: path.to_owned(),
                device,
                entries: Vec::new(),
                damage,
                torn: false,
            }));
        }
    }
    Ok(Some(parse(path, &name, &bytes)))
}

fn parse(path: &Path, name: &str, bytes: &[u8]) -> Ledger {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut ledger = Ledger {
        path: path.to_owned(),
        device: None,
        entries: Vec::new(),
        damage: None,
        torn: whole < bytes.len(),
    };
    let too_large = u64::try_from(bytes.len()).is_ok_and(|bytes| bytes > MAX_BYTES);
    let mut damage = too_large.then(|| format!("it is larger than {} MiB", MAX_BYTES >> 20));
    for (number, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
        let problem = match number {
            0 => header(line).err(),
            _ => entry_of(line, &mut ledger).err().map(|problem| format!("line {}: {problem}", number + 1)),
        };
        damage = damage.or(problem);
    }
    ledger.damage = damage;
    ledger.device = ledger.device.or_else(|| Identity::from_key(name));
    ledger
}

fn header(line: &[u8]) -> Result<(), String> {
    match serde_json::from_slice(line) {
        Ok(Header { ledger: VERSION }) => Ok(()),
        Ok(Header { ledger }) => Err(format!("ledger format {ledger}; this gpuvm reads {VERSION}")),
        Err(error) => Err(format!("it doesn't begin as a ledger does: {error}")),
    }
}

fn entry_of(line: &[u8], ledger: &mut Ledger) -> Result<(), String> {
    // Each line is a document of its own, whose only line is the first.
    let spelt = |error: serde_json::Error| error.to_string().replace(" at line 1 column ", " at column ");
    let entry: Entry = serde_json::from_slice(line).map_err(spelt)?;
    match &mut ledger.device {
        None => ledger.device = Some(entry.device.clone()),
        Some(own) if own.is_same(&entry.device) => own.learn(&entry.device),
        Some(own) => return Err(format!("it is about {}, and the lines before about {own}", entry.device)),
    }
    ledger.entries.push(entry);
    Ok(())
}

/// Begins a device's file.
fn begin(folder: &Path, entry: &Entry) -> Result<(), HostError> {
    use std::os::unix::fs::OpenOptionsExt;
    let key = entry.device.key();
    let names = std::iter::once(format!("{key}.jsonl")).chain((2u32..).map(|n| format!("{key}.{n}.jsonl")));
    for path in names.map(|name| folder.join(name)) {
        let made = File::options().create_new(true).append(true).mode(0o600).open(&path);
        let mut file = match made {
            // Another device's, which has moved since, or one that can't be read.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            made => made.map_err(HostError::file("make", &path))?,
        };
        let text = [line(&path, &Header { ledger: VERSION })?, line(&path, entry)?].concat();
        let write = |file: &mut File| file.write_all(&text).and_then(|()| file.sync_all());
        let synced = write(&mut file).and_then(|()| File::open(folder)?.sync_all());
        return synced.map_err(HostError::file("write", &path));
    }
    Ok(())
}

/// Adds an entry on a line of its own.
fn append(path: &Path, entry: &Entry) -> Result<(), HostError> {
    let text = line(path, entry)?;
    let write = || {
        let mut file = File::options().read(true).append(true).open(path)?;
        let end = whole_lines(&mut file)?;
        file.set_len(end)?;
        let head =
            if end == 0 { line(path, &Header { ledger: VERSION }).unwrap_or_default() } else { Vec::new() };
        file.write_all(&[head, text].concat()).and_then(|()| file.sync_data()).inspect_err(|_| {
            // A part of a line, of a full disk. If even this fails, the next entry cuts it off.
            file.set_len(end).ok();
        })
    };
    write().map_err(HostError::file("write", path))
}

/// Returns where the last whole line ends.
fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    const STEP: u64 = 4096;
    let mut end = file.seek(SeekFrom::End(0))?;
    while end > 0 {
        let from = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        Read::take(&mut *file, end - from).read_to_end(&mut bytes)?;
        if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
            return Ok(from + u64::try_from(at).unwrap_or(0) + 1);
        }
        end = from;
    }
    Ok(0)
}

/// Leaves the oldest entries out where there are too many, in one step.
fn shorten(before: &Ledger, added: &Entry) -> Result<(), HostError> {
    if before.entries.len() < KEPT + SLACK {
        return Ok(());
    }
    let path = &before.path;
    let entries: Vec<Entry> = before.entries.iter().chain([added]).cloned().collect();
    let keep = kept(&entries, KEPT);
    let bytes = fs::read(path).map_err(HostError::file("read", path))?;
    // Lines are taken as they are: what a newer gpuvm wrote stays what it was.
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    let chosen = lines.filter(|(number, _)| *number == 0 || keep.get(number - 1).copied().unwrap_or(true));
    lock::replace(path, &chosen.flat_map(|(_, line)| line).copied().collect::<Vec<u8>>())
}

fn line(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, HostError> {
    let mut text = serde_json::to_vec(value).map_err(|error| HostError::content(path, "", error))?;
    text.push(b'\n');
    Ok(text)
}
