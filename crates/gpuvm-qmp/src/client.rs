//! A connection to a monitor: the handshake, and commands with deadlines.

use crate::error::Error;
use crate::event::Events;
use crate::transport::{Answer, End, Lines, Message, Outgoing, Pending, serve};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// A QMP connection that is ready for commands. Clones share it; it closes when the last is dropped, which also ends its [`Events`].
#[derive(Debug, Clone)]
pub struct Qmp {
    lines: mpsc::UnboundedSender<Outgoing>,
    pending: Arc<Pending>,
    version: Arc<QemuVersion>,
}

/// QEMU's version as its greeting tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuVersion {
    /// The 7 of 7.2.22.
    pub major: u32,
    /// The 2 of 7.2.22.
    pub minor: u32,
    /// The 22 of 7.2.22.
    pub micro: u32,
    /// The distributor's words, often empty.
    pub package: String,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)?;
        if self.package.is_empty() { Ok(()) } else { write!(f, " ({})", self.package.trim()) }
    }
}

/// The shape of a version in QEMU's greeting and in the answer to `query-version`.
#[derive(Debug, Deserialize)]
pub(crate) struct WireVersion {
    qemu: Triple,
    #[serde(default)]
    package: String,
}

#[derive(Debug, Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl From<WireVersion> for QemuVersion {
    fn from(wire: WireVersion) -> Self {
        let Triple { major, minor, micro } = wire.qemu;
        Self { major, minor, micro, package: wire.package }
    }
}

/// A command on its way: qapi's shape of the `execute` member, with the id that the answer will carry.
#[derive(Serialize)]
struct Request<'a, A> {
    execute: &'a str,
    arguments: A,
    id: u64,
}

/// The name that errors have for what comes before any command.
const GREETING: &str = "greeting";

impl Qmp {
    /// Takes a connected socket to the point where commands can be sent; must be called within a tokio runtime.
    ///
    /// QEMU accepts a connection long before it greets: the greeting comes once the guest's memory is allocated, so let `within` (for greeting and
    /// negotiation together) grow with it. Events that come before the greeting are kept.
    ///
    /// # Errors
    /// With `greeting` or `qmp_capabilities` as the command: [`Error::Timeout`], [`Error::Closed`], [`Error::Decode`] for a greeting without a
    /// version, [`Error::Command`] when QEMU refuses the negotiation.
    pub async fn handshake(stream: UnixStream, within: Duration) -> Result<(Self, Events), Error> {
        let until = far(within);
        let (reading, writing) = stream.into_split();
        let mut messages = Lines::new(reading);
        let (event_queue, events) = mpsc::unbounded_channel();
        let greeting = loop {
            let Ok(message) = timeout_at(until, messages.message()).await else {
                return Err(Error::Timeout { command: GREETING.to_owned(), after: within });
            };
            match message.map_err(|end| end.error(GREETING))? {
                Message::Greeting(greeting) => break greeting,
                // The receiver is a few lines up.
                Message::Event(event) => drop(event_queue.send(event)),
                Message::Answer(id, _) => tracing::warn!(id, "a QMP answer before the greeting"),
            }
        };
        let version = version_of(&greeting)?;
        let pending = Arc::new(Pending::default());
        let (lines, line_queue) = mpsc::unbounded_channel();
        let table = Arc::clone(&pending);
        tokio::spawn(async move { serve(messages, event_queue, writing, line_queue, &table).await });

        let qmp = Self { lines, pending, version: Arc::new(version) };
        let left = until.saturating_duration_since(Instant::now());
        qmp.execute_value("qmp_capabilities", Value::Null, left).await?;
        Ok((qmp, Events::new(events)))
    }

    /// The version that the greeting told.
    #[must_use]
    pub fn version(&self) -> &QemuVersion {
        &self.version
    }

    /// Runs a command of qapi's and reads the answer as qapi's type.
    ///
    /// Where that type has enums that may grow, a [`Error::Decode`] can come from a newer QEMU: the verbs in this crate read such answers themselves.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn execute<C: qapi::Command>(&self, command: C, within: Duration) -> Result<C::Ok, Error> {
        let answer = self.call(C::NAME, command, None, within).await?;
        decode(C::NAME, &answer)
    }

    /// Runs any command with `args` (an object, or null for none) and gives the answer as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn execute_value(&self, name: &str, args: Value, within: Duration) -> Result<Value, Error> {
        self.execute_as(name, if args.is_null() { json!({}) } else { args }, within).await
    }

    /// Runs any command and reads the answer as `T`; `args` must become a JSON object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn execute_as<T: DeserializeOwned>(
        &self,
        name: &str,
        args: impl Serialize,
        within: Duration,
    ) -> Result<T, Error> {
        let answer = self.call(name, args, None, within).await?;
        decode(name, &answer)
    }

    /// Runs a command that takes a descriptor, which is sent with it; its answer says nothing.
    pub(crate) async fn execute_with_fd<C: qapi::Command>(
        &self,
        command: C,
        fd: OwnedFd,
        within: Duration,
    ) -> Result<(), Error> {
        self.call(C::NAME, command, Some(fd), within).await.map(drop)
    }

    /// Sends a command and waits for its answer.
    async fn call(
        &self,
        name: &str,
        arguments: impl Serialize,
        fd: Option<OwnedFd>,
        within: Duration,
    ) -> Result<Box<RawValue>, Error> {
        let (id, answer) = self.pending.enter().map_err(|end| end.error(name))?;
        // However this ends (also when the caller drops it), the table must not keep the entry.
        let _entry = Entry { pending: &self.pending, id };
        let mut line = serde_json::to_vec(&Request { execute: name, arguments, id })
            .map_err(|source| Error::Encode { command: name.to_owned(), source })?;
        line.push(b'\n');
        if self.lines.send(Outgoing { line, fd }).is_err() {
            return Err(End::Closed.error(name));
        }
        match timeout(within, answer).await {
            Err(_) => Err(Error::Timeout { command: name.to_owned(), after: within }),
            Ok(Err(_)) => Err(End::Closed.error(name)),
            Ok(Ok(Err(end))) => Err(end.error(name)),
            Ok(Ok(Ok(Answer::Error { class, desc }))) => {
                Err(Error::Command { command: name.to_owned(), class, desc })
            }
            Ok(Ok(Ok(Answer::Return(value)))) => Ok(value),
        }
    }
}

/// A command's place in the table, given back when it goes.
struct Entry<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.pending.forget(self.id);
    }
}

fn decode<T: DeserializeOwned>(command: &str, answer: &RawValue) -> Result<T, Error> {
    let raw = answer.get();
    serde_json::from_str(raw).map_err(|source| Error::Decode {
        command: command.to_owned(),
        raw: raw.to_owned(),
        source,
    })
}

fn version_of(greeting: &Value) -> Result<QemuVersion, Error> {
    let version = greeting.get("version").unwrap_or(&Value::Null);
    WireVersion::deserialize(version).map(QemuVersion::from).map_err(|source| Error::Decode {
        command: GREETING.to_owned(),
        raw: greeting.to_string(),
        source,
    })
}

/// The time that lies `within` from now; a year for what the clock can't hold.
fn far(within: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(within).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 3600))
}
