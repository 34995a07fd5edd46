//! A page of this process whose physical address is known: what a stray DMA would hit.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use gpuvm_sys::mmio::Mapping;

use super::doing;

const PAGE: usize = 4096;
const PATTERN: u64 = 0xc3c3_c3c3_c3c3_c3c3;
/// Pages that are filled to find one at an address that suits.
const PAGES: usize = 4096;

/// Memory full of a pattern, with one page of it chosen by its physical address.
#[derive(Debug)]
pub struct Canary {
    memory: Mapping,
    file: PathBuf,
    offset: usize,
    physical: u64,
}

impl Canary {
    /// Fills memory and chooses a page whose physical address lies in a range.
    ///
    /// # Errors
    /// What failed, or that no page lies there.
    pub fn place(name: &str, range: std::ops::Range<u64>) -> Result<Self, String> {
        let file = PathBuf::from(format!("/dev/shm/gpuvm-canary-{name}"));
        let backing = File::create(&file).map_err(doing("make the canary's file"))?;
        backing.set_len((PAGES * PAGE) as u64).map_err(doing("size the canary"))?;
        // Written through the file, so that every page is there before its address is asked for.
        for page in 0..PAGES {
            let content: Vec<u8> = PATTERN.to_le_bytes().repeat(PAGE / 8);
            backing.write_all_at(&content, (page * PAGE) as u64).map_err(doing("fill the canary"))?;
        }
        let memory = Mapping::open(&file, PAGES * PAGE).map_err(doing("map the canary"))?;
        for page in 0..PAGES {
            let offset = page * PAGE;
            // A page has an entry in the page table only once it was touched.
            memory.read64(offset).map_err(doing("touch the canary"))?;
            let physical = physical_of(memory.address() + offset)?;
            if range.contains(&physical) {
                return Ok(Self { memory, file, offset, physical });
            }
        }
        Err(format!("no page of {PAGES} lies in {range:#x?}"))
    }

    /// Returns the page's physical address.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Tells whether every byte of the page is as it was, and that the page still lies where it did.
    ///
    /// # Errors
    /// What could not be read, or that the page was moved.
    pub fn is_intact(&self) -> Result<bool, String> {
        for at in (0..PAGE).step_by(8) {
            if self.memory.read64(self.offset + at).map_err(doing("read the canary"))? != PATTERN {
                return Ok(false);
            }
        }
        let now = physical_of(self.memory.address() + self.offset)?;
        match now == self.physical {
            true => Ok(true),
            false => Err(format!("the canary was moved from {:#x} to {now:#x}", self.physical)),
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        // The lab host is thrown away anyway.
        std::fs::remove_file(&self.file).ok();
    }
}

/// Asks the kernel for the physical address of a virtual one (Documentation/admin-guide/mm/pagemap.rst).
fn physical_of(address: usize) -> Result<u64, String> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut pagemap = File::open("/proc/self/pagemap").map_err(doing("open pagemap"))?;
    let mut entry = [0; 8];
    pagemap.seek(SeekFrom::Start((address / PAGE * 8) as u64)).map_err(doing("seek in pagemap"))?;
    pagemap.read_exact(&mut entry).map_err(doing("read pagemap"))?;
    let entry = u64::from_le_bytes(entry);
    match (entry & PRESENT != 0, (entry & FRAME) * PAGE as u64) {
        (true, physical @ 1..) => Ok(physical),
        _ => Err(format!("no physical address for {address:#x}: {entry:#x}")),
    }
}
