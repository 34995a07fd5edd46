//! The files that a profile names: there, readable, and nameable to QEMU.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::obstacle::Obstacles;
use super::refusal::errno_words;
use super::{DiskKind, FileRole, PlannedDisk, Refusal};
use crate::facts::{FileFacts, HostFacts, Presence};
use crate::firmware::choose_uefi;
use crate::profile::{Disk, DiskFormat, DiskMode, FirmwareKind, Profile};

/// The folder of throw-away overlays in a VM's state folder. Nothing else is in it, so that what a power failure left there is
/// known for what it is.
pub const OVERLAYS: &str = "overlays";

/// Lists every file that a profile needs, with what it is for.
pub fn named(profile: &Profile) -> Vec<(FileRole, &Path)> {
    let mut files = Vec::new();
    if let Some(kernel) = &profile.kernel {
        files.push((FileRole::Kernel, kernel.path.as_path()));
        files.extend(kernel.initrd.iter().map(|initrd| (FileRole::Initrd, initrd.as_path())));
    }
    files.extend(profile.disks.iter().map(|disk| (role(disk), disk.path.as_path())));
    let roms = profile.devices.iter().filter_map(|device| device.rom_file.as_deref());
    files.extend(roms.map(|rom| (FileRole::Rom, rom)));
    files
}

/// What a disk's file is needed for: one that is read-only, or that an overlay covers, is only read.
fn role(disk: &Disk) -> FileRole {
    match disk.mode {
        DiskMode::Persistent => FileRole::Disk,
        DiskMode::ReadOnly | DiskMode::Overlay => FileRole::ReadOnlyDisk,
    }
}

/// Says what each disk is on this host, where it boots and what covers it.
pub(super) fn disks(profile: &Profile, facts: &HostFacts) -> Vec<PlannedDisk> {
    let asked = profile.disks.iter().filter_map(|disk| disk.boot);
    let taken: BTreeSet<u32> = asked.chain(profile.devices.iter().filter_map(|device| device.boot)).collect();
    let mut after = taken.last().copied().unwrap_or(0);
    let mut next = || {
        after += 1;
        after
    };
    let disk = |(index, disk): (usize, &Disk)| {
        let kind = match facts.file(&disk.path) {
            Some(FileFacts::BlockDevice) => DiskKind::BlockDevice,
            _ => DiskKind::File,
        };
        let overlay = (disk.mode == DiskMode::Overlay)
            .then(|| facts.state_dir.join(OVERLAYS).join(format!("disk{index}.qcow2")));
        PlannedDisk { disk: disk.clone(), kind, overlay, bootindex: disk.boot.unwrap_or_else(&mut next) }
    };
    profile.disks.iter().enumerate().map(disk).collect()
}

/// Refuses each file that QEMU couldn't open.
pub(super) fn check(profile: &Profile, facts: &HostFacts, obstacles: &mut Obstacles) {
    let uefi = (profile.firmware == FirmwareKind::Uefi).then(|| choose_uefi(&facts.firmware)).flatten();
    let mut files = named(profile);
    if let Some(uefi) = &uefi {
        files.extend([&uefi.code, &uefi.vars_template].map(|path| (FileRole::Firmware, path.as_path())));
    }
    profile.disks.iter().for_each(|disk| check_format(disk, facts, obstacles));
    for (role, path) in files {
        let mut refuse = |problem: &str| {
            obstacles.refuse(Refusal::File { role, path: path.to_owned(), problem: problem.to_owned() });
        };
        // JSON, in which QEMU takes its block devices, has no other encoding.
        if path.to_str().is_none() {
            refuse("the path isn't UTF-8, which QEMU's JSON options need");
            continue;
        }
        match facts.file(path) {
            Some(FileFacts::Usable { bytes: 0, .. }) => refuse("the file is empty"),
            Some(FileFacts::Usable { .. } | FileFacts::BlockDevice) => {}
            Some(FileFacts::BlockInUse) => obstacles.refuse(Refusal::DiskInUse { path: path.to_owned() }),
            Some(FileFacts::NotAFile) => refuse("it is neither a file nor a block device"),
            Some(FileFacts::Unusable { errno }) if is_denial(errno) => {
                obstacles.refuse(Refusal::FileDenied { role, path: path.to_owned(), errno });
            }
            Some(FileFacts::Unusable { errno }) => refuse(&errno_words(errno)),
            None => refuse("it was not looked at"),
        }
    }
}

/// Refuses a disk that is written down as what it isn't: a qcow2 image as raw bytes would be a broken disk, and soon a broken
/// image.
fn check_format(disk: &Disk, facts: &HostFacts, obstacles: &mut Obstacles) {
    let Some(FileFacts::Usable { bytes: 1.., qcow2 }) = facts.file(&disk.path) else { return };
    let found = match (disk.format, qcow2) {
        (DiskFormat::Raw, Presence::Present) => DiskFormat::Qcow2,
        (DiskFormat::Qcow2, Presence::Absent) => DiskFormat::Raw,
        _ => return,
    };
    let (path, format) = (disk.path.clone(), disk.format);
    obstacles.refuse(Refusal::DiskFormat { path, format, found });
}

/// Tells whether an errno is a matter of permission: EPERM or EACCES.
fn is_denial(errno: i32) -> bool {
    io::Error::from_raw_os_error(errno).kind() == io::ErrorKind::PermissionDenied
}
