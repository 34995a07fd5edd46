//! Compares a lock with what is there now.

use std::collections::BTreeSet;

use super::change::{Attribute, Card, Change, HostPart, Identity};
use super::record::{Lock, LockedDevice, LockedFirmware, LockedFunction, LockedHost, Serial};
use crate::facts::{HostFacts, Presence};
use crate::pci::Bdf;
use crate::profile::Profile;

/// What is there now.
#[derive(Debug, Clone)]
pub struct Present {
    /// What a lock that is made now would say, of those devices that are there.
    pub lock: Lock,
    /// The devices that the profile asks for.
    pub asked: BTreeSet<Bdf>,
    /// Other cards, among which those that aren't where they were may be.
    pub others: Vec<LockedDevice>,
}

impl Present {
    /// Takes down what is there.
    pub fn of(profile: &Profile, facts: &HostFacts) -> Self {
        let asked = super::asked(profile);
        let others = facts
            .devices
            .iter()
            .filter(|(_, device)| device.virtual_function == Presence::Absent)
            .map(|(bdf, device)| LockedDevice::of(*bdf, device, facts))
            .collect();
        Self { lock: Lock::present(profile, facts), asked, others }
    }
}

/// Lists what has changed: device by device, then the host.
pub fn diff(then: &Lock, now: &Present) -> Vec<Change> {
    let mut changes = Vec::new();
    for was in &then.devices {
        if !now.asked.contains(&was.bdf) {
            changes.push(Change::NotAsked { device: was.function() });
            continue;
        }
        match now.lock.devices.iter().find(|is| is.bdf == was.bdf) {
            None => changes.push(
                found_again(was, then, now)
                    .unwrap_or_else(|| Change::Gone { device: was.function(), alike: alike(was, then, now) }),
            ),
            Some(is) if !was.holds_here(is) => {
                let found = found_again(was, then, now);
                let alike = if found.is_none() { alike(was, then, now) } else { Vec::new() };
                changes.push(Change::OtherCard { bdf: was.bdf, was: card(was), is: card(is), alike });
                changes.extend(found);
            }
            Some(is) => device(was, is, &mut changes),
        }
    }
    let locked = |bdf: Bdf| then.devices.iter().any(|was| was.bdf == bdf);
    let new = now.lock.devices.iter().filter(|is| !locked(is.bdf));
    changes.extend(new.map(|is| Change::NotLocked { device: is.function() }));
    host(&then.host, &now.lock.host, &mut changes);
    let unread = |what: &String| !then.unread.contains(what);
    changes.extend(
        now.lock.unread.iter().filter(|what| unread(what)).map(|what| Change::Unread { what: what.clone() }),
    );
    changes.extend(then.unread.iter().map(|what| Change::UnreadThen { what: what.clone() }));
    changes
}

fn card(device: &LockedDevice) -> Card {
    Card { id: device.id, subsystem: device.subsystem, serial: device.serial }
}

/// Lists the cards that may be one that isn't where it was: with its ids, and not known to be another one that is locked.
fn candidates<'a>(
    was: &'a LockedDevice,
    then: &'a Lock,
    now: &'a Present,
) -> impl Iterator<Item = &'a LockedDevice> + 'a {
    let other_locked = |is: &LockedDevice| then.devices.iter().any(|locked| locked.holds_here(is));
    now.others.iter().filter(move |is| {
        let at_home = LockedDevice { bdf: is.bdf, ..was.clone() };
        let same_function = is.bdf.function() == was.bdf.function();
        is.bdf != was.bdf && same_function && at_home.holds_here(is) && !other_locked(is)
    })
}

/// Finds a card by what makes it out: its serial number, or its ids behind the same bridges.
fn found_again(was: &LockedDevice, then: &Lock, now: &Present) -> Option<Change> {
    let numbered =
        |is: &&LockedDevice| matches!(was.serial, Some(Serial::Number(_))) && was.serial == is.serial;
    let placed =
        |is: &&LockedDevice| !was.path.is_empty() && was.subsystem == is.subsystem && was.path == is.path;
    let by_number = candidates(was, then, now).find(numbered).map(|is| (is, Identity::Serial));
    let (is, by) =
        by_number.or_else(|| candidates(was, then, now).find(placed).map(|is| (is, Identity::Path)))?;
    Some(Change::Moved { device: was.function(), to: is.bdf, by })
}

fn alike(was: &LockedDevice, then: &Lock, now: &Present) -> Vec<(Bdf, Option<Bdf>)> {
    candidates(was, then, now).map(|is| (is.bdf, is.path.last().map(|bridge| bridge.bdf))).collect()
}

/// Compares one card with itself.
fn device(was: &LockedDevice, is: &LockedDevice, changes: &mut Vec<Change>) {
    let bdf = was.bdf;
    unread(Some(bdf), Attribute::Subsystem, was.subsystem, is.subsystem, changes);
    unread(Some(bdf), Attribute::Serial, was.serial, is.serial, changes);
    if let Some((was, is)) = unread(Some(bdf), Attribute::Revision, was.revision, is.revision, changes)
        && was != is
    {
        changes.push(Change::Revision { bdf, was, is });
    }
    if was.class != is.class {
        changes.push(Change::Class { bdf, was: was.class, is: is.class });
    }
    bars(was, is, changes);
    if was.node != is.node {
        changes.push(Change::Node { bdf, was: was.node, is: is.node });
    }
    let same_path =
        was.path.len() == is.path.len() && was.path.iter().zip(&is.path).all(|(was, is)| was.may_be(is));
    if same_path {
        was.path.iter().zip(&is.path).for_each(|(was, is)| known(bdf, was, is, changes));
    } else {
        changes.push(Change::Path { bdf, was: was.path.clone(), is: is.path.clone() });
    }
    group(was, is, changes);
    let (new, gone) = circles(bdf, &was.slot, &is.slot, changes);
    changes.extend(new.map(|new| Change::SlotGrew { bdf, new }));
    changes.extend(gone.map(|gone| Change::SlotShrank { bdf, gone }));
    let (new, gone) = circles(bdf, &was.reset, &is.reset, changes);
    changes.extend(new.map(|new| Change::ResetGrew { bdf, new }));
    changes.extend(gone.map(|gone| Change::ResetShrank { bdf, gone }));
}

/// Returns what was read both times, and otherwise tells that it wasn't.
fn unread<T>(
    bdf: Option<Bdf>,
    what: Attribute,
    was: Option<T>,
    is: Option<T>,
    changes: &mut Vec<Change>,
) -> Option<(T, T)> {
    match (was, is) {
        (Some(was), Some(is)) => return Some((was, is)),
        (Some(_), None) => changes.push(Change::Unreadable { bdf, what }),
        (None, _) => changes.push(Change::Unknown { bdf, what }),
    }
    None
}

/// Tells where it isn't known what another function is; each is told once, though it may be in several circles.
fn known(bdf: Bdf, was: &LockedFunction, is: &LockedFunction, changes: &mut Vec<Change>) {
    let before = changes.len();
    unread(Some(bdf), Attribute::Function(was.bdf), was.what, is.what, changes);
    if changes.len() > before && changes[..before].contains(&changes[before]) {
        changes.truncate(before);
    }
}

fn bars(was: &LockedDevice, is: &LockedDevice, changes: &mut Vec<Change>) {
    let size =
        |device: &LockedDevice, index| device.bars.iter().find(|bar| bar.index == index).map(|bar| bar.size);
    let indices: BTreeSet<u8> = was.bars.iter().chain(&is.bars).map(|bar| bar.index).collect();
    for index in indices {
        let (before, after) = (size(was, index), size(is, index));
        if before != after {
            changes.push(Change::Bar { bdf: was.bdf, index, was: before, is: after });
        }
    }
}

fn group(was: &LockedDevice, is: &LockedDevice, changes: &mut Vec<Change>) {
    let bdf = was.bdf;
    match (was.group_number, is.group_number) {
        (Some(_), None) => changes.push(Change::GroupLost { bdf }),
        (None, Some(group)) => changes.push(Change::GroupFound { bdf, group }),
        (None, None) => {}
        (Some(before), Some(after)) => {
            let (new, gone) = circles(bdf, &was.group, &is.group, changes);
            changes.extend(new.map(|new| Change::GroupGrew { bdf, new }));
            changes.extend(gone.map(|gone| Change::GroupShrank { bdf, gone }));
            if before != after {
                changes.push(Change::GroupNumber { bdf, was: before, is: after });
            }
        }
    }
}

/// Returns the functions that are new in a circle, and those that are no longer in it; nothing where there are none.
fn circles(
    bdf: Bdf,
    was: &[LockedFunction],
    is: &[LockedFunction],
    changes: &mut Vec<Change>,
) -> (Option<Vec<LockedFunction>>, Option<Vec<LockedFunction>>) {
    let lacking = |from: &[LockedFunction], of: &[LockedFunction]| {
        let lacking: Vec<LockedFunction> =
            of.iter().filter(|one| !from.iter().any(|other| one.may_be(other))).copied().collect();
        (!lacking.is_empty()).then_some(lacking)
    };
    for before in was {
        if let Some(after) = is.iter().find(|after| before.may_be(after)) {
            known(bdf, before, after, changes);
        }
    }
    (lacking(was, is), lacking(is, was))
}

fn host(was: &LockedHost, is: &LockedHost, changes: &mut Vec<Change>) {
    let known =
        |host: &LockedHost| (host.firmware != LockedFirmware::default()).then(|| host.firmware.clone());
    if let Some((was, is)) = unread(None, Attribute::Firmware, known(was), known(is), changes) {
        firmware(&was, &is, changes);
    }
    let kernel = |host: &LockedHost| (!host.kernel.is_empty()).then(|| host.kernel.clone());
    if let Some((was, is)) = unread(None, Attribute::Kernel, kernel(was), kernel(is), changes)
        && was != is
    {
        changes.push(Change::Host { what: HostPart::Kernel, was: Some(was), is: Some(is) });
    }
    if was.cmdline != is.cmdline {
        let words =
            |host: &LockedHost| host.cmdline.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (before, after) = (words(was), words(is));
        let lacking =
            |from: &[String], of: &[String]| of.iter().filter(|word| !from.contains(word)).cloned().collect();
        changes.push(Change::CommandLine { gone: lacking(&after, &before), new: lacking(&before, &after) });
    }
    let remapping = (was.interrupt_remapping, is.interrupt_remapping);
    match unread(None, Attribute::InterruptRemapping, remapping.0, remapping.1, changes) {
        Some((true, false)) => changes.push(Change::InterruptRemappingLost),
        Some((false, true)) => changes.push(Change::InterruptRemappingFound),
        _ => {}
    }
    if was.iommus != is.iommus {
        changes.push(Change::Iommus { was: was.iommus.clone(), is: is.iommus.clone() });
    }
}

fn firmware(was: &LockedFirmware, is: &LockedFirmware, changes: &mut Vec<Change>) {
    let parts = [
        (HostPart::MachineVendor, &was.machine_vendor, &is.machine_vendor),
        (HostPart::Product, &was.product, &is.product),
        (HostPart::Board, &was.board, &is.board),
        (HostPart::FirmwareVendor, &was.vendor, &is.vendor),
        (HostPart::FirmwareVersion, &was.version, &is.version),
        (HostPart::FirmwareDate, &was.date, &is.date),
    ];
    for (what, was, is) in parts {
        if was != is {
            changes.push(Change::Host { what, was: was.clone(), is: is.clone() });
        }
    }
}
