//! PCI addresses, ids and class codes: parsed once, then never strings again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

/// The address of one PCI function: domain, bus, device, function.
///
/// Spelt as the kernel spells it in sysfs, `0000:81:00.0`. Domains are up to 32 bits wide (VMD and
/// Hyper-V make domains above `ffff`); `81:00.0` means domain 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// Makes an address from its parts, or `None` where device (0-31) or function (0-7) is out of range.
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { domain, bus, device, function })
    }

    /// Returns the address at the same place of another's domain: who names a device without its domain may mean any.
    #[must_use]
    pub fn in_domain_of(self, other: Self) -> Self {
        Self { domain: other.domain, ..self }
    }

    /// Returns the function's number in its slot, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }

    /// Returns the bus that this function sits on.
    pub fn bus(self) -> Bus {
        Bus { domain: self.domain, bus: self.bus }
    }

    /// Returns the slot that this function sits in.
    pub fn slot(self) -> Slot {
        Slot { domain: self.domain, bus: self.bus, device: self.device }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// Why a text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no PCI address: expected domain:bus:device.function in hex, like 0000:81:00.0")]
pub struct BdfError {
    text: String,
}

impl FromStr for Bdf {
    type Err = BdfError;

    fn from_str(text: &str) -> Result<Self, BdfError> {
        parse_bdf(text).ok_or_else(|| BdfError { text: text.to_owned() })
    }
}

fn parse_bdf(text: &str) -> Option<Bdf> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = match rest.split_once(':') {
        Some((domain, bus)) => (hex(domain, 4..=8)?, bus),
        None => (0, rest),
    };
    Bdf::new(
        domain,
        u8::try_from(hex(bus, 2..=2)?).ok()?,
        u8::try_from(hex(device, 2..=2)?).ok()?,
        u8::try_from(hex(function, 1..=1)?).ok()?,
    )
}

/// Reads hex digits of an allowed length; `from_str_radix` alone would take a sign.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    (digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

/// The address of one slot: all functions of a card share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    domain: u32,
    bus: u8,
    device: u8,
}

impl Slot {
    /// Tells whether the slot is 00:1f of its domain, where Intel chipsets keep unrelated functions together.
    pub fn is_chipset(self) -> bool {
        self.bus == 0 && self.device == 0x1f
    }

    /// Returns the first and the last address that a function of the slot can have.
    pub fn functions(self) -> std::ops::RangeInclusive<Bdf> {
        let at = |function| Bdf { domain: self.domain, bus: self.bus, device: self.device, function };
        at(0)..=at(7)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.device)
    }
}

impl Slot {
    /// Returns the slot's first function, whether it is there or not.
    pub fn first(self) -> Bdf {
        Bdf { domain: self.domain, bus: self.bus, device: self.device, function: 0 }
    }
}

/// The address of one bus: a bus reset reaches all functions on it, and all buses below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bus {
    domain: u32,
    bus: u8,
}

impl Bus {
    /// Returns another bus of the same domain.
    pub fn neighbour(self, bus: u8) -> Self {
        Self { bus, ..self }
    }

    /// Returns the first and the last address that a function on the bus can have.
    pub fn functions(self) -> std::ops::RangeInclusive<Bdf> {
        let Self { domain, bus } = self;
        Bdf { domain, bus, device: 0, function: 0 }..=Bdf { domain, bus, device: 31, function: 7 }
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}", self.domain, self.bus)
    }
}

impl FromStr for Bus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (domain, bus) = text.split_once(':')?;
            Some(Self { domain: hex(domain, 4..=8)?, bus: u8::try_from(hex(bus, 2..=2)?).ok()? })
        };
        parse().ok_or_else(|| format!("`{text}` is no PCI bus: expected domain:bus in hex, like 0000:81"))
    }
}

impl FromStr for Slot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A slot is spelt as its function 0 is, without the function.
        let plain = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        let function = plain.then(|| format!("{text}.0").parse::<Bdf>().ok()).flatten();
        function
            .map(Bdf::slot)
            .ok_or_else(|| format!("`{text}` is no slot: expected domain:bus:device in hex, like 0000:81:00"))
    }
}

/// The Device Serial Number of a card, spelt as lspci does: `00-15-17-ff-ff-aa-bb-cc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SerialNumber(pub u64);

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_be_bytes().map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join("-"))
    }
}

impl FromStr for SerialNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> =
            text.split('-').map(|byte| hex(byte, 2..=2).and_then(|byte| u8::try_from(byte).ok())).collect();
        let number = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()).map(u64::from_be_bytes);
        number.map(Self).ok_or_else(|| {
            format!("`{text}` is no serial number: expected eight bytes in hex, like 00-15-17-ff-ff-aa-bb-cc")
        })
    }
}

/// Vendor and device id, spelt `1234:11e8` as lspci does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId {
    /// The vendor id (config space offset 0x00).
    pub vendor: u16,
    /// The device id (config space offset 0x02).
    pub device: u16,
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl FromStr for PciId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (vendor, device) = text.split_once(':')?;
            let field = |part| hex(part, 4..=4).and_then(|value| u16::try_from(value).ok());
            Some(Self { vendor: field(vendor)?, device: field(device)? })
        };
        parse().ok_or_else(|| format!("`{text}` is no PCI id: expected vendor:device in hex, like 10de:2330"))
    }
}

/// The 24-bit class code: base class, subclass, programming interface (PCI Code and ID Assignment).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassCode(u32);

impl ClassCode {
    /// Makes a class code, or `None` above 24 bits.
    pub fn new(code: u32) -> Option<Self> {
        (code <= 0xff_ffff).then_some(Self(code))
    }

    /// Returns base class and subclass as one 16-bit number, the form that lspci prints.
    pub fn class(self) -> u16 {
        // 24 bits shifted by 8 leave 16.
        u16::try_from(self.0 >> 8).unwrap_or(u16::MAX)
    }

    /// Returns the base class.
    pub fn base(self) -> u8 {
        // 24 bits shifted by 16 leave 8.
        u8::try_from(self.0 >> 16).unwrap_or(u8::MAX)
    }

    /// Tells whether [`Self::name`] has a word of its own for it.
    pub fn has_name(self) -> bool {
        self.word().is_some()
    }

    /// Tells whether this is a display controller: VGA (0300), 3D (0302) or other (0380).
    pub fn is_display(self) -> bool {
        self.0 >> 16 == 0x03
    }

    /// Tells whether this is a display controller or a processing accelerator (12).
    pub fn is_card(self) -> bool {
        self.is_display() || self.0 >> 16 == 0x12
    }

    /// Tells whether this is a bridge of any kind (host, ISA, PCI-to-PCI), which belongs to the host. "Other" bridges (0680) have an
    /// endpoint's header and are none: NVSwitches go to guests.
    pub fn is_bridge(self) -> bool {
        self.0 >> 16 == 0x06 && self.class() != 0x0680
    }

    /// Tells whether this is a bridge to another PCI bus, by normal or semi-transparent decoding.
    pub fn is_pci_bridge(self) -> bool {
        matches!(self.class(), 0x0604 | 0x0609)
    }

    /// Names the class in words, as far as gpuvm has a word for it.
    pub fn name(self) -> &'static str {
        self.word().unwrap_or("device")
    }

    fn word(self) -> Option<&'static str> {
        Some(match self.class() {
            0x0108 => "NVMe controller",
            0x0200 => "Ethernet controller",
            0x0207 => "InfiniBand controller",
            0x0300 => "VGA controller",
            0x0302 => "3D controller",
            0x0380 => "display controller",
            0x0401 | 0x0403 => "audio device",
            0x0600 => "host bridge",
            0x0601 => "ISA bridge",
            0x0604 => "PCI bridge",
            0x0680 => "bridge",
            0x0c03 => "USB controller",
            0x1200 => "processing accelerator",
            _ => return None,
        })
    }
}

impl fmt::Display for ClassCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

impl FromStr for ClassCode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        hex(text, 6..=6).and_then(Self::new).ok_or_else(|| format!("`{text}` is no 24-bit class code"))
    }
}

/// The number of an IOMMU group, as in `/sys/kernel/iommu_groups/N` and `/dev/vfio/N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a kernel driver, as its directory in `/sys/bus/pci/drivers` is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriverName(String);

impl DriverName {
    /// Takes a name, or `None` where it could not be one directory's name.
    pub fn new(name: &str) -> Option<Self> {
        let plain = !name.is_empty() && name != "." && name != "..";
        (plain && !name.contains(['/', '\n', '\0'])).then(|| Self(name.to_owned()))
    }

    /// The generic VFIO driver.
    pub fn vfio_pci() -> Self {
        Self("vfio-pci".to_owned())
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Serialises a type by its `Display` and reads it back by its `FromStr`.
macro_rules! serde_as_text {
    ($($type:ty),*) => { $(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(de::Error::custom)
            }
        }
    )* };
}
pub(crate) use serde_as_text;

serde_as_text!(Bdf, Bus, Slot, SerialNumber, PciId, ClassCode);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0000:81:00.0", "0000:81:00.0")]
    #[case("81:00.1", "0000:81:00.1")]
    #[case("10000:E1:1F.7", "10000:e1:1f.7")]
    #[case("ffffffff:ff:1f.7", "ffffffff:ff:1f.7")]
    fn parse_of_an_address_gives_the_kernels_spelling(#[case] text: &str, #[case] spelt: &str) {
        assert_eq!(text.parse::<Bdf>().unwrap().to_string(), spelt);
    }

    #[rstest]
    #[case("")]
    #[case("0000:81:00")]
    #[case("0000:81:20.0")]
    #[case("0000:81:00.8")]
    #[case("0000:8:00.0")]
    #[case("000:81:00.0")]
    #[case("100000000:81:00.0")]
    #[case("0000:+1:00.0")]
    #[case("0000:81:00.0 ")]
    #[case("pci_0000_81_00_0")]
    fn parse_of_anything_else_is_refused_by_name(#[case] text: &str) {
        let error = text.parse::<Bdf>().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn driver_names_that_would_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "a\nb"] {
            assert_eq!(DriverName::new(name), None, "{name:?}");
        }
        assert_eq!(DriverName::new("snd_hda_intel").unwrap().as_str(), "snd_hda_intel");
    }

    #[test]
    fn a_serial_number_is_spelt_as_lspci_does() {
        let number = SerialNumber(0x0015_17ff_ffaa_bbcc);
        assert_eq!(number.to_string(), "00-15-17-ff-ff-aa-bb-cc");
        assert_eq!("00-15-17-FF-ff-aa-bb-cc".parse(), Ok(number));
        for text in [
            "",
            "00-15-17-ff-ff-aa-bb",
            "00-15-17-ff-ff-aa-bb-cc-dd",
            "0-15-17-ff-ff-aa-bb-cc",
            "+0-15-17-ff-ff-aa-bb-cc",
        ] {
            assert!(text.parse::<SerialNumber>().is_err(), "{text}");
        }
    }

    #[rstest]
    #[case("0000:81:00", true)]
    #[case("81:00", true)]
    #[case("0000:81:20", false)]
    #[case("0000:81:00.0", false)]
    #[case("81", false)]
    fn a_slot_is_an_address_without_its_function(#[case] text: &str, #[case] taken: bool) {
        assert_eq!(text.parse::<Slot>().is_ok(), taken);
    }

    proptest! {
        #[test]
        fn parse_undoes_display(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let bdf = Bdf::new(domain, bus, device, function).unwrap();
            prop_assert_eq!(bdf.to_string().parse::<Bdf>().unwrap(), bdf);
            prop_assert_eq!(bdf.bus().to_string().parse::<Bus>().unwrap(), bdf.bus());
            prop_assert_eq!(bdf.slot().to_string().parse::<Slot>().unwrap(), bdf.slot());
        }

        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = text.parse::<Bdf>();
            let _ = text.parse::<PciId>();
            let _ = text.parse::<Bus>();
            let _ = text.parse::<Slot>();
            let _ = text.parse::<SerialNumber>();
        }
    }
}
