//! A terminal that hands keys through as they are typed.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// A terminal in raw mode: no echo, no lines, no keys that send signals. It is as it was once this is dropped, or before that by [`RawTerminal::restore`].
///
/// Who is killed by SIGKILL leaves it raw; `stty sane` helps then.
#[derive(Debug)]
pub struct RawTerminal {
    fd: OwnedFd,
    was: Termios,
}

impl RawTerminal {
    /// Puts a terminal into raw mode.
    ///
    /// # Errors
    /// ENOTTY for what is no terminal; else the errno of the call that failed.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let was = tcgetattr(fd)?;
        let fd = fd.try_clone_to_owned()?;
        let mut raw = was.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&fd, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { fd, was })
    }

    /// Puts it back into the mode that it was in.
    ///
    /// # Errors
    /// The errno of tcsetattr(3), of a terminal that is gone.
    pub fn restore(&self) -> io::Result<()> {
        tcsetattr(self.fd.as_fd(), SetArg::TCSADRAIN, &self.was)?;
        Ok(())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // There is nobody left to tell, and nothing to restore where it is gone.
        let _ = self.restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    #[test]
    fn a_terminal_is_raw_for_as_long_as_it_is_held() {
        let pty = openpty(None, None).unwrap();
        let flags = || tcgetattr(&pty.slave).unwrap().local_flags;
        let (was, cooked) = (flags(), LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        assert!(was.contains(cooked));
        let raw = RawTerminal::enter(pty.slave.as_fd()).unwrap();
        assert!(!flags().intersects(cooked));
        raw.restore().unwrap();
        assert_eq!(flags(), was);
        drop(raw);
        let _ = std::panic::catch_unwind(|| {
            let _raw = RawTerminal::enter(pty.slave.as_fd()).unwrap();
            panic!("as a defect would");
        });
        assert_eq!(flags(), was);
    }

    #[test]
    fn what_is_no_terminal_stays_as_it_is() {
        let file = tempfile::tempfile().unwrap();
        let error = RawTerminal::enter(file.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
