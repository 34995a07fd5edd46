//! Which device an entry of the ledger is about, though cards change their slots and dead ones don't say who they are.

use serde::{Deserialize, Serialize};

use super::{ConfigSpace, Snapshot};
use crate::config_space::Capabilities;
use crate::facts::DeviceFacts;
use crate::pci::{Bdf, PciId, SerialNumber};

/// The end of config space's header, where whoever built the card is named (PCI Local Bus Specification 3.0, 6.2.4).
const SUBSYSTEM: usize = 0x2c;
/// Where the header's kind is; only an endpoint's names a builder.
const HEADER_TYPE: usize = 0x0e;

/// Which device an entry is about: not only where it sits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Vendor and device id.
    pub id: PciId,
    /// Whoever built the card; nothing where that couldn't be read.
    #[serde(default)]
    pub subsystem: Option<PciId>,
    /// The Device Serial Number; nothing where there is none, or where it couldn't be read.
    #[serde(default)]
    pub serial: Option<u64>,
    /// Where it sits, or sat when this was written.
    pub bdf: Bdf,
}

impl Identity {
    /// Takes a device's identity out of a snapshot; nothing where not even the kernel knows its ids.
    ///
    /// The ids are those that the kernel has cached: a card that reads all ones has them still. Its serial number isn't known
    /// then, so take a baseline where there is one.
    pub fn of_snapshot(snapshot: &Snapshot) -> Option<Self> {
        let config = snapshot.config.read().map_or(&[][..], ConfigSpace::bytes);
        Some(Self {
            id: *snapshot.id.read()?,
            subsystem: subsystem(config),
            serial: serial(config),
            bdf: snapshot.bdf,
        })
    }

    /// Takes a device's identity out of facts, whose serial number is there only where config space was read.
    pub fn of_device(bdf: Bdf, device: &DeviceFacts) -> Self {
        let serial = device.config.as_ref().and_then(|config| config.capabilities.serial);
        Self { id: device.id, subsystem: device.subsystem, serial: serial.filter(is_number), bdf }
    }

    /// Adds the serial number that a device's config space names.
    #[must_use]
    pub fn with_config(self, config: &[u8]) -> Self {
        Self { serial: self.serial.or_else(|| serial(config)), ..self }
    }

    /// Tells whether two records are of the same device, as far as can be known.
    ///
    /// Vendor and device id are the same, and the builder, where both know it. Then a serial number decides: with the same one it
    /// is the same card in any slot (its functions share the number, so the function counts), with another one it is another card
    /// in the same slot. Where one of the two has none, the place decides: a card that reads all ones doesn't tell its number, and
    /// whatever of its kind sits where a sick one sat is taken for it until somebody says otherwise.
    pub fn is_same(&self, other: &Self) -> bool {
        let builder = self.subsystem.zip(other.subsystem).is_none_or(|(one, two)| one == two);
        let place = match self.serial.zip(other.serial) {
            Some((one, two)) => one == two && self.bdf.function() == other.bdf.function(),
            None => self.bdf == other.bdf,
        };
        self.id == other.id && builder && place
    }

    /// Adds what a later record of the same device knows, and where it is now.
    pub fn learn(&mut self, later: &Self) {
        self.subsystem = self.subsystem.or(later.subsystem);
        self.serial = self.serial.or(later.serial);
        self.bdf = later.bdf;
    }

    /// Spells it as a file's name, in letters, digits, dots and dashes.
    pub fn key(&self) -> String {
        let dashed = |text: String| text.replace([':', '.'], "-");
        let or_none = |text: Option<String>| text.map_or_else(|| "none".to_owned(), dashed);
        let (subsystem, serial) = (self.subsystem.map(|id| id.to_string()), self.serial.map(SerialNumber));
        format!(
            "{}.{}.{}.{}",
            dashed(self.id.to_string()),
            or_none(subsystem),
            or_none(serial.map(|serial| serial.to_string())),
            dashed(self.bdf.to_string())
        )
    }

    /// Reads the form of [`Self::key`].
    pub fn from_key(key: &str) -> Option<Self> {
        let mut parts = key.split('.');
        let mut next = || parts.next();
        let (id, subsystem, serial, bdf) = (next()?, next()?, next()?, next()?);
        let none_or = |text: &str| (text != "none").then(|| text.replace('-', ":"));
        let (place, function) = bdf.rsplit_once('-')?;
        Some(Self {
            id: id.replace('-', ":").parse().ok()?,
            subsystem: none_or(subsystem).map(|id| id.parse()).transpose().ok()?,
            serial: match serial {
                "none" => None,
                serial => Some(serial.parse::<SerialNumber>().ok()?.0),
            },
            bdf: format!("{}.{function}", place.replace('-', ":")).parse().ok()?,
        })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}", self.bdf, self.id)?;
        if let Some(serial) = self.serial {
            write!(f, ", serial number {}", SerialNumber(serial))?;
        }
        f.write_str(")")
    }
}

/// Reads whoever built the card from an endpoint's header; all ones and zeros are nobody's.
fn subsystem(config: &[u8]) -> Option<PciId> {
    let word = |at: usize| config.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
    let endpoint = config.get(HEADER_TYPE).is_some_and(|kind| kind & 0x7f == 0);
    let id = PciId { vendor: word(SUBSYSTEM)?, device: word(SUBSYSTEM + 2)? };
    (endpoint && id.vendor != 0 && id.vendor != u16::MAX).then_some(id)
}

fn serial(config: &[u8]) -> Option<u64> {
    Capabilities::parse(config).serial.filter(is_number)
}

/// Tells a number from what a function reads that has none, or doesn't answer.
fn is_number(serial: &u64) -> bool {
    *serial != 0 && *serial != u64::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::facts::{ConfigFacts, Presence};
    use crate::pci::ClassCode;

    fn identity(id: &str, subsystem: Option<&str>, serial: Option<u64>, bdf: &str) -> Identity {
        let subsystem = subsystem.map(|id| id.parse().unwrap());
        Identity { id: id.parse().unwrap(), subsystem, serial, bdf: bdf.parse().unwrap() }
    }

    /// A config space with a builder and a serial number.
    fn config(serial: u64) -> Vec<u8> {
        let mut config = vec![0; ConfigSpace::MAX];
        config[..4].copy_from_slice(&[0xde, 0x10, 0x30, 0x23]);
        config[0x2c..0x30].copy_from_slice(&[0xde, 0x10, 0x26, 0x16]);
        config[0x100..0x104].copy_from_slice(&[0x03, 0, 1, 0]);
        config[0x104..0x10c].copy_from_slice(&serial.to_le_bytes());
        config
    }

    const CARD: &str = "10de:2330";
    const BUILDER: Option<&str> = Some("10de:1626");

    #[rstest]
    #[case::itself((CARD, BUILDER, Some(7), "41:00.0"), (CARD, BUILDER, Some(7), "41:00.0"), true)]
    #[case::in_another_slot((CARD, BUILDER, Some(7), "41:00.0"), (CARD, BUILDER, Some(7), "81:00.0"), true)]
    #[case::its_other_function((CARD, BUILDER, Some(7), "41:00.0"), (CARD, BUILDER, Some(7), "41:00.1"), false)]
    #[case::another_in_its_slot((CARD, BUILDER, Some(7), "41:00.0"), (CARD, BUILDER, Some(8), "41:00.0"), false)]
    #[case::dead_in_its_slot((CARD, BUILDER, Some(7), "41:00.0"), (CARD, None, None, "41:00.0"), true)]
    #[case::dead_elsewhere((CARD, BUILDER, Some(7), "41:00.0"), (CARD, None, None, "81:00.0"), false)]
    #[case::without_a_number((CARD, BUILDER, None, "41:00.0"), (CARD, BUILDER, None, "41:00.0"), true)]
    #[case::without_a_number_elsewhere((CARD, BUILDER, None, "41:00.0"), (CARD, BUILDER, None, "81:00.0"), false)]
    #[case::of_another_builder((CARD, BUILDER, None, "41:00.0"), (CARD, Some("1043:0001"), None, "41:00.0"), false)]
    #[case::another_model((CARD, None, Some(7), "41:00.0"), ("1002:740f", None, Some(7), "41:00.0"), false)]
    fn records_are_of_one_device(
        #[case] one: (&str, Option<&str>, Option<u64>, &str),
        #[case] two: (&str, Option<&str>, Option<u64>, &str),
        #[case] same: bool,
    ) {
        let [one, two] = [one, two].map(|(id, builder, serial, bdf)| identity(id, builder, serial, bdf));
        assert_eq!(one.is_same(&two), same);
        assert_eq!(two.is_same(&one), same);
    }

    #[rstest]
    #[case::alive(config(7), BUILDER, Some(7))]
    #[case::number_of_zeros(config(0), BUILDER, None)]
    #[case::number_of_ones(config(u64::MAX), BUILDER, None)]
    #[case::header_only(config(7)[..64].to_vec(), BUILDER, None)]
    #[case::dead(vec![0xff; 4096], None, None)]
    #[case::unread(Vec::new(), None, None)]
    fn a_snapshot_tells_as_much_as_was_read(
        #[case] config: Vec<u8>,
        #[case] subsystem: Option<&str>,
        #[case] serial: Option<u64>,
    ) {
        let snapshot = Snapshot::of("41:00.0".parse().unwrap(), CARD.parse().unwrap(), &config);
        assert_eq!(Identity::of_snapshot(&snapshot), Some(identity(CARD, subsystem, serial, "41:00.0")));
    }

    #[test]
    fn facts_and_a_snapshot_of_one_device_are_the_same() {
        let bdf: Bdf = "41:00.0".parse().unwrap();
        let mut device = DeviceFacts::new(CARD.parse().unwrap(), ClassCode::new(0x03_0200).unwrap());
        device.subsystem = BUILDER.map(|id| id.parse().unwrap());
        let bytes = config(7);
        let snapshot = Identity::of_snapshot(&Snapshot::of(bdf, device.id, &bytes)).unwrap();
        let unread = Identity::of_device(bdf, &device);
        assert_eq!(unread.serial, None);
        assert_eq!(unread.with_config(&bytes), snapshot);
        let capabilities = Capabilities::parse(&bytes);
        device.config =
            Some(ConfigFacts { capabilities, complete: Presence::Present, ..ConfigFacts::default() });
        assert_eq!(Identity::of_device(bdf, &device), snapshot);
    }

    #[test]
    fn a_later_record_adds_what_it_knows() {
        let mut known = identity(CARD, None, None, "41:00.0");
        known.learn(&identity(CARD, BUILDER, Some(7), "41:00.0"));
        known.learn(&identity(CARD, None, None, "81:00.0"));
        assert_eq!(known, identity(CARD, BUILDER, Some(7), "81:00.0"));
    }

    proptest! {
        #[test]
        fn a_key_is_a_safe_name_and_tells_the_identity(
            ids in any::<[u16; 4]>(),
            builder in any::<bool>(),
            serial in proptest::option::of(any::<u64>()),
            place in (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8),
        ) {
            let pair = |vendor, device| PciId { vendor, device };
            let bdf = Bdf::new(place.0, place.1, place.2, place.3).unwrap();
            let subsystem = builder.then_some(pair(ids[2], ids[3]));
            let identity = Identity { id: pair(ids[0], ids[1]), subsystem, serial, bdf };
            let key = identity.key();
            prop_assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'), "{}", key);
            prop_assert_eq!(Identity::from_key(&key), Some(identity.clone()));
            prop_assert_eq!(Identity::from_key(&format!("{key}.2.jsonl")), Some(identity));
        }

        #[test]
        fn whatever_a_file_is_called_is_read_as_a_key_or_as_none(name in "\\PC*") {
            let _ = Identity::from_key(&name);
        }
    }
}
