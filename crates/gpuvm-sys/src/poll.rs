//! Waiting for a descriptor until a point in time.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// A point in time by which something must have happened; `None` inside means never.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The time that lies `after` from now; a duration past the clock's range means never.
    pub(crate) fn after(after: Duration) -> Self {
        Self(Instant::now().checked_add(after))
    }

    /// What is left, zero when it has passed.
    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// The time left in the unit of poll(2), rounded up so that a wait never ends early, at most a minute.
    fn poll_timeout(self) -> PollTimeout {
        let millis = self.left().as_nanos().div_ceil(1_000_000).min(60_000);
        u16::try_from(millis).map_or(PollTimeout::MAX, PollTimeout::from)
    }
}

/// Waits until `fd` is readable (a pidfd is when its process has ended); false when the deadline passed first.
pub(crate) fn readable_by(fd: BorrowedFd<'_>, deadline: Deadline) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, deadline.poll_timeout()) {
            Ok(0) if deadline.left().is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}
