//! What can go wrong between us and a monitor.

use std::io;
use std::time::Duration;

/// Why a command (or the greeting) brought no answer that can be used; `command` is its QMP name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing the socket failed with something else than its end; the connection is over.
    #[error("QMP {command}: {source}")]
    Io {
        /// The command.
        command: String,
        /// Carries the errno.
        source: io::Error,
    },
    /// QEMU closed the connection (or it was reset) before it answered, or earlier.
    #[error("QMP {command}: QEMU closed the connection")]
    Closed {
        /// The command.
        command: String,
    },
    /// No answer came in time. The connection goes on; an answer that comes later is dropped.
    #[error("QMP {command}: no answer within {after:?}")]
    Timeout {
        /// The command.
        command: String,
        /// The time that was given.
        after: Duration,
    },
    /// QEMU answered with an error.
    #[error("QMP {command}: {desc} ({class})")]
    Command {
        /// The command.
        command: String,
        /// QEMU's error class: `GenericError`, `CommandNotFound`, `DeviceNotFound`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// QEMU's answer has not the shape that was expected; the connection goes on.
    #[error("QMP {command}: unexpected answer {}: {source}", shortened(raw))]
    Decode {
        /// The command.
        command: String,
        /// The answer as it came.
        raw: String,
        /// What did not fit.
        source: serde_json::Error,
    },
    /// The command can't be written as JSON.
    #[error("QMP {command}: can't be sent: {source}")]
    Encode {
        /// The command.
        command: String,
        /// What did not fit.
        source: serde_json::Error,
    },
    /// A line was longer than [`MAX_LINE`](crate::MAX_LINE); the connection is over.
    #[error("QMP {command}: a line of more than {limit} bytes came from QEMU")]
    TooLong {
        /// The command.
        command: String,
        /// The limit in bytes.
        limit: usize,
    },
}

impl Error {
    /// The QMP name of the command that failed, or `greeting`.
    #[must_use]
    pub fn command(&self) -> &str {
        match self {
            Self::Io { command, .. }
            | Self::Closed { command }
            | Self::Timeout { command, .. }
            | Self::Command { command, .. }
            | Self::Decode { command, .. }
            | Self::Encode { command, .. }
            | Self::TooLong { command, .. } => command,
        }
    }

    /// Whether the connection is over, so that no further command can succeed.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Closed { .. } | Self::TooLong { .. })
    }
}

/// The first part of a text that may be hundreds of kilobytes.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 300;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}
