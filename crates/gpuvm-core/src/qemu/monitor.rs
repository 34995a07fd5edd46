//! `-chardev`, `-mon` and `-serial`: the sockets by which gpuvm and QEMU speak.

use super::arg::{Arg, Opts, on_off};
use super::cmdline::Handle;

const MONITOR: &str = "monitor";
/// QEMU's name for the character device behind the first serial port.
pub const SERIAL: &str = "serial0";

fn socket(id: &str, handle: &Handle, state: FdState) -> Arg {
    let opts = Opts::new().with("", "socket").with("id", id);
    let opts = match handle {
        Handle::Fd(fd) => opts.with("fd", fd.to_string()),
        Handle::Path(path) => opts.with("path", path),
    };
    let connected = matches!((handle, state), (Handle::Fd(_), FdState::Connected));
    let opts = if connected { opts } else { opts.with("server", on_off(true)).with("wait", on_off(false)) };
    Arg::opts("-chardev", opts)
}

/// What a socket that QEMU inherits is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FdState {
    /// It waits for somebody to connect.
    Listening,
    /// Somebody is at its other end.
    Connected,
}

/// Renders the monitor.
pub(super) fn monitor(handle: &Handle) -> [Arg; 2] {
    let mode = Opts::new().with("chardev", MONITOR).with("mode", "control");
    [socket(MONITOR, handle, FdState::Listening), Arg::opts("-mon", mode)]
}

/// Renders the monitor of a QEMU that inherits a connected socket.
pub(super) fn connected_monitor(fd: i32) -> [Arg; 2] {
    let mode = Opts::new().with("chardev", MONITOR).with("mode", "control");
    [socket(MONITOR, &Handle::Fd(fd), FdState::Connected), Arg::opts("-mon", mode)]
}

/// Renders the first serial port.
pub(super) fn serial(handle: &Handle) -> [Arg; 2] {
    [socket(SERIAL, handle, FdState::Connected), Arg::plain("-serial", format!("chardev:{SERIAL}"))]
}
