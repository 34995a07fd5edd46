//! What a soak keeps on the host: its record, who runs it, and the command that polls the host meanwhile.

mod poll;
mod record;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use gpuvm_core::date;
use gpuvm_core::profile::VmName;
use gpuvm_core::soak::OwnUse;

use crate::HostError;
use crate::lock::make_dir;
use crate::places::Places;
use crate::process::ProcessId;
use crate::root::{list, read_text};

pub use poll::Poll;
pub use record::{RECORD, Record, Resumed, Written, read, read_file};

/// The most that is kept of one console.
const CONSOLE_MAX: u64 = 256 << 10;
/// The most consoles that are kept of a soak: a device that is degraded in each cycle tells no more with each of them.
const CONSOLES_MAX: usize = 50;

/// The right to run a soak of a VM, or to write a record; it ends with this value, and with the process, however that ends.
#[derive(Debug)]
pub struct Holding {
    file: File,
}

impl Drop for Holding {
    fn drop(&mut self) {
        // Nobody has it any more, though this process may live on. One that is killed is known by its number and start.
        self.file.set_len(0).ok();
    }
}

/// Takes the right to soak a VM.
///
/// # Errors
/// Returns that another gpuvm soaks it, and failures to make or lock the file.
pub fn hold(places: &Places, vm: &VmName) -> Result<Holding, HostError> {
    take(&places.soak_lock(vm), &format!("a soak of VM {vm}"))
}

/// Returns the process that soaks a VM, and so has its name between two cycles too; nothing where none does.
///
/// # Errors
/// Returns failures to read; a file that makes no sense was being written when its process was killed.
pub fn holder(places: &Places, vm: &VmName) -> Result<Option<ProcessId>, HostError> {
    let text = read_text(&places.soak_lock(vm))?.unwrap_or_default();
    let owner = serde_json::from_str::<ProcessId>(&text).ok();
    Ok(owner.filter(|owner| owner.is_alive()))
}

/// Locks a file at once or not at all, and writes into it who has it.
fn take(path: &Path, what: &str) -> Result<Holding, HostError> {
    make_dir(path.parent().unwrap_or(Path::new(".")))?;
    let mut options = File::options();
    let file = options.create(true).truncate(false).read(true).write(true).open(path);
    let mut file = file.map_err(HostError::file("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let read = Read::by_ref(&mut file).take(1 << 10).read_to_string(&mut text);
            let owner = read.ok().and_then(|_| serde_json::from_str::<ProcessId>(&text).ok());
            let owner = owner
                .map_or("nobody knows by which process".to_owned(), |owner| format!("process {}", owner.pid));
            return Err(HostError::SoakRuns { what: what.to_owned(), owner });
        }
        Err(fs::TryLockError::Error(error)) => return Err(HostError::file("lock", path)(error)),
    }
    let own =
        serde_json::to_string(&ProcessId::own()).map_err(|error| HostError::content(path, "", error))?;
    let written = (|| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(own.as_bytes())
    })();
    written.map_err(HostError::file("write", path))?;
    Ok(Holding { file })
}

/// Makes the folder of a soak that begins now.
///
/// # Errors
/// Returns failures to make it, and that a folder that was named has a record already.
pub fn new_folder(
    places: &Places,
    vm: &VmName,
    named: Option<&Path>,
    now: u64,
) -> Result<PathBuf, HostError> {
    if let Some(folder) = named {
        make_dir(folder)?;
        return Ok(folder.to_owned());
    }
    let soaks = places.soaks(vm);
    make_dir(&soaks)?;
    // Two that begin in the same second have a folder each: the VM's lock doesn't keep a former one from having just ended.
    for second in now.. {
        let folder = soaks.join(date::stamp(second));
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| folder.clone()).map_err(HostError::file("make", &folder)),
        }
    }
    Err(HostError::file("make a folder in", &soaks)(std::io::ErrorKind::AlreadyExists.into()))
}

/// Finds the folder of a VM's newest soak that has begun.
///
/// # Errors
/// Returns failures to read.
pub fn newest(places: &Places, vm: &VmName) -> Result<Option<PathBuf>, HostError> {
    let soaks = places.soaks(vm);
    let mut names = list(&soaks)?;
    names.sort();
    for name in names.iter().rev() {
        let folder = soaks.join(name);
        // One whose gpuvm was killed before its first line was whole has not begun.
        if read(&folder)?.is_some_and(|record| !record.lines.is_empty()) {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

/// Keeps the end of a VM's console with the record of its soak. Returns where, or nothing where enough are kept.
///
/// # Errors
/// Returns failures to read or write; that there is no console is none.
pub fn keep_console(
    places: &Places,
    vm: &VmName,
    folder: &Path,
    cycle: u32,
) -> Result<Option<PathBuf>, HostError> {
    let (from, kept) = (places.logs(vm).join("console.log"), folder.join("console"));
    make_dir(&kept)?;
    if list(&kept)?.len() >= CONSOLES_MAX {
        return Ok(None);
    }
    let mut console = match File::open(&from) {
        Ok(console) => console,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::file("open", &from)(error)),
    };
    let to = kept.join(format!("cycle-{cycle}.log"));
    let copied = (|| {
        let length = console.metadata()?.len();
        console.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_MAX)))?;
        let mut end = Vec::new();
        console.take(CONSOLE_MAX).read_to_end(&mut end)?;
        fs::write(&to, end)
    })();
    copied.map_err(HostError::file("keep the console in", &to))?;
    Ok(Some(to))
}

/// Reads what this process uses. What can't be read is 0.
pub fn own_use() -> OwnUse {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss_kib = rss.and_then(|rss| rss.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    // The folder that is read is open too, while it is.
    let fds = fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count().saturating_sub(1));
    OwnUse { rss_kib, fds: u32::try_from(fds).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests;
