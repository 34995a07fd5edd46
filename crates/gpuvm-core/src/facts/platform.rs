//! The machine, its firmware, its distribution, and what of the running system matters to guests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Access, Presence};
use crate::cpulist::CpuSet;
use crate::doctor::Distribution;
use crate::pci::GroupId;
use crate::units::ByteSize;

/// The machine, its firmware, its distribution, and what of the running system matters to guests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlatformFacts {
    /// Whose commands a remedy names (os-release(5)).
    #[serde(default)]
    pub distribution: Distribution,
    /// What the firmware says of the machine and of itself.
    #[serde(default)]
    pub system: SystemFacts,
    /// The tables by which the firmware describes itself (`/sys/firmware/acpi/tables`); nothing where the kernel shows none.
    #[serde(default)]
    pub acpi_tables: Option<BTreeSet<String>>,
    /// What the IOMMU units say of themselves, by the name that they have in `/sys/class/iommu`.
    #[serde(default)]
    pub iommu_units: BTreeMap<String, IommuUnit>,
    /// Whether the kernel shows any IOMMU group.
    #[serde(default)]
    pub iommu_groups: Presence,
    /// Who handles interrupts (`/proc/interrupts`), as far as the first lines tell; nothing where it can't be read.
    #[serde(default)]
    pub interrupt_chips: Option<BTreeSet<String>>,
    /// What the kernel's VFIO was told.
    #[serde(default)]
    pub vfio: VfioParameters,
    /// Whether the CPUs have VT-x or AMD-V (`vmx`, `svm` in /proc/cpuinfo); nothing where it isn't told.
    #[serde(default)]
    pub virtualization: Option<Presence>,
    /// The device nodes that a launcher opens, and those of the groups in scope.
    #[serde(default)]
    pub nodes: BTreeMap<PathBuf, DeviceNode>,
    /// The nodes of the groups in scope, `/dev/vfio/N`.
    #[serde(default)]
    pub group_nodes: BTreeMap<GroupId, DeviceNode>,
    /// Whoever asks: what this process may do (`/proc/self`).
    #[serde(default)]
    pub user: Option<UserFacts>,
    /// What memory is swapped to (`/proc/swaps`).
    #[serde(default)]
    pub swaps: Vec<String>,
    /// When the kernel makes large pages by itself (`/sys/kernel/mm/transparent_hugepage/enabled`), the chosen word.
    #[serde(default)]
    pub thp: Option<String>,
    /// Whether irqbalance runs.
    #[serde(default)]
    pub irqbalance: Presence,
    /// CPUs that are there and can't be scheduled on.
    #[serde(default)]
    pub offline_cpus: CpuSet,
    /// CPUs that only whoever asks for them runs on (`isolcpus`).
    #[serde(default)]
    pub isolated_cpus: CpuSet,
    /// Whether cores have threads (`/sys/devices/system/cpu/smt/control`), such as `on` and `off`.
    #[serde(default)]
    pub smt: Option<String>,
}

/// What the kernel's names of interrupt chips begin with where an IOMMU remaps (arch/x86/kernel/apic/msi.c, io_apic.c).
const REMAPPED: &str = "IR-";

impl PlatformFacts {
    /// Tells whether the IOMMU remaps interrupts; nothing where nothing tells who handles them.
    pub fn remaps_interrupts(&self) -> Option<bool> {
        let chips = self.interrupt_chips.as_ref().filter(|chips| !chips.is_empty())?;
        Some(chips.iter().any(|chip| chip.starts_with(REMAPPED)))
    }
}

/// What the firmware says of the machine and of itself (SMBIOS, by `/sys/class/dmi/id`); nothing where it doesn't say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemFacts {
    /// Who built the machine (`sys_vendor`).
    pub vendor: Option<String>,
    /// Its name (`product_name`).
    pub product: Option<String>,
    /// Its board (`board_name`).
    pub board: Option<String>,
    /// Who wrote the firmware (`bios_vendor`).
    pub bios_vendor: Option<String>,
    /// The firmware's version (`bios_version`).
    pub bios_version: Option<String>,
    /// The firmware's date, as it writes it (`bios_date`).
    pub bios_date: Option<String>,
}

/// What an IOMMU unit says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum IommuUnit {
    /// Intel VT-d: its capability registers (VT-d specification 11.4.2 and 11.4.3).
    Intel {
        /// `intel-iommu/cap`.
        cap: u64,
        /// `intel-iommu/ecap`.
        ecap: u64,
    },
    /// AMD-Vi: its extended features (AMD IOMMU specification 3.4.9).
    Amd {
        /// `amd-iommu/features`.
        features: u64,
    },
}

impl IommuUnit {
    /// Returns how many bits the addresses have that it translates.
    pub fn address_bits(self) -> Option<u8> {
        match self {
            Self::Intel { cap, .. } => {
                let guest = u8::try_from((cap >> 16 & 0x3f) + 1).ok()?;
                // Tables of three, four and five levels.
                let tables = [(1, 39), (2, 48), (3, 57)];
                let widest = tables.iter().rev().find(|(bit, _)| cap >> (8 + bit) & 1 == 1);
                widest.map(|(_, bits)| guest.min(*bits))
            }
            Self::Amd { features } => match features >> 10 & 3 {
                0 => Some(48),
                1 => Some(57),
                2 => Some(64),
                _ => None,
            },
        }
    }

    /// Tells whether it could remap interrupts; AMD's all can.
    pub fn can_remap_interrupts(self) -> bool {
        match self {
            Self::Intel { ecap, .. } => ecap >> 3 & 1 == 1,
            Self::Amd { .. } => true,
        }
    }
}

/// What the kernel's VFIO was told, by the parameters of its modules; nothing for a module that isn't loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfioParameters {
    /// `allow_unsafe_interrupts` of `vfio_iommu_type1`.
    pub unsafe_interrupts: Option<bool>,
    /// `dma_entry_limit` of `vfio_iommu_type1`: how many ranges a container maps.
    pub dma_entry_limit: Option<u64>,
    /// `disable_idle_d3` of `vfio_pci`: whether idle devices stay awake.
    #[serde(default)]
    pub disable_idle_d3: Option<bool>,
}

/// A device node, and who may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Whether this user may.
    pub access: Access,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner: a name, or a number that has none.
    pub owner: String,
    /// Its group: a name, or a number that has none.
    pub group: String,
}

/// What this process may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserFacts {
    /// The effective user's number.
    pub uid: u32,
    /// Its name, or its number.
    pub name: String,
    /// Whether it may lock memory without limit (CAP_IPC_LOCK).
    pub ipc_lock: Presence,
    /// How much memory it may lock (RLIMIT_MEMLOCK, the soft limit); nothing for no limit.
    pub memlock: Option<ByteSize>,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The registers are those of emulated and real units: QEMU's with 39 and 48 bits, and a Xeon's.
    #[rstest]
    #[case::qemu_39(0x00d2_008c_2226_0206, 39)]
    #[case::qemu_48(0x00d2_008c_222f_0606, 48)]
    #[case::xeon(0x08d2_078c_106f_0466, 48)]
    #[case::tables_are_narrower(0x003f_0200, 39)]
    fn the_width_of_vt_d_is_the_lesser_of_its_addresses_and_its_tables(#[case] cap: u64, #[case] bits: u8) {
        assert_eq!(IommuUnit::Intel { cap, ecap: 0 }.address_bits(), Some(bits));
    }

    #[rstest]
    #[case(0, Some(48))]
    #[case(2 << 10, Some(64))]
    #[case(3 << 10, None)]
    fn the_width_of_amd_vi_is_that_of_its_tables(#[case] features: u64, #[case] bits: Option<u8>) {
        assert_eq!(IommuUnit::Amd { features }.address_bits(), bits);
    }
}
