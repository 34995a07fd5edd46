//! A device's config space, as far as a verdict needs it.

use serde::{Deserialize, Serialize};

use crate::pci::PciId;

/// What the header of a device's config space says (PCI Local Bus Specification 3.0, section 6.1).
///
/// Read from the binary `config` file: the `vendor`, `device` and `resource` files are cached by the kernel and keep
/// their good-looking values on a dead card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Vendor and device id (0x00).
    pub id: PciId,
    /// Command register (0x04).
    pub command: u16,
    /// Class code and revision (0x08).
    pub class_revision: u32,
    /// Header type (0x0e).
    pub header_type: u8,
    /// Interrupt pin (0x3d).
    pub interrupt_pin: u8,
}

impl Snapshot {
    /// The bytes that a snapshot needs: the header that every user may read.
    pub const BYTES: usize = 64;

    /// Takes a snapshot of the first bytes of a config space, or `None` where there are fewer than [`Self::BYTES`].
    pub fn new(config: &[u8]) -> Option<Self> {
        let config = config.get(..Self::BYTES)?;
        let word = |at: usize| u16::from_le_bytes([config[at], config[at + 1]]);
        Some(Self {
            id: PciId { vendor: word(0), device: word(2) },
            command: word(4),
            class_revision: u32::from(word(8)) | u32::from(word(10)) << 16,
            header_type: config[0x0e],
            interrupt_pin: config[0x3d],
        })
    }
}
