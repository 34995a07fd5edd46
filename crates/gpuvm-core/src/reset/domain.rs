//! What a bus reset of a device reaches.

use serde::{Deserialize, Serialize};

use crate::facts::{DeviceFacts, Presence};
use crate::pci::{Bdf, Bus};

/// The functions that share a bus reset: all on a device's bus, and all on the buses below (VFIO_DEVICE_PCI_HOT_RESET).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetDomain {
    /// The bus that the device sits on.
    pub bus: Bus,
    /// The buses above, which a reset comes down from; a root bus is none, it can't be reset.
    pub above: Vec<Bus>,
}

impl ResetDomain {
    /// Finds the domain of a device, or `None` where no bus reset reaches it: on a root bus.
    ///
    /// A virtual function has none either: it is reset by FLR alone, and its siblings go to other guests.
    pub fn of(bdf: Bdf, device: &DeviceFacts) -> Option<Self> {
        let (_root_port, below) = device.upstream.split_first()?;
        let above = below.iter().map(|bridge| bridge.bus()).collect();
        (device.virtual_function == Presence::Absent).then(|| Self { bus: bdf.bus(), above })
    }

    /// Returns the bus whose reset would reach both devices, if there is one.
    pub fn shared_with(&self, other: &Self) -> Option<Bus> {
        let reaches = |from: &Self, to: &Self| from.bus == to.bus || to.above.contains(&from.bus);
        [(self, other), (other, self)]
            .into_iter()
            .find(|(from, to)| reaches(from, to))
            .map(|(from, _)| from.bus)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn domain(bus: &str, above: &[&str]) -> ResetDomain {
        let parse = |text: &&str| text.parse().unwrap();
        ResetDomain { bus: parse(&bus), above: above.iter().map(parse).collect() }
    }

    #[rstest]
    #[case::same_bus(domain("0000:81", &[]), domain("0000:81", &[]), Some("0000:81"))]
    #[case::other_bus(domain("0000:81", &[]), domain("0000:82", &[]), None)]
    #[case::other_segment(domain("0000:81", &[]), domain("0001:81", &[]), None)]
    #[case::behind_a_bridge_on_the_bus(domain("0000:81", &[]), domain("0000:82", &["0000:81"]), Some("0000:81"))]
    #[case::two_ports_of_a_switch(
        domain("0000:84", &["0000:82", "0000:83"]),
        domain("0000:85", &["0000:82", "0000:83"]),
        None
    )]
    fn devices_share_a_reset_where_one_bus_reaches_both(
        #[case] a: ResetDomain,
        #[case] b: ResetDomain,
        #[case] shared: Option<&str>,
    ) {
        let shared: Option<Bus> = shared.map(|bus| bus.parse().unwrap());
        assert_eq!(a.shared_with(&b), shared);
        assert_eq!(b.shared_with(&a), shared);
    }
}
