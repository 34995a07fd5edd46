//! `display` and `display-listen`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::profile::check::Checker;
use crate::profile::read::{Choice, Leaf, Located};

/// The first port of VNC; displays count from it (RFC 6143, 3).
const VNC_PORT: u16 = 5900;

/// What the guest shows its picture on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Display {
    /// Nothing: a passed-through card has a screen of its own, and a compute guest needs none.
    None,
    /// A virtual display that VNC shows, with a keyboard and a tablet.
    Virtual(Listen),
}

/// Where a virtual display is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listen {
    /// On a unix socket in the VM's folder, for this user alone.
    Unix,
    /// On a port of a loopback address, without a password.
    Vnc(SocketAddr),
}

impl Listen {
    /// Returns the VNC display's number at a port.
    pub fn vnc_display(address: SocketAddr) -> u16 {
        address.port().saturating_sub(VNC_PORT)
    }
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| format!("`{text}` is neither `unix` nor an address and port like 127.0.0.1:5900"))?;
        if !address.ip().is_loopback() {
            return Err(format!("`{text}` isn't a loopback address, and VNC has no password here"));
        }
        match address.port() {
            VNC_PORT.. => Ok(Self::Vnc(address)),
            port => Err(format!("port {port} is below {VNC_PORT}, where VNC's displays begin")),
        }
    }
}

/// The words of [`Display`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::profile) enum DisplayWord {
    None,
    Virtual,
}

impl Choice for DisplayWord {
    const WORDS: &'static [(&'static str, Self)] = &[("none", Self::None), ("virtual", Self::Virtual)];
}

pub(in crate::profile) fn check(
    display: Leaf<DisplayWord>,
    listen: Leaf<Listen>,
    checker: &mut Checker<'_>,
) -> Display {
    match display {
        Some(Located { value: DisplayWord::Virtual, .. }) => {
            Display::Virtual(listen.map_or(Listen::Unix, |listen| listen.value))
        }
        _ => {
            checker.pointless(listen, "display-listen", "display is none");
            Display::None
        }
    }
}
