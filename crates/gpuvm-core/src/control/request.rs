//! What a supervisor can be asked.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A request: a number that its answer carries, and what is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The number.
    pub id: u64,
    /// What is wanted.
    #[serde(flatten)]
    pub what: Do,
}

/// What can be wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Do {
    /// The VM as it is: answered by a [`Live`](super::Live).
    Status,
    /// The guest's end; answered by `{}` as soon as it is under way. [`Do::Wait`] tells when it is over.
    Stop {
        /// How long ACPI, `quit` and SIGKILL may take together, in ms; nothing for the profile's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
        /// Whether the guest isn't asked, but QEMU told to quit.
        #[serde(default)]
        force: bool,
    },
    /// The end of the run, device and host included: answered by a [`Finale`](super::Finale) when it has come.
    Wait,
    /// That the vCPUs stop: answered by `{}`.
    Pause,
    /// That they run again: answered by `{}`.
    Resume,
    /// That the machine is reset, as by its reset button: answered by `{}`.
    Reset,
    /// What has happened: answered by `{}`, and then by one [`Entry`](super::Entry) a line. Nothing else is taken on this connection.
    Events {
        /// How many of those before are told first.
        #[serde(default)]
        last: u32,
        /// Whether those to come are told too; otherwise the connection is closed after the last.
        #[serde(default)]
        follow: bool,
    },
    /// The serial port: answered by `{}`, and then it is the connection, both ways. Nothing else is taken on it.
    Console {
        /// How many bytes of what it has said before are sent first.
        #[serde(default)]
        scrollback: u64,
    },
    /// A QMP command: answered by what QEMU returns.
    Qmp {
        /// Its name.
        execute: String,
        /// Its arguments, an object.
        #[serde(default, skip_serializing_if = "Value::is_null")]
        arguments: Value,
    },
    /// A picture of the guest's display: answered by a [`Picture`](super::Picture).
    Screenshot,
}

/// Why a line is no request that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRequestError {
    /// It is no JSON object with a number.
    #[error("not a request: {0}")]
    NotOne(String),
    /// Its `do` is none that this gpuvm knows.
    #[error("this gpuvm does not know the request `{what}`")]
    Unknown {
        /// The request's number, for the answer.
        id: u64,
        /// What it wants.
        what: String,
    },
    /// Its fields make no sense.
    #[error("the request `{what}` makes no sense: {why}")]
    Fields {
        /// The request's number, for the answer.
        id: u64,
        /// What it wants.
        what: String,
        /// Why.
        why: String,
    },
}

impl ParseRequestError {
    /// Returns the number of the request; 0 where it has none.
    pub fn id(&self) -> u64 {
        match self {
            Self::NotOne(_) => 0,
            Self::Unknown { id, .. } | Self::Fields { id, .. } => *id,
        }
    }
}

impl Request {
    /// Reads one from a line.
    ///
    /// # Errors
    /// Returns why it is none, with its number where it has one.
    pub fn parse(line: &[u8]) -> Result<Self, ParseRequestError> {
        #[derive(Deserialize)]
        struct Head {
            id: u64,
            #[serde(rename = "do")]
            what: String,
        }
        let not_one = |error: serde_json::Error| ParseRequestError::NotOne(error.to_string());
        let value: Value = serde_json::from_slice(line).map_err(not_one)?;
        let Head { id, what } = Head::deserialize(&value).map_err(not_one)?;
        if !Do::NAMES.contains(&what.as_str()) {
            return Err(ParseRequestError::Unknown { id, what });
        }
        let wanted = Do::deserialize(value);
        let wanted =
            wanted.map_err(|error| ParseRequestError::Fields { id, what, why: error.to_string() })?;
        Ok(Self { id, what: wanted })
    }
}

impl Do {
    /// What requests are called.
    const NAMES: [&'static str; 10] =
        ["status", "stop", "wait", "pause", "resume", "reset", "events", "console", "qmp", "screenshot"];

    /// Makes a request for the guest's end.
    pub fn stop(timeout: Option<Duration>, force: bool) -> Self {
        let ms = |timeout: Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        Self::Stop { timeout_ms: timeout.map(ms), force }
    }
}
