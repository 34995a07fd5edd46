//! Unix sockets that a child takes over by descriptor number.

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockopt, listen,
    sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The longest path of a unix socket in bytes: `sun_path` holds 108 with its closing zero (unix(7)).
pub const MAX_PATH: usize = 107;

const BACKLOG: i32 = 8;

/// Opens a listening stream socket at `path`, with mode 0600 whatever the umask, closed on exec.
///
/// Nothing is removed first: a path that exists is EADDRINUSE.
///
/// # Errors
/// `InvalidInput` with the length and the limit for a path over [`MAX_PATH`] bytes, or one that is empty or holds a zero byte; else the errno of the
/// call that failed.
pub fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    check_path(path)?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Before bind: the file is made with the socket's own mode less the umask, so it is never wider than this.
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    fchmod(&fd, mode)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    // After bind, for an umask that takes bits from the owner. Nobody can connect before listen.
    let opened = fchmodat(nix::fcntl::AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink)
        .and_then(|()| listen(&fd, Backlog::new(BACKLOG)?));
    if let Err(errno) = opened {
        // The file is ours, made a moment ago; the error that counts is the one above.
        let _ = std::fs::remove_file(path);
        return Err(errno.into());
    }
    Ok(fd)
}

/// A listening unix socket that this process inherited as descriptor `fd`, as a descriptor of its own.
///
/// The inherited number stays open beside it: whoever closes that number elsewhere can't take this listener away.
///
/// # Errors
/// EBADF when the number is not open, ENOTSOCK when it is no socket, `InvalidInput` when it is no listening unix socket.
pub fn adopt_listener(fd: RawFd) -> io::Result<UnixListener> {
    let inherited = duplicate(fd)?;
    if !getsockopt(&inherited, sockopt::AcceptConn)? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} is not a listening socket"),
        ));
    }
    let listener = UnixListener::from(inherited);
    // Fails for a listening socket of another family.
    listener.local_addr()?;
    Ok(listener)
}

/// A connected unix socket that this process inherited as descriptor `fd`, as a descriptor of its own.
///
/// # Errors
/// EBADF when the number is not open, ENOTSOCK when it is no socket, ENOTCONN when nobody is at its other end.
pub fn adopt_stream(fd: RawFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(duplicate(fd)?);
    stream.peer_addr()?;
    Ok(stream)
}

/// A connected unix socket that this process inherited as descriptor `fd`, and that nothing else in it uses: the number itself is taken, and closed on
/// exec from now on.
///
/// # Errors
/// As [`adopt_stream`].
pub fn take_stream(fd: RawFd) -> io::Result<UnixStream> {
    let stream = adopt_stream(fd)?;
    // SAFETY: the number is open, as the duplicate shows, and the caller says that nothing else uses it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(stream)
}

fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD takes no pointer and changes nothing; a number that is not open gives EBADF.
    nix::errno::Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the number is not negative and was open a line above; the borrow ends with this function, and what is returned is a duplicate.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Connects two stream sockets, closed on exec, of which the second can send that many bytes that nobody has read yet.
///
/// The kernel counts its own overhead too, some 760 bytes a write: a writer of single bytes is held up by the 208 KiB that are usual after 278
/// of them. Without `CAP_NET_ADMIN` the size ends at `net.core.wmem_max` (socket(7)), and is taken as it comes.
///
/// # Errors
/// The errno of the call that failed.
pub fn stream_pair(send_bytes: usize) -> io::Result<(UnixStream, OwnedFd)> {
    let (near, far) = UnixStream::pair()?;
    let far = OwnedFd::from(far);
    setsockopt(&far, sockopt::SndBufForce, &send_bytes)
        .or_else(|_| setsockopt(&far, sockopt::SndBuf, &send_bytes))?;
    Ok((near, far))
}

/// Sends bytes, and a descriptor with the first of them (unix(7), `SCM_RIGHTS`). Returns how many bytes went; the rest needs no descriptor.
///
/// # Errors
/// The errno of sendmsg(2); EAGAIN of a socket that doesn't block.
pub fn send_with_fd(stream: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let parts = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
}

fn check_path(path: &Path) -> io::Result<()> {
    let bytes = path.as_os_str().as_bytes();
    let problem = if bytes.len() > MAX_PATH {
        format!(
            "the path has {} bytes, and a unix socket takes at most {MAX_PATH}: {}",
            bytes.len(),
            path.display()
        )
    } else if bytes.is_empty() {
        "the path of a unix socket is empty".to_owned()
    } else if bytes.contains(&0) {
        format!("the path of a unix socket holds a zero byte: {}", path.display())
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_far_end_of_a_pair_sends_many_single_bytes_that_nobody_reads() {
        let (mut near, far) = stream_pair(8 << 20).unwrap();
        let mut far = adopt_stream(far.as_raw_fd()).unwrap();
        far.set_nonblocking(true).unwrap();
        let sent = (0..100_000).take_while(|_| far.write(b"x").is_ok()).count();
        // Without the right to more than net.core.wmem_max, which is no less than the usual size.
        let least = if nix::unistd::geteuid().is_root() { 10_000 } else { 278 };
        assert!(sent >= least, "{sent}");
        let mut first = [0; 2];
        near.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"xx");
    }

    #[test]
    fn a_descriptor_goes_with_the_bytes_it_is_sent_with() {
        use nix::sys::socket::{ControlMessageOwned, recvmsg};
        use std::os::fd::AsFd as _;
        let (near, far) = UnixStream::pair().unwrap();
        let (mut kept, given) = UnixStream::pair().unwrap();
        assert_eq!(send_with_fd(near.as_fd(), b"take it", given.as_fd()).unwrap(), 7);
        drop(given);
        let mut bytes = [0; 16];
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let message =
            recvmsg::<()>(far.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        assert_eq!(message.bytes, 7);
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else { panic!() };
        let mut taken = take_stream(fds[0]).unwrap();
        taken.write_all(b"here").unwrap();
        let mut text = [0; 4];
        kept.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"here");
    }

    #[test]
    fn only_a_connected_socket_is_adopted_as_a_stream() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen_unix(&dir.path().join("s")).unwrap();
        assert_eq!(adopt_stream(listener.as_raw_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        assert_eq!(adopt_stream(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_listener_is_private_and_can_be_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let fd = listen_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let adopted = adopt_listener(fd.as_raw_fd()).unwrap();
        drop(fd);
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        adopted.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_taken_path_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(listen_unix(&path).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[rstest]
    #[case("x".repeat(108), "the path has 108 bytes, and a unix socket takes at most 107")]
    #[case(String::new(), "empty")]
    #[case("a\0b".to_owned(), "zero byte")]
    fn unusable_paths_say_why(#[case] path: String, #[case] text: &str) {
        let error = listen_unix(Path::new(&path)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(text), "{error}");
    }

    #[test]
    fn the_longest_path_works() {
        let dir = tempfile::tempdir().unwrap();
        let room = MAX_PATH - dir.path().as_os_str().len() - 1;
        listen_unix(&dir.path().join("x".repeat(room))).unwrap();
    }

    #[test]
    fn only_listening_unix_sockets_are_adopted() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert_eq!(adopt_listener(stream.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(adopt_listener(file.as_raw_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(adopt_listener(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt_listener(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        adopt_listener(tcp.as_raw_fd()).unwrap_err();
    }
}
