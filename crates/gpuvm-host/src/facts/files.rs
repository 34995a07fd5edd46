//! The files that a profile names.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use gpuvm_core::facts::{FileFacts, HostFacts, Presence};
use gpuvm_core::firmware::choose_uefi;
use gpuvm_core::plan::FileRole;
use gpuvm_core::plan::files::named;
use gpuvm_core::profile::Profile;
use gpuvm_sys::access::O_EXCL;

use crate::root::HostRoot;

/// Looks at each file that the profile names and at the firmware's.
pub(super) fn read(root: &HostRoot, profile: &Profile, facts: &mut HostFacts) {
    let named = named(profile).into_iter();
    facts.files = named.map(|(role, path)| (path.to_owned(), look(role, &root.path(path)))).collect();
    read_firmware(root, facts);
}

/// Looks at the files of the firmware that a guest with UEFI would get.
pub(super) fn read_firmware(root: &HostRoot, facts: &mut HostFacts) {
    let Some(uefi) = choose_uefi(&facts.firmware) else { return };
    for path in [uefi.code, uefi.vars_template] {
        let found = look(FileRole::Firmware, &root.path(&path));
        facts.files.insert(path, found);
    }
}

fn look(role: FileRole, path: &Path) -> FileFacts {
    let unusable = |error: std::io::Error| FileFacts::Unusable { errno: error.raw_os_error().unwrap_or(0) };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return unusable(error),
    };
    let disk = matches!(role, FileRole::Disk | FileRole::ReadOnlyDisk);
    let block = disk && metadata.file_type().is_block_device();
    if !metadata.is_file() && !block {
        return FileFacts::NotAFile;
    }
    // Claimed by anybody in the kernel, it fails with EBUSY; nothing is taken from anybody by asking (open(2), O_EXCL).
    let claimed = |error: std::io::Error| error.kind() == std::io::ErrorKind::ResourceBusy;
    if block && File::options().read(true).custom_flags(O_EXCL).open(path).is_err_and(claimed) {
        return FileFacts::BlockInUse;
    }
    match File::options().read(true).write(role == FileRole::Disk).open(path) {
        Ok(_) if block => FileFacts::BlockDevice,
        Ok(file) => FileFacts::Usable { bytes: metadata.len(), qcow2: qcow2(&file) },
        Err(error) => unusable(error),
    }
}

/// Looks for the magic number of qcow2 (QEMU docs/interop/qcow2.rst); a file that is shorter has none.
fn qcow2(file: &File) -> Presence {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == *b"QFI\xfb" => Presence::Present,
        _ => Presence::Absent,
    }
}
