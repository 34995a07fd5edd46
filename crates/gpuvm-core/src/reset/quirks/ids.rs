//! How an entry names devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

use crate::pci::{ClassCode, serde_as_text};

/// A vendor's id, spelt as four hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VendorId(pub u16);

impl fmt::Display for VendorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl FromStr for VendorId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        four(text)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no vendor id: expected four hex digits, like 10de"))
    }
}

/// Device ids: one, a range, or all that are alike under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceIds {
    /// `2342`.
    One(u16),
    /// `2340-237f`, both included.
    Range(u16, u16),
    /// `2340/ffc0`: those whose bits under the mask are these, as the kernel asks.
    Masked {
        /// The bits.
        id: u16,
        /// The mask.
        mask: u16,
    },
}

impl DeviceIds {
    /// Tells whether an id is among them.
    pub fn contain(self, device: u16) -> bool {
        match self {
            Self::One(id) => id == device,
            Self::Range(first, last) => (first..=last).contains(&device),
            Self::Masked { id, mask } => device & mask == id,
        }
    }
}

impl fmt::Display for DeviceIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(id) => write!(f, "{id:04x}"),
            Self::Range(first, last) => write!(f, "{first:04x}-{last:04x}"),
            Self::Masked { id, mask } => write!(f, "{id:04x}/{mask:04x}"),
        }
    }
}

impl FromStr for DeviceIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ids = || {
            let pair = |parts: Option<(&str, &str)>| {
                let (first, second) = parts?;
                Some((four(first)?, four(second)?))
            };
            if let Some((first, last)) = pair(text.split_once('-')) {
                return (first < last).then_some(Self::Range(first, last));
            }
            if let Some((id, mask)) = pair(text.split_once('/')) {
                return (id & mask == id).then_some(Self::Masked { id, mask });
            }
            four(text).map(Self::One)
        };
        ids().ok_or_else(|| {
            format!("`{text}` names no device ids: expected hex digits like 2342, 2340-237f, or 2340/ffc0 for those alike under a mask")
        })
    }
}

/// The beginning of a class code: `03` for all displays, `0300` for VGA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassPrefix {
    digits: usize,
    code: u32,
}

impl ClassPrefix {
    /// Tells whether a class begins so.
    pub fn fits(self, class: ClassCode) -> bool {
        let code = match self.digits {
            2 => u32::from(class.base()),
            _ => u32::from(class.class()),
        };
        code == self.code
    }
}

impl fmt::Display for ClassPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$x}", self.code, width = self.digits)
    }
}

impl FromStr for ClassPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let code = match text.len() {
            2 => four(&format!("00{text}")),
            4 => four(text),
            _ => None,
        };
        code.map(|code| Self { digits: text.len(), code: u32::from(code) })
            .ok_or_else(|| format!("`{text}` is no class: expected two or four hex digits, like 03 or 0300"))
    }
}

serde_as_text!(VendorId, DeviceIds, ClassPrefix);

/// Reads four hex digits; `from_str_radix` alone would take a sign.
fn four(text: &str) -> Option<u16> {
    let digits = text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u16::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one("2342", 0x2342, 0x2343)]
    #[case::begin("2340-237f", 0x2340, 0x233f)]
    #[case::end("2340-237f", 0x237f, 0x2380)]
    #[case::begin_under_a_mask("2340/ffc0", 0x2340, 0x233f)]
    #[case::end_under_a_mask("2340/ffc0", 0x237f, 0x2380)]
    fn ids_contain_what_they_name(#[case] text: &str, #[case] inside: u16, #[case] outside: u16) {
        let ids: DeviceIds = text.parse().unwrap();
        assert!(ids.contain(inside) && !ids.contain(outside));
        assert_eq!(ids.to_string(), text);
    }

    #[rstest]
    #[case("")]
    #[case("234")]
    #[case("0x2342")]
    #[case("2342-2342")]
    #[case("237f-2340")]
    #[case("2341/ffc0")]
    #[case("+342")]
    fn ids_that_name_nothing_are_refused(#[case] text: &str) {
        assert!(text.parse::<DeviceIds>().is_err());
    }

    #[rstest]
    #[case("03", 0x03_0200, true)]
    #[case("0300", 0x03_0000, true)]
    #[case("0300", 0x03_0200, false)]
    #[case("06", 0x03_0000, false)]
    fn a_class_begins_as_it_is_written(#[case] text: &str, #[case] class: u32, #[case] fits: bool) {
        let prefix: ClassPrefix = text.parse().unwrap();
        assert_eq!(prefix.fits(ClassCode::new(class).unwrap()), fits);
        assert_eq!(prefix.to_string(), text);
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = (text.parse::<DeviceIds>(), text.parse::<ClassPrefix>(), text.parse::<VendorId>());
        }
    }
}
