//! The one place for `unsafe`: kernel interfaces behind calls that return [`std::io::Result`] with the errno.
//!
//! There is no policy here: nothing is retried, guessed or logged, and no path is touched that the caller did not give. What a call means for a
//! device or a virtual machine is decided in the crates above.
//!
//! - [`vfio`][]: group and container ioctls, the address ranges of an IOMMU.
//! - [`watched`][]: a sysfs write that may hang, in a child that is watched and never signalled.
//! - [`reset`][]: a device's reset by sysfs or VFIO, in such a child.
//! - [`process`][]: a child in its own session, with inherited descriptors and a pidfd.
//! - [`signals`][]: letting SIGINT and its like wait.
//! - [`socket`][]: listening unix sockets that a child takes over.
//! - [`terminal`][]: a terminal that hands keys through as they are typed.
//! - [`sched`][]: CPU affinity without a limit of 1024 CPUs.
//! - [`limits`][]: `RLIMIT_MEMLOCK`.
//! - [`memory`][]: giving back what a quiet process has no use for.
//! - [`mmio`][]: checked volatile access to a mapped BAR.
//! - [`errno`][]: names of error numbers.
//!
//! Kernel 5.9 is the oldest that has all of it (`close_range`; `pidfd_open` is of 5.3).

// The reason for this crate: ioctls, fork and raw descriptors can't be had without it. Each block holds one operation and says why it is sound.
#![allow(unsafe_code)]
#![deny(clippy::multiple_unsafe_ops_per_block)]

pub mod access;
pub mod errno;
pub mod limits;
pub mod memory;
pub mod mmio;
pub mod process;
pub mod reset;
pub mod sched;
pub mod signals;
pub mod socket;
pub mod terminal;
pub mod vfio;
pub mod watched;

mod poll;
