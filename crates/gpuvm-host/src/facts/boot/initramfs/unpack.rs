//! What an initramfs is packed with.

use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};

/// What the kernel can unpack (lib/decompress.c), as far as gpuvm can too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
    Xz,
    Lz4,
}

/// Unpacks what begins with the magic number of a packing.
///
/// # Errors
/// Returns which packing it is if it can't be unpacked here, and failures to read.
pub(super) fn unpack<'a>(from: impl BufRead + 'a, magic: &[u8]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match packing(magic)? {
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Packing::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(from);
            Box::new(decoder.map_err(|error| io::Error::other(format!("zstd: {error}")))?)
        }
        Packing::Xz => Box::new(lzma_rust2::XzReader::new(from, true)),
        Packing::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(from)),
    })
}

fn packing(magic: &[u8]) -> io::Result<Packing> {
    let known: [(&[u8], Packing); 5] = [
        (&[0x1f, 0x8b], Packing::Gzip),
        (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], Packing::Xz),
        // The kernel asks for the legacy frame (lz4 -l); tools make the other too.
        (&[0x02, 0x21, 0x4c, 0x18], Packing::Lz4),
        (&[0x04, 0x22, 0x4d, 0x18], Packing::Lz4),
    ];
    let others: [(&[u8], &str); 3] =
        [(b"BZh", "bzip2"), (&[0x5d, 0, 0], "lzma"), (&[0x89, b'L', b'Z', b'O'], "lzo")];
    if let Some((_, packing)) = known.iter().find(|(begins, _)| magic.starts_with(begins)) {
        return Ok(*packing);
    }
    let what = match others.iter().find(|(begins, _)| magic.starts_with(begins)) {
        Some((_, name)) => format!("it is packed with {name}, which gpuvm doesn't unpack"),
        None => format!("it begins with {magic:02x?}, which is no archive and no packing that is known"),
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}

/// A reader that ends with an error at a number of bytes, or at a time.
pub(super) struct Bounded<R> {
    from: R,
    left: u64,
    until: Instant,
}

impl<R: Read> Bounded<R> {
    pub(super) fn new(from: R, bytes: u64, time: Duration) -> Self {
        Self { from, left: bytes, until: Instant::now() + time }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("it is larger than gpuvm unpacks"));
        }
        if Instant::now() > self.until {
            return Err(io::Error::other("it takes longer to unpack than gpuvm waits"));
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.from.read(&mut into[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}
