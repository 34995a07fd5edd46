//! Files that a user has named: they may be anything, and nothing may wait for them or fill the memory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use gpuvm_sys::access::open_nonblocking;

/// The most that is read of a profile or of a lock; the largest are a few KiB.
const TEXT_MAX: u64 = 1 << 20;

/// Opens a regular file. A folder is opened too: reading it says what it is.
///
/// # Errors
/// Returns failures to open it, and that it is a device node, a pipe or a socket, which may have no end.
pub fn open(path: &Path) -> io::Result<File> {
    // Looked at before it is opened, since opening a device can have effects, and after, since it may be another by then.
    regular(&fs::metadata(path)?)?;
    let file = open_nonblocking(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

fn regular(metadata: &fs::Metadata) -> io::Result<()> {
    match metadata.is_file() || metadata.is_dir() {
        true => Ok(()),
        false => Err(invalid("it is no regular file")),
    }
}

/// Reads a profile or a lock.
///
/// # Errors
/// As [`open`]; also that it is larger than 1 MiB, and that it is no text.
pub fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open(path)?.take(TEXT_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT_MAX {
        return Err(invalid(&format!("it is larger than {} MiB", TEXT_MAX >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| invalid("it is no text in UTF-8"))
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_text_of_a_mebibyte_is_read_and_a_larger_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.toml");
        fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
        assert_eq!(text(&path).unwrap().len(), 1 << 20);
        fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
        assert_eq!(text(&path).unwrap_err().to_string(), "it is larger than 1 MiB");
    }

    #[test]
    fn devices_pipes_folders_and_what_is_no_text_are_errors_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, bytes) = (folder.path().join("pipe"), folder.path().join("bytes"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::write(&bytes, [0xff]).unwrap();
        for (path, says) in [
            (PathBuf::from("/dev/zero"), "it is no regular file"),
            (pipe, "it is no regular file"),
            (folder.path().to_owned(), "directory"),
            (bytes, "UTF-8"),
            (folder.path().join("nothing"), "No such file"),
        ] {
            let error = text(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{}: {error}", path.display());
        }
    }
}
