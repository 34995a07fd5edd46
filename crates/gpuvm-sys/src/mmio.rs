//! A memory mapping of a PCI device's `resourceN` file (or any other file), with checked volatile accesses.
//!
//! Made for programs that drive a device from user space: each access is one load or store of the given width, in program order, at an offset that
//! was checked to lie inside the mapping and to be aligned. Mapping a file on tmpfs gives memory that a device may write to behind the compiler's back.

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Result};
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A shared, readable and writable mapping of the first bytes of a file. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of `path`.
    ///
    /// The length is the caller's word: `resourceN` files report their size, but accesses beyond the end of an ordinary file that was cut short
    /// would kill the process with SIGBUS, so `len` is checked against the file's size.
    ///
    /// # Errors
    /// What opening or mapping says (for a BAR: EINVAL when it isn't a memory BAR), or `InvalidInput` when `len` is 0 or beyond the file's end.
    pub fn open(path: &Path, len: usize) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let Some(length) = NonZeroUsize::new(len).filter(|_| len as u64 <= size) else {
            return Err(Error::new(ErrorKind::InvalidInput, format!("cannot map {len} of {size} bytes")));
        };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; it aliases no memory of this process.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { start, len })
    }

    /// Bytes that are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The virtual address of the first byte, as `/proc/self/pagemap` counts it.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// Reads 4 bytes at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` when `offset` isn't a multiple of 4 or the access would leave the mapping.
    pub fn read32(&self, offset: usize) -> Result<u32> {
        let place = self.place::<u32>(offset)?;
        // SAFETY: `place` checked that the access is aligned and inside the mapping, which lives as long as `self`.
        Ok(unsafe { place.read_volatile() })
    }

    /// Writes 4 bytes at `offset`.
    ///
    /// # Errors
    /// As [`Mapping::read32`].
    pub fn write32(&self, offset: usize, value: u32) -> Result<()> {
        let place = self.place::<u32>(offset)?;
        // SAFETY: as in `read32`; the mapping is writable, and no Rust reference to it exists.
        unsafe { place.write_volatile(value) };
        Ok(())
    }

    /// Reads 8 bytes at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` when `offset` isn't a multiple of 8 or the access would leave the mapping.
    pub fn read64(&self, offset: usize) -> Result<u64> {
        let place = self.place::<u64>(offset)?;
        // SAFETY: `place` checked that the access is aligned and inside the mapping, which lives as long as `self`.
        Ok(unsafe { place.read_volatile() })
    }

    /// Writes 8 bytes at `offset`.
    ///
    /// # Errors
    /// As [`Mapping::read64`].
    pub fn write64(&self, offset: usize, value: u64) -> Result<()> {
        let place = self.place::<u64>(offset)?;
        // SAFETY: as in `read64`; the mapping is writable, and no Rust reference to it exists.
        unsafe { place.write_volatile(value) };
        Ok(())
    }

    /// The pointer for an access of `T` at `offset`: aligned (the mapping starts on a page) and inside.
    fn place<T>(&self, offset: usize) -> Result<*mut T> {
        let width = size_of::<T>();
        let inside = offset.checked_add(width).is_some_and(|end| end <= self.len);
        if !inside || !offset.is_multiple_of(width) {
            let what = if inside { "misaligned" } else { "outside the mapping" };
            let text = format!("access of {width} bytes at {offset:#x} is {what} ({:#x} bytes)", self.len);
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        Ok(self.start.as_ptr().wrapping_byte_add(offset).cast())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `mmap` gave, and no pointer into it outlives `self`. munmap of such a range can't fail.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(bytes: u64, len: usize) -> Result<(tempfile::NamedTempFile, Mapping)> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(bytes)?;
        let mapping = Mapping::open(file.path(), len)?;
        Ok((file, mapping))
    }

    #[test]
    fn what_is_written_reaches_the_file_and_reads_back() {
        let (file, mapping) = mapping(4096, 4096).unwrap();
        mapping.write32(4, 0x0102_0304).unwrap();
        mapping.write64(8, 0x1122_3344_5566_7788).unwrap();
        assert_eq!(mapping.read32(4).unwrap(), 0x0102_0304);
        assert_eq!(mapping.read64(8).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(std::fs::read(file.path()).unwrap()[4..8], [4, 3, 2, 1]);
    }

    #[rstest::rstest]
    #[case(2)]
    #[case(4094)]
    #[case(4096)]
    #[case(usize::MAX)]
    fn accesses_outside_or_misaligned_are_refused(#[case] offset: usize) {
        let (_file, mapping) = mapping(4096, 4096).unwrap();
        assert_eq!(mapping.read32(offset).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(mapping.write64(offset, 0).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[rstest::rstest]
    #[case(4096, 0)]
    #[case(4096, 8192)]
    #[case(0, 1)]
    fn a_length_that_the_file_lacks_is_refused(#[case] bytes: u64, #[case] len: usize) {
        assert_eq!(mapping(bytes, len).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
