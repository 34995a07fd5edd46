//! The devices in scope, from sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gpuvm_core::facts::{BarFacts, BarKind, DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::{Bdf, ClassCode, GroupId, PciId};
use gpuvm_core::profile::{DeviceRequest, Profile};
use gpuvm_core::units::ByteSize;

use super::aliases::{self, Aliases};
use super::holders::Holders;
use super::{Depth, Reading, Scope, detail};
use crate::HostError;
use crate::root::{self, HostRoot, link_name, list, read_hex, read_text};

/// Returns the functions that a profile names.
pub fn asked(profile: &Profile) -> BTreeSet<Bdf> {
    let named = |device: &DeviceRequest| std::iter::once(device.bdf).chain(device.hold.clone());
    profile.devices.iter().flat_map(named).collect()
}

/// Adds what a bus reset of functions reaches: all others on their buses, and what is behind those.
pub(super) fn with_buses(root: &HostRoot, asked: &BTreeSet<Bdf>) -> Result<BTreeSet<Bdf>, HostError> {
    let buses: BTreeSet<_> = asked.iter().map(|bdf| bdf.bus()).collect();
    let mut found = asked.clone();
    for name in list(&root.path("/sys/bus/pci/devices"))? {
        let Ok(bdf) = name.parse::<Bdf>() else { continue };
        // The link leads through every bridge above.
        let place = fs::read_link(root.device(bdf)).unwrap_or_default();
        let above = place.iter().filter_map(|part| part.to_str()?.parse::<Bdf>().ok());
        // A root bus can't be reset.
        let depth = above.clone().count();
        if depth > 1 && above.skip(1).chain([bdf]).any(|part| buses.contains(&part.bus())) {
            found.insert(bdf);
        }
    }
    Ok(found)
}

/// Reads the devices in scope, the other functions of their slots, and the members of all groups touched.
pub(super) fn read(
    root: &HostRoot,
    scope: &Scope,
    depth: Depth,
    reading: &Reading,
    facts: &mut HostFacts,
) -> Result<(), HostError> {
    let holders = reading.take(Holders::read(root))?;
    let aliases = reading.take(aliases::read(root, &facts.kernel.release))?;
    let reader = Reader { root, depth, reading, holders, aliases };
    reader.all(scope, facts)?;
    reader.holders.add_users(root, reading, facts);
    Ok(())
}

/// Reads the same, but not who uses the devices, nor which drivers there are for them: what a device is, and where it sits.
pub(super) fn read_places(
    root: &HostRoot,
    scope: &Scope,
    depth: Depth,
    reading: &Reading,
    facts: &mut HostFacts,
) -> Result<(), HostError> {
    let reader = Reader { root, depth, reading, holders: Holders::default(), aliases: Aliases::default() };
    reader.all(scope, facts)
}

fn in_scope(root: &HostRoot, scope: &Scope, index: BTreeSet<Bdf>) -> Vec<Bdf> {
    match scope {
        Scope::All => index.into_iter().collect(),
        Scope::Devices(asked) => slots_of(asked, index),
        Scope::Cards => {
            let card = |bdf: &Bdf| class_of_whole(root, *bdf).is_some_and(ClassCode::is_card);
            let cards = index.iter().copied().filter(card).collect();
            slots_of(&cards, index)
        }
        Scope::Physical => {
            index.into_iter().filter(|bdf| !root.device(*bdf).join("physfn").exists()).collect()
        }
        Scope::Passable => {
            let passable = |bdf: &Bdf| {
                let folder = root.device(*bdf);
                let class = read_hex(&folder.join("class")).ok().flatten().and_then(ClassCode::new);
                class.is_none_or(|class| !class.is_bridge()) && !folder.join("physfn").exists()
            };
            index.into_iter().filter(passable).collect()
        }
    }
}

/// Takes the functions of the same slots.
fn slots_of(asked: &BTreeSet<Bdf>, index: BTreeSet<Bdf>) -> Vec<Bdf> {
    let slots: BTreeSet<_> = asked.iter().map(|bdf| bdf.slot()).collect();
    index.into_iter().filter(|bdf| slots.contains(&bdf.slot())).collect()
}

/// Reads the class of a function that is no virtual one.
fn class_of_whole(root: &HostRoot, bdf: Bdf) -> Option<ClassCode> {
    let folder = root.device(bdf);
    if fs::symlink_metadata(folder.join("physfn")).is_ok() {
        return None;
    }
    read_hex(&folder.join("class")).ok().flatten().and_then(ClassCode::new)
}

fn members(root: &HostRoot, group: GroupId) -> Result<Vec<Bdf>, HostError> {
    let folder = root.path(format!("/sys/kernel/iommu_groups/{group}/devices"));
    // Groups hold platform devices too, which have other names and can't be passed as PCI devices.
    Ok(list(&folder)?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Reads devices one by one.
struct Reader<'a> {
    root: &'a HostRoot,
    depth: Depth,
    reading: &'a Reading,
    holders: Holders,
    aliases: Aliases,
}

impl Reader<'_> {
    /// Reads those in scope, the other functions of their slots and of their buses below ports, and the members of all groups touched.
    fn all(&self, scope: &Scope, facts: &mut HostFacts) -> Result<(), HostError> {
        let (root, reading) = (self.root, self.reading);
        let names = reading.take(list(&root.path("/sys/bus/pci/devices")))?;
        let index: BTreeSet<Bdf> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let mut left = in_scope(root, scope, index.clone());
        while let Some(bdf) = left.pop() {
            if facts.devices.contains_key(&bdf) {
                continue;
            }
            let Some(device) = self.device(bdf)? else { continue };
            if let Some(group) = device.group.filter(|group| !facts.groups.contains_key(group)) {
                let members = reading.take(members(root, group))?;
                left.extend(&members);
                facts.groups.insert(group, members);
            }
            // A reset of the bus is of all that is on it. Virtual functions are kept out: theirs is their physical function's.
            if !device.upstream.is_empty() && device.virtual_function == Presence::Absent {
                let whole = |other: &Bdf| !root.device(*other).join("physfn").exists();
                left.extend(
                    index.range(bdf.bus().functions()).copied().filter(|other| *other != bdf).filter(whole),
                );
            }
            // A plan needs to know only which bridges there are; to judge the way up, they must be looked at.
            if self.depth == Depth::Config {
                left.extend(&device.upstream);
            }
            facts.devices.insert(bdf, device);
        }
        self.ports(facts)
    }

    /// Reads what the bridges right above are that weren't looked at: some mark what is below them.
    fn ports(&self, facts: &mut HostFacts) -> Result<(), HostError> {
        let above: BTreeSet<Bdf> =
            facts.devices.values().filter_map(|device| device.upstream.last().copied()).collect();
        for port in above.into_iter().filter(|port| !facts.devices.contains_key(port)) {
            if let Some(id) = id_of(self.root, port, self.reading)? {
                facts.ports.insert(port, id);
            }
        }
        Ok(())
    }

    /// Reads one device, or `None` if it went away meanwhile; one that is there and says not what it is counts as unread.
    fn device(&self, bdf: Bdf) -> Result<Option<DeviceFacts>, HostError> {
        let (root, reading) = (self.root, self.reading);
        let folder = root.device(bdf);
        let hex = |name: &str| reading.take(read_hex(&folder.join(name)));
        let (Some(vendor), Some(device), Some(class)) = (hex("vendor")?, hex("device")?, hex("class")?)
        else {
            let gone = if folder.exists() { Err(HostError::nameless(&folder)) } else { Ok(()) };
            return reading.take(gone).map(|()| None);
        };
        let class = ClassCode::new(class).ok_or_else(|| {
            HostError::content(&folder.join("class"), &format!("{class:#x}"), "no class code")
        });
        let Some(class) = reading.take(class.map(Some))? else { return Ok(None) };
        let real = fs::canonicalize(&folder).map_err(HostError::file("resolve", &folder));
        let Some(real) = reading.take(real.map(Some))? else { return Ok(None) };
        let physical = reading.take(link_name(&folder.join("physfn")))?;
        let count = |name: &str| {
            Ok::<u32, HostError>(reading.take(root::read_parsed(&folder.join(name)))?.unwrap_or(0))
        };
        let boot_vga = reading.take(read_text(&folder.join("boot_vga")))?;
        let modalias = reading.take(read_text(&folder.join("modalias")))?.map(|text| text.trim().to_owned());
        let reset_method = reading.take(read_text(&folder.join("reset_method")))?;
        let mut facts = DeviceFacts {
            driver: reading.take(root::driver_of(root, bdf))?,
            driver_override: reading.take(root::override_of(root, bdf))?,
            group: reading.take(group_of(&folder))?,
            node: reading.take(node_of(&folder))?,
            boot_display: presence(boot_vga.is_some_and(|text| text.trim() == "1")),
            virtual_function: presence(physical.is_some()),
            // sriov_numvfs_show of drivers/pci/iov.c takes the function's lock.
            virtual_functions: match reading.take(root.lockable(bdf).map(|()| Some(())))? {
                Some(()) => count("sriov_numvfs")?,
                None => 0,
            },
            reset_method_file: presence(reset_method.is_some()),
            reset_methods: words(reset_method),
            upstream: upstream(&real, bdf),
            // The folder above a device's is its bridge's; that of a root bus has no such attribute.
            subordinate_reset: presence(
                real.parent().is_some_and(|above| above.join("reset_subordinate").exists()),
            ),
            // What lies behind a bridge rests on the function there: nobody takes bridges.
            holders: if class.is_bridge() { Vec::new() } else { self.holders.of(bdf, &real) },
            bars: reading.take(bars(&folder.join("resource")))?,
            subsystem: hex("subsystem_vendor")?.zip(hex("subsystem_device")?).map(|(v, d)| id(v, d)),
            revision: hex("revision")?.and_then(|revision| u8::try_from(revision).ok()),
            physical_function: physical.and_then(|name| name.to_str()?.parse().ok()),
            virtual_functions_total: count("sriov_totalvfs")?,
            vfio_aliases: aliases::fitting(root, &self.aliases, modalias.as_deref()),
            modalias,
            ..DeviceFacts::new(id(vendor, device), class)
        };
        if self.depth == Depth::Config {
            detail::read(root, bdf, reading, &mut facts)?;
        }
        Ok(Some(facts))
    }
}

/// Reads vendor and device id of a function that nothing else is asked of.
pub(super) fn id_of(root: &HostRoot, bdf: Bdf, reading: &Reading) -> Result<Option<PciId>, HostError> {
    let hex = |name: &str| reading.take(read_hex(&root.device(bdf).join(name)));
    Ok(hex("vendor")?.zip(hex("device")?).map(|(vendor, device)| id(vendor, device)))
}

fn id(vendor: u32, device: u32) -> PciId {
    let low = |value: u32| u16::try_from(value & 0xffff).unwrap_or(u16::MAX);
    PciId { vendor: low(vendor), device: low(device) }
}

fn presence(there: bool) -> Presence {
    if there { Presence::Present } else { Presence::Absent }
}

fn words(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

fn group_of(folder: &Path) -> Result<Option<GroupId>, HostError> {
    let link = folder.join("iommu_group");
    let Some(name) = link_name(&link)? else { return Ok(None) };
    let name = name.to_string_lossy();
    name.parse().map(|id| Some(GroupId(id))).map_err(|error| HostError::content(&link, &name, error))
}

/// Reads the node; -1 means that the firmware doesn't tell.
pub(super) fn node_of(folder: &Path) -> Result<Option<u32>, HostError> {
    let node: Option<i64> = root::read_parsed(&folder.join("numa_node"))?;
    Ok(node.and_then(|node| u32::try_from(node).ok()))
}

/// Reads the bridges above a device off its path: `/sys/devices/pci0000:80/0000:80:00.0/0000:81:00.0`.
pub(crate) fn upstream(real: &Path, own: Bdf) -> Vec<Bdf> {
    real.iter().filter_map(|name| name.to_str()?.parse().ok()).filter(|bdf| *bdf != own).collect()
}

/// The base address registers are the first of a function's resources.
const BARS: usize = 6;
/// More than all addresses of any CPU: 52 bits.
const LARGEST_BAR: u64 = 1 << 52;
/// Flags of a resource (include/linux/ioport.h).
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;
const IORESOURCE_UNSET: u64 = 0x2000_0000;

/// Reads the base address registers: one line each of begin, end and flags; all zeros where there is none.
pub(crate) fn bars(path: &Path) -> Result<Vec<BarFacts>, HostError> {
    let text = read_text(path)?.unwrap_or_default();
    let mut bars = Vec::new();
    for (index, line) in (0..).zip(text.lines().take(BARS)) {
        let number = |word: Option<&str>| {
            let digits = word.and_then(|word| word.strip_prefix("0x")).unwrap_or_default();
            u64::from_str_radix(digits, 16).map_err(|error| HostError::content(path, line, error))
        };
        let mut words = line.split_ascii_whitespace();
        let (begin, end, flags) = (number(words.next())?, number(words.next())?, number(words.next())?);
        let kind = match flags {
            _ if flags & IORESOURCE_IO != 0 => BarKind::Io,
            _ if flags & IORESOURCE_MEM == 0 => continue,
            _ if flags & IORESOURCE_MEM_64 != 0 && flags & IORESOURCE_PREFETCH != 0 => BarKind::High,
            _ => BarKind::Low,
        };
        if end > begin {
            let placed = begin != 0 && flags & IORESOURCE_UNSET == 0;
            let size = (end - begin).checked_add(1).filter(|size| *size <= LARGEST_BAR);
            let size = size.ok_or_else(|| HostError::content(path, line, "no size of a register"))?;
            bars.push(BarFacts {
                index,
                size: ByteSize::bytes(size),
                address: placed.then_some(begin),
                kind,
            });
        }
    }
    Ok(bars)
}
