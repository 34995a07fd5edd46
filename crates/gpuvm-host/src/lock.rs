//! The lock that guards edits of the shared tables, and files that are replaced in one step.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gpuvm_core::pci::Bdf;

use crate::HostError;
use crate::places::Places;

/// How long edits of the tables may hold another gpuvm up.
const TABLES: Duration = Duration::from_secs(20);
/// How long the change of a port's power policy may: two writes of half a minute at most.
const PORT: Duration = Duration::from_secs(70);

/// A held lock; it ends with this value, and with the process, however that ends.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

/// Takes the lock that guards reservations and claims; it is held for the time of an edit only.
///
/// # Errors
/// Returns failures to make or lock the file, and that another gpuvm has it for too long.
pub fn tables(places: &Places) -> Result<Guard, HostError> {
    take(&places.lock(), TABLES)
}

/// Takes the lock of one pool of hugepages, which is held while the kernel resizes it: that takes longer the larger the node is.
///
/// # Errors
/// Returns failures to make or lock the file, and that another gpuvm has it for too long.
pub fn pool(places: &Places, key: &str, patience: Duration) -> Result<Guard, HostError> {
    take(&places.run().join(format!("pool-{key}.lock")), patience)
}

/// Takes the lock of one port, which is held while its power policy changes.
///
/// # Errors
/// Returns failures to make or lock the file, and that another gpuvm has it for too long.
pub fn port(places: &Places, port: Bdf) -> Result<Guard, HostError> {
    take(&places.run().join(format!("port-{port}.lock")), PORT)
}

/// Takes the lock of the kernel's offering devices to drivers, which is held while that is switched.
///
/// # Errors
/// Returns failures to make or lock the file, and that another gpuvm has it for too long.
pub fn autoprobe(places: &Places) -> Result<Guard, HostError> {
    take(&places.run().join("autoprobe.lock"), TABLES)
}

fn take(path: &Path, patience: Duration) -> Result<Guard, HostError> {
    make_dir(path.parent().unwrap_or(Path::new(".")))?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(HostError::file("open", path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Guard { _file: file }),
            Err(TryLockError::WouldBlock) if begun.elapsed() < patience => sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                return Err(HostError::Locked { path: path.to_owned(), seconds: patience.as_secs() });
            }
            Err(TryLockError::Error(error)) => return Err(HostError::file("lock", path)(error)),
        }
    }
}

/// Makes a folder and those above it, for the owner alone.
///
/// # Errors
/// Returns failures to make it.
pub fn make_dir(path: &Path) -> Result<(), HostError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(HostError::file("make", path))
}

/// Replaces a file in one step and syncs it and its folder, so that a crash leaves the old or the new content.
///
/// What a crash leaves beside it is replaced by the next try: the new content always has the same name until it is whole.
///
/// # Errors
/// Returns failures to write, sync or rename.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), HostError> {
    use std::os::unix::fs::OpenOptionsExt;
    let folder = path.parent().unwrap_or(Path::new("."));
    make_dir(folder)?;
    let partial = partial(path);
    let write = || {
        let mut options = File::options();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(HostError::file("write", path))
}

/// Removes a file that [`replace`] has made, and what a crash in the middle of it has left.
///
/// # Errors
/// Returns failures to remove; that there is none is no failure.
pub fn remove(path: &Path) -> Result<(), HostError> {
    for path in [&partial(path), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HostError::file("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}
