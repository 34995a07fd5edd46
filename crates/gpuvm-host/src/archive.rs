//! A report's archive: a folder of small files in a gzipped tar, which anybody can look into.
//!
//! What is read may come from anywhere, so nothing is taken for true of it: neither sizes nor paths, and nothing is unpacked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::given;

/// The file of an archive that holds the facts.
pub const FACTS: &str = "facts.json";
/// The most that is read of a file of facts: a host with 10,000 virtual functions takes 15 MiB.
const FACTS_MAX: u64 = 128 << 20;
/// The most that is unpacked to find it.
const UNPACKED_MAX: u64 = 512 << 20;
/// What a gzip file begins with (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, with folders.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

impl Member {
    /// Makes a file.
    pub fn new(name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), content: content.into() }
    }
}

/// Writes an archive to a new file that nobody else may read; one that is there is left alone.
///
/// # Errors
/// Returns failures to make and to write it.
pub fn write(path: &Path, folder: &str, seconds: u64, members: &[Member]) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for member in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(member.content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, Path::new(folder).join(&member.name), member.content.as_slice())?;
    }
    archive.into_inner()?.finish()?.flush()
}

/// Reads the facts out of an archive, or a file that holds nothing else.
///
/// # Errors
/// Returns failures to read, what is wrong with an archive, and that there are no facts in it.
pub fn facts(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = given::open(path)?;
    let mut head = Vec::new();
    (&mut file).take(2).read_to_end(&mut head)?;
    let whole = io::Cursor::new(head.clone()).chain(file);
    if head == GZIP { in_archive(GzDecoder::new(whole)) } else { all_of(whole) }
}

/// Finds the facts, and reads the archive to its end: one that was cut short may hold them, and isn't what was sent.
fn in_archive(unpacked: impl Read) -> io::Result<Vec<u8>> {
    let broken = |error: io::Error| damaged(&format!("the archive is damaged: {error}"));
    let mut unpacked = unpacked.take(UNPACKED_MAX);
    let mut archive = tar::Archive::new(&mut unpacked);
    let mut found = None;
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        if found.is_none() && is_facts(&entry.path().map_err(broken)?) {
            found = Some(all_of(entry)?);
        }
    }
    // The tar ends before the gzip does, whose last bytes are the checksum and the length of it all.
    io::copy(&mut unpacked, &mut io::sink()).map_err(broken)?;
    if unpacked.limit() == 0 {
        return Err(damaged(&format!("it unpacks to more than any report ({} MiB)", UNPACKED_MAX >> 20)));
    }
    found.ok_or_else(|| damaged(&format!("there is no {FACTS} in this archive")))
}

/// Tells whether a name in the archive is that of the facts: on top, or in the one folder that all are in.
fn is_facts(name: &Path) -> bool {
    let parts: Vec<_> = name.components().filter(|part| *part != Component::CurDir).collect();
    parts.len() <= 2 && parts.last().is_some_and(|last| last.as_os_str() == FACTS)
}

fn all_of(from: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    from.take(FACTS_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FACTS_MAX {
        return Err(damaged(&format!("it is larger than any facts ({} MiB)", FACTS_MAX >> 20)));
    }
    Ok(content)
}

fn damaged(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn archive(folder: &Path) -> PathBuf {
        let path = folder.join("report.tar.gz");
        let members = [
            Member::new("README.txt", "a report"),
            Member::new("gpuvm/facts.json", "not these"),
            Member::new(FACTS, "{}"),
        ];
        write(&path, "gpuvm-report", 1_800_000_000, &members).unwrap();
        path
    }

    #[test]
    fn facts_are_found_in_an_archive_and_in_a_file_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path());
        assert_eq!(facts(&path).unwrap(), b"{}");
        let plain = folder.path().join("facts.json");
        std::fs::write(&plain, "{ }").unwrap();
        assert_eq!(facts(&plain).unwrap(), b"{ }");
    }

    #[test]
    fn an_archive_that_was_cut_short_is_damaged_wherever_the_cut_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.tar.gz");
        // The facts come first, and are whole in each half; what follows can't be pressed together.
        let noise: Vec<u8> =
            (0..20_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[1]).collect();
        write(&path, "r", 0, &[Member::new(FACTS, "{}"), Member::new("noise", noise)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(facts(&path).unwrap(), b"{}");
        for left in [whole.len() / 2, whole.len() - 12, whole.len() - 1] {
            std::fs::write(&path, &whole[..left]).unwrap();
            let error = facts(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("the archive is damaged"), "{left}: {error}");
        }
    }

    #[test]
    fn an_archive_is_for_its_owner_alone_and_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let before = std::fs::read(&path).unwrap();
        let error = write(&path, "other", 0, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn an_archive_without_facts_a_folder_and_a_device_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar.gz");
        write(&path, "x", 0, &[Member::new("a/b/facts.json", "{}")]).unwrap();
        for (path, says) in [
            (path.as_path(), "no facts.json"),
            (folder.path(), "directory"),
            (Path::new("/dev/zero"), "no regular file"),
        ] {
            let error = facts(path).unwrap_err().to_string();
            assert!(error.contains(says), "{}: {error}", path.display());
        }
    }

    #[test]
    fn what_unpacks_to_more_than_facts_can_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.tar.gz");
        let mut header = tar::Header::new_gnu();
        header.set_size(FACTS_MAX + 2);
        header.set_mode(0o600);
        let mut bomb = tar::Builder::new(GzEncoder::new(File::create(&path).unwrap(), Compression::fast()));
        bomb.append_data(&mut header, FACTS, io::repeat(0).take(FACTS_MAX + 2)).unwrap();
        bomb.into_inner().unwrap().finish().unwrap();
        let error = facts(&path).unwrap_err().to_string();
        assert!(error.contains("larger than any facts"), "{error}");
    }

    proptest! {
        #[test]
        fn mutilated_archives_are_errors_or_facts_and_never_panics(
            at in any::<proptest::sample::Index>(), byte: u8, cut: bool, inside: bool
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = archive(folder.path());
            let mut bytes = std::fs::read(&path).unwrap();
            if inside {
                // The tar itself, under a gzip that is sound.
                let mut tar = Vec::new();
                GzDecoder::new(bytes.as_slice()).read_to_end(&mut tar).unwrap();
                let at = at.index(tar.len());
                if cut { tar.truncate(at) } else { tar[at] = byte }
                let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                gzip.write_all(&tar).unwrap();
                bytes = gzip.finish().unwrap();
            } else {
                let at = at.index(bytes.len());
                if cut { bytes.truncate(at) } else { bytes[at] = byte }
            }
            std::fs::write(&path, bytes).unwrap();
            let _ = facts(&path);
        }
    }
}
