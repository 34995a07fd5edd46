//! Which device files lead to which functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use gpuvm_core::facts::DeviceFacts;
use gpuvm_core::pci::Bdf;

use super::storage::BlockDevices;
use crate::root::{HostRoot, list, read_text};

/// Files that programs use all cards of one driver by.
const SHARED: [(&str, &[&str]); 2] = [
    ("nvidia", &["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"]),
    ("amdgpu", &["/dev/kfd"]),
];

/// Lists the device files of functions. What can't be read has no file.
pub(super) fn of(
    root: &HostRoot,
    devices: &BTreeMap<Bdf, &DeviceFacts>,
    blocks: &BlockDevices,
) -> BTreeMap<PathBuf, BTreeSet<Bdf>> {
    let mut files: BTreeMap<PathBuf, BTreeSet<Bdf>> = BTreeMap::new();
    let mut add = |file: PathBuf, bdf: Bdf| {
        files.entry(file).or_default().insert(bdf);
    };
    // Every character device that has a place in sysfs: /dev/dri, /dev/snd, /dev/nvme0, /dev/fb0, /dev/vfio/devices, ...
    let index = root.path("/sys/dev/char");
    for numbers in list(&index).unwrap_or_default() {
        let Ok(target) = fs::read_link(index.join(&numbers)) else { continue };
        for bdf in functions_on(&target).filter(|bdf| devices.contains_key(bdf)) {
            if let Some(name) = node_name(&index.join(&numbers)) {
                add(Path::new("/dev").join(name), bdf);
            }
        }
    }
    for name in blocks.folders.keys() {
        for bdf in
            blocks.below(name.clone()).iter().flat_map(|folder| functions_on(folder).collect::<Vec<_>>())
        {
            if devices.contains_key(&bdf) {
                add(Path::new("/dev").join(name), bdf);
            }
        }
    }
    for (bdf, device) in devices {
        let driver = device.driver.as_ref().map(gpuvm_core::pci::DriverName::as_str);
        for (_, shared) in SHARED.iter().filter(|(of, _)| Some(*of) == driver) {
            for file in *shared {
                add(PathBuf::from(file), *bdf);
            }
        }
        if driver == Some("nvidia")
            && let Some(minor) = nvidia_minor(root, *bdf)
        {
            add(PathBuf::from(format!("/dev/nvidia{minor}")), *bdf);
        }
        if let Some(group) = device.group {
            add(PathBuf::from(format!("/dev/vfio/{group}")), *bdf);
        }
    }
    files.retain(|file, _| root.path(file).exists());
    files
}

/// Returns the functions that a sysfs folder lies below, from the top down.
pub(super) fn functions_on(folder: &Path) -> impl Iterator<Item = Bdf> + '_ {
    // Shorter ones lack the domain: no folder of the kernel's is called so.
    folder
        .iter()
        .filter_map(|name| name.to_str())
        .filter(|name| name.len() >= 12)
        .filter_map(|name| name.parse().ok())
}

/// Reads what the kernel calls a device's file below /dev.
fn node_name(folder: &Path) -> Option<String> {
    let uevent = read_text(&folder.join("uevent")).ok()??;
    uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned)
}

/// Reads which number the proprietary driver has given a card; its files have no place in sysfs.
fn nvidia_minor(root: &HostRoot, bdf: Bdf) -> Option<u32> {
    let information = root.path(format!("/proc/driver/nvidia/gpus/{bdf}/information"));
    let text = read_text(&information).ok()??;
    let minor = text.lines().find_map(|line| line.strip_prefix("Device Minor:"))?;
    minor.trim().parse().ok()
}
