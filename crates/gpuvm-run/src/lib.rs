//! Starts QEMU and drives a guest's life, in one task.
//!
//! [`up`] is the whole way: reserve, change the host, start QEMU paused, pin, run, judge the devices, give the host back.
//! There is one teardown, taken whatever went before.

pub mod attach;
mod cleanup;
pub mod client;
mod console;
pub mod control;
pub mod detach;
mod driver;
mod error;
mod judging;
mod launch;
mod log;
mod longest;
mod phase;
mod pin;
mod probe;
mod repairing;
mod report;
mod signals;
pub mod soak;
mod stopped;
mod up;

pub use cleanup::{Cleaned, CleanupReport, cleanup, end_unsupervised};
pub use console::Sink;
pub use control::{Control, Launched};
pub use error::{Cause, LaunchError, UpError};
pub use launch::{UEFI_VARS, VNC_SOCKET};
pub use longest::Longest;
pub use probe::probe;
pub use report::{DeviceReport, Evidence, LastWords, Note, Observer, Phase, Report, ResetReport, Timing};
pub use signals::Signals;
pub use up::{Run, adopt, up, up_served};
