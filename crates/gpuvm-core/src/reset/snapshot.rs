//! What a function says of itself, and the kernel of it, at one moment.

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use super::registers::Registers;
use crate::facts::{BarFacts, ErrorCounters, LinkSpeed, Presence};
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

    /// Returns the speed and the lanes of its link, by its own register; nothing where it has none, or its link is down.
    pub fn link(&self) -> Option<(LinkSpeed, u8)> {
        let registers = Registers::of(&self.config, self.virtual_function == Presence::Present)?;
        let status = registers.link_status()?;
        let speed = match status.speed() {
            1 => 25,
            2 => 50,
            3 => 80,
            4 => 160,
            5 => 320,
            6 => 640,
            _ => return None,
        };
        let width = u8::try_from(status.width()).ok().filter(|width| *width > 0)?;
        Some((LinkSpeed(speed), width))
    }

    /// Returns the errors that were counted since another snapshot. The root port is told of those that the device counts, and counts
    /// its own too: the higher number has them all. A counter that is lower than before began anew, and what it shows came since.
    pub fn errors_since(&self, before: &Self) -> ErrorCounters {
        let since = |was: Option<&ErrorCounters>, now: Option<&ErrorCounters>| {
            let (Some(was), Some(now)) = (was, now) else { return ErrorCounters::default() };
            was.until(now)
        };
        let root =
            |snapshot: &Self| snapshot.port.as_ref().map(|port| (port.root_port, port.root_errors.clone()));
        let device = since(before.errors.read(), self.errors.read());
        let port = match (root(before), root(self)) {
            (Some((was, before)), Some((is, after))) if was == is => since(before.read(), after.read()),
            _ => ErrorCounters::default(),
        };
        ErrorCounters {
            correctable: device.correctable.max(port.correctable),
            nonfatal: device.nonfatal.max(port.nonfatal),
            fatal: device.fatal.max(port.fatal),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// A function with a PCI Express capability whose Link Status register is this.
    fn with_link(status: u16) -> Snapshot {
        let mut config = vec![0; 256];
        config[..4].copy_from_slice(&[0xde, 0x10, 0x30, 0x23]);
        config[6] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x10, 0]);
        config[0x52..0x54].copy_from_slice(&status.to_le_bytes());
        Snapshot::of("81:00.0".parse().unwrap(), "10de:2330".parse().unwrap(), &config)
    }

    #[rstest]
    #[case::fifth_generation(0x0105, Some((320, 16)))]
    #[case::idle(0x1101, Some((25, 16)))]
    #[case::sixth_generation_narrow(0x0016, Some((640, 1)))]
    #[case::down(0x0000, None)]
    #[case::no_lanes(0x0004, None)]
    #[case::unknown_speed(0x0107, None)]
    #[case::dead(0xffff, None)]
    fn a_link_is_read_from_its_register(#[case] status: u16, #[case] expected: Option<(u16, u8)>) {
        let link = expected.map(|(speed, width)| (LinkSpeed(speed), width));
        assert_eq!(with_link(status).link(), link);
        let bare = Snapshot::of("81:00.0".parse().unwrap(), "10de:2330".parse().unwrap(), &[0; 64]);
        assert_eq!(bare.link(), None);
    }

    fn counted(device: Option<u64>, root: Option<u64>) -> Snapshot {
        let counters = |count: Option<u64>| {
            count.map_or(Reading::Absent, |correctable| {
                Reading::Read(ErrorCounters { correctable, ..ErrorCounters::default() })
            })
        };
        let (bdf, config) = ("80:01.0".parse().unwrap(), Reading::Absent);
        let port = PortSnapshot { bdf, config, root_port: bdf, root_errors: counters(root) };
        Snapshot { errors: counters(device), port: Some(port), ..with_link(0) }
    }

    #[rstest]
    #[case::none((Some(3), Some(5)), (Some(3), Some(5)), 0)]
    #[case::told_to_the_root_port((Some(3), Some(5)), (Some(5), Some(7)), 2)]
    #[case::of_the_port_alone((Some(3), Some(5)), (Some(3), Some(9)), 4)]
    #[case::begun_anew((Some(3), Some(5)), (Some(2), Some(5)), 2)]
    #[case::unread((Some(3), None), (None, Some(9)), 0)]
    fn errors_are_what_was_counted_between(
        #[case] before: (Option<u64>, Option<u64>),
        #[case] after: (Option<u64>, Option<u64>),
        #[case] expected: u64,
    ) {
        let (before, after) = (counted(before.0, before.1), counted(after.0, after.1));
        assert_eq!(after.errors_since(&before).correctable, expected);
    }
}
