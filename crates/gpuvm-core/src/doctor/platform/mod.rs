//! KVM, QEMU, the guest's firmware, and who may use the kernel's VFIO.

mod guest_addresses;
mod guest_firmware;
mod kvm;
mod node_access;
mod qemu_abilities;
mod qemu_img;
mod qemu_version;

use super::Definition;
use crate::facts::DeviceNode;

pub(super) const CHECKS: &[Definition] = &[
    kvm::CHECK,
    qemu_version::CHECK,
    qemu_abilities::CHECK,
    qemu_img::CHECK,
    guest_firmware::CHECK,
    guest_addresses::CHECK,
    node_access::CHECK,
];

/// Says who may use a node.
fn who(node: &DeviceNode) -> String {
    format!("mode {:04o}, owner {}, group {}", node.mode, node.owner, node.group)
}

/// Names the group whose members may read and write a node, where that is a group made for it.
fn group_of(node: &DeviceNode) -> Option<&str> {
    (node.mode & 0o060 == 0o060 && node.group != "root").then_some(node.group.as_str())
}
