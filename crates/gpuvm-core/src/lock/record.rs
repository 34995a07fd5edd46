//! What a lock holds, and its text.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

use crate::facts::{DeviceFacts, HostFacts, Presence, SystemFacts};
use crate::pci::{Bdf, ClassCode, PciId, SerialNumber, serde_as_text};
use crate::plan::Refusal;
use crate::profile::{DeviceRequest, Profile};
use crate::reset::ResetDomain;
use crate::units::ByteSize;

/// The version of locks that this gpuvm writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// What a file of a lock begins with.
const HEAD: &str = "\
# What `gpuvm lock` found on this host for the profile beside this file. `gpuvm lock --check PROFILE` says what has changed since;
# `gpuvm up` refuses to start on a change that matters. Not to be edited: `gpuvm lock PROFILE` writes it anew.
";

/// What a host was, as far as a profile's devices rest on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lock {
    /// The version of the format.
    pub version: u32,
    /// What couldn't be read, in words: nothing is known of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// The machine and its kernel.
    pub host: LockedHost,
    /// The devices by address.
    #[serde(default, rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<LockedDevice>,
}

/// The machine and its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedHost {
    /// The kernel's release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// The IOMMU units that the kernel uses.
    #[serde(default)]
    pub iommus: Vec<String>,
    /// Whether the IOMMU remaps interrupts; missing where nothing told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupt_remapping: Option<bool>,
    /// What the firmware says of the machine and of itself.
    #[serde(default)]
    pub firmware: LockedFirmware,
}

/// What the firmware says of the machine and of itself; all of it missing where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LockedFirmware {
    /// Who built the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_vendor: Option<String>,
    /// The machine's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its board.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
    /// Who wrote the firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// A device that the guest gets, and where it sits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedDevice {
    /// Its address.
    pub bdf: Bdf,
    /// What the profile chose it by, where it doesn't name its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_by: Option<String>,
    /// Its ids.
    pub id: PciId,
    /// The ids of whoever built the card; missing where they weren't read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<PciId>,
    /// Its revision; missing where it wasn't read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// Its class.
    pub class: ClassCode,
    /// Its serial number; missing where its config space wasn't read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Its node; missing where the firmware doesn't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    /// The number of its IOMMU group, which another boot may change; missing where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_number: Option<u32>,
    /// Its base address registers.
    #[serde(default)]
    pub bars: Vec<LockedBar>,
    /// The bridges above it, from the root port down.
    #[serde(default)]
    pub path: Vec<LockedFunction>,
    /// The other functions of its IOMMU group.
    #[serde(default)]
    pub group: Vec<LockedFunction>,
    /// The other functions of its slot.
    #[serde(default)]
    pub slot: Vec<LockedFunction>,
    /// The other functions that a bus reset of it reaches.
    #[serde(default)]
    pub reset: Vec<LockedFunction>,
}

/// A revision, spelt in hex as lspci does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision(pub u8);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

impl FromStr for Revision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let revision = plain.then(|| u8::from_str_radix(text, 16).ok()).flatten();
        revision
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no revision: expected two digits in hex, like a1"))
    }
}

/// A serial number, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    /// The device has no such capability.
    None,
    /// The Device Serial Number.
    Number(SerialNumber),
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(Self::None) } else { text.parse().map(Self::Number) }
    }
}

/// A base address register: `0: 16M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedBar {
    /// Its number.
    pub index: u8,
    /// Its size.
    pub size: ByteSize,
}

impl fmt::Display for LockedBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.index, self.size)
    }
}

impl FromStr for LockedBar {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bar = text
            .split_once(": ")
            .and_then(|(index, size)| Some(Self { index: index.parse().ok()?, size: size.parse().ok()? }));
        bar.ok_or_else(|| format!("`{text}` is no register: expected its number and its size, like `0: 16M`"))
    }
}

/// Another function that a device has to do with: `0000:81:00.1 8086:2668 040300`, or the address alone where no more was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedFunction {
    /// Its address.
    pub bdf: Bdf,
    /// Its ids and its class, where they were read.
    pub what: Option<(PciId, ClassCode)>,
}

impl LockedFunction {
    fn of(bdf: Bdf, facts: &HostFacts) -> Self {
        Self { bdf, what: facts.devices.get(&bdf).map(|device| (device.id, device.class)) }
    }

    /// Tells whether this may be the other one: the same address, and as far as that is known the same ids and class.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        let what = self.what.zip(other.what).is_none_or(|(mine, theirs)| mine == theirs);
        self.bdf == other.bdf && what
    }

    /// Names it for people.
    pub fn words(&self) -> String {
        match self.what {
            Some((id, class)) => format!("{} ({id} {})", self.bdf, class.name()),
            None => self.bdf.to_string(),
        }
    }
}

impl fmt::Display for LockedFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            Some((id, class)) => write!(f, "{} {id} {class}", self.bdf),
            None => self.bdf.fmt(f),
        }
    }
}

impl FromStr for LockedFunction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(' ').collect();
        let bdf = |bdf: &str| bdf.parse::<Bdf>().map_err(|error| error.to_string());
        match words.as_slice() {
            [address] => Ok(Self { bdf: bdf(address)?, what: None }),
            [address, id, class] => {
                Ok(Self { bdf: bdf(address)?, what: Some((id.parse()?, class.parse()?)) })
            }
            _ => Err(format!(
                "`{text}` is no function: expected address, ids and class, like `0000:81:00.1 8086:2668 040300`"
            )),
        }
    }
}

serde_as_text!(Revision, Serial, LockedBar, LockedFunction);

/// Why a text is no lock that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// It isn't one.
    #[error("it is damaged: {message}")]
    Damaged {
        /// What is wrong with it.
        message: String,
    },
    /// It is of another version.
    #[error("it is of version {found}, and this gpuvm reads version {VERSION}")]
    Version {
        /// Its version.
        found: i64,
    },
}

impl Lock {
    /// Takes down what a profile's devices rest on.
    ///
    /// # Errors
    /// Returns each device that isn't there.
    pub fn of(profile: &Profile, facts: &HostFacts) -> Result<Self, Vec<Refusal>> {
        let asked = super::asked(profile);
        let unknown: Vec<Refusal> = asked
            .iter()
            .filter(|bdf| !facts.devices.contains_key(bdf))
            .map(|bdf| Refusal::UnknownDevice { bdf: *bdf })
            .collect();
        if unknown.is_empty() { Ok(Self::present(profile, facts)) } else { Err(unknown) }
    }

    /// Takes down what is there of a profile's devices.
    pub(super) fn present(profile: &Profile, facts: &HostFacts) -> Self {
        let device = |request: &DeviceRequest| {
            let device = LockedDevice::of(request.bdf, facts.devices.get(&request.bdf)?, facts);
            Some(LockedDevice { chosen_by: request.chosen_by.as_ref().map(ToString::to_string), ..device })
        };
        let mut devices: Vec<LockedDevice> = profile.devices.iter().filter_map(device).collect();
        devices.sort_by_key(|device| device.bdf);
        Self { version: VERSION, unread: facts.unread.clone(), host: LockedHost::of(facts), devices }
    }

    /// Reads a lock's text.
    ///
    /// # Errors
    /// Returns what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        let damaged = |message: String| LockError::Damaged { message };
        // The version first: of another one nothing else is known.
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| damaged(one_line(&error)))?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(version) if version == i64::from(VERSION) => {}
            Some(found) => return Err(LockError::Version { found }),
            None => return Err(damaged("it has no version".to_owned())),
        }
        let lock: Self = toml::from_str(text).map_err(|error| damaged(one_line(&error)))?;
        let mut seen = BTreeSet::new();
        match lock.devices.iter().find(|device| !seen.insert(device.bdf)) {
            Some(twice) => Err(damaged(format!("{} is in it twice", twice.bdf))),
            None => Ok(lock),
        }
    }

    /// Spells the lock, the same one always in the same way.
    ///
    /// # Errors
    /// None that a lock could bring about; it is TOML's serialiser that may fail.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        Ok(format!("{HEAD}\n{}", toml::to_string_pretty(self)?))
    }
}

/// The parser's message without the excerpt below it.
fn one_line(error: &toml::de::Error) -> String {
    error.message().lines().collect::<Vec<_>>().join(" ")
}

impl LockedHost {
    fn of(facts: &HostFacts) -> Self {
        Self {
            kernel: facts.kernel.release.clone(),
            cmdline: facts.kernel.cmdline.clone(),
            iommus: facts.iommus.clone(),
            interrupt_remapping: facts.platform.remaps_interrupts(),
            firmware: LockedFirmware::of(&facts.platform.system),
        }
    }
}

impl LockedFirmware {
    fn of(system: &SystemFacts) -> Self {
        let SystemFacts { vendor, product, board, bios_vendor, bios_version, bios_date } = system.clone();
        Self {
            machine_vendor: vendor,
            product,
            board,
            vendor: bios_vendor,
            version: bios_version,
            date: bios_date,
        }
    }
}

impl LockedDevice {
    /// Takes down one device.
    pub fn of(bdf: Bdf, device: &DeviceFacts, facts: &HostFacts) -> Self {
        let others = |bdfs: &mut dyn Iterator<Item = Bdf>| -> Vec<LockedFunction> {
            let others: BTreeSet<Bdf> = bdfs.filter(|other| *other != bdf).collect();
            others.into_iter().map(|other| LockedFunction::of(other, facts)).collect()
        };
        let members = device.group.and_then(|group| facts.groups.get(&group));
        let mut bars: Vec<LockedBar> =
            device.bars.iter().map(|bar| LockedBar { index: bar.index, size: bar.size }).collect();
        bars.sort();
        Self {
            bdf,
            chosen_by: None,
            id: device.id,
            subsystem: device.subsystem,
            revision: device.revision.map(Revision),
            class: device.class,
            serial: serial(device),
            node: device.node,
            group_number: device.group.map(|group| group.0),
            bars,
            path: device.upstream.iter().map(|bridge| LockedFunction::of(*bridge, facts)).collect(),
            group: others(&mut members.into_iter().flatten().copied()),
            slot: others(&mut facts.slot_of(bdf).filter(|mate| physical(*mate, facts))),
            reset: others(&mut reset(bdf, device, facts)),
        }
    }

    /// Names it for people.
    pub fn function(&self) -> LockedFunction {
        LockedFunction { bdf: self.bdf, what: Some((self.id, self.class)) }
    }

    /// Tells whether the card that was found at the same address is this one, as far as that is known.
    pub fn holds_here(&self, now: &Self) -> bool {
        let subsystem = self.subsystem.zip(now.subsystem).is_none_or(|(was, is)| was == is);
        let serial = self.serial.zip(now.serial).is_none_or(|(was, is)| was == is);
        self.bdf == now.bdf && self.id == now.id && subsystem && serial
    }
}

/// Virtual functions come and go with a number in sysfs; they make no other card of theirs.
fn physical(bdf: Bdf, facts: &HostFacts) -> bool {
    facts.devices.get(&bdf).is_some_and(|device| device.virtual_function == Presence::Absent)
}

/// Takes a device's serial number, or that it has none, out of its config space, as far as that was read.
pub(crate) fn serial(device: &DeviceFacts) -> Option<Serial> {
    let config = device.config.as_ref()?;
    match (config.capabilities.serial, config.complete) {
        (Some(number), _) => Some(Serial::Number(SerialNumber(number))),
        (None, Presence::Present) => Some(Serial::None),
        (None, Presence::Absent) => None,
    }
}

/// Finds the functions that a bus reset of a device reaches: those on its bus and below.
fn reset<'a>(bdf: Bdf, device: &DeviceFacts, facts: &'a HostFacts) -> impl Iterator<Item = Bdf> + 'a {
    let mine = ResetDomain::of(bdf, device);
    facts
        .devices
        .iter()
        .filter(move |(other, facts)| {
            let theirs = ResetDomain::of(**other, facts);
            let reached = mine.as_ref().zip(theirs.as_ref());
            reached.is_some_and(|(mine, theirs)| mine.bus == theirs.bus || theirs.above.contains(&mine.bus))
        })
        .map(|(other, _)| *other)
}
