//! Names of PCI ids, as the system's `pci.ids` tells them.
//!
//! The list has some 36,000 lines. It is gone through once, and only what is wanted is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

use crate::facts::{DeviceFacts, HostFacts};
use crate::pci::{ClassCode, PciId, serde_as_text};

/// Who makes a device or a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VendorId(pub u16);

impl fmt::Display for VendorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl FromStr for VendorId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        hex(text, 4).map(Self).ok_or_else(|| format!("`{text}` is no vendor id: expected 4 hex digits"))
    }
}

serde_as_text!(VendorId);

/// Names of ids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PciNames {
    /// Of vendors.
    pub vendors: BTreeMap<VendorId, String>,
    /// Of devices.
    pub devices: BTreeMap<PciId, DeviceNames>,
    /// Of classes and subclasses, by the 24-bit code that was asked for.
    pub classes: BTreeMap<ClassCode, String>,
}

/// Names of a device and of the cards that it comes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceNames {
    /// What it is called; nothing where only its cards have names.
    pub name: Option<String>,
    /// What the cards are called, by their subsystem's ids.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cards: BTreeMap<PciId, String>,
}

/// What is looked for in the list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    vendors: BTreeSet<u16>,
    devices: BTreeMap<PciId, BTreeSet<PciId>>,
    classes: BTreeSet<ClassCode>,
}

impl Wanted {
    /// Wants the names of devices, of their cards, and of the classes that gpuvm has no word for.
    pub fn of<'a>(devices: impl IntoIterator<Item = &'a DeviceFacts>) -> Self {
        let mut wanted = Self::default();
        for device in devices {
            wanted.vendors.insert(device.id.vendor);
            wanted.vendors.extend(device.subsystem.map(|card| card.vendor));
            wanted.devices.entry(device.id).or_default().extend(device.subsystem);
            if !device.class.has_name() {
                wanted.classes.insert(device.class);
            }
        }
        wanted
    }

    /// Tells whether nothing is looked for.
    pub fn is_empty(&self) -> bool {
        self.vendors.is_empty() && self.classes.is_empty()
    }
}

/// What the lines that are indented belong to.
#[derive(Clone, Copy)]
enum Block {
    Unwanted,
    Vendor(u16),
    Device(PciId),
    Class(u8),
}

impl PciNames {
    /// Takes what is wanted out of the list, in one pass; lines that make no sense are left out.
    ///
    /// The form is told at the head of `pci.ids`: vendors, below them devices with one tab, below them subsystems with two; then
    /// classes as `C 03`, with subclasses below.
    pub fn parse(list: &str, wanted: &Wanted) -> Self {
        let mut names = Self::default();
        let mut block = Block::Unwanted;
        for line in list.lines() {
            let bare = line.trim_start_matches('\t');
            match (line.len() - bare.len(), block) {
                (0, _) if bare.starts_with('#') || bare.is_empty() => {}
                (0, _) => block = names.heading(bare, wanted),
                (_, Block::Unwanted) => {}
                (1, Block::Vendor(vendor)) | (1, Block::Device(PciId { vendor, .. })) => {
                    block = names.device(vendor, bare, wanted);
                }
                (2, Block::Device(id)) => names.card(id, bare, wanted),
                (1, Block::Class(base)) => names.subclass(base, bare, wanted),
                _ => {}
            }
        }
        names
    }

    fn heading(&mut self, line: &str, wanted: &Wanted) -> Block {
        if let Some((base, name)) = line.strip_prefix("C ").and_then(|line| field(line, 2)) {
            let Ok(base) = u8::try_from(base) else { return Block::Unwanted };
            for class in wanted.classes.iter().filter(|class| class.base() == base) {
                self.classes.entry(*class).or_insert_with(|| name.to_owned());
            }
            return Block::Class(base);
        }
        match field(line, 4).filter(|(vendor, _)| wanted.vendors.contains(vendor)) {
            Some((vendor, name)) => {
                self.vendors.insert(VendorId(vendor), name.to_owned());
                Block::Vendor(vendor)
            }
            None => Block::Unwanted,
        }
    }

    /// Takes a device's line; the cards below those that aren't wanted aren't either.
    fn device(&mut self, vendor: u16, line: &str, wanted: &Wanted) -> Block {
        let Some((device, name)) = field(line, 4) else { return Block::Vendor(vendor) };
        let id = PciId { vendor, device };
        if !wanted.devices.contains_key(&id) {
            return Block::Vendor(vendor);
        }
        self.devices.entry(id).or_default().name = Some(name.to_owned());
        Block::Device(id)
    }

    fn card(&mut self, id: PciId, line: &str, wanted: &Wanted) {
        let parse = || {
            let (vendor, rest) = field(line, 4)?;
            let (device, name) = field(rest, 4)?;
            Some((PciId { vendor, device }, name))
        };
        let Some((card, name)) = parse() else { return };
        if wanted.devices.get(&id).is_some_and(|cards| cards.contains(&card)) {
            self.devices.entry(id).or_default().cards.insert(card, name.to_owned());
        }
    }

    fn subclass(&mut self, base: u8, line: &str, wanted: &Wanted) {
        let Some((subclass, name)) = field(line, 2) else { return };
        let class = u16::from(base) << 8 | subclass;
        for wanted in wanted.classes.iter().filter(|wanted| wanted.class() == class) {
            self.classes.insert(*wanted, name.to_owned());
        }
    }
}

/// Splits a line into its first hex digits, so many, and the name behind.
fn field(line: &str, digits: usize) -> Option<(u16, &str)> {
    let (number, rest) = (line.get(..digits)?, line.get(digits..)?);
    let name = rest.trim();
    (rest.starts_with(' ') && !name.is_empty()).then_some(())?;
    hex(number, digits).map(|number| (number, name))
}

/// Reads hex digits, so many; `from_str_radix` alone would take a sign.
fn hex(text: &str, digits: usize) -> Option<u16> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u16::from_str_radix(text, 16).ok()).flatten()
}

impl HostFacts {
    /// Names a device: its own name, or its maker's with its id, or its ids alone.
    pub fn name_of(&self, device: &DeviceFacts) -> String {
        let vendor = self.names.vendors.get(&VendorId(device.id.vendor));
        match (self.names.devices.get(&device.id).and_then(|names| names.name.clone()), vendor) {
            (Some(name), _) => name,
            (None, Some(vendor)) => format!("{vendor} {:04x}", device.id.device),
            (None, None) => device.id.to_string(),
        }
    }

    /// Names who makes a device.
    pub fn vendor_of(&self, id: PciId) -> Option<&str> {
        self.names.vendors.get(&VendorId(id.vendor)).map(String::as_str)
    }

    /// Names the card that a device comes on: by its own name, or by its maker's with its id.
    pub fn card_of(&self, device: &DeviceFacts) -> Option<String> {
        let card = device.subsystem?;
        let own = self.names.devices.get(&device.id).and_then(|names| names.cards.get(&card));
        let vendor = || Some(format!("{} {:04x}", self.vendor_of(card)?, card.device));
        own.cloned().or_else(vendor)
    }

    /// Names a class: by gpuvm's word where it has one.
    pub fn class_of(&self, device: &DeviceFacts) -> String {
        let listed = self.names.classes.get(&device.class).filter(|_| !device.class.has_name());
        listed.cloned().unwrap_or_else(|| device.class.name().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const LIST: &str = "# a remark\n\n\
        10de  NVIDIA Corporation\n\
        \t2330  GH100 [H100 SXM5 80GB]\n\
        \t\t10de 16c1  H100 SXM5\n\
        \t\t1028 16c1  another\n\
        \t2331  GH100 [H100 PCIe]\n\
        \t\t10de 16c1  no card of the one before\n\
        1028  Dell\n\
        ffff  Illegal Vendor ID\n\
        C 0c  Serial bus controller\n\
        \t05  SMBus\n\
        \t\t00  nothing\n\
        C 11  Signal processing controller\n";

    fn device(id: &str, card: Option<&str>, class: u32) -> DeviceFacts {
        let mut device = DeviceFacts::new(id.parse().unwrap(), ClassCode::new(class).unwrap());
        device.subsystem = card.map(|card| card.parse().unwrap());
        device
    }

    fn host(devices: &[&DeviceFacts]) -> HostFacts {
        let names = PciNames::parse(LIST, &Wanted::of(devices.iter().copied()));
        HostFacts { names, ..HostFacts::default() }
    }

    #[rstest]
    #[case::all_known("10de:2330", Some("10de:16c1"), "GH100 [H100 SXM5 80GB]", Some("H100 SXM5"))]
    #[case::card_of_another_device("10de:2331", Some("1028:16c1"), "GH100 [H100 PCIe]", Some("Dell 16c1"))]
    #[case::maker_alone("1028:0001", None, "Dell 0001", None)]
    #[case::nothing_known("abcd:0001", Some("abcd:0002"), "abcd:0001", None)]
    fn a_device_is_named_as_far_as_the_list_goes(
        #[case] id: &str,
        #[case] card: Option<&str>,
        #[case] name: &str,
        #[case] card_name: Option<&str>,
    ) {
        let device = device(id, card, 0x03_0200);
        let host = host(&[&device]);
        assert_eq!(host.name_of(&device), name);
        assert_eq!(host.card_of(&device).as_deref(), card_name);
    }

    #[rstest]
    #[case::own_word(0x03_0200, "3D controller")]
    #[case::subclass_of_the_list(0x0c_0500, "SMBus")]
    #[case::base_class_of_the_list(0x11_0100, "Signal processing controller")]
    #[case::in_no_list(0x13_0000, "device")]
    fn a_class_is_named_by_our_word_or_the_lists(#[case] class: u32, #[case] name: &str) {
        let device = device("10de:2330", None, class);
        assert_eq!(host(&[&device]).class_of(&device), name);
    }

    #[test]
    fn nothing_is_kept_that_nobody_wants() {
        let names = host(&[&device("10de:2331", None, 0x03_0200)]).names;
        assert_eq!((names.vendors.len(), names.devices.len(), names.classes.len()), (1, 1, 0));
        assert!(names.devices.values().all(|names| names.cards.is_empty()));
    }

    /// Lines that look like those of the list, and others.
    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            ("\t{0,3}", "(10de|2330|C 0c|05|10de 16c1|ffff|[0-9a-f]{0,5})", "\\PC{0,9}")
                .prop_map(|(tabs, head, tail)| format!("{tabs}{head}{tail}\n")),
            ".*",
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let wanted = Wanted::of([&device("10de:2330", Some("10de:16c1"), 0x0c_0500)]);
            let _ = PciNames::parse(&String::from_utf8_lossy(&bytes), &wanted);
        }

        #[test]
        fn any_lines_give_no_more_than_was_wanted(lines in prop::collection::vec(line(), 0..40)) {
            let device = device("10de:2330", Some("10de:16c1"), 0x0c_0500);
            let names = PciNames::parse(&lines.concat(), &Wanted::of([&device]));
            prop_assert!(names.vendors.keys().all(|vendor| vendor.0 == 0x10de));
            prop_assert!(names.devices.keys().all(|id| *id == device.id));
            prop_assert!(names.classes.keys().all(|class| *class == device.class));
        }
    }
}
