//! `-blockdev` for flash chips and disks, `-device virtio-blk-pci` and `ide-cd`.

use std::path::PathBuf;

use serde::Serialize;

use super::arg::{Arg, Opts};
use super::cmdline::Handle;
use crate::firmware::UefiFirmware;
use crate::plan::{DiskKind, PlannedDisk};
use crate::profile::DiskMode;

/// The node of the flash chip that holds the firmware's code.
pub(super) const FLASH_CODE: &str = "flash-code";
/// The node of the flash chip that holds the firmware's variables.
pub(super) const FLASH_VARS: &str = "flash-vars";

/// `-blockdev` of a file, with the format driver above it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Blockdev<'a> {
    driver: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<&'a str>,
    read_only: bool,
    file: Protocol,
    /// The image below an overlay; given here, so that nothing in the overlay's header decides what is opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    backing: Option<Box<Blockdev<'a>>>,
}

#[derive(Serialize)]
struct Protocol {
    driver: &'static str,
    filename: PathBuf,
}

/// `-device virtio-blk-pci`.
#[derive(Serialize)]
struct VirtioBlkPci<'a> {
    driver: &'static str,
    id: String,
    bus: &'a str,
    drive: &'a str,
    bootindex: u32,
}

/// `-device ide-cd`, on a port of Q35's AHCI controller.
#[derive(Serialize)]
struct IdeCd<'a> {
    driver: &'static str,
    id: String,
    bus: String,
    drive: &'a str,
    bootindex: u32,
}

/// Whether a guest may write to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    ReadOnly,
    ReadWrite,
}

/// Names a file as QEMU opens it: a descriptor that it inherits goes into a set, which has a name.
fn protocol(opaque: &str, file: &Handle, kind: DiskKind, args: &mut Vec<Arg>) -> Protocol {
    let filename = match file {
        Handle::Path(path) => path.clone(),
        Handle::Fd(fd) => {
            let number = fd.to_string();
            let set = Opts::new().with("fd", &number).with("set", &number).with("opaque", opaque);
            args.push(Arg::opts("-add-fd", set));
            PathBuf::from(format!("/dev/fdset/{fd}"))
        }
    };
    let driver = match kind {
        DiskKind::File => "file",
        DiskKind::BlockDevice => "host_device",
    };
    Protocol { driver, filename }
}

fn flash_chip(node_name: &str, file: &Handle, mode: Mode) -> Vec<Arg> {
    let mut args = Vec::new();
    let file = protocol(node_name, file, DiskKind::File, &mut args);
    let read_only = mode == Mode::ReadOnly;
    let chip = Blockdev { driver: "raw", node_name: Some(node_name), read_only, file, backing: None };
    args.push(Arg::json("-blockdev", &chip));
    args
}

/// Renders the two flash chips of UEFI.
pub(super) fn flash(firmware: &UefiFirmware, vars: &Handle) -> Vec<Arg> {
    let code = Handle::Path(firmware.code.clone());
    let mut args = flash_chip(FLASH_CODE, &code, Mode::ReadOnly);
    args.extend(flash_chip(FLASH_VARS, vars, Mode::ReadWrite));
    args
}

/// Renders a disk's image, with the overlay that covers it.
fn image(node: &str, disk: &PlannedDisk, file: &Handle) -> Vec<Arg> {
    let mut args = Vec::new();
    let base = protocol(node, file, disk.kind, &mut args);
    let format = disk.disk.format.as_str();
    let blockdev = match &disk.overlay {
        None => {
            let read_only = disk.disk.mode != DiskMode::Persistent;
            Blockdev { driver: format, node_name: Some(node), read_only, file: base, backing: None }
        }
        Some(overlay) => {
            let below =
                Blockdev { driver: format, node_name: None, read_only: true, file: base, backing: None };
            let file = Protocol { driver: "file", filename: overlay.clone() };
            let backing = Some(Box::new(below));
            Blockdev { driver: "qcow2", node_name: Some(node), read_only: false, file, backing }
        }
    };
    args.push(Arg::json("-blockdev", &blockdev));
    args
}

/// Renders a disk and its controller, behind a port.
pub(super) fn disk(index: usize, disk: &PlannedDisk, file: &Handle, bus: &str) -> Vec<Arg> {
    let node = format!("disk{index}");
    let mut args = image(&node, disk, file);
    let device = VirtioBlkPci {
        driver: "virtio-blk-pci",
        id: format!("virtio-{node}"),
        bus,
        drive: &node,
        bootindex: disk.bootindex,
    };
    args.push(Arg::json("-device", &device));
    args
}

/// Renders a CD-ROM in the SATA drive of that number.
pub(super) fn cdrom(index: usize, disk: &PlannedDisk, file: &Handle, port: usize) -> Vec<Arg> {
    let node = format!("disk{index}");
    let mut args = image(&node, disk, file);
    let device = IdeCd {
        driver: "ide-cd",
        id: format!("cdrom{port}"),
        bus: format!("ide.{port}"),
        drive: &node,
        bootindex: disk.bootindex,
    };
    args.push(Arg::json("-device", &device));
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Disk, DiskFormat, Media};

    fn planned(kind: DiskKind) -> PlannedDisk {
        let (format, mode, media) = (DiskFormat::Raw, DiskMode::Persistent, Media::Disk);
        let disk = Disk { path: "/x".into(), format, mode, media, boot: None };
        PlannedDisk { disk, kind, overlay: None, bootindex: 1 }
    }

    #[test]
    fn an_inherited_disk_is_named_by_its_set_of_descriptors() {
        let mut argv = Vec::new();
        for arg in disk(0, &planned(DiskKind::File), &Handle::Fd(7), "rp0") {
            arg.render_to(&mut argv);
        }
        assert_eq!(argv[..2], ["-add-fd", "fd=7,set=7,opaque=disk0"]);
        assert!(argv[3].to_string_lossy().contains(r#""filename":"/dev/fdset/7""#), "{argv:?}");
    }

    #[test]
    fn a_block_device_has_a_driver_of_its_own() {
        let args = disk(0, &planned(DiskKind::BlockDevice), &Handle::Path("/dev/vg/lv".into()), "rp0");
        assert!(format!("{args:?}").contains("host_device"), "{args:?}");
    }
}
