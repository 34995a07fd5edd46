//! A child that makes one watched write after another.
//!
//! What holds for the child of a single write holds for it as well: never signalled, a session of its own, all signals blocked. It holds one end of a
//! socket besides, as its standard input, by which it is told what to write where, and tells what came of it. The other end is its parent's alone, and
//! when that is gone (closed, or the parent dead) the child ends as soon as it is back from the kernel, with the exit code of its last write: so one
//! that was left in flight can be collected by [`super::reap`] like any other.

use super::{WriteOutcome, exit, fork_keeping, name_of, outcome_of, wait_by, write_once, write_watched};
use crate::poll::{Deadline, readable_by};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

/// What the child is called between two writes.
const IDLE: &[u8; 16] = b"gpuvm-writer\0\0\0\0";
/// The longest request: a path (PATH_MAX with its zero byte) and what a sysfs attribute takes at once (a page).
const MOST: usize = 8192;
/// How long an idle child may take to end: it waits for nothing but the closing of its socket.
const REST: Duration = Duration::from_secs(1);

/// Makes watched writes with a child that it keeps from one to the next.
///
/// The child is made with the first write, and ends with [`Writer::rest`], or when this is dropped. One whose write is late is left to itself, and
/// another one made for the next write.
#[derive(Debug, Default)]
pub struct Writer {
    child: RefCell<Option<Child>>,
}

#[derive(Debug)]
struct Child {
    pid: Pid,
    socket: OwnedFd,
}

/// A request that wasn't taken.
enum NotTaken {
    /// The child is gone, and has not begun with it.
    Gone,
    Failed(io::Error),
}

impl Writer {
    /// Makes a writer, which has no child yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes as [`write_watched`] does.
    ///
    /// # Errors
    /// As [`write_watched`]; and the errno of socketpair(2), sendmsg(2) and poll(2).
    pub fn write(&self, path: &Path, bytes: &[u8], deadline: Duration) -> io::Result<WriteOutcome> {
        if !is_sound(path, bytes) {
            return write_watched(path, bytes, deadline);
        }
        let deadline = Deadline::after(deadline);
        let mut child = match self.child.take() {
            Some(child) => child,
            None => Child::fork()?,
        };
        match child.ask(path, bytes) {
            Ok(()) => {}
            Err(NotTaken::Gone) => {
                child.end();
                child = Child::fork()?;
                child.ask(path, bytes).map_err(|failed| match failed {
                    NotTaken::Gone => io::Error::from(io::ErrorKind::BrokenPipe),
                    NotTaken::Failed(error) => error,
                })?;
            }
            Err(NotTaken::Failed(error)) => return Err(error),
        }
        match child.answer(deadline) {
            Ok(Some(code)) => {
                self.child.replace(Some(child));
                Ok(outcome_of(code))
            }
            // It goes on with the write, or is gone without an answer, or can't be heard: its end tells.
            Ok(None) | Err(_) => {
                drop(child.socket);
                wait_by(child.pid, deadline)
            }
        }
    }

    /// Ends the child, if there is one: it holds a copy of this process's memory.
    pub fn rest(&self) {
        if let Some(child) = self.child.take() {
            child.end();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Child {
    fn fork() -> io::Result<Self> {
        let (ours, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let pid = fork_keeping(Some(its.as_fd()), IDLE, serve)?;
        Ok(Self { pid, socket: ours })
    }

    /// Sends the path, a zero byte, and what is to be written there.
    fn ask(&self, path: &Path, bytes: &[u8]) -> Result<(), NotTaken> {
        let parts = [path.as_os_str().as_bytes(), b"\0", bytes].map(IoSlice::new);
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
                // A packet goes as a whole or not at all.
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(NotTaken::Gone),
                Err(errno) => return Err(NotTaken::Failed(errno.into())),
            }
        }
    }

    /// Waits for the code of the write that it was asked for; `None` when the deadline has passed, or nobody will answer.
    fn answer(&self, deadline: Deadline) -> io::Result<Option<i32>> {
        if !readable_by(self.socket.as_fd(), deadline)? {
            return Ok(None);
        }
        let mut code = [0];
        loop {
            match recv(self.socket.as_raw_fd(), &mut code, MsgFlags::empty()) {
                Ok(1) => return Ok(Some(i32::from(code[0]))),
                Ok(_) | Err(Errno::ECONNRESET) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn end(self) {
        drop(self.socket);
        // What it says of itself was heard already; a child that somebody has stopped is left to init.
        let _ = wait_by(self.pid, Deadline::after(REST));
    }
}

/// Tells whether a request can be sent: one that isn't sound or is too long is for [`write_watched`] to refuse or to make.
fn is_sound(path: &Path, bytes: &[u8]) -> bool {
    let path = path.as_os_str().as_bytes();
    !bytes.is_empty() && !path.contains(&0) && path.len() + 1 + bytes.len() <= MOST
}

/// The child's whole life. Async-signal-safe: system calls only, no allocation, no lock, no panic.
fn serve(parent: Pid) -> ! {
    let mut packet = [0_u8; MOST];
    let mut last = 0;
    loop {
        // SAFETY: the pointer and the length describe `packet`, which nothing else refers to.
        let count = unsafe { libc::recv(0, packet.as_mut_ptr().cast(), packet.len(), 0) };
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) if Errno::last_raw() == libc::EINTR => continue,
            Err(_) => exit(last),
        };
        let Some(asked) = packet.get(..count) else { exit(last) };
        let Ok(path) = CStr::from_bytes_until_nul(asked) else { exit(last) };
        let Some(bytes) = asked.get(path.count_bytes() + 1..) else { exit(last) };
        rename(&name_of(bytes));
        last = write_once(path, bytes, parent);
        rename(IDLE);
        let code = u8::try_from(last).unwrap_or(u8::MAX);
        let mut answer = [IoSlice::new(std::slice::from_ref(&code))];
        // SAFETY: a message of zeros is one without address, parts and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // `IoSlice` is laid out as `iovec` is.
        message.msg_iov = answer.as_mut_ptr().cast();
        message.msg_iovlen = 1;
        // SAFETY: the message and its one part live on this stack, and the kernel only reads them.
        let sent = unsafe { libc::sendmsg(0, &raw const message, libc::MSG_NOSIGNAL) };
        if sent != 1 {
            exit(last);
        }
    }
}

fn rename(name: &[u8; 16]) {
    // SAFETY: the name ends with a zero byte, and the kernel copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

#[cfg(test)]
mod tests;
