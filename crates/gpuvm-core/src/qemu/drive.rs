//! `-blockdev` for flash chips and disks, `-device virtio-blk-pci`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::arg::Arg;
use crate::firmware::UefiFirmware;
use crate::profile::{Disk, DiskFormat};

/// The node of the flash chip that holds the firmware's code.
pub(super) const FLASH_CODE: &str = "flash-code";
/// The node of the flash chip that holds the firmware's variables.
pub(super) const FLASH_VARS: &str = "flash-vars";

/// `-blockdev` of a file, with the format driver above it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Blockdev<'a> {
    driver: &'static str,
    node_name: &'a str,
    read_only: bool,
    file: Protocol<'a>,
}

#[derive(Serialize)]
struct Protocol<'a> {
    driver: &'static str,
    filename: &'a Path,
}

/// `-device virtio-blk-pci`.
#[derive(Serialize)]
struct VirtioBlkPci<'a> {
    driver: &'static str,
    id: String,
    bus: &'a str,
    drive: &'a str,
    bootindex: usize,
}

fn blockdev(node_name: &str, filename: &Path, driver: &'static str, read_only: bool) -> Arg {
    // QEMU's file driver takes regular files only; block devices have a driver of their own.
    let protocol = if filename.starts_with("/dev") { "host_device" } else { "file" };
    let file = Protocol { driver: protocol, filename };
    Arg::json("-blockdev", &Blockdev { driver, node_name, read_only, file })
}

/// Renders the two flash chips of UEFI.
pub(super) fn flash(firmware: &UefiFirmware, vars: &Path) -> [Arg; 2] {
    [blockdev(FLASH_CODE, &firmware.code, "raw", true), blockdev(FLASH_VARS, vars, "raw", false)]
}

/// Renders a disk and its controller.
pub(super) fn disk(index: usize, disk: &Disk, bus: &str) -> [Arg; 2] {
    let node = format!("disk{index}");
    let driver = match disk.format {
        DiskFormat::Raw => "raw",
    };
    let path: &PathBuf = &disk.path;
    let device = VirtioBlkPci {
        driver: "virtio-blk-pci",
        id: format!("virtio-{node}"),
        bus,
        drive: &node,
        bootindex: index + 1,
    };
    [blockdev(&node, path, driver, false), Arg::json("-device", &device)]
}
