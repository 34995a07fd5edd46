//! `-display`, `-vnc`, and the devices of a virtual display: VGA, USB keyboard and tablet.

use std::ffi::OsString;
use std::path::Path;

use serde::Serialize;

use super::arg::{Arg, Opts};
use super::pcie::addr;
use crate::profile::{Display, Listen};

/// `-device VGA`: what every firmware and installer can draw on.
#[derive(Serialize)]
struct Vga {
    driver: &'static str,
    id: &'static str,
    bus: &'static str,
    addr: String,
}

/// `-device qemu-xhci`.
#[derive(Serialize)]
struct QemuXhci<'a> {
    driver: &'static str,
    id: &'static str,
    bus: &'a str,
}

/// `-device usb-kbd` and `-device usb-tablet`.
#[derive(Serialize)]
struct UsbInput {
    driver: &'static str,
    id: &'static str,
    bus: &'static str,
}

/// Renders where the picture is shown. QEMU takes no inherited socket for VNC.
pub(super) fn backend(display: Display, socket: &Path) -> Vec<Arg> {
    let none = Arg::plain("-display", "none");
    let Display::Virtual(listen) = display else { return vec![none] };
    let place = match listen {
        Listen::Unix => {
            let mut place = OsString::from("unix:");
            place.push(socket);
            place
        }
        Listen::Vnc(address) => {
            let display = Listen::vnc_display(address);
            let host = match address {
                std::net::SocketAddr::V4(v4) => v4.ip().to_string(),
                std::net::SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
            };
            format!("{host}:{display}").into()
        }
    };
    // By its key: QEMU takes a first word with an equals sign in it, as a path may have, for a key and its value.
    vec![none, Arg::opts("-vnc", Opts::new().with("vnc", place))]
}

/// Renders the graphics card, beside the panic device in the slot that ports leave free: it is no PCIe device.
pub(super) fn card() -> Arg {
    Arg::json("-device", &Vga { driver: "VGA", id: "vga0", bus: "pcie.0", addr: addr(1, 1) })
}

/// Renders keyboard and tablet behind a port: a tablet's pointer is where VNC's is.
pub(super) fn input(bus: &str) -> [Arg; 3] {
    let input = |driver, id| Arg::json("-device", &UsbInput { driver, id, bus: "xhci0.0" });
    [
        Arg::json("-device", &QemuXhci { driver: "qemu-xhci", id: "xhci0", bus }),
        input("usb-kbd", "usb-kbd0"),
        input("usb-tablet", "usb-tablet0"),
    ]
}
