//! A command that is run again and again while a soak runs, to see whether the host answers meanwhile.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
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

/// How long things may take.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// From one run's beginning to the next one's.
    every: Duration,
    /// A run that takes longer hangs.
    patience: Duration,
    /// How long one that still runs at the end may take after each signal.
    grace: Duration,
}

const PACE: Pace =
    Pace { every: Duration::from_secs(1), patience: Duration::from_secs(10), grace: Duration::from_secs(2) };
/// How often its output is taken, and the end of the soak looked for, while it runs.
const TICK: Duration = Duration::from_millis(50);
/// How many parts of its output are taken at once.
const PARTS: usize = 16;
/// The most that is kept of what one has said.
const SAID_MAX: usize = 2 << 10;

/// Ends what runs when the pipe from gpuvm ends before gpuvm has said that it is over: gpuvm was killed then. The last line names the
/// process group, which is the number of its first process.
const GUARD: &str = "while read -r group; do last=$group; done < /proc/self/fd/FD
[ -z \"$last\" ] && exit
kill -TERM \"-$last\"; sleep 2; kill -KILL \"-$last\"";

/// A command that polls. It runs in a thread of its own, since gpuvm's own is held up by the very resets that are of interest.
#[derive(Debug)]
pub struct Poll {
    seen: Arc<Mutex<Seen>>,
    /// Its end is the sign to stop.
    stop: Sender<()>,
    thread: JoinHandle<Option<String>>,
    patience: Duration,
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
        Self::at(PACE, command)
    }

    fn at(pace: Pace, command: &str) -> io::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = mpsc::channel();
        let (command, shared, guard) = (command.to_owned(), Arc::clone(&seen), Guard::start()?);
        let poll = move || Poller { command, pace, seen: shared, stopped, guard }.run();
        let thread = std::thread::Builder::new().name("poll".to_owned()).spawn(poll)?;
        Ok(Self { seen, stop, thread, patience: pace.patience })
    }

    /// Returns what has come of it since this was last asked, and what is to be told of it once.
    pub fn take(&self) -> (Polled, Vec<String>) {
        let mut seen = lock(&self.seen);
        let mut polled = std::mem::take(&mut seen.polled);
        if let Some(since) = seen.since {
            let so_far = since.elapsed();
            polled.longest_ms = polled.longest_ms.max(millis(so_far));
            polled.hangs = so_far > self.patience;
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

/// What runs the command, in the thread.
struct Poller {
    command: String,
    pace: Pace,
    seen: Arc<Mutex<Seen>>,
    stopped: Receiver<()>,
    guard: Guard,
}

/// A process that outlives gpuvm, for no longer than it takes to end the command that runs when gpuvm is killed. The command's own death
/// signal reaches its shell alone, and not what that has started.
#[derive(Debug)]
struct Guard {
    tell: PipeWriter,
    child: Child,
}

impl Guard {
    fn start() -> io::Result<Self> {
        let (read, tell) = io::pipe()?;
        let null = || File::options().write(true).open("/dev/null").map(OwnedFd::from);
        let script = GUARD.replace("FD", &read.as_raw_fd().to_string());
        let child = spawn(SpawnSpec {
            argv: ["/bin/sh", "-c", &script].map(Into::into).into(),
            env: Vec::new(),
            fds: vec![read.into()],
            stdout: null()?,
            stderr: null()?,
            death_signal: None,
            memlock: None,
            record: None,
        })?;
        Ok(Self { tell, child })
    }

    /// Says which process group is to be ended if gpuvm is killed; none once it has ended. One that isn't there any more can't be told.
    fn watch(&mut self, group: Option<i32>) {
        let group = group.map(|pid| pid.to_string()).unwrap_or_default();
        self.tell.write_all(format!("{group}\n").as_bytes()).ok();
    }

    fn end(self) {
        let Self { tell, mut child } = self;
        drop(tell);
        // It reads the end of the pipe and goes; one that doesn't is nobody's concern once gpuvm has ended.
        child.wait_deadline(Duration::from_secs(1)).ok();
    }
}

impl Poller {
    /// Runs the command until the soak is over. Returns what is left of it then.
    fn run(mut self) -> Option<String> {
        let left = self.again_and_again();
        self.guard.end();
        left
    }

    fn again_and_again(&mut self) -> Option<String> {
        loop {
            let begun = Instant::now();
            lock(&self.seen).since = Some(begun);
            let watched = match Running::start(&self.command) {
                Ok(mut running) => {
                    self.guard.watch(Some(running.child.pid()));
                    let watched = self.watch(&mut running, begun);
                    self.guard.watch(None);
                    watched
                }
                Err(error) => {
                    self.over(begun, Some(&format!("it can't be started: {error}")));
                    Watched::Over
                }
            };
            lock(&self.seen).since = None;
            if let Watched::Stopped(left) = watched {
                return left;
            }
            match self.stopped.recv_timeout(self.pace.every.saturating_sub(begun.elapsed())) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Waits for a run's end or for that of the soak. While the soak runs it is never killed: what hangs is to be seen.
    fn watch(&self, running: &mut Running, begun: Instant) -> Watched {
        let mut hung = false;
        loop {
            let ended = running.child.wait_deadline(TICK);
            running.listen();
            match ended {
                Ok(None) => {}
                Ok(Some(status)) => {
                    self.over(begun, (!status.success()).then(|| running.why(status)).as_deref());
                    if hung {
                        self.tell(&format!("came back after {} s", begun.elapsed().as_secs()));
                    }
                    return Watched::Over;
                }
                Err(error) => {
                    self.over(begun, Some(&format!("it can't be waited for: {error}")));
                    return Watched::Over;
                }
            }
            if !hung && begun.elapsed() > self.pace.patience {
                hung = true;
                let (pid, seconds) = (running.child.pid(), self.pace.patience.as_secs());
                let state = crate::process::describe(pid);
                self.tell(&format!(
                    "hangs for more than {seconds} s (process {pid}, {state}); it is waited for, and not run again meanwhile"
                ));
            }
            if !matches!(self.stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                return Watched::Stopped(running.end(self.pace.grace));
            }
        }
    }

    /// Takes down a run that is over, and why it failed.
    fn over(&self, begun: Instant, why: Option<&str>) {
        let mut seen = lock(&self.seen);
        seen.polled.runs += 1;
        seen.polled.longest_ms = seen.polled.longest_ms.max(millis(begun.elapsed()));
        let Some(why) = why else { return };
        seen.polled.failed += 1;
        seen.polled.said = Some(why.to_owned());
        if seen.known.as_deref() != Some(why) {
            seen.known = Some(why.to_owned());
            drop(seen);
            self.tell(&format!("failed: {why}"));
        }
    }

    fn tell(&self, what: &str) {
        lock(&self.seen).told.push(format!("poll `{}` {what}", self.command));
    }
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
            record: None,
        })?;
        Ok(Self { child, output, said: Vec::new() })
    }

    /// Takes what it has said, and keeps the end of it: no more at once than a pipe holds, so that one that says more and more doesn't
    /// keep the poll from looking whether it hangs or the soak is over.
    fn listen(&mut self) {
        let mut part = [0; 4096];
        for _ in 0..PARTS {
            let Ok(length @ 1..) = self.output.read(&mut part) else { break };
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
    fn end(&mut self, grace: Duration) -> Option<String> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // One that has just ended needs none.
            self.child.kill_group(signal).ok();
            if let Ok(Some(_)) = self.child.wait_deadline(grace) {
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

#[cfg(test)]
mod tests;
