//! `-blockdev` for flash chips and disks, `-device virtio-blk-pci`.

use std::path::PathBuf;

use serde::Serialize;

use super::arg::{Arg, Opts};
use super::cmdline::Handle;
use crate::firmware::UefiFirmware;
use crate::plan::{DiskKind, PlannedDisk};
use crate::profile::DiskFormat;

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
    file: Protocol,
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
    bootindex: usize,
}

/// Whether a guest may write to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    ReadOnly,
    ReadWrite,
}

/// Renders a file and what makes QEMU have it: a descriptor that it inherits goes into a set, which has a name.
fn blockdev(node_name: &str, file: &Handle, kind: DiskKind, driver: &'static str, mode: Mode) -> Vec<Arg> {
    let mut args = Vec::new();
    let filename = match file {
        Handle::Path(path) => path.clone(),
        Handle::Fd(fd) => {
            let number = fd.to_string();
            let set = Opts::new().with("fd", &number).with("set", &number).with("opaque", node_name);
            args.push(Arg::opts("-add-fd", set));
            PathBuf::from(format!("/dev/fdset/{fd}"))
        }
    };
    let protocol = match kind {
        DiskKind::File => "file",
        DiskKind::BlockDevice => "host_device",
    };
    let file = Protocol { driver: protocol, filename };
    args.push(Arg::json(
        "-blockdev",
        &Blockdev { driver, node_name, read_only: mode == Mode::ReadOnly, file },
    ));
    args
}

/// Renders the two flash chips of UEFI.
pub(super) fn flash(firmware: &UefiFirmware, vars: &Handle) -> Vec<Arg> {
    let code = Handle::Path(firmware.code.clone());
    let mut args = blockdev(FLASH_CODE, &code, DiskKind::File, "raw", Mode::ReadOnly);
    args.extend(blockdev(FLASH_VARS, vars, DiskKind::File, "raw", Mode::ReadWrite));
    args
}

/// Renders a disk and its controller.
pub(super) fn disk(index: usize, disk: &PlannedDisk, file: &Handle, bus: &str) -> Vec<Arg> {
    let node = format!("disk{index}");
    let driver = match disk.disk.format {
        DiskFormat::Raw => "raw",
    };
    let mut args = blockdev(&node, file, disk.kind, driver, Mode::ReadWrite);
    let device = VirtioBlkPci {
        driver: "virtio-blk-pci",
        id: format!("virtio-{node}"),
        bus,
        drive: &node,
        bootindex: index + 1,
    };
    args.push(Arg::json("-device", &device));
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Disk;

    fn planned(kind: DiskKind) -> PlannedDisk {
        PlannedDisk { disk: Disk { path: "/x".into(), format: DiskFormat::Raw }, kind }
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
