//! The accelerator: QEMU's `edu` device, driven from user space through its BAR 0.
//!
//! It computes factorials (modulo 2^32) and has a DMA engine with a buffer of 4 KiB.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use gpuvm_sys::mmio::Mapping;
use serde::Serialize;

use crate::cmdline::Options;
use crate::pci::Device;
use crate::report::{RoundTrip, ms};
use crate::system::physical_address;

const VENDOR: &str = "0x1234";
const DEVICE: &str = "0x11e8";

/// Registers in BAR 0: 4 bytes wide below 0x80, 8 bytes from there on.
mod register {
    pub(super) const IDENTIFICATION: usize = 0x00;
    pub(super) const FACTORIAL: usize = 0x08;
    pub(super) const STATUS: usize = 0x20;
    pub(super) const DMA_SOURCE: usize = 0x80;
    pub(super) const DMA_TARGET: usize = 0x88;
    pub(super) const DMA_COUNT: usize = 0x90;
    pub(super) const DMA_COMMAND: usize = 0x98;
    pub(super) const END: usize = 0x1000;
}
/// Status bit: the factorial isn't done.
const COMPUTING: u32 = 1;
/// Command bits: start (reads 1 while it runs), and the way from the device to memory.
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// Where the device's buffer lies in its own DMA address space.
const BUFFER: u64 = 0x40000;
/// Half of the device's buffer: QEMU stops the machine at a transfer that reaches the buffer's last byte.
const ROUND_TRIP_BYTES: u64 = 2048;
const STRAY_BYTES: u64 = 8;
const STRAY_PATTERN: u64 = 0x5a5a_5a5a_5a5a_5a5a;
const DEADLINE: Duration = Duration::from_secs(10);
const PAGE: usize = 4096;
const PAGE_FILE: &str = "/dma-page";

/// What the accelerator did.
#[derive(Debug, Serialize)]
pub(crate) struct Edu {
    /// Its address in the guest.
    pub(crate) bdf: String,
    /// Its identification register, in hexadecimal.
    pub(crate) identification: String,
    /// The number that was written.
    pub(crate) factorial_of: u32,
    /// What the device made of it: the factorial modulo 2^32.
    pub(crate) factorial: u32,
    /// The DMA engine's round trip.
    pub(crate) dma: Dma,
}

/// A buffer that went out to the device by DMA and came back.
#[derive(Debug, Serialize)]
pub(crate) struct Dma {
    /// Its length.
    pub(crate) bytes: u64,
    /// Its physical address in the guest, in hexadecimal.
    pub(crate) address: String,
    /// Whether it came back as it went.
    pub(crate) round_trip: RoundTrip,
    /// How long the two transfers took together, in ms.
    pub(crate) ms: f64,
}

/// A DMA to where the guest has no memory.
#[derive(Debug, Serialize)]
pub(crate) struct StrayDma {
    /// The address that the device was told, in hexadecimal.
    pub(crate) address: String,
    /// How many bytes.
    pub(crate) bytes: u64,
    /// Whether the device says that it is done; it does so whatever became of the bytes.
    pub(crate) done: bool,
}

/// Works with the first accelerator among `devices`.
pub(crate) fn examine(
    devices: &[Device],
    options: &Options,
    keep: &mut impl FnMut(String),
) -> (Option<Edu>, Option<StrayDma>) {
    let Some(device) = devices.iter().find(|device| device.vendor == VENDOR && device.device == DEVICE)
    else {
        if options.stray_dma.is_some() {
            keep("gpuvm.stray-dma: there is no accelerator to do it".into());
        }
        return (None, None);
    };
    let engine = match Engine::open(device) {
        Ok(engine) => engine,
        Err(error) => {
            keep(format!("edu {}: {error}", device.bdf));
            return (None, None);
        }
    };
    let mut told = |error| keep(format!("edu {}: {error}", device.bdf));
    let edu = engine.work(&device.bdf, options.factorial).map_err(&mut told).ok();
    let stray = options.stray_dma.and_then(|address| engine.stray(address).map_err(&mut told).ok());
    (edu, stray)
}

/// The device's registers, and a page of memory that it can reach.
struct Engine {
    registers: Mapping,
    page: Mapping,
    page_address: u64,
}

impl Engine {
    fn open(device: &Device) -> Result<Self, String> {
        device.enable()?;
        let bar = device.file("resource0");
        let registers =
            Mapping::open(&bar, register::END).map_err(|error| format!("{}: {error}", bar.display()))?;
        let page = memory_page().map_err(|error| format!("{PAGE_FILE}: {error}"))?;
        let page_address = physical_address(page.address())?;
        Ok(Self { registers, page, page_address })
    }

    fn work(&self, bdf: &str, number: u32) -> Result<Edu, String> {
        let identification = self.registers.read32(register::IDENTIFICATION).map_err(text)?;
        let factorial = self.factorial(number)?;
        let dma = self.round_trip()?;
        let identification = format!("{identification:#010x}");
        Ok(Edu { bdf: bdf.into(), identification, factorial_of: number, factorial, dma })
    }

    fn factorial(&self, number: u32) -> Result<u32, String> {
        self.registers.write32(register::FACTORIAL, number).map_err(text)?;
        let done = || Ok(self.registers.read32(register::STATUS).map_err(text)? & COMPUTING == 0);
        wait_for("the factorial", done)?;
        self.registers.read32(register::FACTORIAL).map_err(text)
    }

    /// Sends a pattern to the device, clears the memory, and fetches it back.
    fn round_trip(&self) -> Result<Dma, String> {
        let pattern = |word: u64| word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.page_address;
        let words = || (0..ROUND_TRIP_BYTES / 8).zip((0..PAGE).step_by(8));
        for (word, offset) in words() {
            self.page.write64(offset, pattern(word)).map_err(text)?;
        }
        let begun = Instant::now();
        self.transfer(self.page_address, BUFFER, ROUND_TRIP_BYTES, START)?;
        let out = begun.elapsed();
        for (_, offset) in words() {
            self.page.write64(offset, 0).map_err(text)?;
        }
        let begun = Instant::now();
        self.transfer(BUFFER, self.page_address, ROUND_TRIP_BYTES, START | TO_MEMORY)?;
        let took = ms(out + begun.elapsed());
        let mut equal = true;
        for (word, offset) in words() {
            equal &= self.page.read64(offset).map_err(text)? == pattern(word);
        }
        let address = format!("{:#x}", self.page_address);
        Ok(Dma { bytes: ROUND_TRIP_BYTES, address, round_trip: RoundTrip::of(equal), ms: took })
    }

    /// Fills the device's buffer with the pattern and has it written to `address`.
    fn stray(&self, address: u64) -> Result<StrayDma, String> {
        self.page.write64(0, STRAY_PATTERN).map_err(text)?;
        self.transfer(self.page_address, BUFFER, STRAY_BYTES, START)?;
        let done = self.transfer(BUFFER, address, STRAY_BYTES, START | TO_MEMORY).is_ok();
        Ok(StrayDma { address: format!("{address:#x}"), bytes: STRAY_BYTES, done })
    }

    fn transfer(&self, source: u64, target: u64, count: u64, command: u64) -> Result<(), String> {
        self.registers.write64(register::DMA_SOURCE, source).map_err(text)?;
        self.registers.write64(register::DMA_TARGET, target).map_err(text)?;
        self.registers.write64(register::DMA_COUNT, count).map_err(text)?;
        self.registers.write64(register::DMA_COMMAND, command).map_err(text)?;
        let done = || Ok(self.registers.read64(register::DMA_COMMAND).map_err(text)? & START == 0);
        wait_for("a DMA transfer", done)
    }
}

/// A page of memory with a name: a mapping of a file in the initramfs, which lives in memory, so that its accesses are volatile.
fn memory_page() -> std::io::Result<Mapping> {
    let mut file = File::create(PAGE_FILE)?;
    file.write_all(&[0; PAGE])?;
    let page = Mapping::open(Path::new(PAGE_FILE), PAGE)?;
    // The page must be in the page table before its address can be looked up.
    page.write64(0, 0)?;
    Ok(page)
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// Polls until `done`, at most [`DEADLINE`].
fn wait_for(what: &str, done: impl Fn() -> Result<bool, String>) -> Result<(), String> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > DEADLINE {
            return Err(format!("{what} isn't done after {} s", DEADLINE.as_secs()));
        }
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_it_is_done_or_fails() {
        let left = std::cell::Cell::new(3);
        let done = || {
            left.set(left.get() - 1);
            Ok(left.get() == 0)
        };
        assert_eq!(wait_for("it", done), Ok(()));
        assert_eq!(wait_for("it", || Err("gone".into())), Err("gone".into()));
    }
}
