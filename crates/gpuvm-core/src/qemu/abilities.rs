//! What a QEMU must be able to do for gpuvm's command lines.

use crate::facts::{Presence, QemuFacts};
use crate::profile::{Display, Media, Network, Profile};

/// The oldest QEMU that has all that gpuvm's command line uses.
pub const OLDEST: (u32, u32) = (7, 2);

/// A type that command lines use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededType {
    /// QEMU's name for it.
    pub name: &'static str,
    /// How it is asked for.
    pub kind: TypeKind,
    /// The properties that are set.
    pub properties: &'static [&'static str],
    /// Who needs it.
    pub needed: Needed,
}

/// By which switch a type is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeKind {
    /// `-device`.
    Device,
    /// `-object`.
    Object,
}

/// Who needs a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// Every guest.
    Always,
    /// A guest that gets devices.
    Devices,
    /// A guest with several nodes.
    Nodes,
    /// A guest with a disk.
    Disks,
    /// A guest with a CD-ROM.
    Cdroms,
    /// A guest with a network.
    Network,
    /// A guest with a screen.
    Display,
}

const fn device(name: &'static str, properties: &'static [&'static str], needed: Needed) -> NeededType {
    NeededType { name, kind: TypeKind::Device, properties, needed }
}

/// The types that gpuvm's command lines use.
pub const TYPES: [NeededType; 12] = [
    device("vfio-pci", &["host", "addr", "multifunction", "romfile", "rombar", "bootindex"], Needed::Devices),
    device("pcie-root-port", &["chassis", "slot", "addr", "multifunction"], Needed::Always),
    device("pxb-pcie", &["bus_nr", "numa_node", "addr"], Needed::Nodes),
    device("pvpanic-pci", &["addr", "multifunction"], Needed::Always),
    device("virtio-rng-pci", &["rng"], Needed::Always),
    device("virtio-blk-pci", &["drive", "bootindex"], Needed::Disks),
    device("ide-cd", &["drive", "bootindex"], Needed::Cdroms),
    device("virtio-net-pci", &["netdev", "romfile"], Needed::Network),
    device("VGA", &["addr"], Needed::Display),
    device("qemu-xhci", &[], Needed::Display),
    device("usb-tablet", &[], Needed::Display),
    NeededType {
        name: "memory-backend-memfd",
        kind: TypeKind::Object,
        properties: &["hugetlb", "hugetlbsize", "host-nodes", "policy", "prealloc", "share", "size"],
        needed: Needed::Always,
    },
];

impl Needed {
    /// Tells whether a profile needs it, on so many nodes.
    pub fn by(self, profile: &Profile, nodes: usize) -> bool {
        let disk = |media: Media| profile.disks.iter().any(|disk| disk.media == media);
        match self {
            Self::Always => true,
            Self::Devices => !profile.devices.is_empty(),
            Self::Nodes => nodes > 1,
            Self::Disks => disk(Media::Disk),
            Self::Cdroms => disk(Media::Cdrom),
            Self::Network => profile.network != Network::None,
            Self::Display => profile.display != Display::None,
        }
    }
}

/// Lists what of a type a QEMU lacks: the type itself, or properties as `TYPE.PROPERTY`.
pub fn lacking(qemu: &QemuFacts, needed: &NeededType) -> Vec<String> {
    let Some(properties) = qemu.types.get(needed.name) else { return vec![needed.name.to_owned()] };
    let lacking = needed.properties.iter().filter(|property| !properties.contains(**property));
    lacking.map(|property| format!("{}.{property}", needed.name)).collect()
}

/// Tells whether a QEMU is as old as gpuvm takes it, or newer.
pub fn is_recent(qemu: &QemuFacts) -> bool {
    (qemu.version.0, qemu.version.1) >= OLDEST
}

/// Tells whether a QEMU was built with KVM.
pub fn has_kvm(qemu: &QemuFacts) -> bool {
    qemu.kvm == Presence::Present
}
