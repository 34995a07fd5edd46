//! The service manager that has started gpuvm, where it wants to be told how it goes: sd_notify(3).
//!
//! What is told are datagrams of `KEY=VALUE` lines, to the socket that `NOTIFY_SOCKET` names. QEMU and the children that write to sysfs inherit the
//! variable (taking it from a process's own environment is not safe where threads may read it) and have no use for it; that nobody else's word is taken
//! is the unit's `NotifyAccess=main`.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use gpuvm_core::lifecycle::{Halt, State};
use gpuvm_run::{Longest, Phase};

/// Where systemd says that it wants to be told.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// How long a manager that doesn't read is waited for: a run doesn't stand still for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a guest that runs has for what it counts as up by, at least; a unit with a longer TimeoutStartSec gives it more.
const READY: Duration = Duration::from_secs(5 * 60);
/// The longest status that is told.
const STATUS: usize = 300;

/// A service manager, and what it knows of the run.
pub(crate) struct Unit {
    socket: UnixDatagram,
    to: SocketAddr,
    longest: Option<Longest>,
    is_up: IsUp,
    /// What is said of a guest that runs.
    runs: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IsUp {
    No,
    /// It was told so.
    Told,
    /// It was told that it ends.
    Ending,
}

impl Unit {
    /// Finds the one that has started this process; nothing where none did, or it can't be reached.
    pub(super) fn from_env() -> Option<Self> {
        let name = env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        Self::at(&name)
            .inspect_err(|error| tracing::warn!("{VARIABLE} {}: {error}", name.to_string_lossy()))
            .ok()
    }

    /// Makes one of the name of its socket: a path, or `@` and a name that no file has.
    fn at(name: &OsStr) -> io::Result<Self> {
        let to = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an @name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, to, longest: None, is_up: IsUp::No, runs: String::new() })
    }

    /// Takes in how long the parts of the run may take.
    pub(super) fn limits(&mut self, longest: Longest) {
        self.longest = Some(longest);
    }

    /// Tells of a step, and for how long nothing more may be heard.
    pub(super) fn phase(&mut self, phase: &Phase) {
        let text = phase.to_string();
        let mut lines = vec![status(&text)];
        match phase {
            Phase::Running { .. } => {
                self.runs = text;
                lines.extend((self.is_up == IsUp::No).then(|| extend(READY)));
            }
            // Not before: a guest that reboots may be started again. Timeouts begin to run with it.
            Phase::GivingBack if self.is_up == IsUp::Told => {
                self.is_up = IsUp::Ending;
                lines.push("STOPPING=1".to_owned());
            }
            _ => {}
        }
        lines.extend(self.longest.and_then(|longest| longest.of_phase(phase)).map(extend));
        self.tell(&lines);
    }

    /// Tells of a guest that is paused, or goes on.
    pub(super) fn state(&self, state: State, halt: Option<&Halt>) {
        match halt {
            Some(halt) => self.tell(&[status(&format!("the guest is paused {halt}"))]),
            // What runs is told by its phase, the first time.
            None if state == State::Running && !self.runs.is_empty() => self.tell(&[status(&self.runs)]),
            None => {}
        }
    }

    /// Tells that what is waited for is there.
    pub(super) fn ready(&mut self) {
        if self.is_up == IsUp::No {
            self.is_up = IsUp::Told;
            self.tell(&["READY=1".to_owned()]);
        }
    }

    /// Tells of a good end. A service that ends without ever having been up has failed for systemd, whatever its status, and is started again
    /// (`SERVICE_FAILURE_PROTOCOL`): so one whose guest has ended before it was ready was up for that moment.
    pub(super) fn ends_well(&mut self) {
        if self.is_up == IsUp::No {
            self.is_up = IsUp::Ending;
            // Alone: of two such words in one datagram systemd takes the last.
            self.tell(&["READY=1".to_owned()]);
        }
    }

    /// Tells something else.
    pub(super) fn says(&self, text: &str) {
        self.tell(&[status(text)]);
    }

    /// A manager that doesn't take it is told in the log, and the run goes on: its own timeouts see to the unit.
    fn tell(&self, lines: &[String]) {
        if let Err(error) = self.socket.send_to_addr(lines.join("\n").as_bytes(), &self.to) {
            tracing::warn!("tell the service manager: {error}");
        }
    }
}

fn status(text: &str) -> String {
    let line: String = text.trim().lines().next().unwrap_or_default().chars().take(STATUS).collect();
    format!("STATUS={line}")
}

/// A timeout that is later already stays (systemd.service(5)).
fn extend(by: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", by.as_micros())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests;
