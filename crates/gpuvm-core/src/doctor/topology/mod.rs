//! The devices, the ports above them, and how they are linked.

mod bar_addresses;
mod device_present;
mod error_counters;
mod known_quirks;
mod link;
mod pci_bridge;
mod power;
mod reset_domain;
mod reset_methods;
mod resizable_bar;

use super::Definition;

pub(super) const CHECKS: &[Definition] = &[
    device_present::CHECK,
    bar_addresses::CHECK,
    resizable_bar::CHECK,
    link::CHECK,
    power::CHECK,
    reset_methods::CHECK,
    reset_domain::CHECK,
    known_quirks::CHECK,
    pci_bridge::CHECK,
    error_counters::CHECK,
];
