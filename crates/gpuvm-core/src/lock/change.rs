//! What can have changed since a host was locked, and how much it matters.

use super::record::{LockedFunction, Revision, Serial};
use crate::pci::{Bdf, ClassCode, PciId};
use crate::units::ByteSize;

/// How much a change matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What was proven is no longer so: `up` refuses.
    Matters,
    /// It may make a difference: `up` warns.
    May,
    /// Nobody can say whether there is a difference, and nobody could when it was locked.
    Unknown,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Matters => "matters",
            Self::May => "may matter",
            Self::Unknown => "unknown",
        })
    }
}

/// By what a card was found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Its serial number.
    Serial,
    /// Its ids and the bridges above it: the buses have other numbers.
    Path,
}

/// One thing that is otherwise than it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Change {
    /// The device isn't there.
    #[error(
        "{} is gone{}", device.words(),
        if alike.is_empty() { String::new() } else { format!("; there {}", alike_words(alike)) }
    )]
    Gone {
        /// The device.
        device: LockedFunction,
        /// Cards with the same ids that no lock speaks of, with the bridge above each.
        alike: Vec<(Bdf, Option<Bdf>)>,
    },
    /// The device has another address.
    #[error("{} has moved: it is at {to} now ({})", device.words(), match by {
        Identity::Serial => "it has the same serial number",
        Identity::Path => "the same ids, behind the same bridges",
    })]
    Moved {
        /// The device where it was.
        device: LockedFunction,
        /// Where it is.
        to: Bdf,
        /// By what it was found.
        by: Identity,
    },
    /// Another card has its address.
    #[error(
        "{bdf} is another card: it was {was}, and is {is}{}",
        if alike.is_empty() { String::new() } else { format!("; as it was, there {}", alike_words(alike)) }
    )]
    OtherCard {
        /// The address.
        bdf: Bdf,
        /// The ids and the serial number of the one that was there.
        was: Card,
        /// Those of the one that is.
        is: Card,
        /// Cards with the ids that it had, where it wasn't found again by more than these.
        alike: Vec<(Bdf, Option<Bdf>)>,
    },
    /// The profile asks for a device that nobody has locked.
    #[error("{} is not in the lock", device.words())]
    NotLocked {
        /// The device.
        device: LockedFunction,
    },
    /// The profile no longer asks for a device.
    #[error("{} is in the lock, and the profile doesn't ask for it", device.words())]
    NotAsked {
        /// The device.
        device: LockedFunction,
    },
    /// The class is another.
    #[error("{bdf}: its class was {was} ({}), and is {is} ({})", was.name(), is.name())]
    Class {
        /// The device.
        bdf: Bdf,
        /// What it was.
        was: ClassCode,
        /// What it is.
        is: ClassCode,
    },
    /// It has no IOMMU group any more.
    #[error("{bdf}: it has no IOMMU group any more")]
    GroupLost {
        /// The device.
        bdf: Bdf,
    },
    /// It has an IOMMU group now.
    #[error("{bdf}: it had no IOMMU group, and is in group {group} now")]
    GroupFound {
        /// The device.
        bdf: Bdf,
        /// The group's number.
        group: u32,
    },
    /// Its group has new members.
    #[error("{bdf}: its group grew: {} new in it", are(new))]
    GroupGrew {
        /// The device.
        bdf: Bdf,
        /// The new members.
        new: Vec<LockedFunction>,
    },
    /// Its group lacks members.
    #[error("{bdf}: its group shrank: {} no longer in it", are(gone))]
    GroupShrank {
        /// The device.
        bdf: Bdf,
        /// Those that are no longer in it.
        gone: Vec<LockedFunction>,
    },
    /// Its group has another number.
    #[error("{bdf}: its group was number {was}, and is number {is}")]
    GroupNumber {
        /// The device.
        bdf: Bdf,
        /// What it was.
        was: u32,
        /// What it is.
        is: u32,
    },
    /// Its slot has new functions.
    #[error("{bdf}: its slot has more functions: {} new in it", are(new))]
    SlotGrew {
        /// The device.
        bdf: Bdf,
        /// The new functions.
        new: Vec<LockedFunction>,
    },
    /// Its slot lacks functions.
    #[error("{bdf}: its slot has fewer functions: {} no longer in it", are(gone))]
    SlotShrank {
        /// The device.
        bdf: Bdf,
        /// Those that are no longer in it.
        gone: Vec<LockedFunction>,
    },
    /// A bus reset reaches more.
    #[error("{bdf}: a bus reset of it reaches more: {} new to it", are(new))]
    ResetGrew {
        /// The device.
        bdf: Bdf,
        /// What it didn't reach.
        new: Vec<LockedFunction>,
    },
    /// A bus reset reaches less.
    #[error("{bdf}: a bus reset of it reaches less: {} out of it", are(gone))]
    ResetShrank {
        /// The device.
        bdf: Bdf,
        /// What it no longer reaches.
        gone: Vec<LockedFunction>,
    },
    /// A base address register has another size, is new, or isn't there.
    #[error("{bdf}: its BAR {index} was {}, and is {}", size_words(*was), size_words(*is))]
    Bar {
        /// The device.
        bdf: Bdf,
        /// The register's number.
        index: u8,
        /// Its size, where there was one.
        was: Option<ByteSize>,
        /// Its size now.
        is: Option<ByteSize>,
    },
    /// It sits on another node.
    #[error("{bdf}: it was on {}, and is on {}", node_words(*was), node_words(*is))]
    Node {
        /// The device.
        bdf: Bdf,
        /// Its node, where the firmware told.
        was: Option<u32>,
        /// Its node now.
        is: Option<u32>,
    },
    /// Other bridges are above it.
    #[error("{bdf}: it was behind {}, and is behind {}", path_words(was), path_words(is))]
    Path {
        /// The device.
        bdf: Bdf,
        /// The bridges, from the root port down.
        was: Vec<LockedFunction>,
        /// The bridges now.
        is: Vec<LockedFunction>,
    },
    /// Its revision is another.
    #[error("{bdf}: its revision was {was}, and is {is}")]
    Revision {
        /// The device.
        bdf: Bdf,
        /// What it was.
        was: Revision,
        /// What it is.
        is: Revision,
    },
    /// Something of the machine is another.
    #[error("the {what} was {}, and is {}", quoted(was.as_deref()), quoted(is.as_deref()))]
    Host {
        /// What.
        what: HostPart,
        /// What it was.
        was: Option<String>,
        /// What it is.
        is: Option<String>,
    },
    /// The kernel's command line has other words.
    #[error("the kernel's command line has changed: {}", words_of_line(gone, new))]
    CommandLine {
        /// The words that are no longer in it.
        gone: Vec<String>,
        /// The words that are new in it.
        new: Vec<String>,
    },
    /// The kernel uses other IOMMU units.
    #[error("the kernel used the IOMMU units {}, and uses {}", units(was), units(is))]
    Iommus {
        /// Those that it used.
        was: Vec<String>,
        /// Those that it uses.
        is: Vec<String>,
    },
    /// The IOMMU no longer remaps interrupts, without which VFIO gives no device out.
    #[error("the IOMMU remapped interrupts, and doesn't now")]
    InterruptRemappingLost,
    /// The IOMMU remaps interrupts now.
    #[error("the IOMMU didn't remap interrupts, and does now")]
    InterruptRemappingFound,
    /// What was read then can't be read now.
    #[error("{of}: {what} was read when it was locked, and can't be read now", of = of(*bdf))]
    Unreadable {
        /// The device; none for the host.
        bdf: Option<Bdf>,
        /// What.
        what: Attribute,
    },
    /// Something can't be read now that was no trouble then.
    #[error("{what}")]
    Unread {
        /// The reader's own words.
        what: String,
    },
    /// What wasn't read when it was locked.
    #[error("{of}: {what} was not read when it was locked", of = of(*bdf))]
    Unknown {
        /// The device; none for the host.
        bdf: Option<Bdf>,
        /// What.
        what: Attribute,
    },
    /// Something that couldn't be read when it was locked.
    #[error("not read when it was locked: {what}")]
    UnreadThen {
        /// The reader's own words.
        what: String,
    },
}

/// A card as it is told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Vendor and device id.
    pub id: PciId,
    /// The ids of whoever built it.
    pub subsystem: Option<PciId>,
    /// Its serial number.
    pub serial: Option<Serial>,
}

impl std::fmt::Display for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.id.fmt(f)?;
        if let Some(subsystem) = self.subsystem {
            write!(f, " of {subsystem}")?;
        }
        match self.serial {
            Some(Serial::Number(number)) => write!(f, ", serial number {number}"),
            _ => Ok(()),
        }
    }
}

/// Something that may not have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// The subsystem's ids.
    Subsystem,
    /// The revision.
    Revision,
    /// The serial number.
    Serial,
    /// What the firmware says of the machine and of itself.
    Firmware,
    /// The kernel's release.
    Kernel,
    /// Whether interrupts are remapped.
    InterruptRemapping,
    /// What is at an address.
    Function(Bdf),
}

impl std::fmt::Display for Attribute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Subsystem => "the id of its subsystem",
            Self::Revision => "its revision",
            Self::Serial => "its serial number",
            Self::Firmware => "what the firmware says of itself (/sys/class/dmi/id)",
            Self::Kernel => "the kernel's release",
            Self::InterruptRemapping => "who handles interrupts",
            Self::Function(bdf) => return write!(f, "what {bdf} is"),
        })
    }
}

/// A part of the host beyond its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPart {
    /// The machine's vendor.
    MachineVendor,
    /// The machine's name.
    Product,
    /// The board.
    Board,
    /// The firmware's vendor.
    FirmwareVendor,
    /// The firmware's version.
    FirmwareVersion,
    /// The firmware's date.
    FirmwareDate,
    /// The kernel.
    Kernel,
}

impl std::fmt::Display for HostPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MachineVendor => "machine's vendor",
            Self::Product => "machine",
            Self::Board => "machine's board",
            Self::FirmwareVendor => "firmware's vendor",
            Self::FirmwareVersion => "firmware's version",
            Self::FirmwareDate => "firmware's date",
            Self::Kernel => "kernel",
        })
    }
}

impl Change {
    /// Returns how much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Gone { .. }
            | Self::Moved { .. }
            | Self::OtherCard { .. }
            | Self::NotLocked { .. }
            | Self::Class { .. }
            | Self::GroupLost { .. }
            | Self::GroupFound { .. }
            | Self::GroupGrew { .. }
            | Self::GroupShrank { .. }
            | Self::SlotGrew { .. }
            | Self::SlotShrank { .. }
            | Self::ResetGrew { .. }
            | Self::ResetShrank { .. }
            | Self::Bar { .. }
            | Self::Node { .. }
            | Self::Path { .. }
            | Self::InterruptRemappingLost => Severity::Matters,
            Self::NotAsked { .. }
            | Self::GroupNumber { .. }
            | Self::Revision { .. }
            | Self::Host { .. }
            | Self::CommandLine { .. }
            | Self::Iommus { .. }
            | Self::InterruptRemappingFound
            | Self::Unreadable { .. }
            | Self::Unread { .. } => Severity::May,
            Self::Unknown { .. } | Self::UnreadThen { .. } => Severity::Unknown,
        }
    }

    /// Returns the device that it is about; none for the host.
    pub fn bdf(&self) -> Option<Bdf> {
        match self {
            Self::Gone { device, .. }
            | Self::Moved { device, .. }
            | Self::NotLocked { device }
            | Self::NotAsked { device } => Some(device.bdf),
            Self::OtherCard { bdf, .. }
            | Self::Class { bdf, .. }
            | Self::GroupLost { bdf }
            | Self::GroupFound { bdf, .. }
            | Self::GroupGrew { bdf, .. }
            | Self::GroupShrank { bdf, .. }
            | Self::GroupNumber { bdf, .. }
            | Self::SlotGrew { bdf, .. }
            | Self::SlotShrank { bdf, .. }
            | Self::ResetGrew { bdf, .. }
            | Self::ResetShrank { bdf, .. }
            | Self::Bar { bdf, .. }
            | Self::Node { bdf, .. }
            | Self::Path { bdf, .. }
            | Self::Revision { bdf, .. } => Some(*bdf),
            Self::Unreadable { bdf, .. } | Self::Unknown { bdf, .. } => *bdf,
            Self::Host { .. }
            | Self::CommandLine { .. }
            | Self::Iommus { .. }
            | Self::InterruptRemappingLost
            | Self::InterruptRemappingFound
            | Self::Unread { .. }
            | Self::UnreadThen { .. } => None,
        }
    }
}

fn of(bdf: Option<Bdf>) -> String {
    bdf.map_or_else(|| "the host".to_owned(), |bdf| bdf.to_string())
}

fn are(functions: &[LockedFunction]) -> String {
    let names: Vec<String> = functions.iter().map(LockedFunction::words).collect();
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

fn alike_words(alike: &[(Bdf, Option<Bdf>)]) -> String {
    let one = |(bdf, bridge): &(Bdf, Option<Bdf>)| match bridge {
        Some(bridge) => format!("{bdf} (behind {bridge})"),
        None => bdf.to_string(),
    };
    let places = alike.iter().map(one).collect::<Vec<_>>().join(" and ");
    match alike.len() {
        1 => format!("is a card with the same ids at {places}"),
        _ => format!("are cards with the same ids at {places}"),
    }
}

fn size_words(size: Option<ByteSize>) -> String {
    size.map_or_else(|| "not there".to_owned(), |size| size.to_string())
}

fn node_words(node: Option<u32>) -> String {
    node.map_or_else(|| "a node that the firmware doesn't tell".to_owned(), |node| format!("node {node}"))
}

fn path_words(path: &[LockedFunction]) -> String {
    if path.is_empty() {
        return "no bridge".to_owned();
    }
    path.iter().map(LockedFunction::words).collect::<Vec<_>>().join(" and ")
}

fn quoted(text: Option<&str>) -> String {
    text.map_or_else(|| "not told".to_owned(), |text| format!("`{text}`"))
}

fn units(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn words_of_line(gone: &[String], new: &[String]) -> String {
    let list = |words: &[String], what: &str| {
        let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
        (!words.is_empty()).then(|| format!("{} {what}", words.join(" ")))
    };
    let parts: Vec<String> =
        [list(gone, "no longer in it"), list(new, "new in it")].into_iter().flatten().collect();
    if parts.is_empty() { "its words have another order".to_owned() } else { parts.join(", ") }
}
