//! What gpuvm costs: the time from `up` to the running guest over that of a bare QEMU, the time of a plan, its size, and what a supervisor takes
//! while its guest runs.

pub mod figures;
pub mod look_time;
pub mod overhead;
pub mod plan_time;
pub mod soak_cost;
pub mod soak_trace;
pub mod supervisor;

/// A failure in words.
pub type Result<T> = std::result::Result<T, String>;

/// Puts before an error what was being done.
pub fn doing<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}
