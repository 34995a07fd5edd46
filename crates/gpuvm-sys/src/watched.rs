//! A write to a sysfs attribute that may hang for ever, such as `unbind`, `reset` or `remove`.
//!
//! The write is done by a forked child, and this process only watches. The child is **never signalled**, not even when the deadline has passed: a
//! signal turns the interruptible wait of a driver that will not let go into one that nothing ends, and the kernel holds the device's lock all the while.
//! So that no signal reaches it by other ways either (a Ctrl-C, the stop of a service), it has a session of its own and blocks all signals; and so that
//! it holds nothing of ours for as long as it hangs (locks, sockets, the terminal), it closes every descriptor before it opens the attribute.
//!
//! It writes only if this process is still there once it has the attribute open: whoever takes over from a process that was killed finds each write
//! that may yet be made by looking for open attributes. It bears the first bytes of what it writes as its name (`/proc/PID/comm`), since a driver's
//! `bind` is the same attribute for all devices.
//!
//! A fork of a process that has much memory is dear, so a [`Writer`] makes one write after another with the same child, for as long as none is late.

use crate::poll::{Deadline, readable_by};
use crate::process::pidfd_open;
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;
use std::{fmt, io, thread};

mod writer;

pub use writer::Writer;

/// How a watched write stands.
#[derive(Debug)]
pub enum WriteOutcome {
    /// The kernel took all bytes in one write.
    Done,
    /// The write failed and is over.
    Failed(WriteFailure),
    /// The deadline passed; the child goes on until the kernel lets it, and must be [`reap`]ed by this process.
    InFlight {
        /// The child's process id.
        pid: i32,
    },
}

/// A watched write that is over and failed.
#[derive(Debug)]
pub struct WriteFailure {
    /// What failed.
    pub step: WriteStep,
    /// Why; carries the errno, or is `WriteZero` for a write that took a part of the bytes.
    pub source: io::Error,
}

/// The part of a watched write that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteStep {
    /// open(2); nothing was written.
    Open,
    /// write(2).
    Write,
    /// The child itself: whether the kernel took the write is not known if it was killed.
    Child,
}

impl fmt::Display for WriteStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Write => "write",
            Self::Child => "watched child",
        })
    }
}

impl fmt::Display for WriteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.source)
    }
}

impl std::error::Error for WriteFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes `bytes` to the existing file `path` in one write(2) by a watched child, and waits for at most `deadline`.
///
/// Blocks the calling thread for that long, so an async caller gives it a thread of its own.
///
/// # Errors
/// Only what kept the child from being made: `InvalidInput` for a path with a zero byte or no bytes to write, EAGAIN and ENOMEM of fork(2). What
/// happens to the write itself is in [`WriteOutcome`].
pub fn write_watched(path: &Path, bytes: &[u8], deadline: Duration) -> io::Result<WriteOutcome> {
    let deadline = Deadline::after(deadline);
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there are no bytes to write"));
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let child = fork_writer(&path, bytes)?;
    wait_by(child, deadline)
}

/// Collects a child that was [`WriteOutcome::InFlight`]; `None` while it is still at it.
///
/// # Errors
/// ECHILD when `pid` is no child of this process, or was collected before.
pub fn reap(pid: i32) -> io::Result<Option<WriteOutcome>> {
    loop {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(outcome_of(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                let text = format!("killed by {signal}; whether the kernel took the write is unknown");
                return Ok(Some(failed(WriteStep::Child, io::Error::other(text))));
            }
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the process `pid` of a watched write has not ended yet, be it a child of this process or of one that is gone.
///
/// A child of ours that has ended stays to be [`reap`]ed. Numbers are used again: for one that comes from a record, compare the process's start time too.
///
/// # Errors
/// The errno of pidfd_open(2) other than ESRCH.
pub fn still_in_flight(pid: i32) -> io::Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(Pid::from_raw(pid)), flags) {
        Ok(status) => return Ok(status == WaitStatus::StillAlive),
        Err(Errno::ECHILD) => {}
        Err(errno) => return Err(errno.into()),
    }
    match pidfd_open(pid) {
        Ok(fd) => Ok(!readable_by(fd.as_fd(), Deadline::after(Duration::ZERO))?),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits for the child; short sleeps stand in where no pidfd can be had (too many open files).
pub(crate) fn wait_by(child: Pid, deadline: Deadline) -> io::Result<WriteOutcome> {
    let pidfd = pidfd_open(child.as_raw());
    loop {
        match reap(child.as_raw()) {
            Ok(Some(outcome)) => return Ok(outcome),
            Ok(None) if deadline.left().is_zero() => {
                return Ok(WriteOutcome::InFlight { pid: child.as_raw() });
            }
            Ok(None) => {}
            // Somebody else in this process collected it, or SIGCHLD is ignored.
            Err(error) => return Ok(failed(WriteStep::Child, error)),
        }
        match &pidfd {
            Ok(fd) => readable_by(fd.as_fd(), deadline).map(drop)?,
            Err(_) => thread::sleep(deadline.left().min(Duration::from_millis(5))),
        }
    }
}

fn failed(step: WriteStep, source: io::Error) -> WriteOutcome {
    WriteOutcome::Failed(WriteFailure { step, source })
}

// The child's exit code carries step and errno, so that it can be read however late, and nothing but wait(2) is needed for it. 0: done; 1 to 139: errno of
// write (the highest is 133, EHWPOISON); 140: short write; 141: descriptors not closed; from 142: errno of open, one above 112 as 254; 255: nothing was written for a parent that
// is gone, and so can't read it.
const CODE_SHORT: i32 = 140;
const CODE_CLOSE: i32 = 141;
const CODE_OPEN: i32 = 141;
const CODE_OPEN_OTHER: i32 = 254;
const CODE_ORPHAN: i32 = 255;

pub(crate) fn write_code(errno: i32) -> i32 {
    errno.clamp(1, CODE_SHORT - 1)
}

fn open_code(errno: i32) -> i32 {
    (CODE_OPEN + errno.max(1)).min(CODE_OPEN_OTHER)
}

fn outcome_of(code: i32) -> WriteOutcome {
    match code {
        0 => WriteOutcome::Done,
        CODE_SHORT => failed(
            WriteStep::Write,
            io::Error::new(io::ErrorKind::WriteZero, "took a part of the bytes only"),
        ),
        CODE_CLOSE => failed(WriteStep::Child, io::Error::other("close_range(2) failed; it needs Linux 5.9")),
        CODE_OPEN_OTHER.. => {
            failed(WriteStep::Open, io::Error::other(format!("failed (child's exit code {code})")))
        }
        1..CODE_SHORT => failed(WriteStep::Write, io::Error::from_raw_os_error(code)),
        _ => failed(WriteStep::Open, io::Error::from_raw_os_error(code - CODE_OPEN)),
    }
}

/// Makes the child; all that it needs was allocated before.
fn fork_writer(path: &CStr, bytes: &[u8]) -> io::Result<Pid> {
    let name = name_of(bytes);
    fork_detached(&name, |parent| write_and_exit(path, bytes, parent))
}

/// Makes a child that is on its own: a session of its own, all signals blocked, no descriptor of ours, and a name. What it does must be
/// async-signal-safe: system calls only, no allocation, no lock, no panic.
pub(crate) fn fork_detached<N>(name: &[u8; 16], life: impl FnOnce(Pid) -> N) -> io::Result<Pid> {
    fork_keeping(None, name, life)
}

/// Makes a child like [`fork_detached`], which has one descriptor of ours: as its standard input.
fn fork_keeping<N>(
    keep: Option<BorrowedFd<'_>>,
    name: &[u8; 16],
    life: impl FnOnce(Pid) -> N,
) -> io::Result<Pid> {
    // The child starts with all signals blocked and keeps it so; a handler of ours must not run in it.
    let mask = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let parent = nix::unistd::getpid();
    // SAFETY: the child calls nothing but `detach`, `life` and `exit`, which are async-signal-safe, and doesn't return.
    let forked = unsafe { fork() };
    if let Ok(ForkResult::Child) = forked {
        detach(name, keep);
        life(parent);
        exit(CODE_ORPHAN);
    }
    let restored = mask.thread_set_mask();
    match forked? {
        ForkResult::Parent { child } => restored.map(|()| child).map_err(io::Error::from),
        // Never reached: the child left above.
        ForkResult::Child => Err(io::Error::other("unreachable")),
    }
}

/// Takes the child out of its parent's session, names it, and closes what it has inherited.
fn detach(name: &[u8; 16], keep: Option<BorrowedFd<'_>>) {
    // SAFETY: setsid takes nothing; it can't fail in a process that leads no group, and matters only for the terminal's signals.
    unsafe { libc::setsid() };
    // SAFETY: the name ends with a zero byte, and the kernel copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    let mut first: libc::c_uint = 0;
    if let Some(fd) = keep {
        // SAFETY: the descriptor is open in this copy of the parent; what was the standard input isn't used any more.
        if unsafe { libc::dup2(fd.as_raw_fd(), 0) } != 0 {
            exit(CODE_CLOSE);
        }
        first = 1;
    }
    // SAFETY: closes descriptors of this child alone, which uses none of them; nothing is opened before.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed != 0 {
        exit(CODE_CLOSE);
    }
}

/// Ends the child if its parent is gone: whoever has taken over wouldn't know what it does.
pub(crate) fn exit_if_orphaned(parent: Pid) {
    // SAFETY: takes nothing and can't fail.
    if unsafe { libc::getppid() } != parent.as_raw() {
        exit(CODE_ORPHAN);
    }
}

/// As much of what is written as a task's name holds (TASK_COMM_LEN), with a zero byte at its end.
pub(crate) fn name_of(bytes: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    name.iter_mut().take(15).zip(bytes).for_each(|(to, from)| *to = *from);
    name
}

/// The child's whole life. Async-signal-safe: system calls only, no allocation, no lock, no panic.
fn write_and_exit(path: &CStr, bytes: &[u8], parent: Pid) -> ! {
    exit(write_once(path, bytes, parent))
}

/// Makes a write, unless the parent is gone by then, and returns the exit code that tells of it. Async-signal-safe.
fn write_once(path: &CStr, bytes: &[u8], parent: Pid) -> i32 {
    // SAFETY: the path ends with a zero byte and outlives the call.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return open_code(Errno::last_raw());
    }
    exit_if_orphaned(parent);
    // SAFETY: the pointer and the length describe `bytes`, which the kernel only reads.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    let code = match usize::try_from(written) {
        Ok(count) if count == bytes.len() => 0,
        Ok(_) => CODE_SHORT,
        Err(_) => write_code(Errno::last_raw()),
    };
    // SAFETY: the descriptor is this child's own, and nobody uses it after this.
    unsafe { libc::close(fd) };
    code
}

pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends this child at once; no destructor or exit handler of the parent's copy runs.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::io::Read as _;
    use std::time::Instant;

    const SOON: Duration = Duration::from_secs(10);

    fn failure(outcome: WriteOutcome) -> (WriteStep, Option<i32>) {
        match outcome {
            WriteOutcome::Failed(failure) => (failure.step, failure.source.raw_os_error()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_regular_file_takes_the_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(write_watched(file.path(), b"0000:01:00.0\n", SOON).unwrap(), WriteOutcome::Done));
        assert_eq!(std::fs::read(file.path()).unwrap(), b"0000:01:00.0\n");
    }

    #[test]
    fn failures_name_the_step_and_the_errno() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: &Path| failure(write_watched(path, b"1", SOON).unwrap());
        assert_eq!(of(&dir.path().join("absent")), (WriteStep::Open, Some(libc::ENOENT)));
        assert_eq!(of(dir.path()), (WriteStep::Open, Some(libc::EISDIR)));
        // The device whose every write fails with "no space".
        assert_eq!(of(Path::new("/dev/full")), (WriteStep::Write, Some(libc::ENOSPC)));
        let text = match write_watched(&dir.path().join("absent"), b"1", SOON).unwrap() {
            WriteOutcome::Failed(failure) => failure.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(text.starts_with("open: No such file"), "{text}");
    }

    #[test]
    fn a_short_write_is_an_error() {
        // A pipe that nobody empties takes its size, and a reader that leaves then ends the write with what the pipe took.
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::File::open(fifo).unwrap().read_exact(&mut [0]).unwrap()
        });
        let outcome = write_watched(&fifo, &vec![7; 1 << 20], SOON).unwrap();
        reader.join().unwrap();
        assert_eq!(failure(outcome), (WriteStep::Write, None));
    }

    #[rstest]
    #[case(Path::new("/tmp/a\0b"), b"1".as_slice())]
    #[case(Path::new("/dev/null"), b"".as_slice())]
    fn senseless_input_is_refused_before_a_child_is_made(#[case] path: &Path, #[case] bytes: &[u8]) {
        assert_eq!(write_watched(path, bytes, SOON).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_write_that_hangs_is_left_alone_and_collected_later() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let start = Instant::now();
        let pid = match write_watched(&fifo, b"unbind", Duration::from_millis(100)).unwrap() {
            WriteOutcome::InFlight { pid } => pid,
            other => panic!("{other:?}"),
        };
        assert!(start.elapsed() >= Duration::from_millis(100));
        assert!(still_in_flight(pid).unwrap());
        assert!(reap(pid).unwrap().is_none());

        // What rule 4 wants of the child: own session, no descriptors of ours, all signals blocked.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
        assert_eq!(blocked, "fffffffe7ffbfeff", "all but KILL, STOP and glibc's own");
        assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "unbind\n");
        assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap().as_raw(), pid);
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 0);
        assert_eq!(nix::sys::signal::SigSet::thread_get_mask().unwrap(), SigSet::empty());

        assert_eq!(std::fs::read(&fifo).unwrap(), b"unbind");
        let end = Instant::now() + SOON;
        while still_in_flight(pid).unwrap() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(2));
        }
        assert!(matches!(reap(pid).unwrap(), Some(WriteOutcome::Done)));
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie is left");
        assert!(!still_in_flight(pid).unwrap());
        assert_eq!(reap(pid).unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }

    const ORPHANED_WRITE: &str = "GPUVM_TEST_ORPHANED_WRITE";

    /// Begins the write of the test below, in a process that the test kills.
    #[test]
    fn orphaned_write() {
        if let Some(path) = std::env::var_os(ORPHANED_WRITE) {
            write_watched(Path::new(&path), b"1", SOON).unwrap();
        }
    }

    #[test]
    fn a_write_that_was_not_begun_when_its_parent_died_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "watched::tests::orphaned_write"])
            .env(ORPHANED_WRITE, &fifo)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Its child waits for a reader in open(2).
        let children = format!("/proc/{0}/task", parent.id());
        let has_child = || {
            let tasks = std::fs::read_dir(&children).unwrap().flatten();
            let mut lists =
                tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
            lists.any(|list| !list.is_empty())
        };
        let end = Instant::now() + SOON;
        while !has_child() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(2));
        }
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert_eq!(std::fs::read(&fifo).unwrap(), b"", "the write was made");
    }

    #[test]
    fn a_killed_child_is_not_taken_for_success() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let WriteOutcome::InFlight { pid } = write_watched(&fifo, b"1", Duration::ZERO).unwrap() else {
            panic!()
        };
        // As an administrator or the kernel's out-of-memory killer would; this crate never does.
        nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        let outcome = wait_by(Pid::from_raw(pid), Deadline::after(SOON)).unwrap();
        assert_eq!(failure(outcome), (WriteStep::Child, None));
    }

    #[test]
    fn exit_codes_keep_step_and_errno_apart() {
        for errno in 1..=133 {
            assert_eq!(failure(outcome_of(write_code(errno))), (WriteStep::Write, Some(errno)));
            let open = failure(outcome_of(open_code(errno)));
            assert_eq!(open, (WriteStep::Open, (errno < 113).then_some(errno)));
        }
        assert!(matches!(outcome_of(0), WriteOutcome::Done));
        assert_eq!(failure(outcome_of(CODE_CLOSE)).0, WriteStep::Child);
        assert_eq!(failure(outcome_of(255)).0, WriteStep::Open);
    }
}
