//! The `edu` device driven by the host itself: what it could do if nothing stood in its way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use gpuvm_sys::mmio::Mapping;

use super::doing;

const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
/// The device's own buffer, as its DMA engine addresses it (QEMU docs/specs/edu.rst).
const BUFFER: u64 = 0x4_0000;
const BAR_BYTES: usize = 1 << 20;
/// Start, and from the device to memory.
const START_TO_MEMORY: u64 = 0b11;

/// Tells an `edu` device without a driver to write the first bytes of its buffer to a physical address.
///
/// # Errors
/// What failed.
pub fn write_to(bdf: &str, physical: u64, bytes: u64) -> Result<(), String> {
    let folder = Path::new("/sys/bus/pci/devices").join(bdf);
    let config =
        File::options().read(true).write(true).open(folder.join("config")).map_err(doing("open config"))?;
    let mut command = [0; 2];
    config.read_exact_at(&mut command, 4).map_err(doing("read the command register"))?;
    // Memory space and bus mastering.
    config.write_all_at(&[command[0] | 0b110, command[1]], 4).map_err(doing("write the command register"))?;
    let result = transfer(&folder.join("resource0"), physical, bytes);
    config.write_all_at(&command, 4).map_err(doing("restore the command register"))?;
    result
}

fn transfer(bar: &Path, physical: u64, bytes: u64) -> Result<(), String> {
    let bar = Mapping::open(bar, BAR_BYTES).map_err(doing("map the BAR"))?;
    for (register, value) in
        [(SOURCE, BUFFER), (DESTINATION, physical), (COUNT, bytes), (COMMAND, START_TO_MEMORY)]
    {
        bar.write64(register, value).map_err(doing("write a register"))?;
    }
    let begun = Instant::now();
    while bar.read64(COMMAND).map_err(doing("read the DMA command"))? & 1 != 0 {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err("the DMA engine didn't finish within 10 s".to_owned());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
