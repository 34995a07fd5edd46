//! What a function says of itself, and the kernel of it, at one moment.

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use crate::facts::{BarFacts, ErrorCounters, Presence};
use crate::host_ops::PowerPolicy;
use crate::pci::{Bdf, DriverName, PciId};

/// What came of reading one thing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading<T> {
    /// It was read.
    Read(T),
    /// This function, or this kernel, has no such thing.
    #[default]
    Absent,
    /// It is there and couldn't be read, for this reason: what rests on it isn't known.
    Unread(String),
}

impl<T> Reading<T> {
    /// Returns what was read.
    pub fn read(&self) -> Option<&T> {
        match self {
            Self::Read(value) => Some(value),
            Self::Absent | Self::Unread(_) => None,
        }
    }
}

/// A function at one moment: what its registers say, and what the kernel believes.
///
/// The registers come from the binary `config` file: `vendor`, `device` and `resource` are cached by the kernel and keep their
/// good-looking values on a dead card. That is what they are here for: the registers are held against them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The function.
    pub bdf: Bdf,
    /// Vendor and device id as the kernel has cached them (`vendor`, `device`).
    pub id: Reading<PciId>,
    /// Whether it is a virtual function, whose ids and base address registers read otherwise.
    #[serde(default)]
    pub virtual_function: Presence,
    /// The driver that owned it then.
    #[serde(default)]
    pub driver: Option<DriverName>,
    /// Its config space: 4096 bytes of a PCI Express function, 256 of a conventional one, 64 for whoever isn't root.
    pub config: Reading<ConfigSpace>,
    /// Where the kernel has placed its registers (`resource`).
    #[serde(default)]
    pub bars: Reading<Vec<BarFacts>>,
    /// The kernel's word for its power (`power_state`), such as `D0`.
    #[serde(default)]
    pub power_state: Reading<String>,
    /// `power/control` and `d3cold_allowed`.
    #[serde(default)]
    pub power: Reading<PowerPolicy>,
    /// The errors that the kernel has counted of it (`aer_dev_*`).
    #[serde(default)]
    pub errors: Reading<ErrorCounters>,
    /// The reset methods that the kernel lists (`reset_method`).
    #[serde(default)]
    pub reset_methods: Reading<Vec<String>>,
    /// The other end of its link; nothing for a function on a root bus.
    #[serde(default)]
    pub port: Option<PortSnapshot>,
}

/// The bridge right above a function at one moment, and the root port that both hang on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSnapshot {
    /// The bridge.
    pub bdf: Bdf,
    /// Its config space.
    pub config: Reading<ConfigSpace>,
    /// The root port: the bridge itself, unless there is a switch between.
    pub root_port: Bdf,
    /// The errors that the root port has been told of (`aer_rootport_total_err_*`), of everything below it.
    #[serde(default)]
    pub root_errors: Reading<ErrorCounters>,
}

/// What the kernel has said of a function since the first snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heard {
    /// These lines of its log, oldest first, those of other devices left out.
    Said(Vec<String>),
    /// These lines, and others are lost.
    Partly {
        /// The lines, oldest first.
        lines: Vec<String>,
        /// Which aren't there, and why.
        lost: String,
    },
    /// Its log couldn't be read, for this reason.
    Deaf(String),
}

impl Heard {
    /// Returns the lines that were heard.
    pub fn lines(&self) -> &[String] {
        match self {
            Self::Said(lines) | Self::Partly { lines, .. } => lines,
            Self::Deaf(_) => &[],
        }
    }
}

impl Snapshot {
    /// Makes a snapshot of which no more is known than the config space.
    pub fn of(bdf: Bdf, id: PciId, config: &[u8]) -> Self {
        Self {
            bdf,
            id: Reading::Read(id),
            virtual_function: Presence::Absent,
            driver: None,
            config: Reading::Read(ConfigSpace::new(config)),
            bars: Reading::Absent,
            power_state: Reading::Absent,
            power: Reading::Absent,
            errors: Reading::Absent,
            reset_methods: Reading::Absent,
            port: None,
        }
    }
}
