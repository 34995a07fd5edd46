//! Whether a path may be used, without opening it: opening a device node can have effects.

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The flag of open(2) that makes opening a block device fail with EBUSY when anybody in the kernel has claimed it.
pub const O_EXCL: i32 = libc::O_EXCL;

/// The flag of open(2) that makes reading return EAGAIN where it would wait.
pub const O_NONBLOCK: i32 = libc::O_NONBLOCK;

/// Checks that this process, with its effective user, may open a path for reading and writing.
///
/// # Errors
/// EACCES or EPERM when it may not; ENOENT when nothing is there.
pub fn read_write(path: &Path) -> io::Result<()> {
    let mode = AccessFlags::R_OK | AccessFlags::W_OK;
    Ok(faccessat(nix::fcntl::AT_FDCWD, path, mode, AtFlags::AT_EACCESS)?)
}

/// Opens a file for reading so that a read which has nothing to give fails with EAGAIN instead of waiting.
///
/// # Errors
/// As open(2).
pub fn open_nonblocking(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}
