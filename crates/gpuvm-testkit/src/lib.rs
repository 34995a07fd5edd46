//! Stand-ins for what a test machine lacks. For tests only: no crate of the product depends on this one.

pub mod fake_host;
pub mod fake_qemu;
pub mod hosts;
pub mod recorded;
pub mod soak;
