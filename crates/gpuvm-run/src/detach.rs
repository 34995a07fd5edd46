//! A gpuvm that runs on without the one who has started it.
//!
//! It is the same program, executed again: nothing of a process with threads and a runtime is copied. The two have a socket between them, over which
//! the one that is to stay says one line: that it is ready, or why it will not be.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use gpuvm_core::profile::VmName;
use gpuvm_sys::process::{self, Child, SpawnSpec};
use gpuvm_sys::socket::take_stream;

use crate::signals::SCOPE_SIGNAL;

/// The log of a gpuvm that runs on by itself.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// What that log may have come to before it is put aside.
const MAX_LOG: u64 = 4 << 20;
/// The longest word that is taken.
const MAX_WORD: usize = 1 << 20;
/// How long one that hangs up may take to end.
const END: Duration = Duration::from_secs(2);

/// How long a VM's scope may take to end, beside what its guest has to power off: QEMU's quit, a kill, dead functions, and the host's own.
const SCOPE_END: Duration = Duration::from_secs(10 * 60);

/// A gpuvm that was started and has not said its word yet.
#[derive(Debug)]
pub struct Detached {
    child: Child,
    word: UnixStream,
}

/// What became of one that was waited for.
#[derive(Debug)]
pub enum Heard {
    /// Its word, without the line's end.
    Word(String),
    /// It ended without one; how, once that is known.
    Ended(Option<ExitStatus>),
    /// It has not said it in time, and goes on.
    Nothing,
}

impl Detached {
    /// Starts the program that runs, with other arguments: in a session of its own, with nothing on its standard input and the log as its output.
    /// `arguments` makes them of the number of its end of the socket; `shutdown` is what the guest has to power off.
    ///
    /// # Errors
    /// Returns what of it failed.
    pub fn start(
        vm: &VmName,
        shutdown: Duration,
        log: &Path,
        arguments: impl FnOnce(RawFd) -> Vec<OsString>,
    ) -> io::Result<Self> {
        if std::fs::metadata(log).is_ok_and(|log| log.len() > MAX_LOG) {
            crate::log::put_aside(log)?;
        }
        let log = File::options().append(true).create(true).mode(0o600).open(log)?;
        let (word, far) = UnixStream::pair()?;
        let far = OwnedFd::from(far);
        let mut argv = scope(vm, shutdown);
        argv.push(program().into_os_string());
        argv.extend(arguments(far.as_raw_fd()));
        let child = process::spawn(SpawnSpec {
            argv,
            env: Vec::new(),
            fds: vec![far],
            stdout: log.try_clone()?.into(),
            stderr: log.into(),
            death_signal: None,
            memlock: None,
            record: None,
        })?;
        Ok(Self { child, word })
    }

    /// Returns its process.
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Waits for its word.
    ///
    /// # Errors
    /// Returns failures to read it.
    pub fn hear(mut self, within: Duration) -> io::Result<Heard> {
        let until = Instant::now() + within;
        let mut word = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Heard::Nothing);
            }
            self.word.set_read_timeout(Some(left))?;
            let count = match self.word.read(&mut buffer) {
                Ok(0) => return Ok(Heard::Ended(self.child.wait_deadline(END)?)),
                Ok(count) => count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(Heard::Nothing);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            word.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if let Some(end) = word.iter().position(|byte| *byte == b'\n') {
                word.truncate(end);
                return Ok(Heard::Word(String::from_utf8_lossy(&word).into_owned()));
            }
            if word.len() > MAX_WORD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a word without an end"));
            }
        }
    }
}

/// Takes the socket that this process was started with, by its number; nobody else inherits it.
///
/// # Errors
/// Returns that the number is none of a connected socket.
pub fn word_socket(fd: RawFd) -> io::Result<UnixStream> {
    take_stream(fd)
}

/// Returns this program's file; one that was replaced since is still there for the kernel.
fn program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.exists() => path,
        _ => PathBuf::from("/proc/self/exe"),
    }
}

/// Returns the words that put it into a scope of its own, where systemd runs: it would end with the session that it was started in otherwise. Root's alone: a
/// user's systemd may be gone with the session.
fn scope(vm: &VmName, shutdown: Duration) -> Vec<OsString> {
    let tool = ["/usr/bin/systemd-run", "/bin/systemd-run"].into_iter().find(|tool| Path::new(tool).exists());
    match tool {
        Some(tool) if Path::new("/run/systemd/system").is_dir() && is_root() => {
            [tool.to_owned()].into_iter().chain(scope_words(vm, shutdown)).map(OsString::from).collect()
        }
        _ => Vec::new(),
    }
}

/// Says how the scope is to be.
///
/// It is called by this process as well: that of a VM's last run may be there still when it is started again, and who is refused because the VM is up has one
/// for that moment. At its end systemd signals all processes of a scope at once. SIGTERM would end QEMU without a word to its guest, so it is
/// [`SCOPE_SIGNAL`], which a detached gpuvm takes for SIGTERM and which means nothing to anybody else.
fn scope_words(vm: &VmName, shutdown: Duration) -> Vec<String> {
    let mut words: Vec<String> = ["--scope", "--quiet", "--collect"].map(str::to_owned).into();
    words.push(format!("--unit=gpuvm-{vm}-{}.scope", std::process::id()));
    words.push(format!("--description=VM {vm}"));
    let timeout = (shutdown + SCOPE_END).as_secs();
    for property in
        ["Delegate=yes".to_owned(), format!("KillSignal={SCOPE_SIGNAL}"), format!("TimeoutStopSec={timeout}")]
    {
        words.extend(["-p".to_owned(), property]);
    }
    words.push("--".to_owned());
    words
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_called_by_its_vm_and_its_starter_and_outlasts_a_guest_that_takes_its_time() {
        let vm = "compute-1".parse().unwrap();
        let words = scope_words(&vm, Duration::from_secs(3600)).join(" ");
        let unit = format!(" --unit=gpuvm-compute-1-{}.scope ", std::process::id());
        assert!(words.contains(&unit) && words.ends_with(" --"), "{words}");
        assert!(words.contains(" -p KillSignal=SIGWINCH -p TimeoutStopSec=4200 "), "{words}");
    }
}
