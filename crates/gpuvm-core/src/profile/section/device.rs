//! `[[device]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::select::{self, RawSelector, Selector};
use crate::pci::{Bdf, Slot};
use crate::profile::check::{Checker, value_or};
use crate::profile::language::{BDF, Key, Kind, words};
use crate::profile::problem::{Problem, ProblemKind};
use crate::profile::read::{Choice, Cursor, Leaf, Located};
use crate::profile::tree::Place;
use crate::reset::{ResetPolicy, ResetWish};

/// A device to pass through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// Its address on the host.
    pub bdf: Bdf,
    /// What it was chosen by, where the profile doesn't name its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_by: Option<Selector>,
    /// Functions of its group or its card that are bound to VFIO with it, and not passed.
    pub hold: Vec<Bdf>,
    /// An option ROM that the guest sees instead of the device's own.
    pub rom_file: Option<PathBuf>,
    /// Whether the guest sees an option ROM at all; QEMU decides where it isn't said.
    pub rombar: Option<bool>,
    /// Where its root port sits on the guest's root bus.
    pub guest_address: Option<PortAddress>,
    /// Whether it may be taken although the host booted on it.
    pub allow_boot_display: bool,
    /// Its place in the boot order, where it was given one.
    pub boot: Option<u32>,
    /// What is asked for of its resets.
    #[serde(default)]
    pub reset: ResetWish,
}

impl DeviceRequest {
    /// Asks for a device and nothing beside.
    pub fn new(bdf: Bdf) -> Self {
        Self {
            bdf,
            chosen_by: None,
            hold: Vec::new(),
            rom_file: None,
            rombar: None,
            guest_address: None,
            allow_boot_display: false,
            boot: None,
            reset: ResetWish::default(),
        }
    }
}

/// A device to pass through that is described and not named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceChoice {
    /// Its place among the devices of the profile, those that are named included.
    pub place: usize,
    /// What it must be like.
    pub select: Selector,
    /// As in [`DeviceRequest::hold`].
    pub hold: Vec<Bdf>,
    /// As in [`DeviceRequest::rom_file`].
    pub rom_file: Option<PathBuf>,
    /// As in [`DeviceRequest::rombar`].
    pub rombar: Option<bool>,
    /// As in [`DeviceRequest::guest_address`].
    pub guest_address: Option<PortAddress>,
    /// As in [`DeviceRequest::allow_boot_display`].
    pub allow_boot_display: bool,
    /// As in [`DeviceRequest::boot`].
    pub boot: Option<u32>,
    /// As in [`DeviceRequest::reset`].
    #[serde(default)]
    pub reset: ResetWish,
}

impl DeviceChoice {
    /// Makes the request for the device that was chosen.
    pub fn at(self, bdf: Bdf) -> DeviceRequest {
        DeviceRequest {
            bdf,
            chosen_by: Some(self.select),
            hold: self.hold,
            rom_file: self.rom_file,
            rombar: self.rombar,
            guest_address: self.guest_address,
            allow_boot_display: self.allow_boot_display,
            boot: self.boot,
            reset: self.reset,
        }
    }
}

/// A root port's device and function number on the guest's root bus, as in `1c.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortAddress {
    /// The device number: 2 to 0x1e, since Q35 and gpuvm have the others.
    pub slot: u8,
    /// The function number.
    pub function: u8,
}

impl PortAddress {
    /// The first slot of Q35's root bus that ports take; 0 is the host bridge, and 1 is the panic device's.
    pub const FIRST_SLOT: u8 = 2;
    /// The last: 0x1f is the ICH9.
    pub const LAST_SLOT: u8 = 0x1e;
}

impl std::str::FromStr for PortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!(
                "`{text}` is no place for a root port: write its device and function number on the guest's root bus, \
                 from \"02.0\" to \"1e.7\""
            )
        };
        let (slot, function) = text.split_once('.').ok_or_else(error)?;
        let number = |text: &str| {
            let plain = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u8::from_str_radix(text, 16).ok()).flatten().ok_or_else(error)
        };
        let address = Self { slot: number(slot)?, function: number(function)? };
        let fits = (Self::FIRST_SLOT..=Self::LAST_SLOT).contains(&address.slot) && address.function < 8;
        if fits { Ok(address) } else { Err(error()) }
    }
}

impl std::fmt::Display for PortAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}.{:x}", self.slot, self.function)
    }
}

impl TryFrom<String> for PortAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PortAddress> for String {
    fn from(address: PortAddress) -> Self {
        address.to_string()
    }
}

pub(in crate::profile) const KEYS: &[Key] = &[
    Key::optional("bdf", BDF, "Its address on the host, as in \"0000:81:00.0\"; or else `select`."),
    Key::optional(
        "select",
        Kind::Table(select::KEYS),
        "What the device is like, instead of its address: the one on this host that fits, which `gpuvm lock` holds fast.",
    ),
    Key::default(
        "hold",
        Kind::List(&BDF),
        "[]",
        "Functions of its IOMMU group or its card that are bound to VFIO with it and not passed to the guest.",
    ),
    Key::optional("rom-file", Kind::Text, "An option ROM that the guest sees instead of the device's own."),
    Key::optional(
        "rombar",
        Kind::Flag,
        "Whether the guest sees an option ROM at all; QEMU decides where it isn't said.",
    ),
    Key::optional(
        "guest-address",
        Kind::Pattern("^(0?[2-9a-fA-F]|1[0-9a-eA-E])\\.[0-7]$"),
        "Where its root port sits on the guest's root bus, as in \"1c.0\": device 02 to 1e, function 0 to 7.",
    ),
    Key::default(
        "allow-boot-display",
        Kind::Flag,
        "false",
        "Takes it although the host booted on it; the host's console is dark from then on.",
    ),
    Key::optional(
        "boot",
        Kind::Integer { low: 1, high: Disk::BOOT_MAX },
        "Its place in the boot order, 1 first, for a disk controller that is passed through.",
    ),
    Key::default(
        "reset",
        Kind::Words(words::<ResetPolicy>),
        "\"auto\"",
        "How it is reset before, during and after a run: by what the kernel and QEMU find best, by one method alone, or not at all.",
    ),
    Key::default(
        "avoid-flr",
        Kind::Flag,
        "false",
        "Keeps function level resets from it, for a card that doesn't survive them.",
    ),
];

impl Choice for ResetPolicy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("flr", Self::Flr),
        ("pm", Self::Pm),
        ("bus", Self::Bus),
        ("hot", Self::Hot),
        ("none", Self::None),
    ];
}

#[derive(Debug, Clone)]
pub(in crate::profile) struct RawDevice {
    key: String,
    place: Place,
    bdf: Leaf<Bdf>,
    select: Option<RawSelector>,
    hold: Vec<Located<Bdf>>,
    rom_file: Leaf<String>,
    rombar: Leaf<bool>,
    guest_address: Leaf<PortAddress>,
    allow_boot_display: Leaf<bool>,
    boot: Leaf<u32>,
    reset: Leaf<ResetPolicy>,
    avoid_flr: Leaf<bool>,
}

impl RawDevice {
    fn sibling(&self, name: &str) -> String {
        self.key.replace(".bdf", &format!(".{name}"))
    }
}

pub(in crate::profile) fn read(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawDevice {
    let device = RawDevice {
        key: table.key("bdf"),
        place: table.place(),
        bdf: table.parsed("bdf", problems),
        select: table.table("select", problems).map(|select| select::read(select, problems)),
        hold: table.list_parsed("hold", problems),
        rom_file: table.text("rom-file", problems),
        rombar: table.flag("rombar", problems),
        guest_address: table.parsed("guest-address", problems),
        allow_boot_display: table.flag("allow-boot-display", problems),
        boot: table.count("boot", 1..=Disk::BOOT_MAX, problems),
        reset: table.choice("reset", problems),
        avoid_flr: table.flag("avoid-flr", problems),
    };
    table.finish(problems);
    device
}

/// What was seen of the devices so far.
#[derive(Debug, Default)]
struct Seen {
    /// Devices and held functions.
    bdfs: BTreeSet<Bdf>,
    /// Which slot of the host has which place in the guest.
    ports: BTreeMap<PortAddress, Slot>,
    slots: BTreeMap<Slot, PortAddress>,
}

pub(in crate::profile) fn check(
    raw: Vec<RawDevice>,
    checker: &mut Checker<'_>,
) -> (Vec<DeviceRequest>, Vec<DeviceChoice>) {
    let mut seen = Seen::default();
    let (mut devices, mut choices) = (Vec::new(), Vec::new());
    for (place, raw) in raw.into_iter().enumerate() {
        match check_one(place, raw, &mut seen, checker) {
            Some(Wanted::Named(device)) => devices.push(device),
            Some(Wanted::Described(choice)) => choices.push(choice),
            None => {}
        }
    }
    devices.iter_mut().for_each(|device| device.hold.sort());
    choices.iter_mut().for_each(|choice| choice.hold.sort());
    (devices, choices)
}

/// A device as it is written.
enum Wanted {
    Named(DeviceRequest),
    Described(DeviceChoice),
}

fn check_one(place: usize, raw: RawDevice, seen: &mut Seen, checker: &mut Checker<'_>) -> Option<Wanted> {
    let rom_file = raw.rom_file.as_ref().and_then(|rom| checker.path(rom, &raw.sibling("rom-file")));
    if let (Some(_), Some(Located { value: false, place })) = (&raw.rom_file, &raw.rombar) {
        let message = "`false` hides the ROM that rom-file names".to_owned();
        checker.value(&raw.sibling("rombar"), place.clone(), message);
    }
    if let Some(boot) = &raw.boot {
        checker.boot_place(&raw.sibling("boot"), boot);
    }
    if raw.bdf.is_none() && raw.select.is_none() && checker.refused_below(&raw.sibling("select")) {
        return None;
    }
    let select = select(&raw, checker);
    let bdf = match select {
        Some(_) => None,
        None => Some(checker.required(raw.bdf.clone(), &raw.key, r#"bdf = "0000:81:00.0""#, &raw.place)?),
    };
    let hold_key = raw.sibling("hold");
    let own = bdf.iter().map(|bdf| (&raw.key, bdf));
    for (key, Located { value, place }) in own.chain(raw.hold.iter().map(|held| (&hold_key, held))) {
        if !seen.bdfs.insert(*value) {
            checker.report(key, place.clone(), ProblemKind::Twice { key: key.clone(), bdf: *value });
        }
    }
    if let Some(bdf) = &bdf {
        check_port(&raw, bdf.value, seen, checker);
    }
    let reset = reset(&raw, checker);
    let choice = DeviceChoice {
        place,
        select: select.unwrap_or_default(),
        hold: raw.hold.iter().map(|held| held.value).collect(),
        rom_file,
        rombar: raw.rombar.map(|rombar| rombar.value),
        guest_address: raw.guest_address.map(|address| address.value),
        allow_boot_display: value_or(raw.allow_boot_display, false),
        boot: raw.boot.map(|boot| boot.value),
        reset,
    };
    Some(match bdf {
        Some(bdf) => Wanted::Named(DeviceRequest { chosen_by: None, ..choice.at(bdf.value) }),
        None => Wanted::Described(choice),
    })
}

/// Takes what is asked for of a device's resets; that which is to be avoided can't be the only one allowed.
fn reset(raw: &RawDevice, checker: &mut Checker<'_>) -> ResetWish {
    let policy = raw.reset.as_ref().map_or(ResetPolicy::Auto, |reset| reset.value);
    if let (ResetPolicy::Flr, Some(Located { value: true, place })) = (policy, &raw.avoid_flr) {
        let message = "`true` takes away the one method that reset = \"flr\" allows".to_owned();
        checker.value(&raw.sibling("avoid-flr"), place.clone(), message);
    }
    ResetWish { policy, avoid_flr: raw.avoid_flr.as_ref().is_some_and(|avoid| avoid.value) }
}

/// Takes the description of a device, if it has one; a name beside it would make one of the two pointless.
fn select(raw: &RawDevice, checker: &mut Checker<'_>) -> Option<Selector> {
    let select = raw.select.clone()?;
    if raw.bdf.is_some() {
        let (key, place) = (raw.sibling("select"), select.place().clone());
        checker.report(
            &key,
            place,
            ProblemKind::Pointless { key: key.clone(), because: "bdf names the device" },
        );
    }
    Some(select::check(select, checker))
}

/// The functions of one slot share a root port, and two slots can't.
fn check_port(raw: &RawDevice, bdf: Bdf, seen: &mut Seen, checker: &mut Checker<'_>) {
    let Some(Located { value, place }) = &raw.guest_address else { return };
    let key = raw.sibling("guest-address");
    if let Some(other) = seen.ports.insert(*value, bdf.slot()).filter(|other| *other != bdf.slot()) {
        checker.value(&key, place.clone(), format!("`{value}` is taken by {other} already"));
    }
    if let Some(other) = seen.slots.insert(bdf.slot(), *value).filter(|other| other != value) {
        let message = format!("another function of the same card is at `{other}`: a card stays in one slot");
        checker.value(&key, place.clone(), message);
    }
}
