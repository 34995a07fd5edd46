//! Signals that wait while something must not be cut short.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// What a terminal, a service manager or a shutdown asks a program to end by.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Lets SIGINT, SIGTERM, SIGHUP and SIGQUIT wait from now on; of the calling thread, so while there is but one.
///
/// # Errors
/// The errno of pthread_sigmask(3).
pub fn hold_back() -> io::Result<()> {
    let signals: SigSet = ENDING.into_iter().collect();
    Ok(signals.thread_block()?)
}

/// Tells whether one of them waits.
///
/// # Errors
/// The errno of sigpending(2).
pub fn is_waiting() -> io::Result<bool> {
    let mut waiting = SigSet::empty();
    // SAFETY: the pointer is to a whole set, which the call fills.
    let failed = unsafe { libc::sigpending(std::ptr::from_mut(&mut waiting).cast()) };
    nix::errno::Errno::result(failed)?;
    Ok(ENDING.into_iter().any(|signal| waiting.contains(signal)))
}
