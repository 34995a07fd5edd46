//! What a supervisor answers.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lifecycle::Outcome;

/// An answer, with the number of its request; 0 for a line that was none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The number.
    pub id: u64,
    /// What comes of it.
    #[serde(flatten)]
    pub result: Said,
}

/// What comes of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// It is done; what was wanted.
    Ok(Value),
    /// It is not.
    Error(Refusal),
}

/// Why a request comes to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The kind, for programs.
    pub kind: Why,
    /// For people.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The line was no request.
    BadRequest,
    /// This gpuvm doesn't know the request.
    UnknownRequest,
    /// The line was too long.
    TooLong,
    /// The versions don't fit.
    Version,
    /// The VM is in a state in which this can't be done.
    NotNow,
    /// QEMU refused it.
    Qemu,
    /// QEMU did not answer in time.
    Timeout,
    /// The VM has no such thing, as a display.
    NotThere,
    /// The supervisor failed.
    Failed,
    /// One that a newer gpuvm has.
    #[serde(other)]
    Other,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finale {
    /// What became of the guest; nothing of one that never ran.
    pub outcome: Option<Outcome>,
    /// Why it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What of the host is not as it was, in words.
    pub not_given_back: Vec<String>,
    /// Devices that came back sick or unproven, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// The exit code of a gpuvm that had run it in the foreground.
    pub exit_code: u8,
}

/// A picture that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// The PNG file, which is for whoever asked to remove.
    pub file: PathBuf,
}

/// Why a line is no answer.
#[derive(Debug, thiserror::Error)]
#[error("not an answer: {0}")]
pub struct ParseAnswerError(#[from] serde_json::Error);

impl Finale {
    /// Says how the run ended.
    pub fn words(&self) -> String {
        match (&self.outcome, &self.failure) {
            (Some(outcome), _) => format!("the guest {outcome}"),
            (None, Some(failure)) => format!("the guest never ran: {failure}"),
            (None, None) => "the guest never ran".to_owned(),
        }
    }
}

impl Answer {
    /// Makes one that says it is done.
    pub fn done(id: u64) -> Self {
        Self { id, result: Said::Ok(json!({})) }
    }

    /// Makes one with what was wanted.
    pub fn with(id: u64, what: &impl Serialize) -> Self {
        match serde_json::to_value(what) {
            Ok(value) => Self { id, result: Said::Ok(value) },
            Err(error) => Self::refused(id, Why::Failed, format!("the answer can't be written: {error}")),
        }
    }

    /// Makes one that says why not.
    pub fn refused(id: u64, kind: Why, message: impl Into<String>) -> Self {
        Self { id, result: Said::Error(Refusal { kind, message: message.into() }) }
    }

    /// Reads one from a line.
    ///
    /// # Errors
    /// Returns why it is none.
    pub fn parse(line: &[u8]) -> Result<Self, ParseAnswerError> {
        Ok(serde_json::from_slice(line)?)
    }

    /// Returns what was wanted.
    ///
    /// # Errors
    /// Returns the refusal; one of kind [`Why::Failed`] for an answer of another shape.
    pub fn take<T: DeserializeOwned>(self) -> Result<T, Refusal> {
        match self.result {
            Said::Error(refusal) => Err(refusal),
            Said::Ok(value) => serde_json::from_value(value)
                .map_err(|error| Refusal { kind: Why::Failed, message: format!("an odd answer: {error}") }),
        }
    }
}
