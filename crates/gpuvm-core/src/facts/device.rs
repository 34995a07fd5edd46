//! What is known about one PCI function.

use serde::{Deserialize, Serialize};

use super::{Holder, Presence};
use crate::config_space::Capabilities;
use crate::host_ops::PowerPolicy;
use crate::pci::{Bdf, ClassCode, DriverName, GroupId, PciId};
use crate::units::ByteSize;

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Vendor and device id, as the kernel cached them.
    pub id: PciId,
    /// The class.
    pub class: ClassCode,
    /// The driver that owns it.
    pub driver: Option<DriverName>,
    /// `driver_override`, if one is set.
    pub driver_override: Option<DriverName>,
    /// Its IOMMU group.
    pub group: Option<GroupId>,
    /// Its node, where the firmware tells.
    pub node: Option<u32>,
    /// Whether the firmware used it as the boot display.
    pub boot_display: Presence,
    /// Whether it is an SR-IOV virtual function.
    pub virtual_function: Presence,
    /// How many virtual functions it has enabled.
    pub virtual_functions: u32,
    /// The reset methods that the kernel lists.
    pub reset_methods: Vec<String>,
    /// Whether there is a file that lists them; it may have been emptied.
    #[serde(default)]
    pub reset_method_file: Presence,
    /// The bridges above it, from the root port down to the nearest.
    pub upstream: Vec<Bdf>,
    /// Whether the kernel can reset everything below the nearest of them (`reset_subordinate`).
    #[serde(default, skip_serializing_if = "Presence::is_absent")]
    pub subordinate_reset: Presence,
    /// What of the host sits on it, and who uses it.
    pub holders: Vec<Holder>,
    /// Its base address registers.
    #[serde(default)]
    pub bars: Vec<BarFacts>,
    /// Vendor and device id of whoever built the card (`subsystem_vendor`, `subsystem_device`).
    #[serde(default)]
    pub subsystem: Option<PciId>,
    /// The revision.
    #[serde(default)]
    pub revision: Option<u8>,
    /// Its link, where it is a PCI Express function that has one.
    #[serde(default)]
    pub link: Option<LinkFacts>,
    /// Its power.
    #[serde(default)]
    pub power: PowerFacts,
    /// What the kernel matches drivers with (`modalias`).
    #[serde(default)]
    pub modalias: Option<String>,
    /// The VFIO drivers that say they fit it (`modules.alias`), in the kernel's order.
    #[serde(default)]
    pub vfio_aliases: Vec<VfioAlias>,
    /// The registers that can be resized (`resourceN_resize`; Linux 5.19).
    #[serde(default)]
    pub resizable: Vec<ResizableBar>,
    /// The function that a virtual function belongs to.
    #[serde(default)]
    pub physical_function: Option<Bdf>,
    /// How many virtual functions it could have (`sriov_totalvfs`).
    #[serde(default)]
    pub virtual_functions_total: u32,
    /// The buses behind a bridge: the nearest, and the last below it (`secondary_bus_number`, `subordinate_bus_number`).
    #[serde(default)]
    pub buses: Option<(u8, u8)>,
    /// What the host calls it: interfaces, block devices, display and sound cards, as `eth0` or `card1`.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// What its config space says; nothing where it wasn't asked for, isn't for this user, or sleeps.
    #[serde(default)]
    pub config: Option<ConfigFacts>,
    /// The errors that its link and it have reported since boot, where the kernel counts them (`aer_dev_*`).
    #[serde(default)]
    pub errors: Option<ErrorCounters>,
}

impl DeviceFacts {
    /// Makes a device of which no more is known than what it is.
    pub fn new(id: PciId, class: ClassCode) -> Self {
        Self {
            id,
            class,
            driver: None,
            driver_override: None,
            group: None,
            node: None,
            boot_display: Presence::Absent,
            virtual_function: Presence::Absent,
            virtual_functions: 0,
            reset_methods: Vec::new(),
            reset_method_file: Presence::Absent,
            upstream: Vec::new(),
            subordinate_reset: Presence::Absent,
            holders: Vec::new(),
            bars: Vec::new(),
            subsystem: None,
            revision: None,
            link: None,
            power: PowerFacts::default(),
            modalias: None,
            vfio_aliases: Vec::new(),
            resizable: Vec::new(),
            physical_function: None,
            virtual_functions_total: 0,
            buses: None,
            nodes: Vec::new(),
            config: None,
            errors: None,
        }
    }
}

/// A VFIO driver's word that it fits a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioAlias {
    /// The pattern of `modalias` that it gives.
    pub pattern: String,
    /// Its module.
    pub module: String,
    /// Its driver, where the module is loaded.
    pub driver: Option<DriverName>,
}

/// A PCI Express link, as both ends have agreed on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkFacts {
    /// Its speed now (`current_link_speed`); GPUs lower it while they idle.
    pub speed: Option<LinkSpeed>,
    /// Its lanes now (`current_link_width`); 0 where the link is down.
    pub width: Option<u8>,
    /// What this end can do (`max_link_speed`).
    pub max_speed: Option<LinkSpeed>,
    /// What this end can do (`max_link_width`).
    pub max_width: Option<u8>,
}

/// The speed of a link, in hundreds of MT/s: 25 is 2.5 GT/s, the first generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkSpeed(pub u16);

impl LinkSpeed {
    /// Reads the kernel's form, `16.0 GT/s PCIe`; `Unknown` is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, _) = text.trim().split_once(" GT/s")?;
        let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
        let (whole, tenth): (u16, u16) = (whole.parse().ok()?, tenth.parse().ok()?);
        (tenth < 10).then(|| whole.checked_mul(10)?.checked_add(tenth)).flatten().map(Self)
    }
}

impl std::fmt::Display for LinkSpeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "{whole} GT/s"),
            (whole, tenth) => write!(f, "{whole}.{tenth} GT/s"),
        }
    }
}

/// A function's power, as the kernel last knew it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PowerFacts {
    /// `power/control` and `d3cold_allowed`.
    pub policy: PowerPolicy,
    /// `power_state`, such as `D0`.
    pub state: Option<String>,
    /// `power/runtime_status`, such as `suspended`.
    pub runtime: Option<String>,
}

/// A base address register that can have other sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizableBar {
    /// Its number.
    pub index: u8,
    /// The sizes that it can have, smallest first.
    pub sizes: Vec<ByteSize>,
}

/// What a function's config space says beyond what sysfs shows, read once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigFacts {
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Whether everything was read: who isn't root gets the header's 64 bytes.
    pub complete: Presence,
    /// The base address registers as they stand, six of a device and none of a bridge: they show what the kernel has given up on.
    #[serde(default)]
    pub registers: Vec<u32>,
    /// Whether the function answers nothing: all that was read is ones. What it can do isn't known then.
    #[serde(default)]
    pub silent: Presence,
}

/// Errors that Advanced Error Reporting has counted (`TOTAL_ERR_*` of `aer_dev_correctable`, `aer_dev_nonfatal`, `aer_dev_fatal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ErrorCounters {
    /// Those that the hardware has repaired.
    pub correctable: u64,
    /// Those that have cost a transaction.
    pub nonfatal: u64,
    /// Those that have cost the link.
    pub fatal: u64,
}

impl ErrorCounters {
    /// Returns what was counted until these later counters; one that is lower than before began anew, and all of it came since.
    pub fn until(&self, later: &Self) -> Self {
        let since = |was: u64, now: u64| now.checked_sub(was).unwrap_or(now);
        Self {
            correctable: since(self.correctable, later.correctable),
            nonfatal: since(self.nonfatal, later.nonfatal),
            fatal: since(self.fatal, later.fatal),
        }
    }
}

/// A base address register, as the kernel has placed it (`resource`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarFacts {
    /// Its number, 0 to 5.
    pub index: u8,
    /// Its size, a power of two.
    pub size: ByteSize,
    /// Where the kernel has placed it; nothing where it found no room.
    #[serde(default)]
    pub address: Option<u64>,
    /// Where it can be placed.
    pub kind: BarKind,
}

/// Where a base address register can be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB: 32-bit registers, and those that aren't prefetchable, since a bridge's window for them is 32 bits
    /// wide (PCI-to-PCI Bridge Architecture Specification, 3.2.5.8).
    Low,
    /// Memory anywhere: 64-bit and prefetchable.
    High,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2.5 GT/s PCIe", Some("2.5 GT/s"))]
    #[case("16.0 GT/s PCIe\n", Some("16 GT/s"))]
    #[case("64.0 GT/s", Some("64 GT/s"))]
    #[case("Unknown", None)]
    #[case("Unknown speed", None)]
    #[case("99999.0 GT/s", None)]
    #[case("2.55 GT/s", None)]
    #[case("", None)]
    fn a_link_speed_is_read_from_the_kernels_words(#[case] text: &str, #[case] shown: Option<&str>) {
        assert_eq!(LinkSpeed::parse(text).map(|speed| speed.to_string()).as_deref(), shown);
    }
}
