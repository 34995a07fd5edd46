//! The passed-through NVMe: one block is written, read back, compared, and put back as it was.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::pci::Device;
use crate::report::{RoundTrip, ms};
use crate::system::read;

const CLASS: &str = "0x010802";
const DEADLINE: Duration = Duration::from_secs(10);
/// Somewhere in the middle of nothing: behind where partition tables and superblocks lie.
const OFFSET: u64 = 8 << 20;
const BLOCK: usize = 4096;
/// Where a boot leaves word for the next one.
const MARKER_OFFSET: u64 = OFFSET + BLOCK as u64;
const MARKER: &[u8] = b"gpuvm-guest was here\n";

/// What the NVMe did.
#[derive(Debug, Serialize)]
pub(crate) struct Nvme {
    /// Its address in the guest.
    pub(crate) bdf: String,
    /// As the controller says.
    pub(crate) model: String,
    /// As the controller says.
    pub(crate) serial: String,
    /// The first namespace's size.
    pub(crate) bytes: u64,
    /// Whether the block came back as it was written.
    pub(crate) round_trip: RoundTrip,
    /// How long writing and reading it took, in ms.
    pub(crate) ms: f64,
}

/// O_DIRECT wants aligned memory.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Works with the first NVMe among `devices`.
pub(crate) fn examine(devices: &[Device], keep: &mut impl FnMut(String)) -> Option<Nvme> {
    let device = devices.iter().find(|device| device.class == CLASS)?;
    work(device).map_err(|error| keep(format!("nvme {}: {error}", device.bdf))).ok()
}

fn work(device: &Device) -> Result<Nvme, String> {
    let (controller, namespace) = wait_for_namespace(device)?;
    let attribute =
        |name: &str| read(&format!("{}/{name}", controller.display())).map(|text| text.trim().to_owned());
    let sectors = read(&format!("/sys/block/{namespace}/size"))?;
    let sectors: u64 =
        sectors.trim().parse().map_err(|error| format!("{namespace}: size {sectors:?}: {error}"))?;
    let path = PathBuf::from("/dev").join(&namespace);
    let (round_trip, ms) = round_trip(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (model, serial) = (attribute("model")?, attribute("serial")?);
    Ok(Nvme { bdf: device.bdf.clone(), model, serial, bytes: sectors * 512, round_trip, ms })
}

/// The controller's sysfs folder and its first namespace's name: the driver probes beside us, so it may take a moment.
fn wait_for_namespace(device: &Device) -> Result<(PathBuf, String), String> {
    let start = Instant::now();
    loop {
        if let Some(found) = namespace(&device.file("nvme"))
            && Path::new("/dev").join(&found.1).exists()
        {
            return Ok(found);
        }
        if start.elapsed() > DEADLINE {
            return Err(format!("no namespace after {} s", DEADLINE.as_secs()));
        }
        sleep(Duration::from_millis(5));
    }
}

fn namespace(controllers: &Path) -> Option<(PathBuf, String)> {
    let controller = fs::read_dir(controllers).ok()?.flatten().next()?.path();
    let mut names: Vec<String> = fs::read_dir(&controller)
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let namespace = names.into_iter().find(|name| is_namespace(name))?;
    Some((controller, namespace))
}

/// `nvme0n1`, and not `ng0n1`, `nvme0c0n1` or `nvme0n1p1`.
fn is_namespace(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
    numbers.is_some_and(|(controller, namespace)| digits(controller) && digits(namespace))
}

/// Past the page cache both ways, so that the bytes have been on the device.
fn round_trip(path: &Path) -> std::io::Result<(RoundTrip, f64)> {
    let disk =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_SYNC).open(path)?;
    let (mut before, mut out, mut back) = (Block([0; BLOCK]), Block([0; BLOCK]), Block([0; BLOCK]));
    disk.read_exact_at(&mut before.0, OFFSET)?;
    File::open("/dev/urandom").and_then(|mut random| std::io::Read::read_exact(&mut random, &mut out.0))?;
    let begun = Instant::now();
    disk.write_all_at(&out.0, OFFSET)?;
    disk.read_exact_at(&mut back.0, OFFSET)?;
    let took = ms(begun.elapsed());
    disk.write_all_at(&before.0, OFFSET)?;
    Ok((RoundTrip::of(out.0 == back.0), took))
}

/// Tells whether this is the boot after one that asked the same, and forgets it; otherwise remembers on the disk that it was asked.
///
/// # Errors
/// That there is no disk, that it fails, or that somebody else has written there.
pub(crate) fn was_here(devices: &[Device]) -> Result<bool, String> {
    let device =
        devices.iter().find(|device| device.class == CLASS).ok_or("there is no disk to remember by")?;
    let (_, namespace) = wait_for_namespace(device)?;
    let path = PathBuf::from("/dev").join(&namespace);
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_SYNC)
        .open(&path)
        .map_err(told)?;
    let mut found = Block([0; BLOCK]);
    disk.read_exact_at(&mut found.0, MARKER_OFFSET).map_err(told)?;
    let next = after(&found.0)
        .ok_or_else(|| format!("{}: what is at {MARKER_OFFSET} isn't ours", path.display()))?;
    disk.write_all_at(&Block(next).0, MARKER_OFFSET).map_err(told)?;
    Ok(found.0 != [0; BLOCK])
}

/// Returns what is to be on the disk after a boot that found this: blank becomes the marker and the marker blank.
fn after(found: &[u8; BLOCK]) -> Option<[u8; BLOCK]> {
    let mut marker = [0; BLOCK];
    marker[..MARKER.len()].copy_from_slice(MARKER);
    match found {
        found if *found == [0; BLOCK] => Some(marker),
        found if *found == marker => Some([0; BLOCK]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_from_their_neighbours() {
        assert!(is_namespace("nvme0n1"));
        assert!(is_namespace("nvme12n3"));
        for name in ["ng0n1", "nvme0c0n1", "nvme0n1p1", "nvme0", "nvmen1", "hwmon0", "nvme-subsystem"] {
            assert!(!is_namespace(name), "{name}");
        }
    }

    #[test]
    fn a_boot_finds_what_the_one_before_left_and_nothing_of_others_is_overwritten() {
        let blank = [0; BLOCK];
        let marked = after(&blank).unwrap();
        assert_ne!(marked, blank);
        assert_eq!(after(&marked), Some(blank));
        assert_eq!(after(&[1; BLOCK]), None);
    }
}
