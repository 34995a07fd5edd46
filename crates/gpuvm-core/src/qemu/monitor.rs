//! `-chardev`, `-mon` and `-serial`: the sockets by which gpuvm and QEMU speak.

use super::arg::{Arg, Opts, on_off};
use super::cmdline::Handle;

const MONITOR: &str = "monitor";
const SERIAL: &str = "serial0";

fn socket(id: &str, handle: &Handle) -> Arg {
    let opts = Opts::new().with("", "socket").with("id", id);
    let opts = match handle {
        Handle::Fd(fd) => opts.with("fd", fd.to_string()),
        Handle::Path(path) => opts.with("path", path),
    };
    Arg::opts("-chardev", opts.with("server", on_off(true)).with("wait", on_off(false)))
}

/// Renders the monitor.
pub(super) fn monitor(handle: &Handle) -> [Arg; 2] {
    let mode = Opts::new().with("chardev", MONITOR).with("mode", "control");
    [socket(MONITOR, handle), Arg::opts("-mon", mode)]
}

/// Renders the first serial port.
pub(super) fn serial(handle: &Handle) -> [Arg; 2] {
    [socket(SERIAL, handle), Arg::plain("-serial", format!("chardev:{SERIAL}"))]
}
