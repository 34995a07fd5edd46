//! The scenarios that run inside the lab host, and their tools.

pub mod bad_hosts;
mod bind;
pub mod boot_display;
pub mod canary;
mod doctor;
mod doctor_host;
pub mod edu;
mod faults;
pub mod guest;
mod init;
mod installed;
mod kills;
mod life;
mod lock;
mod messages;
pub mod placement;
pub mod recordings;
mod relaunch;
mod repair;
mod reset;
mod reset_policy;
pub mod scenarios;
mod service;
mod shared;
pub mod sick;
pub mod snapshot;
mod soak;
pub mod two_gpus;
pub mod uefi;
pub mod vm;

/// What a scenario comes to: nothing, or what did not hold.
pub type Outcome = Result<(), String>;

/// Fails with a text unless a condition holds.
///
/// # Errors
/// The text.
pub fn ensure(condition: bool, text: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(text()) }
}

/// Puts before an error what was being done.
pub fn doing<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}
