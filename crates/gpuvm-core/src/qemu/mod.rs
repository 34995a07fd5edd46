//! QEMU's command line: one struct per switch, fields under QEMU's own names, one renderer that alone knows how to escape.

pub mod abilities;
pub mod arg;
pub mod cmdline;
mod cpu;
mod display;
mod drive;
mod machine;
mod memory;
mod monitor;
mod net;
mod pcie;
mod vfio;

pub use arg::Arg;
pub use cmdline::{Handle, Handles, argv, probe_argv};
pub use monitor::SERIAL;
