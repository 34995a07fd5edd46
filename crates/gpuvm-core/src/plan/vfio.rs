//! Which of the kernel's two VFIO interfaces is used.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Refusal;
use super::obstacle::Obstacles;
use crate::facts::{Access, HostFacts, Presence};
use crate::pci::DriverName;
use crate::profile::Profile;

/// How the kernel's VFIO is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VfioBackend {
    /// `/dev/vfio/GROUP` in a type 1 container: every kernel, peer-to-peer DMA included.
    Group,
    /// `/dev/iommu` and `/dev/vfio/devices/vfioN`.
    Iommufd,
}

/// Tells whether a driver is vfio-pci or one of its variants, which are named after it (drivers/vfio/pci/*).
pub fn is_vfio_driver(driver: &DriverName) -> bool {
    let name = driver.as_str().replace('_', "-");
    name == "vfio-pci" || name.ends_with("-vfio-pci")
}

/// Chooses the backend from what the host has.
///
/// The group API wherever it is there: iommufd has no peer-to-peer DMA between devices yet (QEMU
/// docs/devel/vfio-iommufd.rst).
pub(super) fn choose(profile: &Profile, facts: &HostFacts, obstacles: &mut Obstacles) -> VfioBackend {
    if !profile.devices.is_empty() {
        check(facts, obstacles);
    }
    VfioBackend::Group
}

/// Checks that the kernel's VFIO is there for this user.
pub(super) fn check(facts: &HostFacts, obstacles: &mut Obstacles) {
    match (facts.vfio.container, facts.vfio.iommufd) {
        (Access::Usable, _) => {}
        (Access::Denied, _) => obstacles.refuse(Refusal::Denied { path: PathBuf::from("/dev/vfio/vfio") }),
        (Access::Missing, Access::Missing) => obstacles.refuse(Refusal::NoVfio),
        (Access::Missing, _) => obstacles.refuse(Refusal::IommufdOnly),
    }
    if facts.vfio.pci_driver == Presence::Absent {
        obstacles.refuse(Refusal::NoVfioDriver);
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("vfio-pci", true)]
    #[case("nvgrace-gpu-vfio-pci", true)]
    #[case("mlx5_vfio_pci", true)]
    #[case("pci-stub", false)]
    #[case("nvidia", false)]
    fn vfio_drivers_are_known_by_name(#[case] name: &str, #[case] expected: bool) {
        assert_eq!(is_vfio_driver(&DriverName::new(name).unwrap()), expected);
    }
}
