//! The signals that ask for a guest's end, and what else can be asked of one that runs.

use std::io;
use std::time::Duration;

use gpuvm_core::control::Refusal;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// What a detached gpuvm's scope is ended by. The kernel ignores it where nobody catches it.
pub(crate) const SCOPE_SIGNAL: &str = "SIGWINCH";

/// SIGINT, SIGTERM and SIGHUP, caught from when this is made.
///
/// QEMU runs in a session of its own, so that a Ctrl-C reaches gpuvm alone.
#[derive(Debug)]
pub struct Signals {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Caught { interrupt: Signal, terminate: Signal, hangup: Signal, scope: Option<Signal> },
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
            scope: None,
        };
        Ok(Self { source })
    }

    /// Catches what a detached gpuvm's scope is ended by, too; where there is a terminal, its windows are told of their size by it.
    ///
    /// # Errors
    /// The errno of sigaction(2).
    pub fn of_a_scope(mut self) -> io::Result<Self> {
        if let Source::Caught { scope, .. } = &mut self.source {
            *scope = Some(signal(SignalKind::window_change())?);
        }
        Ok(self)
    }

    /// Takes requests from a channel instead, by the name of the signal that each stands for: for programs that run
    /// several VMs in one process.
    pub fn from_channel(requests: mpsc::UnboundedReceiver<&'static str>) -> Self {
        Self { source: Source::Channel(requests) }
    }

    /// Waits for one and returns its name.
    pub async fn next(&mut self) -> &'static str {
        match &mut self.source {
            Source::Caught { interrupt, terminate, hangup, scope } => tokio::select! {
                Some(()) = interrupt.recv() => "SIGINT",
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = hangup.recv() => "SIGHUP",
                Some(()) = ended(scope) => "the end of its scope",
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
        tokio::select! {
            biased;
            signal = self.next() => Some(signal),
            () = turn() => None,
        }
    }
}

async fn ended(scope: &mut Option<Signal>) -> Option<()> {
    match scope {
        Some(scope) => scope.recv().await,
        None => std::future::pending().await,
    }
}

/// Lets the runtime look at its sources, after a stretch of blocking calls: it does so before it goes on with who has yielded. Twice, since what it
/// finds first may only lead to what is waited for.
async fn turn() {
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
}

/// What can be asked of a guest that runs.
#[derive(Debug)]
pub(crate) enum Request {
    /// Its end, by whom.
    Stop(&'static str),
    /// Its end, as `down` wants it.
    End(End),
    /// That QEMU crashes under it.
    Crash,
    /// That its machine is reset.
    Reset,
    /// That its vCPUs stop.
    Pause,
    /// That they go on.
    Resume,
    /// A command for QEMU.
    Command(Command),
}

/// How somebody wants a guest's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// How long ACPI and `quit` may take together; nothing for the usual patience.
    pub(crate) within: Option<Duration>,
    /// Whether the guest is asked.
    pub(crate) way: Way,
}

/// How a guest's end begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By its power button.
    Gently,
    /// QEMU is told to quit.
    AtOnce,
}

/// A command for QEMU, and where its answer goes; whoever can't send it drops it.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) execute: String,
    pub(crate) arguments: Value,
    pub(crate) answer: oneshot::Sender<Result<Value, Refusal>>,
}

/// What is asked of a guest: by signals, and by the program that runs it.
///
/// Which of the two asked for its end stays known: a person's Ctrl-C ends all that the program has in mind.
pub(crate) struct Requests<'a> {
    signals: &'a mut Signals,
    program: Option<mpsc::UnboundedReceiver<Request>>,
    heard: Option<&'static str>,
    crash: Asked,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Yes,
}

impl<'a> Requests<'a> {
    /// Takes requests from signals, and from a channel if there is one.
    pub(crate) fn new(signals: &'a mut Signals, program: Option<mpsc::UnboundedReceiver<Request>>) -> Self {
        Self { signals, program, heard: None, crash: Asked::No }
    }

    /// Waits for the next one. May be dropped and asked again without loss.
    pub(crate) async fn next(&mut self) -> Request {
        let program = async {
            match &mut self.program {
                Some(requests) => match requests.recv().await {
                    Some(request) => request,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        let request = tokio::select! {
            biased;
            signal = self.signals.next() => {
                self.heard = self.heard.or(Some(signal));
                Request::Stop(signal)
            }
            request = program => request,
        };
        if matches!(request, Request::Crash) {
            self.crash = Asked::Yes;
        }
        request
    }

    /// Waits for one that wants the end of a guest that doesn't run, and returns who asks.
    pub(crate) async fn end(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Request::Stop(by) => return by,
                Request::Crash => return "a crash that was asked for",
                Request::End(_) => return "down",
                // It is being started anyway, and one that doesn't run isn't paused; and its QEMU isn't asked before it has greeted.
                Request::Reset | Request::Pause | Request::Resume | Request::Command(_) => {}
            }
        }
    }

    /// Returns one for its end that has come already.
    pub(crate) async fn pending(&mut self) -> Option<&'static str> {
        tokio::select! {
            biased;
            by = self.end() => Some(by),
            () = turn() => None,
        }
    }

    /// Returns the first signal that has come.
    pub(crate) fn signal(&self) -> Option<&'static str> {
        self.heard
    }

    /// Tells whether QEMU was to crash.
    pub(crate) fn crash_was_asked(&self) -> bool {
        self.crash == Asked::Yes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn the_end_of_a_scope_is_heard_where_there_is_one() {
        let signals = Signals::catch().unwrap();
        assert!(matches!(signals.source, Source::Caught { scope: None, .. }));
        let mut signals = signals.of_a_scope().unwrap();
        nix::sys::signal::raise(SCOPE_SIGNAL.parse().unwrap()).unwrap();
        // Another test of this process may raise others.
        while signals.next().await != "the end of its scope" {}
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_signal_that_came_in_a_stretch_of_blocking_calls_is_pending() {
        let mut signals = Signals::catch().unwrap();
        assert_eq!(signals.pending().await, None);
        for _ in 0..50 {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
            assert_eq!(signals.pending().await, Some("SIGHUP"));
            assert_eq!(signals.pending().await, None);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_program_asks_is_pending_too() {
        let (ask, asked) = mpsc::unbounded_channel();
        let (_keep, never) = mpsc::unbounded_channel();
        let mut signals = Signals::from_channel(never);
        let mut requests = Requests::new(&mut signals, Some(asked));
        assert_eq!(requests.pending().await, None);
        ask.send(Request::Reset).unwrap();
        ask.send(Request::Stop("soak")).unwrap();
        assert_eq!(requests.pending().await, Some("soak"));
    }
}
