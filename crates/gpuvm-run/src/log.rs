//! A log file that doesn't grow without end.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The size at which a log is put aside; with the one put aside, a log takes twice that.
const MAX_BYTES: u64 = 16 << 20;

/// A log that is put aside as `NAME.1` when it has grown too large.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl Log {
    /// Starts a log; that of the run before is put aside.
    pub(crate) fn begin(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MAX_BYTES)
    }

    /// Goes on with a log of this run.
    pub(crate) fn resume(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, limit: MAX_BYTES })
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        put_aside(path)?;
        Ok(Self { path: path.to_owned(), file: File::create(path)?, written: 0, limit })
    }

    /// Adds bytes as they come.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= self.limit {
            put_aside(&self.path)?;
            self.file = File::create(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Puts aside what somebody else writes, once it has grown too large, and leaves him an empty file: he must append. What he writes between the copy
/// and the cut is lost.
pub(crate) fn cut(path: &Path) -> io::Result<()> {
    cut_at(path, MAX_BYTES)
}

fn cut_at(path: &Path, limit: u64) -> io::Result<()> {
    if std::fs::metadata(path)?.len() < limit {
        return Ok(());
    }
    std::fs::copy(path, aside(path))?;
    File::options().write(true).open(path)?.set_len(0)
}

fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".1");
    PathBuf::from(aside)
}

/// Puts a log aside as `NAME.1`, in place of the one that was put aside before.
pub(crate) fn put_aside(path: &Path) -> io::Result<()> {
    match std::fs::rename(path, aside(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_appends_is_cut_and_goes_on_below() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu.log");
        let mut theirs = File::options().append(true).create(true).open(&path).unwrap();
        theirs.write_all(b"first\n").unwrap();
        cut_at(&path, 7).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first\n");
        theirs.write_all(b"second\n").unwrap();
        cut_at(&path, 7).unwrap();
        theirs.write_all(b"third\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"third\n");
        assert_eq!(std::fs::read(dir.path().join("qemu.log.1")).unwrap(), b"first\nsecond\n");
    }

    #[test]
    fn a_log_takes_no_more_than_twice_its_limit_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Log::with_limit(&path, 100).unwrap();
        for line in 0..100 {
            log.write(format!("line {line:04}\n").as_bytes()).unwrap();
        }
        let now = std::fs::read_to_string(&path).unwrap();
        let before = std::fs::read_to_string(dir.path().join("console.log.1")).unwrap();
        assert!(now.ends_with("line 0099\n") && now.len() <= 110 && before.len() <= 110, "{now}{before}");
    }
}
