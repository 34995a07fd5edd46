//! End-to-end tests of gpuvm: what they share.
//!
//! Tier 2 runs on the machine itself with a real QEMU, tier 3 in the lab (`scripts/lab`). The scenarios of tier 3 are a
//! program, `lab-scenarios`, that runs inside the lab host and asks its kernel; the tests boot the host and read what the
//! program says.

pub mod bench;
pub mod lab;
pub mod record;
