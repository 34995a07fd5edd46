//! A child process that is started with chosen descriptors and watched through a pidfd.

use crate::limits::{Memlock, to_raw};
use crate::poll::{Deadline, readable_by};
use nix::errno::Errno;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{fmt, io, thread};

pub use nix::sys::signal::Signal;

/// What to start, and with what.
#[derive(Debug)]
pub struct SpawnSpec {
    /// The program, then its arguments; a program without a slash is looked up in PATH.
    pub argv: Vec<OsString>,
    /// Variables to set beside those of this process.
    pub env: Vec<(OsString, OsString)>,
    /// Descriptors that the child has under the same numbers; the copies of this process are closed by [`spawn`], however it ends.
    pub fds: Vec<OwnedFd>,
    /// Where standard output goes.
    pub stdout: OwnedFd,
    /// Where standard error goes.
    pub stderr: OwnedFd,
    /// The signal that the kernel sends to the child when the **thread** that called [`spawn`] ends, so call it from the main thread. A child that
    /// changes its user loses it (prctl(2)).
    pub death_signal: Option<Signal>,
    /// `RLIMIT_MEMLOCK` for the child; `None` leaves that of this process.
    pub memlock: Option<Memlock>,
    /// A file that the child writes its `/proc/self/stat` into before it becomes the program: whatever happens to this process, one that runs is on
    /// record there, with its number and start time.
    pub record: Option<OwnedFd>,
}

/// Why a child could not be started.
#[derive(Debug)]
pub struct SpawnError {
    /// What failed: `spawn` (fork or exec), or a step in the child before exec.
    pub step: SpawnStep,
    /// Why; carries the errno.
    pub source: io::Error,
}

/// A step on the way to a running child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnStep {
    /// The specification itself, or what this process sets up before.
    Prepare,
    /// fork(2) or exec(2): ENOENT is a program that is not there.
    Exec,
    /// setsid(2).
    Session,
    /// prctl(2) for the death signal; ESRCH when this process was gone already.
    DeathSignal,
    /// setrlimit(2): EPERM when the hard limit rises without `CAP_SYS_RESOURCE`.
    Memlock,
    /// fcntl(2) on a descriptor to inherit.
    Inherit,
    /// The write of the child's own record.
    Record,
    /// pidfd_open(2); the child was killed and collected.
    Pidfd,
}

impl SpawnStep {
    fn from_code(code: u8) -> Self {
        let all = [Self::Session, Self::DeathSignal, Self::Memlock, Self::Inherit, Self::Record];
        all.into_iter().find(|step| *step as u8 == code).unwrap_or(Self::Exec)
    }
}

impl fmt::Display for SpawnStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Exec => "exec",
            Self::Session => "setsid",
            Self::DeathSignal => "PR_SET_PDEATHSIG",
            Self::Memlock => "RLIMIT_MEMLOCK",
            Self::Inherit => "inherit descriptors",
            Self::Record => "record its process",
            Self::Pidfd => "pidfd_open",
        })
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.source)
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<SpawnError> for io::Error {
    /// Keeps the errno and drops the step.
    fn from(error: SpawnError) -> Self {
        error.source
    }
}

/// A started child. Dropping it neither ends nor collects the process.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
}

/// Starts a program in a session of its own, with /dev/null as standard input and default signal handling.
///
/// # Errors
/// The step that failed with its errno; `InvalidInput` at [`SpawnStep::Prepare`] for an empty argv or a descriptor to inherit that is one of the
/// standard three.
pub fn spawn(spec: SpawnSpec) -> Result<Child, SpawnError> {
    let prepare = |source| SpawnError { step: SpawnStep::Prepare, source };
    let Some((program, args)) = spec.argv.split_first() else {
        return Err(prepare(io::Error::new(io::ErrorKind::InvalidInput, "argv is empty")));
    };
    let numbers: Vec<RawFd> = spec.fds.iter().map(AsRawFd::as_raw_fd).collect();
    if let Some(number) = numbers.iter().find(|number| **number <= libc::STDERR_FILENO) {
        let text = format!("descriptor {number} is a standard one and can't be inherited as another");
        return Err(prepare(io::Error::new(io::ErrorKind::InvalidInput, text)));
    }
    let (mut told, tell) = io::pipe().map_err(prepare)?;
    let mut setup = ChildSetup {
        fds: numbers,
        parent: nix::unistd::getpid().as_raw(),
        death_signal: spec.death_signal.map(|signal| signal as libc::c_int),
        memlock: spec.memlock.map(|m| libc::rlimit { rlim_cur: to_raw(m.soft), rlim_max: to_raw(m.hard) }),
        tell: tell.into(),
        record: spec.record,
    };
    let mut command = Command::new(program);
    command.args(args).envs(spec.env).stdin(Stdio::null()).stdout(spec.stdout).stderr(spec.stderr);
    // SAFETY: the closure runs between fork and exec and makes only system calls: it allocates nothing, takes no lock and can't panic.
    unsafe { command.pre_exec(move || setup.run()) };
    let spawned = command.spawn();
    // Ends our write end of the pipe and our copies of the descriptors.
    drop(command);
    drop(spec.fds);
    let child = spawned.map_err(|source| {
        let mut code = [0];
        let step = match told.read(&mut code) {
            Ok(1) => SpawnStep::from_code(code[0]),
            _ => SpawnStep::Exec,
        };
        SpawnError { step, source }
    })?;
    with_pidfd(child)
}

fn with_pidfd(mut child: std::process::Child) -> Result<Child, SpawnError> {
    // The child can't have been collected yet, so the number is still its own.
    match i32::try_from(child.id()).map_err(io::Error::other).and_then(pidfd_open) {
        Ok(pidfd) => Ok(Child { child, pidfd }),
        Err(source) => {
            // Nobody could watch it. Both calls can fail only if it has ended, which is what they are for.
            let _ = child.kill();
            let _ = child.wait();
            Err(SpawnError { step: SpawnStep::Pidfd, source })
        }
    }
}

/// What the child does to itself between fork and exec.
struct ChildSetup {
    fds: Vec<RawFd>,
    parent: libc::pid_t,
    death_signal: Option<libc::c_int>,
    memlock: Option<libc::rlimit>,
    tell: OwnedFd,
    record: Option<OwnedFd>,
}

impl ChildSetup {
    /// Async-signal-safe. The error that goes back through std has the errno only, so the step is told through a pipe.
    fn run(&mut self) -> io::Result<()> {
        self.steps().map_err(|(step, errno)| {
            let code = step as u8;
            // SAFETY: one byte is read from `code`; a failure to tell leaves the step unknown, and the errno stands.
            unsafe { libc::write(self.tell.as_raw_fd(), (&raw const code).cast(), 1) };
            io::Error::from(errno)
        })
    }

    fn steps(&self) -> Result<(), (SpawnStep, Errno)> {
        // SAFETY: takes nothing and changes this child alone.
        check(SpawnStep::Session, unsafe { libc::setsid() })?;
        if let Some(signal) = self.death_signal {
            // SAFETY: takes a plain number and changes this child alone.
            check(SpawnStep::DeathSignal, unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })?;
            // SAFETY: takes nothing. The parent may have ended before prctl, and then no signal comes.
            if unsafe { libc::getppid() } != self.parent {
                return Err((SpawnStep::DeathSignal, Errno::ESRCH));
            }
        }
        if let Some(limit) = &self.memlock {
            // SAFETY: the pointer is to a whole rlimit, which is only read.
            check(SpawnStep::Memlock, unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, limit) })?;
        }
        for &fd in &self.fds {
            // SAFETY: takes plain numbers and reads the flags of a descriptor of this child.
            let flags = check(SpawnStep::Inherit, unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
            // SAFETY: as above, and clears the flag in this child alone.
            check(SpawnStep::Inherit, unsafe { libc::fcntl(fd, libc::F_SETFD, flags & !libc::FD_CLOEXEC) })?;
        }
        self.record.as_ref().map_or(Ok(()), |record| write_record(record.as_fd()))
    }
}

/// Copies `/proc/self/stat` into a file: one line, far shorter than the room for it (proc_pid_stat(5): 52 numbers and a name of 15 characters).
/// Async-signal-safe.
fn write_record(record: BorrowedFd<'_>) -> Result<(), (SpawnStep, Errno)> {
    const STEP: SpawnStep = SpawnStep::Record;
    let mut line = [0_u8; 2048];
    // SAFETY: the path is a string with its zero byte, and is only read.
    let stat =
        check(STEP, unsafe { libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
    // SAFETY: as many bytes are written as `line` has, by a descriptor of this child.
    let read = Errno::result(unsafe { libc::read(stat, line.as_mut_ptr().cast(), line.len()) });
    // SAFETY: the descriptor was opened above, and nothing else knows of it.
    unsafe { libc::close(stat) };
    let length = read.map_err(|errno| (STEP, errno))?.cast_unsigned();
    // SAFETY: as many bytes are read as were put there.
    let written = unsafe { libc::write(record.as_raw_fd(), line.as_ptr().cast(), length) };
    match Errno::result(written).map_err(|errno| (STEP, errno))?.cast_unsigned() == length {
        true => Ok(()),
        false => Err((STEP, Errno::ENOSPC)),
    }
}

fn check(step: SpawnStep, rc: libc::c_int) -> Result<libc::c_int, (SpawnStep, Errno)> {
    Errno::result(rc).map_err(|errno| (step, errno))
}

impl Child {
    /// The process id; it names this process until it is collected.
    #[must_use]
    pub fn pid(&self) -> i32 {
        // A pid is a positive int for the kernel; std shows it as unsigned.
        self.child.id().cast_signed()
    }

    /// The exit status if the process has ended, without waiting. All its threads are gone then.
    ///
    /// # Errors
    /// The errno of waitpid(2).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for the end for at most `within`; `None` when the process still runs.
    ///
    /// # Errors
    /// The errno of poll(2) or waitpid(2).
    pub fn wait_deadline(&mut self, within: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Deadline::after(within);
        loop {
            let ended = readable_by(self.pidfd.as_fd(), deadline)?;
            match self.child.try_wait()? {
                None if ended && !deadline.left().is_zero() => thread::sleep(Duration::from_millis(1)),
                status => return Ok(status),
            }
        }
    }

    /// Sends a signal to this very process, never to one that got its number later.
    ///
    /// # Errors
    /// ESRCH when it has ended and was collected, EPERM when it belongs to somebody else.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        pidfd_send_signal(self.pidfd.as_fd(), signal)
    }

    /// Sends a signal to the process and to all of its own children that stayed in its session's first group.
    ///
    /// The process must not have been collected: until then its number names this group and no other.
    ///
    /// # Errors
    /// ESRCH when none of them is left, EPERM when none may be signalled (kill(2)).
    pub fn kill_group(&self, signal: Signal) -> io::Result<()> {
        Ok(nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.pid()), signal)?)
    }

    /// The pidfd, which is readable once the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd()
    }
}

/// Opens a descriptor that stands for the process `pid`, closed on exec.
///
/// # Errors
/// ESRCH when there is no such process, EINVAL when `pid` is no process but a thread (pidfd_open(2)).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    let raw = RawFd::try_from(Errno::result(raw)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sends a signal to the process behind a pidfd.
///
/// # Errors
/// ESRCH when it has ended and was collected, EPERM (pidfd_send_signal(2)).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let (fd, number) = (libc::c_long::from(pidfd.as_raw_fd()), libc::c_long::from(signal as libc::c_int));
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes plain numbers, and a null pointer means "as kill(2) would".
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, no_info, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests;
