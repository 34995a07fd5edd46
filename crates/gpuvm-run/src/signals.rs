//! The signals that ask for a guest's end.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// SIGINT, SIGTERM and SIGHUP, caught from when this is made.
///
/// QEMU runs in a session of its own, so that a Ctrl-C reaches gpuvm alone.
#[derive(Debug)]
pub struct Signals {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Caught { interrupt: Signal, terminate: Signal, hangup: Signal },
    Channel(mpsc::UnboundedReceiver<&'static str>),
}

impl Signals {
    /// Starts to catch them; to be called inside a tokio runtime.
    ///
    /// # Errors
    /// The errno of sigaction(2).
    pub fn catch() -> io::Result<Self> {
        let source = Source::Caught {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        };
        Ok(Self { source })
    }

    /// Takes requests from a channel instead, by the name of the signal that each stands for: for programs that run
    /// several VMs in one process.
    pub fn from_channel(requests: mpsc::UnboundedReceiver<&'static str>) -> Self {
        Self { source: Source::Channel(requests) }
    }

    /// Waits for one and returns its name.
    pub async fn next(&mut self) -> &'static str {
        match &mut self.source {
            Source::Caught { interrupt, terminate, hangup } => tokio::select! {
                Some(()) = interrupt.recv() => "SIGINT",
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = hangup.recv() => "SIGHUP",
                else => std::future::pending().await,
            },
            Source::Channel(requests) => match requests.recv().await {
                Some(name) => name,
                None => std::future::pending().await,
            },
        }
    }

    /// Returns one that has come already.
    pub async fn pending(&mut self) -> Option<&'static str> {
        // Long enough for the runtime to look at its sources once, after a stretch of blocking calls.
        tokio::time::timeout(Duration::from_millis(1), self.next()).await.ok()
    }
}
