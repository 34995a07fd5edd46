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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_held_back_waits_and_is_told() {
        // Of this test's thread alone.
        hold_back().unwrap();
        assert!(!is_waiting().unwrap());
        // SAFETY: raises a signal that this thread holds back.
        unsafe { libc::raise(Signal::SIGTERM as i32) };
        assert!(is_waiting().unwrap());
        let taken: SigSet = [Signal::SIGTERM].into_iter().collect();
        assert_eq!(taken.wait().unwrap(), Signal::SIGTERM);
        assert!(!is_waiting().unwrap());
    }
}
