//! What is read of a device only when it is looked at closely.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use gpuvm_core::config_space::Capabilities;
use gpuvm_core::facts::{ConfigFacts, DeviceFacts, LinkFacts, LinkSpeed, PowerFacts, Presence, ResizableBar};
use gpuvm_core::pci::Bdf;
use gpuvm_core::units::ByteSize;

use super::Reading;
use crate::HostError;
use crate::aer;
use crate::root::{self, HostRoot, is_absent, list, read_text};

/// What everybody may read of a config space.
const HEADER: usize = 64;

/// Adds link, power, names and config space.
pub(super) fn read(
    root: &HostRoot,
    bdf: Bdf,
    reading: &Reading,
    facts: &mut DeviceFacts,
) -> Result<(), HostError> {
    let folder = root.device(bdf);
    let text = |name: &str| {
        Ok::<_, HostError>(reading.take(read_text(&folder.join(name)))?.map(|text| text.trim().to_owned()))
    };
    facts.power = PowerFacts {
        policy: reading.take(crate::power::read(root, bdf))?,
        state: text("power_state")?,
        runtime: text("power/runtime_status")?,
    };
    facts.nodes = nodes(&folder, reading)?;
    facts.errors = reading.take(aer::of_function(&folder))?;
    // The kernel wakes a device that is in D3cold, or below a port that sleeps, to read its config space or the sizes of its
    // registers; newer ones also to show its link and the buses behind it, which are registers too (pci_config_pm_runtime_get of
    // drivers/pci/pci-sysfs.c).
    let asleep = |folder: &Path| -> Result<bool, HostError> {
        let runtime = reading.take(read_text(&folder.join("power/runtime_status")))?;
        Ok(runtime.is_some_and(|text| text.trim() == "suspended"))
    };
    let mut wakes = facts.power.state.as_deref() == Some("D3cold");
    for bridge in &facts.upstream {
        wakes = wakes || asleep(&root.device(*bridge))?;
    }
    if !wakes {
        facts.resizable = resizable(&folder, reading)?;
        facts.link = link(&folder, reading)?;
        facts.buses = buses(&folder, reading)?;
        // A reset that doesn't come back keeps config space to itself (pci_cfg_access_lock), and a reader waits for it.
        facts.config = reading.take(root.lockable(bdf).and_then(|()| config(&folder)))?;
    }
    Ok(())
}

fn link(folder: &Path, reading: &Reading) -> Result<Option<LinkFacts>, HostError> {
    let text = |name: &str| reading.take(read_text(&folder.join(name)));
    let speed = |name: &str| Ok::<_, HostError>(text(name)?.as_deref().and_then(LinkSpeed::parse));
    // An unknown width is 255.
    let width = |name: &str| {
        let width = text(name)?.and_then(|text| text.trim().parse().ok());
        Ok::<_, HostError>(width.filter(|width: &u8| *width <= 32))
    };
    let link = LinkFacts {
        speed: speed("current_link_speed")?,
        width: width("current_link_width")?,
        max_speed: speed("max_link_speed")?,
        max_width: width("max_link_width")?,
    };
    Ok(Some(link).filter(|link| *link != LinkFacts::default()))
}

/// Reads which sizes registers can have: bit N of the mask is 2^N MiB (Documentation/ABI/testing/sysfs-bus-pci).
fn resizable(folder: &Path, reading: &Reading) -> Result<Vec<ResizableBar>, HostError> {
    let mut bars = Vec::new();
    for index in 0..6 {
        let path = folder.join(format!("resource{index}_resize"));
        let Some(text) = reading.take(read_text(&path))? else { continue };
        let mask =
            u64::from_str_radix(text.trim(), 16).map_err(|error| HostError::content(&path, &text, error));
        let mask = reading.take(mask)?;
        let sizes = (0..43).filter(|bit| mask >> bit & 1 == 1).map(|bit| ByteSize::bytes(1 << (20 + bit)));
        bars.push(ResizableBar { index, sizes: sizes.collect() });
    }
    Ok(bars)
}

fn buses(folder: &Path, reading: &Reading) -> Result<Option<(u8, u8)>, HostError> {
    let bus = |name: &str| reading.take(root::read_parsed(&folder.join(name)));
    Ok(bus("secondary_bus_number")?.zip(bus("subordinate_bus_number")?))
}

/// Lists what the host calls a device: the names below `net`, `drm`, `nvme`, `sound` and so on.
fn nodes(folder: &Path, reading: &Reading) -> Result<Vec<String>, HostError> {
    let mut names = Vec::new();
    for class in ["net", "drm", "nvme", "sound", "infiniband", "graphics", "accel", "misc"] {
        names.extend(reading.take(list(&folder.join(class)))?);
    }
    Ok(names)
}

/// Reads the config space: 4096 bytes for root on PCI Express, 256 on PCI, 64 for anybody else.
fn config(folder: &Path) -> Result<Option<ConfigFacts>, HostError> {
    let path = folder.join("config");
    let mut bytes = Vec::new();
    let expected = match fs::metadata(&path) {
        Ok(data) => data.len(),
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(HostError::file("look at", &path)(error)),
    };
    let read = File::open(&path).and_then(|file| file.take(4096).read_to_end(&mut bytes));
    read.map_err(HostError::file("read", &path))?;
    // A function that has fallen off the bus is read as all ones, and has said nothing (PCI Express Base Specification 2.3.2).
    let silent = if !bytes.is_empty() && bytes.iter().take(HEADER).all(|byte| *byte == u8::MAX) {
        Presence::Present
    } else {
        Presence::Absent
    };
    let all = bytes.len() as u64 >= expected.min(256) && bytes.len() > HEADER;
    let complete = if all && silent == Presence::Absent { Presence::Present } else { Presence::Absent };
    let registers = registers(&bytes);
    Ok(Some(ConfigFacts { capabilities: Capabilities::parse(&bytes), complete, registers, silent }))
}

/// Takes the base address registers of a header of type 0; bridges have other things in their place.
fn registers(config: &[u8]) -> Vec<u32> {
    const HEADER_TYPE: usize = 0x0e;
    const BARS: std::ops::Range<usize> = 0x10..0x28;
    match (config.get(HEADER_TYPE).map(|kind| kind & 0x7f), config.get(BARS)) {
        (Some(0), Some(bars)) => {
            bars.chunks_exact(4).filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes)).collect()
        }
        _ => Vec::new(),
    }
}
