//! What the functions of a host are for, as whoever looks for something to pass wants them sorted.

use serde::{Deserialize, Serialize};

use crate::config_space::PortType;
use crate::facts::{DeviceFacts, HostFacts, LinkFacts, Presence};
use crate::pci::Bdf;

/// What a function is for. What is wanted most comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A display, 3D or accelerator card, with all of its functions.
    Accelerator,
    /// Ethernet, InfiniBand and their like.
    Network,
    /// Disks and what they hang on.
    Storage,
    /// Anything else that could be passed.
    Other,
    /// A part of the machine itself: host bridges, SMBus, timers, performance counters.
    Chipset,
    /// A bridge or port with a bus behind it.
    Bridge,
}

impl Kind {
    /// Sorts a function in; what shares a card with a display belongs to that.
    pub fn of(bdf: Bdf, device: &DeviceFacts, facts: &HostFacts) -> Self {
        let own = Self::of_class(bdf, device);
        let card = || {
            facts.slot_of(bdf).filter_map(|mate| Some((mate, facts.devices.get(&mate)?))).any(
                |(mate, device)| {
                    device.virtual_function == Presence::Absent
                        && Self::of_class(mate, device) == Self::Accelerator
                },
            )
        };
        match own {
            Self::Network | Self::Storage | Self::Other
                if device.virtual_function == Presence::Absent && card() =>
            {
                Self::Accelerator
            }
            own => own,
        }
    }

    fn of_class(bdf: Bdf, device: &DeviceFacts) -> Self {
        let (base, class) = (device.class.base(), device.class.class());
        match (base, class) {
            _ if device.buses.is_some() => Self::Bridge,
            (_, 0x0604 | 0x0607 | 0x0609) => Self::Bridge,
            // Of a bridge to something that is no PCI, such as an NVSwitch.
            (_, 0x0680) if !bdf.slot().is_chipset() => Self::Other,
            (0x05 | 0x06 | 0x08 | 0x11 | 0x13, _) | (_, 0x0c05 | 0x0780) => Self::Chipset,
            (0x03 | 0x12, _) | (_, 0x0b40) => Self::Accelerator,
            _ if bdf.slot().is_chipset() => Self::Chipset,
            (0x02, _) | (_, 0x0c06) => Self::Network,
            (0x01, _) => Self::Storage,
            _ => Self::Other,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Accelerator => "displays and accelerators",
            Self::Network => "network",
            Self::Storage => "storage",
            Self::Other => "other devices",
            Self::Chipset => "parts of the machine",
            Self::Bridge => "bridges and ports",
        })
    }
}

/// Tells whether the link that a function tells of is the one below it: that of root ports and of a switch's downstream ports. Where
/// the config space wasn't read, the place tells: ports that lead down and ports that lead up take turns.
fn leads_down(device: &DeviceFacts) -> bool {
    let told = device.config.as_ref().and_then(|config| config.capabilities.express);
    match told {
        Some(port) => matches!(port, PortType::RootPort | PortType::DownstreamPort),
        None => device.class.class() == 0x0604 && device.upstream.len().is_multiple_of(2),
    }
}

/// A link as it is, and as both of its ends could have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LinkState {
    /// As this end tells it.
    pub now: LinkFacts,
    /// What both ends can do, where both tell.
    pub most: LinkFacts,
}

impl LinkState {
    /// Puts the two ends of a device's link together; nothing for what has no link, or has it towards what is below it.
    pub fn of(device: &DeviceFacts, facts: &HostFacts) -> Option<Self> {
        let now = device.link.filter(|_| !leads_down(device))?;
        let port = device.upstream.last().and_then(|port| facts.devices.get(port)?.link);
        let least = |own: Option<u64>, other: Option<u64>| own.min(other.or(own));
        let speed = |link: LinkFacts| link.max_speed.map(|speed| u64::from(speed.0));
        let width = |link: LinkFacts| link.max_width.map(u64::from);
        let narrow = |speed: u64| u16::try_from(speed).ok().map(crate::facts::LinkSpeed);
        let max_speed = least(speed(now), port.and_then(speed)).and_then(narrow);
        let max_width = least(width(now), port.and_then(width)).and_then(|width| u8::try_from(width).ok());
        Some(Self { now, most: LinkFacts { max_speed, max_width, ..LinkFacts::default() } })
    }

    /// Tells whether lanes are missing that both ends have; a speed below the most may be to save power.
    pub fn lacks_lanes(&self) -> bool {
        matches!((self.now.width, self.most.max_width), (Some(now), Some(most)) if now < most)
    }

    /// Tells whether it is slower than both ends could have it.
    pub fn is_slower(&self) -> bool {
        matches!((self.now.speed, self.most.max_speed), (Some(now), Some(most)) if now < most)
    }

    /// Spells it short, such as `x16 32 GT/s`, and with what could be had where it is less: `x8/16 2.5/32 GT/s`. Nothing where
    /// nothing is known.
    pub fn label(&self) -> Option<String> {
        let width = self.now.width.map(|now| match self.most.max_width {
            Some(most) if self.lacks_lanes() => format!("x{now}/{most}"),
            _ => format!("x{now}"),
        });
        let speed = self.now.speed.map(|now| match self.most.max_speed {
            Some(most) if self.is_slower() => {
                format!("{}/{most}", now.to_string().trim_end_matches(" GT/s"))
            }
            _ => now.to_string(),
        });
        let parts: Vec<String> = width.into_iter().chain(speed).collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::facts::LinkSpeed;
    use crate::pci::ClassCode;

    fn device(class: u32) -> DeviceFacts {
        DeviceFacts::new("10de:2330".parse().unwrap(), ClassCode::new(class).unwrap())
    }

    #[rstest]
    #[case("41:00.0", 0x03_0200, Kind::Accelerator)]
    #[case("41:00.1", 0x04_0300, Kind::Accelerator)]
    #[case("42:00.0", 0x02_0000, Kind::Network)]
    #[case("42:00.0", 0x02_0700, Kind::Network)]
    #[case("42:00.0", 0x01_0802, Kind::Storage)]
    #[case("42:00.0", 0x12_0000, Kind::Accelerator)]
    #[case("42:00.0", 0x06_0400, Kind::Bridge)]
    #[case("42:00.0", 0x06_0000, Kind::Chipset)]
    #[case("42:00.0", 0x06_8000, Kind::Other)]
    #[case("42:00.0", 0x0c_0330, Kind::Other)]
    #[case("00:1f.2", 0x01_0601, Kind::Chipset)]
    #[case("00:1f.3", 0x04_0300, Kind::Chipset)]
    fn functions_are_sorted_by_class_and_card(#[case] bdf: &str, #[case] class: u32, #[case] kind: Kind) {
        let bdf: Bdf = bdf.parse().unwrap();
        let mut facts = HostFacts::default();
        facts.devices.insert("41:00.0".parse().unwrap(), device(0x03_0200));
        facts.devices.insert(bdf, device(class));
        assert_eq!(Kind::of(bdf, &facts.devices[&bdf], &facts), kind);
    }

    fn link(now: (u16, u8), most: (u16, u8)) -> LinkFacts {
        LinkFacts {
            speed: Some(LinkSpeed(now.0)),
            width: Some(now.1),
            max_speed: Some(LinkSpeed(most.0)),
            max_width: Some(most.1),
        }
    }

    #[rstest]
    #[case::full(link((320, 16), (320, 16)), link((320, 16), (320, 16)), "x16 32 GT/s")]
    #[case::idle(link((25, 16), (320, 16)), link((25, 16), (640, 16)), "x16 2.5/32 GT/s")]
    #[case::narrow(link((160, 8), (160, 16)), link((160, 8), (160, 16)), "x8/16 16 GT/s")]
    #[case::port_has_less(link((80, 4), (160, 16)), link((80, 4), (80, 4)), "x4 8 GT/s")]
    fn a_link_is_held_against_what_both_ends_can_do(
        #[case] own: LinkFacts,
        #[case] port: LinkFacts,
        #[case] label: &str,
    ) {
        let (above, below) = ("40:01.0".parse().unwrap(), "41:00.0".parse().unwrap());
        let mut facts = HostFacts::default();
        facts.devices.insert(above, DeviceFacts { link: Some(port), ..device(0x06_0400) });
        let device = DeviceFacts { link: Some(own), upstream: vec![above], ..device(0x03_0200) };
        facts.devices.insert(below, device);
        let state = LinkState::of(&facts.devices[&below], &facts).unwrap();
        assert_eq!(state.label().as_deref(), Some(label));
    }
}
