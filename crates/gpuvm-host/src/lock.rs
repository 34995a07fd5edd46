//! The lock that guards edits of the shared tables, and files that are replaced in one step.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::HostError;
use crate::places::Places;

/// A held lock; it ends with this value, and with the process, however that ends.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

/// Takes the lock that guards reservations and claims; it is held for the time of an edit only.
///
/// # Errors
/// Returns failures to make or lock the file.
pub fn tables(places: &Places) -> Result<Guard, HostError> {
    make_dir(places.run())?;
    let path = places.lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(HostError::file("open", &path))?;
    file.lock().map_err(HostError::file("lock", &path))?;
    Ok(Guard { _file: file })
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
/// # Errors
/// Returns failures to write, sync or rename.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), HostError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_dir(folder)?;
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(HostError::file("write", path))
}
