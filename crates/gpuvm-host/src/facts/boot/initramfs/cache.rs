//! What was found in an initramfs, kept for as long as its file stays the same.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gpuvm_core::facts::InitramfsFacts;
use serde::{Deserialize, Serialize};

const FILE: &str = "initramfs.json";
/// Changes with what is looked for: what an older gpuvm has found isn't all of it.
const FORM: u32 = 1;

/// What tells a file from another that has taken its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    form: u32,
    path: String,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    found: InitramfsFacts,
}

impl Key {
    pub(super) fn of(path: &str, file: &File) -> io::Result<Self> {
        let data = file.metadata()?;
        Ok(Self {
            form: FORM,
            path: path.to_owned(),
            device: data.dev(),
            inode: data.ino(),
            bytes: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
        })
    }
}

/// Returns what was found in this file before.
pub(super) fn load(folder: &Path, key: &Key) -> Option<InitramfsFacts> {
    let text = fs::read(folder.join(FILE)).ok()?;
    // What can't be read is as good as nothing.
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    (entry.key == *key).then_some(entry.found)
}

/// Keeps what was found. Who may not write there unpacks it again the next time.
pub(super) fn store(folder: &Path, key: &Key, found: &InitramfsFacts) {
    let entry = Entry { key: key.clone(), found: found.clone() };
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, &entry)?;
        file.persist(folder.join(FILE)).map_err(|error| error.error)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::debug!("{} isn't kept in {}: {error}", FILE, folder.display());
    }
}
