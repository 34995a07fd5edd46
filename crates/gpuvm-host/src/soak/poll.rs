//! A command that is run again and again while a soak runs, to see whether the host answers meanwhile.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gpuvm_core::soak::Polled;
use gpuvm_sys::access::open_nonblocking;
use gpuvm_sys::process::{Child, Signal, SpawnSpec, spawn};

/// From one run's beginning to the next one's.
const EVERY: Duration = Duration::from_secs(1);
/// A run that takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that still runs at the end may take after each signal.
const GRACE: Duration = Duration::from_secs(2);
/// How often its output is taken, and the end of the soak looked for, while it runs.
const TICK: Duration = Duration::from_millis(50);
/// The most that is kept of what one has said.
const SAID_MAX: usize = 2 << 10;

/// A command that polls. It runs in a thread of its own, since gpuvm's own is held up by the very resets that are of interest.
#[derive(Debug)]
pub struct Poll {
    seen: Arc<Mutex<Seen>>,
    /// Its end is the sign to stop.
    stop: Sender<()>,
    thread: JoinHandle<Option<String>>,
}

/// What has come of it since it was last asked.
#[derive(Debug, Default)]
struct Seen {
    polled: Polled,
    /// When the one that runs began.
    since: Option<Instant>,
    /// What is to be told once.
    told: Vec<String>,
    /// The failure that was told last: the same one isn't told again.
    known: Option<String>,
}

impl Poll {
    /// Starts to run a command once a second.
    ///
    /// # Errors
    /// Returns that there can be no thread.
    pub fn start(command: &str) -> io::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = mpsc::channel();
        let (command, shared) = (command.to_owned(), Arc::clone(&seen));
        let poll = move || run(&command, &shared, &stopped);
        let thread = std::thread::Builder::new().name("poll".to_owned()).spawn(poll)?;
        Ok(Self { seen, stop, thread })
    }

    /// Returns what has come of it since this was last asked, and what is to be told of it once.
    pub fn take(&self) -> (Polled, Vec<String>) {
        let mut seen = lock(&self.seen);
        let mut polled = std::mem::take(&mut seen.polled);
        if let Some(since) = seen.since {
            let so_far = since.elapsed();
            polled.longest_ms = polled.longest_ms.max(millis(so_far));
            polled.hangs = so_far > PATIENCE;
        }
        (polled, std::mem::take(&mut seen.told))
    }

    /// Ends it. Returns what it has left behind, if it doesn't go.
    pub fn end(self) -> Option<String> {
        let Self { stop, thread, .. } = self;
        drop(stop);
        thread.join().unwrap_or_else(|_| Some("the thread of the poll command died".to_owned()))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    // What is in there makes sense whoever died with it.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Runs the command until the soak is over. Returns what is left of it then.
fn run(command: &str, seen: &Mutex<Seen>, stopped: &Receiver<()>) -> Option<String> {
    loop {
        let begun = Instant::now();
        lock(seen).since = Some(begun);
        let left = match Running::start(command) {
            Ok(mut running) => running.watch(command, begun, seen, stopped),
            Err(error) => {
                let mut seen = lock(seen);
                seen.polled.runs += 1;
                failed(&mut seen, &format!("it can't be started: {error}"), command);
                Watched::Over
            }
        };
        lock(seen).since = None;
        match left {
            Watched::Stopped(left) => return left,
            Watched::Over => {}
        }
        match stopped.recv_timeout(EVERY.saturating_sub(begun.elapsed())) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

fn failed(seen: &mut Seen, why: &str, command: &str) {
    seen.polled.failed += 1;
    if seen.known.as_deref() != Some(why) {
        seen.told.push(format!("poll `{command}`: {why}"));
        seen.known = Some(why.to_owned());
    }
    seen.polled.said = Some(why.to_owned());
}

/// How the watching of a run ended.
enum Watched {
    /// The run is over.
    Over,
    /// The soak is over, and what is left of the run.
    Stopped(Option<String>),
}

/// A run of the command.
struct Running {
    child: Child,
    output: File,
    said: Vec<u8>,
}

impl Running {
    fn start(command: &str) -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        // Opened anew, so that it doesn't block: a grandchild may keep the other end for as long as it likes.
        let output = open_nonblocking(Path::new(&format!("/proc/self/fd/{}", read.as_raw_fd())))?;
        let write = OwnedFd::from(write);
        let child = spawn(SpawnSpec {
            argv: ["/bin/sh", "-c", command].map(Into::into).into(),
            env: Vec::new(),
            fds: Vec::new(),
            stdout: write.try_clone()?,
            stderr: write,
            // Where gpuvm is killed, nobody waits for it any more.
            death_signal: Some(Signal::SIGTERM),
            memlock: None,
        })?;
        Ok(Self { child, output, said: Vec::new() })
    }

    /// Waits for its end or for that of the soak. While the soak runs it is never killed: what hangs is to be seen.
    fn watch(
        &mut self,
        command: &str,
        begun: Instant,
        seen: &Mutex<Seen>,
        stopped: &Receiver<()>,
    ) -> Watched {
        let mut hung = false;
        loop {
            match self.child.wait_deadline(TICK) {
                Ok(None) => {}
                Ok(Some(status)) => {
                    self.listen();
                    let mut seen = lock(seen);
                    seen.polled.runs += 1;
                    seen.polled.longest_ms = seen.polled.longest_ms.max(millis(begun.elapsed()));
                    if !status.success() {
                        failed(&mut seen, &self.why(status), command);
                    }
                    if hung {
                        let seconds = begun.elapsed().as_secs();
                        seen.told.push(format!("poll `{command}` came back after {seconds} s"));
                    }
                    return Watched::Over;
                }
                Err(error) => {
                    failed(&mut lock(seen), &format!("it can't be waited for: {error}"), command);
                    return Watched::Over;
                }
            }
            self.listen();
            if !hung && begun.elapsed() > PATIENCE {
                hung = true;
                let state = crate::process::describe(self.child.pid());
                lock(seen).told.push(format!(
                    "poll `{command}` hangs for more than {} s (process {}, {state}); it is waited for, and not run again \
                     meanwhile",
                    PATIENCE.as_secs(),
                    self.child.pid()
                ));
            }
            if !matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                return Watched::Stopped(self.end());
            }
        }
    }

    /// Takes what it has said, and keeps the end of it.
    fn listen(&mut self) {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = self.output.read(&mut part) {
            // Writing to a vector doesn't fail.
            self.said.write_all(&part[..length]).ok();
            let over = self.said.len().saturating_sub(SAID_MAX);
            self.said.drain(..over);
            if length < part.len() {
                break;
            }
        }
    }

    fn why(&self, status: ExitStatus) -> String {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "it ended".to_owned(),
        };
        match String::from_utf8_lossy(&self.said).trim() {
            "" => how,
            said => format!("{how}: {said}"),
        }
    }

    /// Ends it with all that it has started. Returns what is left.
    fn end(&mut self) -> Option<String> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // One that has just ended needs none.
            self.child.kill_group(signal).ok();
            if let Ok(Some(_)) = self.child.wait_deadline(GRACE) {
                return None;
            }
        }
        let pid = self.child.pid();
        let state = crate::process::describe(pid);
        Some(format!(
            "the poll command was killed and doesn't go (process {pid}, {state}): it is left behind"
        ))
    }
}
