//! Archives in the "new ASCII" form of cpio, which is all that the kernel takes (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Read};

/// The most that is kept of a file's content.
const MAX_CONTENT: u64 = 256 << 10;
/// The longest name that the kernel takes (PATH_MAX).
const MAX_NAME: u32 = 4096;
const HEADER: usize = 110;
const MAGIC: [&[u8]; 2] = [b"070701", b"070702"];
const TRAILER: &str = "TRAILER!!!";

/// Tells whether bytes begin an archive.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    MAGIC.iter().any(|magic| bytes.starts_with(magic))
}

/// Reads one archive to its end. `wants` decides by name whose content is read; `found` is given every name, with the content where it
/// was wanted. The reader is left behind the archive's last entry.
///
/// # Errors
/// Returns failures to read, and that the bytes are no archive.
pub(super) fn read(
    from: &mut impl Read,
    wants: impl Fn(&str) -> bool,
    mut found: impl FnMut(&str, Option<&[u8]>),
) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        if !is_archive(&header) {
            return Err(bad("an entry doesn't begin as one"));
        }
        let (size, name_size) = (field(&header, 6)?, field(&header, 11)?);
        if name_size == 0 || name_size > MAX_NAME {
            return Err(bad("an entry's name is too long"));
        }
        let mut name = vec![0; name_size as usize];
        from.read_exact(&mut name)?;
        skip(from, padding(HEADER as u64 + u64::from(name_size)))?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        let name = String::from_utf8_lossy(&name);
        if name == TRAILER {
            return Ok(());
        }
        let size = u64::from(size);
        let name = name.trim_start_matches("./").trim_start_matches('/');
        if size <= MAX_CONTENT && wants(name) {
            let mut content = Vec::new();
            from.take(size).read_to_end(&mut content)?;
            if content.len() as u64 != size {
                return Err(bad("it ends within an entry"));
            }
            found(name, Some(&content));
        } else {
            skip(from, size)?;
            found(name, None);
        }
        skip(from, padding(size))?;
    }
}

/// Reads one of the header's fields of eight hex digits, counted from behind the magic.
fn field(header: &[u8; HEADER], index: usize) -> io::Result<u32> {
    let at = 6 + 8 * index;
    let digits = header.get(at..at + 8).and_then(|digits| std::str::from_utf8(digits).ok());
    digits
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| bad("a number in it is none"))
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(4) - size
}

fn skip(from: &mut impl Read, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut from.take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(()) } else { Err(bad("it ends within an entry")) }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no cpio archive: {what}"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes an archive of files.
    pub(in super::super) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files.iter().copied().chain([(TRAILER, &b""[..])]) {
            let mut fields = [0; 13];
            (fields[1], fields[6], fields[11]) = (0o100_644, content.len(), name.len() + 1);
            let numbers: String = fields.iter().map(|field| format!("{field:08X}")).collect();
            bytes.extend(format!("070701{numbers}{name}\0").as_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn all(bytes: &[u8]) -> io::Result<Vec<(String, Option<Vec<u8>>)>> {
        let mut files = Vec::new();
        let wants = |name: &str| name.ends_with(".conf");
        read(&mut &bytes[..], wants, |name, content| {
            files.push((name.to_owned(), content.map(<[u8]>::to_vec)))
        })?;
        Ok(files)
    }

    #[test]
    fn files_of_an_archive_are_read_and_what_is_behind_it_is_left() {
        let mut bytes = archive(&[("./etc/a.conf", b"hello"), ("init", b"#!/bin/sh\n"), ("/x.conf", b"")]);
        let end = bytes.len();
        bytes.extend(b"behind");
        let expected = [
            ("etc/a.conf".to_owned(), Some(b"hello".to_vec())),
            ("init".to_owned(), None),
            ("x.conf".to_owned(), Some(Vec::new())),
        ];
        assert_eq!(all(&bytes).unwrap(), expected);
        let mut rest = &bytes[..];
        read(&mut rest, |_| false, |_, _| {}).unwrap();
        assert_eq!(rest, &bytes[end..]);
    }

    #[test]
    fn no_part_of_an_archive_is_taken_for_the_whole() {
        let bytes = archive(&[("etc/a.conf", b"hello"), ("init", b"#!/bin/sh\n")]);
        // The last bytes pad the trailer's name.
        for len in 0..bytes.len() - 4 {
            all(&bytes[..len]).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(head in 0usize..2, mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if head == 1 && bytes.len() > 6 {
                bytes[..6].copy_from_slice(b"070701");
            }
            let _ = all(&bytes);
        }
    }
}
