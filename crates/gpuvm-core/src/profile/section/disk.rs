//! `[[disk]]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::profile::check::{Checker, value_or};
use crate::profile::language::{Key, Kind, words};
use crate::profile::problem::{Problem, ProblemKind};
use crate::profile::read::{Choice, Cursor, Leaf, Located};
use crate::profile::tree::Place;

/// The most CD-ROM drives: the ports of Q35's AHCI controller (hw/i386/pc_q35.c).
const CDROMS_MAX: usize = 6;

/// A disk or a CD-ROM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image or block device.
    pub path: PathBuf,
    /// The image's format.
    pub format: DiskFormat,
    /// What becomes of what the guest writes.
    pub mode: DiskMode,
    /// What the guest sees.
    pub media: Media,
    /// Its place in the boot order, where it was given one.
    pub boot: Option<u32>,
}

/// The format of a disk image. Never guessed: a guest could write a header into a raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// The bytes of the disk, as they are.
    Raw,
    /// QEMU's own format.
    Qcow2,
}

impl DiskFormat {
    /// Returns QEMU's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What becomes of what a guest writes to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMode {
    /// It goes into the image.
    Persistent,
    /// It is refused.
    ReadOnly,
    /// It goes into an overlay that is thrown away when the guest has ended.
    Overlay,
}

/// What a guest sees of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Media {
    /// A VirtIO disk.
    Disk,
    /// A CD-ROM in a SATA drive, which every installer knows.
    Cdrom,
}

impl Choice for DiskFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("raw", Self::Raw), ("qcow2", Self::Qcow2)];
}

impl Choice for DiskMode {
    const WORDS: &'static [(&'static str, Self)] =
        &[("persistent", Self::Persistent), ("read-only", Self::ReadOnly), ("overlay", Self::Overlay)];
}

impl Choice for Media {
    const WORDS: &'static [(&'static str, Self)] = &[("disk", Self::Disk), ("cdrom", Self::Cdrom)];
}

pub(in crate::profile) const KEYS: &[Key] = &[
    Key::required(
        "path",
        Kind::Text,
        "The image or block device; a relative path starts at the profile's folder.",
    ),
    Key::default("format", Kind::Words(words::<DiskFormat>), "\"raw\"", "The image's format; never guessed."),
    Key::optional(
        "mode",
        Kind::Words(words::<DiskMode>),
        "What becomes of what the guest writes: kept, refused, or thrown away at the end. Default: \"persistent\" for a disk, \"read-only\" for a CD-ROM.",
    ),
    Key::default(
        "media",
        Kind::Words(words::<Media>),
        "\"disk\"",
        "What the guest sees: a VirtIO disk, or a CD-ROM in a SATA drive.",
    ),
    Key::optional(
        "boot",
        Kind::Integer { low: 1, high: Disk::BOOT_MAX },
        "Its place in the boot order, 1 first; disks without come after those with, in the order of the file.",
    ),
];

impl Disk {
    /// The last place in the boot order.
    pub(in crate::profile) const BOOT_MAX: u32 = 99;
}

#[derive(Debug, Clone)]
pub(in crate::profile) struct RawDisk {
    key: String,
    place: Place,
    path: Leaf<String>,
    format: Leaf<DiskFormat>,
    mode: Leaf<DiskMode>,
    media: Leaf<Media>,
    boot: Leaf<u32>,
}

pub(in crate::profile) fn read(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawDisk {
    let disk = RawDisk {
        key: table.key("path"),
        place: table.place(),
        path: table.text("path", problems),
        format: table.choice("format", problems),
        mode: table.choice("mode", problems),
        media: table.choice("media", problems),
        boot: table.count("boot", 1..=Disk::BOOT_MAX, problems),
    };
    table.finish(problems);
    disk
}

pub(in crate::profile) fn check(raw: Vec<RawDisk>, checker: &mut Checker<'_>) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    for raw in raw {
        let (key, place) = (raw.key.clone(), raw.path.as_ref().map(|path| path.place.clone()));
        let place = place.unwrap_or_default();
        let Some(disk) = check_one(raw, checker) else { continue };
        if disks.iter().any(|other| other.path == disk.path) {
            let kind = ProblemKind::TwiceDisk { key: key.clone(), path: disk.path };
            checker.report(&key, place, kind);
            continue;
        }
        let cdroms = disks.iter().filter(|disk| disk.media == Media::Cdrom).count();
        if disk.media == Media::Cdrom && cdroms == CDROMS_MAX {
            checker.value(&key, place, format!("the machine has {CDROMS_MAX} SATA ports for CD-ROM drives"));
        }
        disks.push(disk);
    }
    disks
}

fn check_one(raw: RawDisk, checker: &mut Checker<'_>) -> Option<Disk> {
    let RawDisk { key, place, path, format, mode, media, boot } = raw;
    let sibling = |name: &str| key.replace(".path", &format!(".{name}"));
    let media = value_or(media, Media::Disk);
    if let (Media::Cdrom, Some(Located { value: DiskMode::Persistent | DiskMode::Overlay, place })) =
        (media, &mode)
    {
        checker.value(&sibling("mode"), place.clone(), "a CD-ROM can only be `read-only`".to_owned());
    }
    let default = match media {
        Media::Disk => DiskMode::Persistent,
        Media::Cdrom => DiskMode::ReadOnly,
    };
    if let Some(boot) = &boot {
        checker.boot_place(&sibling("boot"), boot);
    }
    let path = checker.required(path, &key, r#"path = "/var/lib/gpuvm/disk.img""#, &place)?;
    Some(Disk {
        path: checker.path(&path, &key)?,
        format: value_or(format, DiskFormat::Raw),
        mode: value_or(mode, default),
        media,
        boot: boot.map(|boot| boot.value),
    })
}
