//! What a VM's supervisor and those who ask it say to each other, over `/run/gpuvm/vm/NAME/control`.
//!
//! ```text
//! both      {"gpuvm-control":1,"gpuvm":"0.1.0"}                   each says hello first
//! client    {"id":1,"do":"status"}
//! server    {"id":1,"ok":{...}}                                   a Live
//! client    {"id":2,"do":"pause"}
//! server    {"id":2,"error":{"kind":"not-now","message":"..."}}
//! client    {"id":3,"do":"events","last":10,"follow":true}
//! server    {"id":3,"ok":{}} and then one Entry a line, until one side closes
//! client    {"id":4,"do":"console","scrollback":16384}
//! server    {"id":4,"ok":{}} and then the serial port's bytes as they are, both ways
//! ```
//!
//! One JSON document a line, and no line is longer than [`MAX_LINE`]. Unknown fields are read over; a request that nobody knows is answered by an
//! error, and the connection goes on. Answers to several requests may come in any order.

mod answer;
mod entry;
mod lines;
mod live;
mod request;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use answer::{Answer, Finale, ParseAnswerError, Picture, Refusal, Said, Why};
pub use entry::{Entry, Told};
pub use lines::{Lines, TooLong};
pub use live::{Device, Gpuvm, Live, Node, Qemu, State, Timing, Vcpu};
pub use request::{Do, ParseRequestError, Request};

/// The protocol's version. What only adds requests or fields leaves it as it is.
pub const VERSION: u32 = 1;

/// The longest line in bytes, without its end.
pub const MAX_LINE: usize = 1 << 20;

/// What each side says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol's version.
    #[serde(rename = "gpuvm-control")]
    pub version: u32,
    /// The version of the gpuvm that speaks.
    #[serde(default)]
    pub gpuvm: String,
}

impl Hello {
    /// Makes one of this version.
    pub fn of(gpuvm: &str) -> Self {
        Self { version: VERSION, gpuvm: gpuvm.to_owned() }
    }
}

/// Makes the line of a message, with its end. `None` for one that can't be a line, because it is too long.
pub fn line(message: &impl Serialize) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(message).ok()?;
    if line.len() > MAX_LINE {
        return None;
    }
    line.push(b'\n');
    Some(line)
}
