//! The files that a profile names: there, readable, and nameable to QEMU.

use std::path::Path;

use super::{FileRole, Refusal};
use crate::facts::{FileFacts, HostFacts};
use crate::firmware::choose_uefi;
use crate::profile::{FirmwareKind, Profile};

/// Lists every file that a profile needs, with what it is for.
pub fn named(profile: &Profile) -> Vec<(FileRole, &Path)> {
    let mut files = Vec::new();
    if let Some(kernel) = &profile.kernel {
        files.push((FileRole::Kernel, kernel.path.as_path()));
        files.extend(kernel.initrd.iter().map(|initrd| (FileRole::Initrd, initrd.as_path())));
    }
    files.extend(profile.disks.iter().map(|disk| (FileRole::Disk, disk.path.as_path())));
    files
}

/// Refuses each file that QEMU couldn't open.
pub(super) fn check(profile: &Profile, facts: &HostFacts, refusals: &mut Vec<Refusal>) {
    let uefi = (profile.firmware == FirmwareKind::Uefi).then(|| choose_uefi(&facts.firmware)).flatten();
    let mut files = named(profile);
    if let Some(uefi) = &uefi {
        files.extend([&uefi.code, &uefi.vars_template].map(|path| (FileRole::Firmware, path.as_path())));
    }
    for (role, path) in files {
        let mut refuse = |problem: &str| {
            refusals.push(Refusal::File { role, path: path.to_owned(), problem: problem.to_owned() });
        };
        // JSON, in which QEMU takes its block devices, has no other encoding.
        if path.to_str().is_none() {
            refuse("the path isn't UTF-8, which QEMU's JSON options need");
            continue;
        }
        match facts.file(path) {
            Some(FileFacts::Usable { bytes: 0 }) => refuse("the file is empty"),
            Some(FileFacts::Usable { .. } | FileFacts::BlockDevice) => {}
            Some(FileFacts::BlockInUse) => refusals.push(Refusal::DiskInUse { path: path.to_owned() }),
            Some(FileFacts::NotAFile) => refuse("it is neither a file nor a block device"),
            Some(FileFacts::Unusable { errno }) => refuse(&errno_words(errno)),
            None => refuse("it was not looked at"),
        }
    }
}

/// Spells an errno as the C library does, with its number.
fn errno_words(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}
