//! The PCI functions that the guest's kernel found.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::Serialize;

use crate::cmdline::parse_address;
use crate::system::read;

const DEVICES: &str = "/sys/bus/pci/devices";
/// Offset and bits of the command register in config space.
const COMMAND: u64 = 4;
const COMMAND_MEMORY_AND_MASTER: u16 = 0b110;

/// One PCI function.
#[derive(Debug, Serialize)]
pub(crate) struct Device {
    /// Its address in the guest.
    pub(crate) bdf: String,
    /// As in sysfs: `0x1234`.
    pub(crate) vendor: String,
    /// As in sysfs.
    pub(crate) device: String,
    /// As in sysfs: `0x030000`.
    pub(crate) class: String,
    /// The NUMA node that the guest's firmware tells of it; -1 for none, as in sysfs.
    pub(crate) numa_node: i32,
    /// The base address registers that have a size.
    pub(crate) bars: Vec<Bar>,
}

/// One base address register.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Bar {
    /// 0 to 5.
    pub(crate) index: usize,
    /// Where the guest's firmware or kernel put it, in hexadecimal.
    pub(crate) address: String,
    /// Its size.
    pub(crate) bytes: u64,
}

impl Device {
    /// The path of a sysfs file of this function.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        [DEVICES, &self.bdf, name].iter().collect()
    }

    /// Turns memory decoding and bus mastering on, as a driver would.
    pub(crate) fn enable(&self) -> Result<(), String> {
        let path = self.file("config");
        let told = |error| format!("{}: {error}", path.display());
        let config = OpenOptions::new().read(true).write(true).open(&path).map_err(told)?;
        let mut bytes = [0; 2];
        config.read_exact_at(&mut bytes, COMMAND).map_err(told)?;
        let command = u16::from_le_bytes(bytes) | COMMAND_MEMORY_AND_MASTER;
        config.write_all_at(&command.to_le_bytes(), COMMAND).map_err(told)
    }
}

/// All functions, sorted by address.
pub(crate) fn devices() -> Result<Vec<Device>, String> {
    let entries = fs::read_dir(DEVICES).map_err(|error| format!("{DEVICES}: {error}"))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.into_iter().map(device).collect()
}

/// Reads one function's attributes.
fn device(bdf: String) -> Result<Device, String> {
    let attribute = |name: &str| read(&format!("{DEVICES}/{bdf}/{name}")).map(|text| text.trim().to_owned());
    let (vendor, device, class) = (attribute("vendor")?, attribute("device")?, attribute("class")?);
    let numa_node = attribute("numa_node")?;
    let numa_node =
        numa_node.parse().map_err(|_| format!("{bdf}: NUMA node {numa_node:?} isn't a number"))?;
    let bars = parse_resource(&attribute("resource")?);
    Ok(Device { bdf, vendor, device, class, numa_node, bars })
}

/// The BARs in a `resource` file: one line `start end flags` per resource, the first six are BARs, unused ones are zero.
fn parse_resource(text: &str) -> Vec<Bar> {
    let bar = |(index, line): (usize, &str)| {
        let mut numbers = line.split_whitespace().map(parse_address);
        let (start, end) = (numbers.next()??, numbers.next()??);
        let bytes = end.checked_sub(start)?.checked_add(1).filter(|_| end != 0)?;
        Some(Bar { index, address: format!("{start:#x}"), bytes })
    };
    text.lines().take(6).enumerate().filter_map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_the_first_six_resources_that_have_a_size() {
        let text = "0x00000000fe800000 0x00000000fe8fffff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000008000000000 0x00000080000fffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000fe900000 0x00000000fe90ffff 0x0000000000046200
";
        let bars = parse_resource(text);
        let wanted = [
            Bar { index: 0, address: "0xfe800000".into(), bytes: 1 << 20 },
            Bar { index: 2, address: "0x8000000000".into(), bytes: 1 << 20 },
        ];
        assert_eq!(bars, wanted);
    }

    #[test]
    fn a_torn_resource_file_gives_no_bars() {
        assert_eq!(parse_resource(""), []);
        assert_eq!(parse_resource("0x10\nnonsense 0x20 0x0\n0x20 0x10 0x0"), []);
    }
}
