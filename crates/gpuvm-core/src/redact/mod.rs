//! Redaction: takes out of texts what names a person, a place or a machine, and leaves what a fault is found by.
//!
//! The same thing has the same stand-in wherever it occurs, so that texts still fit each other: a profile's disk is the disk of
//! the plan, and an address in one log is that of another. Stand-ins have the form of what they stand for, so that programs
//! read them. What can be known by its form is found by it ([`forms`]); names must be told first ([`Redactor::host`],
//! [`Redactor::path`], [`Redactor::learn`]).

mod forms;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path};

use serde_json::{Map, Value};

/// Folders that are on every machine and name nobody.
const COMMON: &[&str] = &[
    "AAVMF",
    "OVMF",
    "bin",
    "block",
    "boot",
    "bus",
    "by-id",
    "by-label",
    "by-partuuid",
    "by-path",
    "by-uuid",
    "data",
    "dev",
    "devices",
    "disk",
    "disks",
    "efi",
    "etc",
    "firmware",
    "gpuvm",
    "home",
    "images",
    "lab",
    "lib",
    "lib64",
    "libvirt",
    "local",
    "log",
    "mapper",
    "media",
    "mnt",
    "net",
    "opt",
    "overlays",
    "pci",
    "proc",
    "profiles",
    "qemu",
    "root",
    "run",
    "sbin",
    "share",
    "shm",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
    "vfio",
    "vm",
    "vms",
];

/// What something is, which decides the form of its stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A host's name.
    Host,
    /// The hardware address of a network interface.
    Mac,
    /// More or fewer such pairs: InfiniBand's addresses, serial numbers of PCI Express.
    Pairs,
    /// An internet address.
    Ip4,
    /// An internet address.
    Ip6,
    /// A UUID: of a disk, a machine, a boot.
    Uuid,
    /// 32 hex digits: a machine's id, an address as the kernel lists it.
    Hex32,
    /// A serial number.
    Serial,
    /// A password, a key.
    Secret,
    /// Whoever owns a home folder.
    User,
    /// A disk's file.
    Disk,
    /// A folder.
    Folder,
}

/// Takes things out of texts, each always by the same stand-in.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    /// The number of each thing among those of its kind.
    numbers: BTreeMap<(Kind, String), u64>,
    /// Names that are taken out wherever they stand as a word, in lower case.
    words: BTreeMap<String, Kind>,
    /// Names that are taken out where they are part of a path.
    parts: BTreeMap<String, Kind>,
}

impl Redactor {
    /// Makes one that knows nothing yet but forms.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells a host's name; with a domain, the host alone and the domain are taken out too.
    pub fn host(&mut self, name: &str) {
        let name = name.trim().to_ascii_lowercase();
        let (short, domain) = name.split_once('.').unwrap_or((&name, ""));
        // A name that every machine without one has.
        for part in [&name, short, domain].into_iter().filter(|part| !part.is_empty() && *part != "localhost")
        {
            self.words.insert(part.to_owned(), Kind::Host);
        }
    }

    /// Tells whose account something is, alone or as `name@host`.
    pub fn user(&mut self, name: &str) {
        if !name.is_empty() {
            self.words.insert(name.to_ascii_lowercase(), Kind::User);
        }
    }

    /// Tells a serial number, which is taken out in any of the ways it is written.
    pub fn serial(&mut self, serial: u64) {
        for spelt in [
            serial.to_string(),
            format!("{serial:x}"),
            format!("{serial:016x}"),
            format!("0x{serial:x}"),
            format!("0x{serial:016x}"),
        ] {
            self.words.insert(spelt, Kind::Serial);
        }
    }

    /// Tells the path of a disk, a mount or a folder of the user's: each part of it that isn't on every machine is taken out.
    pub fn path(&mut self, path: &Path, last: Last) {
        let parts: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        let count = parts.len();
        for (at, part) in parts.into_iter().enumerate() {
            if COMMON.contains(&part.as_str()) || is_device_node(&part) {
                continue;
            }
            let home = self.parts.get(&part) == Some(&Kind::User);
            match (at + 1 == count, last) {
                _ if home => {}
                (true, Last::File) => {
                    self.words.insert(part.to_ascii_lowercase(), Kind::Disk);
                }
                _ => {
                    self.parts.insert(part, Kind::Folder);
                }
            }
        }
    }

    /// Takes note of whose home folders a text names.
    pub fn learn(&mut self, text: &str) {
        for (at, home) in text.match_indices("/home/") {
            let name = text[at + home.len()..]
                .split(|c: char| c.is_whitespace() || "/\"'`,;:=|<>()[]{}\\".contains(c))
                .next();
            if let Some(name) = name.filter(|name| !name.is_empty()) {
                self.parts.insert(name.to_owned(), Kind::User);
            }
        }
    }

    /// Takes note of whose home folders a document names, in keys and values.
    pub fn learn_json(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.learn(text),
            Value::Array(values) => values.iter().for_each(|value| self.learn_json(value)),
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                self.learn(key);
                self.learn_json(value);
            }),
            _ => {}
        }
    }

    /// Returns a text without what names somebody.
    pub fn text(&mut self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        let mut at = 0;
        while let Some(next) = text[at..].chars().next() {
            let begins = !text[..at].ends_with(char::is_alphanumeric);
            match begins.then(|| self.found(text, at)).flatten() {
                Some((length, stand_in)) => {
                    clean.push_str(&stand_in);
                    at += length;
                }
                None => {
                    clean.push(next);
                    at += next.len_utf8();
                }
            }
        }
        clean
    }

    /// Returns a document without what names somebody; its shape stays.
    pub fn json(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(values) => values.iter().map(|value| self.json(value)).collect(),
            Value::Object(object) => {
                let member = |(key, value): (&String, &Value)| (self.key(key), self.member(key, value));
                Value::Object(object.iter().map(member).collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    /// Keys are the program's own words, but for paths and addresses, which tables are kept by.
    fn key(&mut self, key: &str) -> String {
        if key.contains(['/', ':', '.']) { self.text(key) } else { key.to_owned() }
    }

    fn member(&mut self, key: &str, value: &Value) -> Value {
        match (forms::kept_by_key(key), value) {
            (Some(kind), Value::String(text)) if forms::is_telling(text) => {
                Value::String(self.whole(text, kind))
            }
            (Some(kind @ Kind::Serial), Value::Number(number)) => {
                Value::from(self.number(kind, &number.to_string()))
            }
            _ => self.json(value),
        }
    }

    /// Returns the stand-in for what begins at a place of a text, and how much of the text it stands for.
    fn found(&mut self, text: &str, at: usize) -> Option<(usize, String)> {
        let rest = &text[at..];
        if let Some((before, value, kind)) = forms::keyed(text, at) {
            let stand_in = self.whole(&rest[before..before + value], kind);
            return Some((before + value, format!("{}{stand_in}", &rest[..before])));
        }
        if let Some((length, kind)) = self.named(text, at) {
            let name = rest[..length].to_owned();
            return Some((length, self.stand_in(kind, &name)));
        }
        let (length, kind) = forms::known(rest)?;
        Some((length, self.stand_in(kind, &rest[..length])))
    }

    /// Returns the stand-in for a value that is taken out whole, by its form where it has one.
    fn whole(&mut self, value: &str, kind: Kind) -> String {
        match forms::known(value) {
            Some((length, kind)) if length == value.len() => self.stand_in(kind, value),
            _ => self.stand_in(kind, value),
        }
    }

    /// Finds the longest name that was told and begins at a place of a text.
    fn named(&self, text: &str, at: usize) -> Option<(usize, Kind)> {
        let rest = &text[at..];
        let after = |length: usize| rest[length..].chars().next();
        let ends = |length: usize, kind: Kind| match after(length) {
            Some('.') if kind != Kind::Host => !rest[length + 1..].starts_with(char::is_alphanumeric),
            Some('-' | '_') if kind != Kind::Host => false,
            next => !next.is_some_and(char::is_alphanumeric),
        };
        let here = |name: &String| rest.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name));
        let words = self.words.iter().filter(|(name, kind)| here(name) && ends(name.len(), **kind));
        let in_path = |length: usize| text[..at].ends_with('/') || after(length) == Some('/');
        let parts = self.parts.iter().filter(|(name, kind)| {
            rest.starts_with(name.as_str()) && ends(name.len(), **kind) && in_path(name.len())
        });
        words.chain(parts).map(|(name, kind)| (name.len(), *kind)).max_by_key(|(length, _)| *length)
    }

    fn stand_in(&mut self, kind: Kind, thing: &str) -> String {
        let number = if kind == Kind::Pairs { 0 } else { self.number(kind, thing) };
        let low = u32::try_from(number).unwrap_or(u32::MAX);
        match kind {
            Kind::Host => format!("host-{number}"),
            Kind::Mac => {
                let (high, low) = (low >> 8 & 0xff, low & 0xff);
                match thing.strip_prefix("enx").or(thing.strip_prefix("wlx")) {
                    Some(_) => format!("{}02000000{high:02x}{low:02x}", &thing[..3]),
                    None => format!("02:00:00:00:{high:02x}:{low:02x}"),
                }
            }
            Kind::Pairs => match forms::eight_pairs(thing) {
                // The number that it has elsewhere: what reads serial numbers reads this one too.
                Some((serial, separator)) => {
                    let bytes = self.number(Kind::Serial, &serial.to_string()).to_be_bytes();
                    bytes.map(|byte| format!("{byte:02x}")).join(separator)
                }
                None => format!("id-{}", self.number(kind, thing)),
            },
            // For tests of network devices (RFC 2544), and for documentation (RFC 3849).
            Kind::Ip4 => Ipv4Addr::from_bits(0xc612_0000 | low & 0x1_ffff).to_string(),
            Kind::Ip6 => {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::try_from(low & 0xffff).unwrap_or(0))
                    .to_string()
            }
            Kind::Uuid => format!("00000000-0000-4000-8000-{number:012x}"),
            Kind::Hex32 => format!("{number:032x}"),
            Kind::Serial => format!("serial-{number}"),
            Kind::Secret => format!("secret-{number}"),
            Kind::User => format!("user-{number}"),
            Kind::Folder => format!("folder-{number}"),
            Kind::Disk => match thing.rsplit_once('.') {
                Some((_, end))
                    if (1..=5).contains(&end.len()) && end.bytes().all(|b| b.is_ascii_alphanumeric()) =>
                {
                    format!("disk-{number}.{end}")
                }
                _ => format!("disk-{number}"),
            },
        }
    }

    fn number(&mut self, kind: Kind, thing: &str) -> u64 {
        // The same address in other letters is the same address; names of files differ by them.
        let thing = match kind {
            Kind::User | Kind::Folder | Kind::Disk | Kind::Secret => thing.to_owned(),
            Kind::Mac => thing
                .to_ascii_lowercase()
                .trim_start_matches("enx")
                .trim_start_matches("wlx")
                .replace([':', '-'], ""),
            _ => thing.to_ascii_lowercase(),
        };
        let next = self.numbers.keys().filter(|(other, _)| *other == kind).count() as u64 + 1;
        *self.numbers.entry((kind, thing)).or_insert(next)
    }
}

/// What the last part of a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// A file, whose name is taken out wherever it stands.
    File,
    /// A folder.
    Folder,
}

/// Tells whether a name is one that the kernel gives devices, such as `nvme0n1p2` or `sda`: it names nobody.
fn is_device_node(name: &str) -> bool {
    let rest = ["nvme", "sd", "vd", "hd", "xvd", "md", "dm-", "loop", "mmcblk", "sr", "zram"];
    let rest = rest.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.is_some_and(|rest| {
        rest.len() <= 8
            && rest.bytes().all(|b| {
                b.is_ascii_digit() || (b.is_ascii_lowercase() && rest.len() <= 4) || b == b'n' || b == b'p'
            })
    })
}

#[cfg(test)]
mod tests;
