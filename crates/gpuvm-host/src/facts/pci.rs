//! The devices in scope, from sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gpuvm_core::facts::{BarFacts, BarKind, DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::{Bdf, ClassCode, GroupId, PciId};
use gpuvm_core::profile::{DeviceRequest, Profile};
use gpuvm_core::units::ByteSize;

use super::holders::Holders;
use crate::HostError;
use crate::root::{self, HostRoot, link_name, list, read_hex, read_text};

/// Reads the devices that the profile names, the other functions of their slots, and the members of all groups touched.
pub(super) fn read(root: &HostRoot, profile: &Profile, facts: &mut HostFacts) -> Result<(), HostError> {
    if profile.devices.is_empty() {
        return Ok(());
    }
    let index: BTreeSet<Bdf> =
        list(&root.path("/sys/bus/pci/devices"))?.iter().filter_map(|name| name.parse().ok()).collect();
    let holders = Holders::read(root)?;
    let named = |device: &DeviceRequest| std::iter::once(device.bdf).chain(device.hold.clone());
    let asked: BTreeSet<_> = profile.devices.iter().flat_map(named).map(|bdf| bdf.slot()).collect();
    let mut scope: Vec<Bdf> = index.iter().copied().filter(|bdf| asked.contains(&bdf.slot())).collect();
    while let Some(bdf) = scope.pop() {
        if facts.devices.contains_key(&bdf) {
            continue;
        }
        let Some(device) = device(root, bdf, &holders)? else { continue };
        if let Some(group) = device.group.filter(|group| !facts.groups.contains_key(group)) {
            let members = members(root, group)?;
            scope.extend(&members);
            facts.groups.insert(group, members);
        }
        facts.devices.insert(bdf, device);
    }
    Ok(())
}

fn members(root: &HostRoot, group: GroupId) -> Result<Vec<Bdf>, HostError> {
    let folder = root.path(format!("/sys/kernel/iommu_groups/{group}/devices"));
    // Groups hold platform devices too, which have other names and can't be passed as PCI devices.
    Ok(list(&folder)?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Reads one device, or `None` if it went away meanwhile.
fn device(root: &HostRoot, bdf: Bdf, holders: &Holders) -> Result<Option<DeviceFacts>, HostError> {
    let folder = root.device(bdf);
    let hex = |name: &str| read_hex(&folder.join(name));
    let (Some(vendor), Some(device), Some(class)) = (hex("vendor")?, hex("device")?, hex("class")?) else {
        return Ok(None);
    };
    let low = |value: u32| u16::try_from(value & 0xffff).unwrap_or(u16::MAX);
    let class = ClassCode::new(class)
        .ok_or_else(|| HostError::content(&folder.join("class"), &format!("{class:#x}"), "no class code"))?;
    let real = fs::canonicalize(&folder).map_err(HostError::file("resolve", &folder))?;
    Ok(Some(DeviceFacts {
        id: PciId { vendor: low(vendor), device: low(device) },
        class,
        driver: root::driver_of(root, bdf)?,
        driver_override: root::override_of(root, bdf)?,
        group: group_of(&folder)?,
        node: node_of(&folder)?,
        boot_display: presence(read_text(&folder.join("boot_vga"))?.is_some_and(|text| text.trim() == "1")),
        virtual_function: presence(link_name(&folder.join("physfn"))?.is_some()),
        virtual_functions: root::read_parsed(&folder.join("sriov_numvfs"))?.unwrap_or(0),
        reset_methods: words(read_text(&folder.join("reset_method"))?),
        upstream: upstream(&real, bdf),
        holders: holders.of(&real),
        bars: bars(&folder.join("resource"))?,
    }))
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
fn node_of(folder: &Path) -> Result<Option<u32>, HostError> {
    let node: Option<i64> = root::read_parsed(&folder.join("numa_node"))?;
    Ok(node.and_then(|node| u32::try_from(node).ok()))
}

/// Reads the bridges above a device off its path: `/sys/devices/pci0000:80/0000:80:00.0/0000:81:00.0`.
fn upstream(real: &Path, own: Bdf) -> Vec<Bdf> {
    real.iter().filter_map(|name| name.to_str()?.parse().ok()).filter(|bdf| *bdf != own).collect()
}

/// The base address registers are the first of a function's resources.
const BARS: usize = 6;
/// Flags of a resource (include/linux/ioport.h).
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;

/// Reads the base address registers: one line each of begin, end and flags; all zeros where there is none.
fn bars(path: &Path) -> Result<Vec<BarFacts>, HostError> {
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
            bars.push(BarFacts { index, size: ByteSize::bytes(end - begin + 1), kind });
        }
    }
    Ok(bars)
}
