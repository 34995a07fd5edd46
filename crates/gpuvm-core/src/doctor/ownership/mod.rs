//! Who has which device, now and after the next boot.

mod boot_display;
mod driver;
mod firmware_framebuffer;
mod holders;
mod id_rules;
mod initramfs_rules;
mod passable;
mod quarantine;
mod vfio_modules;

use super::Definition;

pub(super) const CHECKS: &[Definition] = &[
    driver::CHECK,
    holders::CHECK,
    boot_display::CHECK,
    passable::CHECK,
    quarantine::CHECK,
    firmware_framebuffer::CHECK,
    vfio_modules::CHECK,
    id_rules::CHECK,
    initramfs_rules::CHECK,
];
