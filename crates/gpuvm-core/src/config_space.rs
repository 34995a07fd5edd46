//! A function's config space: its capabilities, as far as gpuvm needs them.
//!
//! Parsed from the bytes of sysfs' `config`, which may come from a device that lies: a list that runs in a circle, a pointer
//! into nowhere, all ones.

use serde::{Deserialize, Serialize};

/// Where the capability list begins (PCI Local Bus Specification 3.0, 6.7).
const POINTER: usize = 0x34;
/// The status register, and its bit that says that there is a list.
const STATUS: usize = 0x06;
const STATUS_LIST: u16 = 0x10;
/// Where the extended capabilities begin (PCI Express Base Specification 7.6).
const EXTENDED: usize = 0x100;

const CAP_PM: u8 = 0x01;
const CAP_EXPRESS: u8 = 0x10;
const CAP_AF: u8 = 0x13;
const EXT_AER: u16 = 0x0001;
const EXT_SERIAL: u16 = 0x0003;
const EXT_ACS: u16 = 0x000d;
const EXT_REBAR: u16 = 0x0015;

/// What a function can do, by its capability lists.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// What it is in PCI Express; nothing for a conventional PCI function.
    pub express: Option<PortType>,
    /// Whether it says that it has a function level reset (Device Capabilities, bit 28).
    pub flr: bool,
    /// Whether it says so in the capability for conventional functions (Advanced Features).
    pub af_flr: bool,
    /// Whether it keeps its state over D3hot (PMCSR bit 3, No_Soft_Reset): no reset by power management then. Nothing where it
    /// has no power management.
    pub no_soft_reset: Option<bool>,
    /// Its power state now by PMCSR: 0 for D0, 3 for D3hot.
    pub power_state: Option<u8>,
    /// Access Control Services.
    pub acs: Option<Acs>,
    /// The Device Serial Number, which most GPUs don't have.
    pub serial: Option<u64>,
    /// Whether it reports errors (Advanced Error Reporting).
    pub aer: bool,
    /// Whether registers can be resized.
    pub resizable_bar: bool,
}

/// What a function is in PCI Express (PCI Express Base Specification 7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortType {
    /// An endpoint.
    Endpoint,
    /// An endpoint of the old kind.
    LegacyEndpoint,
    /// A root port.
    RootPort,
    /// A switch's port towards the root.
    UpstreamPort,
    /// A switch's port towards the devices.
    DownstreamPort,
    /// A bridge from PCI Express to PCI: everything behind it shares its requester id.
    PcieToPci,
    /// A bridge from PCI to PCI Express.
    PciToPcie,
    /// An endpoint inside the root complex, without a link.
    RootComplexEndpoint,
    /// An event collector of the root complex.
    EventCollector,
}

impl PortType {
    fn new(code: u16) -> Option<Self> {
        Some(match code {
            0x0 => Self::Endpoint,
            0x1 => Self::LegacyEndpoint,
            0x4 => Self::RootPort,
            0x5 => Self::UpstreamPort,
            0x6 => Self::DownstreamPort,
            0x7 => Self::PcieToPci,
            0x8 => Self::PciToPcie,
            0x9 => Self::RootComplexEndpoint,
            0xa => Self::EventCollector,
            _ => return None,
        })
    }
}

/// Access Control Services: whether a port sends what its devices say to each other up to the IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acs {
    /// What it can do (ACS Capability register).
    pub capability: u16,
    /// What is switched on (ACS Control register).
    pub control: u16,
}

impl Acs {
    /// Source Validation, P2P Request Redirect, P2P Completion Redirect, Upstream Forwarding: what the kernel asks of a port
    /// before it gives what is behind it a group of its own (drivers/iommu/iommu.c, REQ_ACS_FLAGS).
    pub const REQUIRED: u16 = 0x1 | 0x4 | 0x8 | 0x10;

    /// Tells whether the port keeps its devices apart: each of the four that it can do is on. What can't be switched isn't asked
    /// for (pci_acs_flags_enabled of drivers/pci/pci.c).
    pub fn isolates(self) -> bool {
        let needed = Self::REQUIRED & self.capability;
        self.control & needed == needed
    }
}

/// The capability lists of a function: each entry's id, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lists {
    /// The list of the first 256 bytes.
    pub standard: Vec<(u8, usize)>,
    /// The list behind them, of PCI Express.
    pub extended: Vec<(u16, usize)>,
}

impl Lists {
    /// Reads the lists. Whatever the bytes say, this ends: each place is looked at once.
    pub fn parse(config: &[u8]) -> Self {
        let mut found = Self::default();
        let mut seen = [false; 256];
        let has_list = word(config, STATUS).is_some_and(|status| status & STATUS_LIST != 0);
        let first = config.get(POINTER).filter(|_| has_list);
        let mut at = first.map_or(0, |pointer| usize::from(*pointer & 0xfc));
        while at >= 0x40 && !std::mem::replace(&mut seen[at], true) {
            let (Some(id), Some(next)) = (config.get(at), config.get(at + 1)) else { break };
            // What answers with ones has no list there.
            if (*id, *next) == (0xff, 0xff) {
                break;
            }
            found.standard.push((*id, at));
            at = usize::from(*next & 0xfc);
        }
        let mut seen = vec![false; 4096];
        let mut at = EXTENDED;
        while (EXTENDED..4096).contains(&at) && !std::mem::replace(&mut seen[at], true) {
            let (Some(id), Some(header)) = (word(config, at), word(config, at + 2)) else { break };
            if (id, header) == (0, 0) || id == 0xffff {
                break;
            }
            found.extended.push((id, at));
            at = usize::from(header >> 4) & 0xffc;
        }
        found
    }
}

impl Capabilities {
    /// Reads the lists. Whatever the bytes say, this ends: each place is looked at once.
    pub fn parse(config: &[u8]) -> Self {
        let mut found = Self::default();
        // The ids of a virtual function always read ffff (PCI Express Base Specification 9.3.4.1); its class doesn't.
        if config.len() < 64 || config[..16] == [0xff; 16] {
            return found;
        }
        let lists = Lists::parse(config);
        for (id, at) in lists.standard {
            found.add(id, config, at);
        }
        for (id, at) in lists.extended {
            found.add_extended(id, config, at);
        }
        found
    }

    fn add(&mut self, id: u8, config: &[u8], at: usize) {
        match id {
            CAP_PM => {
                if let Some(pmcsr) = word(config, at + 4) {
                    self.no_soft_reset = Some(pmcsr & 0x8 != 0);
                    self.power_state = Some((pmcsr & 0x3).to_le_bytes()[0]);
                }
            }
            CAP_EXPRESS => {
                self.express = word(config, at + 2).and_then(|flags| PortType::new(flags >> 4 & 0xf));
                self.flr = word(config, at + 6).is_some_and(|high| high & 1 << 12 != 0);
            }
            // Function level reset and transaction pending both (ECN Advanced Capabilities for Conventional PCI).
            CAP_AF => self.af_flr = config.get(at + 3).is_some_and(|caps| caps & 0x3 == 0x3),
            _ => {}
        }
    }

    fn add_extended(&mut self, id: u16, config: &[u8], at: usize) {
        match id {
            EXT_AER => self.aer = true,
            EXT_SERIAL => {
                self.serial = config
                    .get(at + 4..at + 12)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(u64::from_le_bytes);
            }
            EXT_ACS => {
                self.acs = word(config, at + 4)
                    .zip(word(config, at + 6))
                    .map(|(capability, control)| Acs { capability, control });
            }
            EXT_REBAR => self.resizable_bar = true,
            _ => {}
        }
    }
}

fn word(config: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes([*config.get(at)?, *config.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// A config space with bytes at places.
    fn config(len: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut config = vec![0; len];
        config[..8].copy_from_slice(&[0xde, 0x10, 0x30, 0x23, 6, 0, 0x10, 0]);
        for (at, bytes) in parts {
            config[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        config
    }

    #[test]
    fn a_gpu_with_flr_serial_number_and_error_reporting_is_read() {
        let config = config(
            4096,
            &[
                (0x34, &[0x60]),
                (0x60, &[0x01, 0x78, 0x03, 0x00, 0x0b, 0x00]),
                (0x78, &[0x10, 0x00, 0x02, 0x00, 0, 0, 0, 0x10]),
                (0x100, &[0x01, 0x00, 0x02, 0x14]),
                (0x140, &[0x03, 0x00, 0x01, 0x15, 8, 7, 6, 5, 4, 3, 2, 1]),
                (0x150, &[0x15, 0x00, 0x01, 0x00]),
            ],
        );
        let expected = Capabilities {
            express: Some(PortType::Endpoint),
            flr: true,
            no_soft_reset: Some(true),
            power_state: Some(3),
            serial: Some(0x0102_0304_0506_0708),
            aer: true,
            resizable_bar: true,
            ..Capabilities::default()
        };
        assert_eq!(Capabilities::parse(&config), expected);
    }

    #[test]
    fn a_virtual_function_is_read_although_its_ids_are_ones() {
        let parts: &[(usize, &[u8])] =
            &[(0, &[0xff; 4]), (0x34, &[0x60]), (0x60, &[0x10, 0x00, 0x02, 0x00, 0, 0, 0, 0x10])];
        let found = Capabilities::parse(&config(4096, parts));
        assert_eq!((found.express, found.flr), (Some(PortType::Endpoint), true));
    }

    #[rstest]
    #[case::all_it_can(0x1d, 0x1d, true)]
    #[case::more_than_needed(0x5f, 0x5f, true)]
    #[case::redirect_is_off(0x1d, 0x11, false)]
    #[case::nothing_is_on(0x1d, 0, false)]
    #[case::it_cannot_redirect_and_need_not(0x01, 0x01, true)]
    #[case::source_validation_is_off(0x1d, 0x1c, false)]
    fn a_port_isolates_when_what_the_kernel_asks_for_is_on(
        #[case] capability: u16,
        #[case] control: u16,
        #[case] isolates: bool,
    ) {
        assert_eq!(Acs { capability, control }.isolates(), isolates);
    }

    #[rstest]
    #[case::nothing(&[])]
    #[case::a_header_of_ones(&[0xff; 4096])]
    #[case::a_short_header(&[0; 63])]
    fn what_says_nothing_has_no_capabilities(#[case] config: &[u8]) {
        assert_eq!(Capabilities::parse(config), Capabilities::default());
    }

    #[test]
    fn lists_that_run_in_circles_end() {
        let config = config(4096, &[(0x34, &[0x40]), (0x40, &[0x05, 0x40]), (0x100, &[0x0b, 0, 1, 0x10])]);
        assert_eq!(Capabilities::parse(&config), Capabilities::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut config in prop::collection::vec(any::<u8>(), 0..4200)) {
            if config.len() > 8 {
                config[STATUS] |= 0x10;
            }
            let _ = Capabilities::parse(&config);
        }
    }
}
