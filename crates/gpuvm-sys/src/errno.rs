//! The kernel's numbers for what went wrong (errno(3)), for crates that tell them apart and have no libc.

pub use libc::{
    EACCES, EAGAIN, EBUSY, EEXIST, EINVAL, EIO, ENODEV, ENOENT, ENOSPC, ENOTTY, EPERM, EPIPE, EROFS, ESRCH,
};
