//! The signals that ask for a guest's end.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP, caught from when this is made.
///
/// QEMU runs in a session of its own, so that a Ctrl-C reaches gpuvm alone.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts to catch them; to be called inside a tokio runtime.
    ///
    /// # Errors
    /// The errno of sigaction(2).
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.interrupt.recv() => "SIGINT",
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.hangup.recv() => "SIGHUP",
            else => std::future::pending().await,
        }
    }

    /// Returns one that has come already.
    pub async fn pending(&mut self) -> Option<&'static str> {
        // Long enough for the runtime to look at its sources once, after a stretch of blocking calls.
        tokio::time::timeout(Duration::from_millis(1), self.next()).await.ok()
    }
}
