//! The registers that a verdict rests on, found by the capability lists.
//!
//! The bytes may lie: a capability that begins in the last bytes has no registers, and what lies behind the bytes that were read is
//! `None`, never zero.

use super::{ConfigSpace, Reading};
use crate::config_space::Lists;

/// Offsets of the header (PCI Local Bus Specification 3.0, 6.1).
pub(super) const STATUS: usize = 0x06;
pub(super) const REVISION: usize = 0x08;
pub(super) const HEADER_TYPE: usize = 0x0e;
pub(super) const BAR_0: usize = 0x10;
pub(super) const SUBSYSTEM: usize = 0x2c;
pub(super) const INTERRUPT_PIN: usize = 0x3d;

const CAP_PM: u8 = 0x01;
const CAP_EXPRESS: u8 = 0x10;
const CAP_EA: u8 = 0x14;
const EXT_AER: u16 = 0x0001;

/// A function's config space that answers, and where its capabilities are.
#[derive(Debug)]
pub(super) struct Registers<'a> {
    config: &'a ConfigSpace,
    pub(super) lists: Lists,
}

/// The end of a link as its Link Status register has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkStatus(pub(super) u16);

impl LinkStatus {
    /// Returns the speed as a generation: 1 is 2.5 GT/s.
    pub(super) fn speed(self) -> u16 {
        self.0 & 0xf
    }

    /// Returns the width in lanes; 0 where there is no link.
    pub(super) fn width(self) -> u16 {
        self.0 >> 4 & 0x3f
    }

    /// Tells whether a port is training the link.
    pub(super) fn is_training(self) -> bool {
        self.0 & 1 << 11 != 0
    }

    /// Tells whether a port says that the link is up (Data Link Layer Link Active).
    pub(super) fn is_active(self) -> bool {
        self.0 & 1 << 13 != 0
    }
}

/// The registers of Advanced Error Reporting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ErrorRegisters {
    /// Uncorrectable errors that were seen.
    pub(super) status: u32,
    /// Those that aren't reported.
    pub(super) mask: u32,
    /// Those that are fatal.
    pub(super) severity: u32,
    /// Correctable errors that were seen.
    pub(super) correctable: u32,
}

/// What came of asking a function's config space whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It answers.
    Answers,
    /// It reads ones.
    Ones,
    /// It is still in reset.
    Retrying,
    /// Less than a header was read.
    Short,
}

/// Tells whether a function is there. The ids of a virtual function read ffff (PCI Express Base Specification 9.3.4.1), so that its
/// command register alone tells. No living function has a command register of ones: bits 11 to 15 are reserved.
pub(super) fn presence(config: &ConfigSpace, virtual_function: bool) -> Presence {
    if config.bytes().len() < ConfigSpace::HEADER {
        return Presence::Short;
    }
    let (id, command) = (config.dword(0).unwrap_or(u32::MAX), config.word(4).unwrap_or(u16::MAX));
    if command == u16::MAX || (id == u32::MAX && !virtual_function) {
        // The root complex answers for a function in reset with this vendor id, which nobody has, and ones else (PCI Express Base
        // Specification 2.3.2).
        return if id & 0xffff == 0x0001 { Presence::Retrying } else { Presence::Ones };
    }
    if id & 0xffff == 0x0001 { Presence::Retrying } else { Presence::Answers }
}

impl<'a> Registers<'a> {
    /// Takes a config space, if it was read and answers.
    pub(super) fn of(config: &'a Reading<ConfigSpace>, virtual_function: bool) -> Option<Self> {
        let config = config.read()?;
        (presence(config, virtual_function) == Presence::Answers).then(|| Self::new(config))
    }

    fn new(config: &'a ConfigSpace) -> Self {
        Self { config, lists: Lists::parse(config.bytes()) }
    }

    /// Returns how many bytes were read.
    pub(super) fn len(&self) -> usize {
        self.config.bytes().len()
    }

    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.config.byte(at)
    }

    pub(super) fn word(&self, at: usize) -> Option<u16> {
        self.config.word(at)
    }

    pub(super) fn dword(&self, at: usize) -> Option<u32> {
        self.config.dword(at)
    }

    fn standard(&self, wanted: u8) -> Option<usize> {
        self.lists.standard.iter().find(|(id, _)| *id == wanted).map(|(_, at)| *at)
    }

    /// Returns the layout of the header: 0 of a device, 1 of a bridge.
    pub(super) fn layout(&self) -> Option<u8> {
        self.byte(HEADER_TYPE).map(|byte| byte & 0x7f)
    }

    /// Tells whether the addresses are fixed and the base address registers empty (Enhanced Allocation).
    pub(super) fn has_fixed_addresses(&self) -> bool {
        self.standard(CAP_EA).is_some()
    }

    /// Returns the Power Management Control/Status register.
    pub(super) fn pmcsr(&self) -> Option<u16> {
        self.word(self.standard(CAP_PM)? + 4)
    }

    /// Returns the power state by the register, 3 for D3hot; nothing where there is none, or it reads ones.
    pub(super) fn power_state(&self) -> Option<u16> {
        self.pmcsr().filter(|pmcsr| *pmcsr != u16::MAX).map(|pmcsr| pmcsr & 0x3)
    }

    /// Tells whether it may have lost its registers where it sleeps: in D3hot, without No_Soft_Reset.
    pub(super) fn may_have_lost_registers(&self) -> bool {
        self.power_state() == Some(3) && self.pmcsr().is_some_and(|pmcsr| pmcsr & 0x8 == 0)
    }

    /// Returns what it is in PCI Express (Device/Port Type): 4 is a root port.
    pub(super) fn port_type(&self) -> Option<u16> {
        self.word(self.standard(CAP_EXPRESS)? + 2).map(|flags| flags >> 4 & 0xf)
    }

    /// Tells whether its link leads down: of a root port, or a switch's port towards the devices. The link that another bridge
    /// tells of is the one above it.
    pub(super) fn leads_down(&self) -> bool {
        matches!(self.port_type(), Some(4 | 6))
    }

    /// Returns the Device Status register.
    pub(super) fn device_status(&self) -> Option<u16> {
        self.word(self.standard(CAP_EXPRESS)? + 0x0a)
    }

    /// Returns the Link Status register.
    pub(super) fn link_status(&self) -> Option<LinkStatus> {
        self.word(self.standard(CAP_EXPRESS)? + 0x12).filter(|word| *word != u16::MAX).map(LinkStatus)
    }

    /// Tells whether a port reports that the link is up (Link Capabilities, bit 20).
    pub(super) fn reports_link(&self) -> bool {
        let capabilities = self.standard(CAP_EXPRESS).and_then(|at| self.dword(at + 0x0c));
        capabilities.is_some_and(|capabilities| capabilities & 1 << 20 != 0)
    }

    /// Returns the registers of Advanced Error Reporting.
    pub(super) fn errors(&self) -> Option<ErrorRegisters> {
        let at = self.lists.extended.iter().find(|(id, _)| *id == EXT_AER).map(|(_, at)| *at)?;
        Some(ErrorRegisters {
            status: self.dword(at + 0x04)?,
            mask: self.dword(at + 0x08)?,
            severity: self.dword(at + 0x0c)?,
            correctable: self.dword(at + 0x10)?,
        })
    }
}
