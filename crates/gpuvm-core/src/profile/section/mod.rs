//! The tables of a profile, one file each: what it means, which keys it has, how they are read, and which rules bind them.

pub(super) mod cpu;
pub(super) mod device;
pub(super) mod disk;
pub(super) mod display;
pub(super) mod kernel;
pub(super) mod memory;
pub(super) mod network;
pub(super) mod ready;
pub(super) mod select;
