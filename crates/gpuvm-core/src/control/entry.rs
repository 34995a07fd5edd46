//! What happens to a VM, as it is told and kept.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::State;

/// One thing that happened: a line of `events.jsonl`, and of a stream of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number in this run, from 1.
    pub seq: u64,
    /// When, in ms since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: Told,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Told {
    /// The run has come to another state.
    State {
        /// The state.
        state: State,
    },
    /// A step of the run begins.
    Phase {
        /// Its name, for programs.
        phase: String,
        /// It in words.
        text: String,
    },
    /// Something that the user should know.
    Note {
        /// It.
        text: String,
    },
    /// The run is over.
    Ended {
        /// How, in words.
        text: String,
        /// The exit code of a gpuvm that had run it in the foreground.
        exit_code: u8,
    },
    /// What QEMU said unasked.
    Qmp {
        /// QEMU's name for it.
        event: String,
        /// Its data; null when it has none.
        #[serde(default, skip_serializing_if = "Value::is_null")]
        data: Value,
    },
    /// Entries that this reader was too slow for; they are in the file.
    Missed {
        /// How many.
        count: u64,
    },
    /// One that a newer gpuvm has.
    #[serde(other)]
    Other,
}
