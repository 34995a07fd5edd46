//! What gpuvm decides, and nothing else: the same input gives the same output.
//!
//! No file system, no process, no network, no clock. Facts about the host come in as [`facts::HostFacts`]; what is to
//! be done goes out as values: a [`plan::Plan`], [`host_ops`], an argv.

#![forbid(unsafe_code)]

pub mod config_space;
pub mod control;
pub mod cpulist;
pub mod date;
pub mod doctor;
pub mod facts;
pub mod firmware;
pub mod host_ops;
pub mod init;
pub mod inventory;
pub mod lifecycle;
pub mod lock;
pub mod modprobe;
pub mod names;
pub mod pci;
pub mod plan;
pub mod profile;
pub mod qemu;
pub mod redact;
pub mod reset;
pub mod select;
pub mod soak;
pub mod standing;
pub mod topology;
pub mod trouble;
pub mod units;
