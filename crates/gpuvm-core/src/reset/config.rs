//! A function's config space as bytes, and the registers in it.

use serde::{Deserialize, Serialize};

/// The bytes of a function's config space, as many as could be read. Written as hex digits.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConfigSpace(Vec<u8>);

impl ConfigSpace {
    /// The most bytes that there are (PCI Express Base Specification 7.2).
    pub const MAX: usize = 4096;
    /// The header that every user may read.
    pub const HEADER: usize = 64;

    /// Takes the bytes; those after the last that there can be are left out.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes[..bytes.len().min(Self::MAX)].to_vec())
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the byte at an offset, if that many were read.
    pub fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    /// Returns the 16-bit register at an offset.
    pub fn word(&self, at: usize) -> Option<u16> {
        self.0.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
    }

    /// Returns the 32-bit register at an offset.
    pub fn dword(&self, at: usize) -> Option<u32> {
        self.0.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
    }
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let header = self.0.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
        write!(f, "ConfigSpace({} bytes: {}...)", self.0.len(), header.join(" "))
    }
}

impl From<ConfigSpace> for String {
    fn from(config: ConfigSpace) -> Self {
        // Digit by digit: a run writes down some 16 KiB of them, and a formatted piece for each byte took 6 ms of it in the lab.
        let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
        config.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
    }
}

impl TryFrom<String> for ConfigSpace {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) || digits.len() > 2 * Self::MAX {
            return Err(format!("{} hex digits are no config space", digits.len()));
        }
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let byte = |pair: &[u8]| Some(value(pair[0])? << 4 | value(pair[1])?);
        let bytes: Option<Vec<u8>> = digits.chunks_exact(2).map(byte).collect();
        bytes.map(Self).ok_or_else(|| "a config space is written in hex digits".to_owned())
    }
}
