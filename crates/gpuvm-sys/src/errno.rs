//! The kernel's numbers for what went wrong (errno(3)), for crates that tell them apart and have no libc.

pub use libc::{EACCES, EBUSY, EEXIST, EINVAL, EIO, ENODEV, ENOENT, ENOSPC, EPERM, EPIPE, EROFS, ESRCH};
