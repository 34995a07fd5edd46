//! The devices, the ports above them, and how they are linked.

mod device_present;

use super::Definition;

pub(super) const CHECKS: &[Definition] = &[device_present::CHECK];
