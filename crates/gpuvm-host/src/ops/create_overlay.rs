//! Makes a qcow2 overlay of an image by qemu-img; undo removes it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuvm_core::host_ops::ImageFormat;
use gpuvm_sys::errno::EEXIST;
use gpuvm_sys::process::{self, Signal, SpawnSpec};

use crate::{HostError, lock};

/// How long qemu-img may take: it writes a header and a few tables.
const DEADLINE: Duration = Duration::from_secs(60);
/// The most that is quoted of what it says.
const QUOTED: u64 = 2 << 10;

/// An overlay that is to be made, or was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlay<'a> {
    /// The new image.
    pub(crate) path: &'a Path,
    /// The image behind it.
    pub(crate) backing: &'a Path,
    /// That image's format.
    pub(crate) format: ImageFormat,
    /// The program that makes it.
    pub(crate) qemu_img: &'a Path,
}

impl Overlay<'_> {
    /// The name under which it is made, so that the real one is never an image in part.
    fn partial(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".gpuvm-partial");
        PathBuf::from(name)
    }
}

/// Refuses an overlay whose name is taken; to be asked before the operation is noted, since undo removes what bears the name.
///
/// # Errors
/// Returns that something is there, and failures to look.
pub(crate) fn check(overlay: &Overlay<'_>) -> Result<(), HostError> {
    match fs::symlink_metadata(overlay.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(HostError::file("look for", overlay.path)(error)),
        Ok(_) => {
            let error = io::Error::from_raw_os_error(EEXIST);
            Err(HostError::file("make overlay", overlay.path)(error))
        }
    }
}

/// Makes the overlay under another name and gives it its own once it is whole.
///
/// # Errors
/// Returns why qemu-img failed, in its words, and that something of that name has come up meanwhile.
pub(crate) fn apply(overlay: &Overlay<'_>) -> Result<(), HostError> {
    let partial = overlay.partial();
    lock::make_dir(partial.parent().unwrap_or(Path::new("/")))?;
    let made = run(overlay, &partial)
        // Unlike a rename, a link replaces nothing.
        .and_then(|()| {
            fs::hard_link(&partial, overlay.path).map_err(HostError::file("make overlay", overlay.path))
        });
    let removed = remove(&partial);
    made.and(removed)
}

/// Removes the overlay, if what bears its name is one of this image.
///
/// # Errors
/// Returns that it is something else, and failures to look or remove.
pub(crate) fn undo(overlay: &Overlay<'_>) -> Result<(), HostError> {
    remove(&overlay.partial())?;
    let found = match File::open(overlay.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.and_then(backing_of).map_err(HostError::file("read", overlay.path))?,
    };
    if found.as_deref() == Some(overlay.backing) {
        return remove(overlay.path);
    }
    Err(HostError::ChangedByOthers {
        doing: format!("remove overlay {}", overlay.path.display()),
        what: overlay.path.display().to_string(),
        ours: format!("an overlay of {}", overlay.backing.display()),
        now: found.map_or("no overlay".to_owned(), |found| format!("an overlay of {}", found.display())),
    })
}

/// Removes the overlays that a VM's earlier runs have left, and returns their paths.
///
/// To be called for a VM that isn't up and has no journal of this boot: the journal of another boot may be gone with /run, and
/// then the files alone are left.
///
/// # Errors
/// Returns failures to list or remove.
pub(crate) fn clear_left(folder: &Path) -> Result<Vec<PathBuf>, HostError> {
    let left: Vec<PathBuf> = crate::root::list(folder)?.iter().map(|name| folder.join(name)).collect();
    left.iter().try_for_each(|path| remove(path))?;
    Ok(left)
}

fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HostError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Runs qemu-img. It dies with this process, so that it makes nothing after a cleanup has looked.
fn run(overlay: &Overlay<'_>, partial: &Path) -> Result<(), HostError> {
    let failed = |problem: String| HostError::Overlay {
        path: overlay.path.to_owned(),
        backing: overlay.backing.to_owned(),
        qemu_img: overlay.qemu_img.to_owned(),
        problem,
    };
    let spawn = || -> io::Result<(process::Child, File)> {
        let said = tempfile::tempfile()?;
        let child = process::spawn(SpawnSpec {
            argv: argv(overlay, partial),
            env: Vec::new(),
            fds: Vec::new(),
            stdout: said.try_clone()?.into(),
            stderr: said.try_clone()?.into(),
            death_signal: Some(Signal::SIGKILL),
            memlock: None,
            record: None,
        })?;
        Ok((child, said))
    };
    let (mut child, mut said) = spawn().map_err(|error| failed(error.to_string()))?;
    let status = match child.wait_deadline(DEADLINE).map_err(|error| failed(error.to_string()))? {
        Some(status) => status,
        None => {
            let killed = child.kill(Signal::SIGKILL).and_then(|()| child.wait_deadline(DEADLINE));
            let end = killed.map_or_else(|error| error.to_string(), |_| "killed".to_owned());
            return Err(failed(format!("it did not end within {} s ({end})", DEADLINE.as_secs())));
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut words = String::new();
    // What can't be read or isn't text is not worth more than the status.
    let read = said.seek(SeekFrom::Start(0)).and_then(|_| said.take(QUOTED).read_to_string(&mut words));
    let words = read.map_or("", |_| words.trim());
    Err(failed(format!("it ended with {status} and said: {words}")))
}

fn argv(overlay: &Overlay<'_>, partial: &Path) -> Vec<OsString> {
    let mut argv = vec![overlay.qemu_img.as_os_str().to_owned()];
    argv.extend(["create", "-q", "-f", "qcow2", "-F"].map(OsString::from));
    argv.push(overlay.format.to_string().into());
    argv.push("-b".into());
    argv.extend([overlay.backing, partial].map(|path| path.as_os_str().to_owned()));
    argv
}

/// Reads the name of the image behind a qcow2 image; nothing for a file that is none (docs/interop/qcow2.txt of QEMU: magic at
/// 0, backing_file_offset at 8, backing_file_size at 16, all big-endian).
fn backing_of(mut file: File) -> io::Result<Option<PathBuf>> {
    let mut header = Vec::new();
    Read::by_ref(&mut file).take(20).read_to_end(&mut header)?;
    let number = |range: std::ops::Range<usize>| {
        header.get(range).map(|bytes| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let (Some(b"QFI\xfb"), Some(offset), Some(size)) = (header.get(..4), number(8..16), number(16..20))
    else {
        return Ok(None);
    };
    let mut name = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.take(size.min(4096)).read_to_end(&mut name)?;
    Ok((offset > 0).then(|| PathBuf::from(OsString::from_vec(name))))
}
