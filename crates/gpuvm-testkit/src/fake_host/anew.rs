//! Devices that are removed and found anew, and those that a rung of the repair ladder makes well.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::repair::Rung;
use gpuvm_host::root::{self, HostRoot};
use gpuvm_sys::errno::{EINVAL, ENOTTY};

use super::FakeHost;
use super::behave::{known, probe};

/// What makes a sick device well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cure {
    /// This rung of the ladder.
    By(Rung),
    /// Nothing: it is found again, and is as sick as it was.
    Nothing,
    /// Nothing: once it is removed, the kernel doesn't find it again.
    Lost,
}

/// What doesn't answer reads ones.
const ONES: [u8; 256] = [0xff; 256];
/// A device that answers and has lost its addresses: its first base address register is empty.
const FIRST_BAR: std::ops::Range<usize> = 0x10..0x14;

impl FakeHost {
    /// Makes a device lose its addresses, until it is cured: it answers, and no driver could use it.
    ///
    /// # Panics
    /// When the tree can't be written.
    pub fn sicken(&self, bdf: &str, cure: Cure) {
        let config = format!("/sys/bus/pci/devices/{bdf}/config");
        let well = fs::read(self.path(&config)).unwrap_or_else(|error| panic!("{config}: {error}"));
        let mut sick = well.clone();
        sick[FIRST_BAR].fill(0);
        self.file(&format!("/fake-kernel/well/{bdf}"), well);
        self.file(&format!("/fake-kernel/cure/{bdf}"), cure.word());
        self.file(&config, sick);
    }

    /// Makes the kernel one of before Linux 6.19: it gives what it finds to drivers whatever `drivers_autoprobe` says.
    pub fn probes_what_it_finds(&self) {
        self.file("/fake-kernel/probes-what-it-finds", "");
    }

    /// Gives a device another group when it is found anew.
    pub fn regroups(&self, bdf: &str, group: u32) {
        self.file(&format!("/fake-kernel/regroups/{bdf}"), group.to_string());
    }

    /// Moves a device's first base address register when it is found anew, as the kernel may: its address in hex.
    pub fn moves(&self, bdf: &str, address: u32) {
        self.file(&format!("/fake-kernel/moves/{bdf}"), format!("{address:x}"));
    }

    /// Adds what removes a function, and what scans its bus.
    pub(super) fn hotplug(&self, bdf: Bdf, real: &str) {
        self.file(&format!("{real}/remove"), "");
        self.file(&format!("/sys/class/pci_bus/{}/rescan", bdf.bus()), "");
    }
}

impl Cure {
    fn word(self) -> String {
        match self {
            Self::By(rung) => rung.to_string(),
            Self::Nothing => "nothing".to_owned(),
            Self::Lost => "lost".to_owned(),
        }
    }
}

fn cure_of(root: &HostRoot, bdf: Bdf) -> Option<String> {
    known(root, &format!("cure/{bdf}"))
}

/// Makes a device well if this rung cures it.
pub(super) fn heal(root: &HostRoot, bdf: Bdf, rung: Rung) -> io::Result<()> {
    if cure_of(root, bdf).as_deref() != Some(rung.name()) {
        return Ok(());
    }
    let kernel = root.path("/fake-kernel");
    fs::write(root.device(bdf).join("config"), fs::read(kernel.join(format!("well/{bdf}")))?)?;
    ["well", "cure"].iter().try_for_each(|name| fs::remove_file(kernel.join(name).join(bdf.to_string())))
}

/// Resets everything below a bridge.
pub(super) fn reset_subordinate(root: &HostRoot, path: &Path, value: &str) -> io::Result<Result<(), i32>> {
    if value != "1" {
        return Ok(Err(EINVAL));
    }
    let bridge = path.parent().unwrap_or(path);
    let mut below = Vec::new();
    for entry in fs::read_dir(bridge)? {
        below.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Bdf>().ok()));
    }
    // __pci_reset_bus of drivers/pci/pci.c: there is nothing to reset.
    if below.is_empty() {
        return Ok(Err(ENOTTY));
    }
    below.into_iter().try_for_each(|bdf| heal(root, bdf, Rung::Subordinate))?;
    Ok(Ok(()))
}

/// Where a device is while the kernel doesn't know it: its folder, and where that was.
fn removed(root: &HostRoot, bdf: Bdf) -> PathBuf {
    root.path(format!("/fake-kernel/removed/{bdf}"))
}

/// Removes a device with all that was set of it. It isn't asked who has it open: see [`super::Fault::Hang`].
pub(super) fn remove(root: &HostRoot, path: &Path, value: &str) -> io::Result<Result<(), i32>> {
    if value != "1" {
        return Ok(Err(EINVAL));
    }
    let link = path.parent().unwrap_or(path);
    let real = fs::canonicalize(link)?;
    let Some(bdf) = real.file_name().and_then(|name| name.to_str()?.parse::<Bdf>().ok()) else {
        return Ok(Err(EINVAL));
    };
    let stored = removed(root, bdf);
    fs::create_dir_all(&stored)?;
    if let Ok(group) = fs::read_link(real.join("iommu_group")) {
        leave_group(root, bdf, &group)?;
    }
    for gone in ["driver", "iommu_group"] {
        let gone = real.join(gone);
        if fs::symlink_metadata(&gone).is_ok() {
            fs::remove_file(gone)?;
        }
    }
    fs::remove_file(root.device(bdf))?;
    let place = real.strip_prefix(fs::canonicalize(root.path("/"))?).map_err(io::Error::other)?;
    fs::write(stored.join("place"), place.display().to_string())?;
    fs::rename(&real, stored.join("device"))?;
    Ok(Ok(()))
}

/// A group ends with its last device.
fn leave_group(root: &HostRoot, bdf: Bdf, group: &Path) -> io::Result<()> {
    let number = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::write(removed(root, bdf).join("group"), &number)?;
    let devices = group.join("devices");
    fs::remove_file(devices.join(bdf.to_string()))?;
    if fs::read_dir(&devices)?.next().is_none() {
        fs::remove_dir_all(group)?;
        fs::remove_file(root.path(format!("/dev/vfio/{number}")))?;
    }
    Ok(())
}

/// Scans a bus, or all of them, for what was removed.
pub(super) fn rescan(root: &HostRoot, path: &Path, value: &str) -> io::Result<Result<(), i32>> {
    if value != "1" {
        return Ok(Err(EINVAL));
    }
    let bus = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let of_bus = |bdf: &Bdf| bus.as_deref() == Some("pci") || bus == Some(bdf.bus().to_string());
    let names = root::list(&root.path("/fake-kernel/removed")).map_err(io::Error::other)?;
    for bdf in names.iter().filter_map(|name| name.parse().ok()).filter(of_bus) {
        find(root, bdf)?;
    }
    Ok(Ok(()))
}

/// Finds a removed device, if it answers: with nothing set of it, and without a driver but where the kernel offers it to one.
fn find(root: &HostRoot, bdf: Bdf) -> io::Result<()> {
    let stored = removed(root, bdf);
    let device = stored.join("device");
    let answers = fs::read(device.join("config"))? != ONES;
    if cure_of(root, bdf).as_deref() == Some("lost") || !answers {
        return Ok(());
    }
    let real = root.path("/").join(fs::read_to_string(stored.join("place"))?);
    fs::rename(&device, &real)?;
    symlink(&real, root.device(bdf))?;
    join_group(root, bdf, &real)?;
    fs::write(real.join("driver_override"), "(null)\n")?;
    // pci_pm_init of drivers/pci/pci.c.
    fs::write(real.join("power/control"), "on\n")?;
    if real.join("d3cold_allowed").exists() {
        fs::write(real.join("d3cold_allowed"), "1\n")?;
    }
    if let Some(methods) = known(root, &format!("reset-methods/{bdf}")) {
        fs::write(real.join("reset_method"), methods)?;
    }
    fs::remove_dir_all(&stored)?;
    // An empty folder is none that a test should find.
    fs::remove_dir(root.path("/fake-kernel/removed")).ok();
    heal(root, bdf, Rung::Rescan)?;
    place(root, bdf)?;
    let autoprobe = fs::read_to_string(root.path("/sys/bus/pci/drivers_autoprobe"))?;
    let probes = autoprobe.trim() == "1" || known(root, "probes-what-it-finds").is_some();
    if probes { probe(root, bdf)?.map_err(io::Error::from_raw_os_error) } else { Ok(()) }
}

fn join_group(root: &HostRoot, bdf: Bdf, real: &Path) -> io::Result<()> {
    let was = fs::read_to_string(removed(root, bdf).join("group")).ok();
    let Some(number) = known(root, &format!("regroups/{bdf}")).or(was) else { return Ok(()) };
    let group = root.path(format!("/sys/kernel/iommu_groups/{number}"));
    fs::create_dir_all(group.join("devices"))?;
    symlink(real, group.join("devices").join(bdf.to_string()))?;
    symlink(&group, real.join("iommu_group"))?;
    fs::create_dir_all(root.path("/dev/vfio"))?;
    let node = root.path(format!("/dev/vfio/{number}"));
    if node.exists() { Ok(()) } else { fs::write(node, "") }
}

/// Places its first register where it was told to: in the register, and in what the kernel shows of it.
fn place(root: &HostRoot, bdf: Bdf) -> io::Result<()> {
    let Some(address) = known(root, &format!("moves/{bdf}")) else { return Ok(()) };
    let address = u32::from_str_radix(address.trim(), 16).map_err(io::Error::other)?;
    let device = root.device(bdf);
    let mut config = fs::read(device.join("config"))?;
    config[FIRST_BAR].copy_from_slice(&address.to_le_bytes());
    fs::write(device.join("config"), config)?;
    let last = u64::from(address) + 0xff_ffff;
    fs::write(device.join("resource"), format!("{address:#018x} {last:#018x} 0x0000000000040200\n"))
}
