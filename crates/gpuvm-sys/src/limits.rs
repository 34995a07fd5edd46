//! The limit on locked memory, which VFIO charges for every page that a device can reach.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::io;

/// `RLIMIT_MEMLOCK` of a process, in bytes; `None` means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memlock {
    /// The limit in force.
    pub soft: Option<u64>,
    /// What an unprivileged process may raise the soft limit to.
    pub hard: Option<u64>,
}

/// Reads the limit of this process.
///
/// # Errors
/// The errno of getrlimit(2).
pub fn memlock() -> io::Result<Memlock> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    Ok(Memlock { soft: from_raw(soft), hard: from_raw(hard) })
}

/// Sets the limit of this process and its later children.
///
/// # Errors
/// EPERM when the hard limit rises without `CAP_SYS_RESOURCE`, EINVAL when the soft limit is above the hard one (setrlimit(2)).
pub fn set_memlock(limit: Memlock) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_MEMLOCK, to_raw(limit.soft), to_raw(limit.hard))?;
    Ok(())
}

/// The kernel's number for a limit.
pub(crate) fn to_raw(limit: Option<u64>) -> u64 {
    limit.unwrap_or(RLIM_INFINITY)
}

fn from_raw(raw: u64) -> Option<u64> {
    (raw != RLIM_INFINITY).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_survives_being_written_back() {
        let before = memlock().unwrap();
        set_memlock(before).unwrap();
        assert_eq!(memlock().unwrap(), before);
    }

    #[test]
    fn unlimited_is_not_a_number() {
        assert_eq!(from_raw(to_raw(None)), None);
        assert_eq!(from_raw(to_raw(Some(4096))), Some(4096));
    }
}
