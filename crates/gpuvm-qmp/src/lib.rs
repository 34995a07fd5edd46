//! QMP, QEMU's control protocol, over tokio.
//!
//! The transport is ours, because a monitor must survive what it does not know: an event, an enum value or a field that is newer than any schema never
//! ends a connection and never hides an event. qapi's types serve for commands and as a view of replies; nothing of them is needed to follow a
//! virtual machine's life, which goes by [`Event`] (name and raw data) and the small structures in [`verbs`].
//!
//! ```no_run
//! # async fn example(stream: tokio::net::UnixStream) -> Result<(), gpuvm_qmp::Error> {
//! use std::time::Duration;
//! let (qmp, mut events) = gpuvm_qmp::Qmp::handshake(stream, Duration::from_secs(60)).await?;
//! qmp.cont(Duration::from_secs(10)).await?;
//! while let Some(event) = events.next().await {
//!     if let Some(gpuvm_qmp::Known::Shutdown { reason, .. }) = event.known() {
//!         tracing::info!(?reason, "the guest has shut down");
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod verbs;

mod client;
mod error;
mod event;
mod transport;

#[cfg(test)]
mod tests;

pub use client::{QemuVersion, Qmp};
pub use error::Error;
pub use event::{Ended, Event, Events, Known, Timestamp};
pub use transport::MAX_LINE;
