//! `[device.select]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

use crate::pci::{PciId, SerialNumber, Slot, serde_as_text};
use crate::profile::check::Checker;
use crate::profile::language::{Key, Kind};
use crate::profile::problem::{Problem, ProblemKind};
use crate::profile::read::{Cursor, Leaf};
use crate::profile::tree::Place;

/// What a device must be like to be chosen; each that is there must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selector {
    /// Vendor and device id.
    pub id: Option<PciId>,
    /// Base class and subclass.
    pub class: Option<DeviceClass>,
    /// Its node.
    pub node: Option<u32>,
    /// Its slot.
    pub slot: Option<Slot>,
    /// Its function in its slot.
    pub function: Option<u8>,
    /// Its serial number.
    pub serial: Option<SerialNumber>,
    /// Which of those that match the rest, from 0 on, in the order of their addresses.
    pub nth: Option<u32>,
}

impl Selector {
    /// The most nodes that a kernel has (MAX_NUMNODES of include/linux/numa.h).
    const NODE_MAX: u32 = 1023;
    /// More than any host has cards.
    const NTH_MAX: u32 = 65_535;
}

/// Spells it as in a profile, its keys always in the same order: a lock knows by this text what it has chosen.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |key: &str, value: Option<String>| value.map(|value| format!("{key} = \"{value}\""));
        let number = |key: &str, value: Option<u32>| value.map(|value| format!("{key} = {value}"));
        let parts = [
            text("id", self.id.map(|id| id.to_string())),
            text("class", self.class.map(|class| class.to_string())),
            number("node", self.node),
            text("slot", self.slot.map(|slot| slot.to_string())),
            number("function", self.function.map(u32::from)),
            text("serial", self.serial.map(|serial| serial.to_string())),
            number("nth", self.nth),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// Base class and subclass, the form that lspci prints: `0302`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceClass(pub u16);

impl fmt::Display for DeviceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl FromStr for DeviceClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let class = plain.then(|| u16::from_str_radix(text, 16).ok()).flatten();
        class.map(Self).ok_or_else(|| {
            format!("`{text}` is no class: expected base class and subclass as four digits in hex, like 0302")
        })
    }
}

serde_as_text!(DeviceClass);

pub(in crate::profile) const KEYS: &[Key] = &[
    Key::optional(
        "id",
        Kind::Pattern("^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}$"),
        "Its vendor and device id, as in \"10de:2330\".",
    ),
    Key::optional(
        "class",
        Kind::Pattern("^[0-9a-fA-F]{4}$"),
        "Its base class and subclass, as in \"0302\" for a 3D controller.",
    ),
    Key::optional(
        "node",
        Kind::Integer { low: 0, high: Selector::NODE_MAX },
        "The NUMA node that it sits on.",
    ),
    Key::optional(
        "slot",
        Kind::Pattern("^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-1][0-9a-fA-F]$"),
        "The slot that it sits in, as in \"0000:81:00\".",
    ),
    Key::optional(
        "function",
        Kind::Integer { low: 0, high: 7 },
        "Its function in its slot. Of a display card only function 0 is chosen where this isn't said.",
    ),
    Key::optional(
        "serial",
        Kind::Pattern("^([0-9a-fA-F]{2}-){7}[0-9a-fA-F]{2}$"),
        "Its serial number as lspci -v prints it, as in \"00-15-17-ff-ff-aa-bb-cc\"; most GPUs have none.",
    ),
    Key::optional(
        "nth",
        Kind::Integer { low: 0, high: Selector::NTH_MAX },
        "Which of those that match the rest, from 0 on, in the order of their addresses.",
    ),
];

#[derive(Debug, Clone)]
pub(in crate::profile) struct RawSelector {
    key: String,
    place: Place,
    id: Leaf<PciId>,
    class: Leaf<DeviceClass>,
    node: Leaf<u32>,
    slot: Leaf<Slot>,
    function: Leaf<u32>,
    serial: Leaf<SerialNumber>,
    nth: Leaf<u32>,
}

impl RawSelector {
    /// Returns where it stands.
    pub(in crate::profile) fn place(&self) -> &Place {
        &self.place
    }
}

pub(in crate::profile) fn read(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawSelector {
    let key = table.key("");
    let selector = RawSelector {
        key: key.trim_end_matches('.').to_owned(),
        place: table.place(),
        id: table.parsed("id", problems),
        class: table.parsed("class", problems),
        node: table.count("node", 0..=Selector::NODE_MAX, problems),
        slot: table.parsed("slot", problems),
        function: table.count("function", 0..=7, problems),
        serial: table.parsed("serial", problems),
        nth: table.count("nth", 0..=Selector::NTH_MAX, problems),
    };
    table.finish(problems);
    selector
}

/// Takes what was written. One that says nothing of the device would choose any.
pub(in crate::profile) fn check(raw: RawSelector, checker: &mut Checker<'_>) -> Selector {
    let selector = Selector {
        id: raw.id.map(|id| id.value),
        class: raw.class.map(|class| class.value),
        node: raw.node.map(|node| node.value),
        slot: raw.slot.map(|slot| slot.value),
        function: raw.function.and_then(|function| u8::try_from(function.value).ok()),
        serial: raw.serial.map(|serial| serial.value),
        nth: raw.nth.map(|nth| nth.value),
    };
    let Selector { id, class, slot, serial, .. } = &selector;
    if id.is_none()
        && class.is_none()
        && slot.is_none()
        && serial.is_none()
        && !checker.refused_below(&raw.key)
    {
        let other = "`id`, `class`, `slot` or `serial`";
        checker.report(&raw.key, raw.place, ProblemKind::Needs { key: raw.key.clone(), other });
    }
    selector
}
