//! What the host itself can't do without: mounted storage, swap, the way out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gpuvm_core::facts::Holder;
use gpuvm_core::pci::Bdf;
use gpuvm_sys::errno::EBUSY;

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// What holds devices.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// Each holder with the sysfs folders that it rests on.
    found: Vec<(Holder, BTreeSet<PathBuf>)>,
    /// The resolved folder of each block device, by kernel name.
    blocks: BTreeMap<String, PathBuf>,
    dev: PathBuf,
    /// The functions that any of these rests on: most of 10,000 virtual functions are told from them by one look.
    near: BTreeSet<Bdf>,
}

impl Holders {
    /// Finds them all, through stacked devices down to the hardware.
    pub(super) fn read(root: &HostRoot) -> Result<Self, HostError> {
        let mut found = Vec::new();
        let blocks = BlockDevices::read(root)?;
        let mounts = read_text(&root.path("/proc/self/mountinfo"))?.unwrap_or_default();
        for Mount { numbers, device, target } in mounts.lines().filter_map(mount) {
            let holder = Holder::Mount { device: device.to_owned(), target };
            found.push((
                holder,
                blocks.below_numbers(numbers).or_else(|| blocks.below_node(device)).unwrap_or_default(),
            ));
        }
        let swaps = read_text(&root.path("/proc/swaps"))?.unwrap_or_default();
        for device in swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()) {
            found.push((
                Holder::Swap { device: unescape(device) },
                blocks.below_node(device).unwrap_or_default(),
            ));
        }
        for interface in default_routes(root)? {
            let below = interfaces_below(root, &interface);
            found.push((Holder::Route { interface }, below));
        }
        let folders = found.iter().flat_map(|(_, folders)| folders).chain(blocks.folders.values());
        let on_path =
            |folder: &PathBuf| folder.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        let near = folders.flat_map(|folder| -> Vec<Bdf> { on_path(folder) }).collect();
        Ok(Self { found, blocks: blocks.folders, dev: root.path("/dev"), near })
    }

    /// Returns what rests on a device, given its address and its resolved sysfs folder. One file system mounted in many places (bind
    /// mounts) is named once.
    pub(super) fn of(&self, bdf: Bdf, device: &Path) -> Vec<Holder> {
        if !self.near.contains(&bdf) {
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let rests =
            |(_, folders): &&(Holder, BTreeSet<PathBuf>)| folders.iter().any(|f| f.starts_with(device));
        let new = |holder: &&Holder| match holder {
            Holder::Mount { device, .. } | Holder::Swap { device } => seen.insert(device.clone()),
            Holder::BlockInUse { .. } | Holder::Route { .. } => true,
        };
        let mut holders: Vec<Holder> =
            self.found.iter().filter(rests).map(|(holder, _)| holder).filter(new).cloned().collect();
        if holders.is_empty() {
            holders.extend(self.block_in_use(device));
        }
        holders
    }

    /// Asks the kernel whether anybody has claimed a block device below: ZFS and btrfs pools, idle arrays and volumes, mounts in
    /// another namespace. An exclusive open that isn't for writing takes nothing away from anybody (open(2), O_EXCL).
    fn block_in_use(&self, device: &Path) -> Option<Holder> {
        self.blocks.iter().filter(|(_, folder)| folder.starts_with(device)).find_map(|(name, _)| {
            let node = self.dev.join(name);
            let opened = File::options().read(true).custom_flags(gpuvm_sys::access::O_EXCL).open(&node);
            let busy = opened.is_err_and(|error| error.raw_os_error() == Some(EBUSY));
            busy.then(|| Holder::BlockInUse { device: format!("/dev/{name}") })
        })
    }
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    /// Major and minor number, as in `259:1`. btrfs and others have numbers of their own, of no device.
    numbers: &'a str,
    /// What was mounted; `/dev/root` is no node of that name.
    device: &'a str,
    target: String,
}

/// Takes a file system out of a line of mountinfo (Documentation/filesystems/proc.rst 3.5); none that is the kernel's own.
fn mount(line: &str) -> Option<Mount<'_>> {
    let (fields, rest) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(2);
    let (numbers, target) = (fields.next()?, fields.nth(1)?);
    let device = rest.split(' ').nth(1)?;
    let on_block = device.starts_with("/dev/") || !numbers.starts_with("0:");
    on_block.then(|| Mount { numbers, device, target: unescape(target) })
}

/// Undoes the kernel's octal escapes for blanks and backslashes.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// Block devices and what they rest on.
struct BlockDevices<'a> {
    root: &'a HostRoot,
    /// The resolved folder of each whole device and partition, by kernel name.
    folders: BTreeMap<String, PathBuf>,
}

impl<'a> BlockDevices<'a> {
    fn read(root: &'a HostRoot) -> Result<Self, HostError> {
        let class = root.path("/sys/class/block");
        let resolve = |name: String| Some((name.clone(), fs::canonicalize(class.join(name)).ok()?));
        Ok(Self { root, folders: list(&class)?.into_iter().filter_map(resolve).collect() })
    }

    /// Follows the device of these numbers down; `None` where there is none.
    fn below_numbers(&self, numbers: &str) -> Option<BTreeSet<PathBuf>> {
        let folder = fs::canonicalize(self.root.path("/sys/dev/block").join(numbers)).ok()?;
        Some(self.below(folder.file_name()?.to_string_lossy().into_owned()))
    }

    /// Follows a device node down; `None` where there is none.
    fn below_node(&self, node: &str) -> Option<BTreeSet<PathBuf>> {
        // /dev/mapper/root and /dev/disk/by-id/... are links to /dev/dm-0.
        let real = fs::canonicalize(self.root.path(unescape(node))).ok()?;
        Some(self.below(real.file_name()?.to_string_lossy().into_owned()))
    }

    /// Follows a device down to the folders of the hardware: partitions, dm and md slaves, NVMe multipath.
    fn below(&self, name: String) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut left = vec![name];
        while let Some(name) = left.pop() {
            let Some(folder) = self.folders.get(&name) else { continue };
            if !found.insert(folder.clone()) {
                continue;
            }
            if let Some(whole) = folder.parent().and_then(Path::file_name)
                && folder.join("partition").exists()
            {
                left.push(whole.to_string_lossy().into_owned());
            }
            left.extend(list(&folder.join("slaves")).unwrap_or_default());
            found.extend(nvme_controllers(folder));
        }
        found
    }
}

/// Finds the controllers of an NVMe multipath disk, whose folder is below `/sys/devices/virtual/nvme-subsystem/nvme-subsysN`.
fn nvme_controllers(disk: &Path) -> Vec<PathBuf> {
    let Some(subsystem) = disk.ancestors().find(|folder| {
        folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvme-subsys"))
    }) else {
        return Vec::new();
    };
    let names = list(subsystem).unwrap_or_default();
    names.iter().filter_map(|name| fs::canonicalize(subsystem.join(name)).ok()).collect()
}

/// Lists the interfaces that a default route goes out by, IPv4 and IPv6.
fn default_routes(root: &HostRoot) -> Result<BTreeSet<String>, HostError> {
    const UNSPECIFIED: &str = "00000000000000000000000000000000";
    const REJECT: u32 = 0x0200; // RTF_REJECT: the kernel's own "unreachable" entry on lo
    let mut interfaces = BTreeSet::new();
    let v4 = read_text(&root.path("/proc/net/route"))?.unwrap_or_default();
    for line in v4.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [interface, "00000000", _, _, _, _, _, "00000000", ..] = fields.as_slice() {
            interfaces.insert((*interface).to_owned());
        }
    }
    let v6 = read_text(&root.path("/proc/net/ipv6_route"))?.unwrap_or_default();
    for line in v6.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, "00", _, _, _, _, _, _, flags, interface] = fields.as_slice() else { continue };
        let reject = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & REJECT != 0);
        if *destination == UNSPECIFIED && !reject {
            interfaces.insert((*interface).to_owned());
        }
    }
    Ok(interfaces)
}

/// Follows an interface down through bridges, bonds and VLANs (`lower_*`) to the folders of the hardware.
fn interfaces_below(root: &HostRoot, interface: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut left = vec![interface.to_owned()];
    while let Some(name) = left.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let folder = root.path("/sys/class/net").join(&name);
        found.extend(fs::canonicalize(folder.join("device")).ok());
        let names = list(&folder).unwrap_or_default();
        left.extend(names.iter().filter_map(|name| name.strip_prefix("lower_")).map(str::to_owned));
    }
    found
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("36 35 259:1 / /mnt/my\\040data rw,noatime - ext4 /dev/nvme0n1p1 rw", Some(("259:1", "/dev/nvme0n1p1", "/mnt/my data")))]
    #[case("36 35 0:44 /@home /home rw shared:1 master:2 - btrfs /dev/mapper/x rw", Some(("0:44", "/dev/mapper/x", "/home")))]
    #[case("1 0 259:2 / / rw - ext4 /dev/root rw", Some(("259:2", "/dev/root", "/")))]
    #[case("25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw", None)]
    #[case("", None)]
    #[case("1 2 3", None)]
    fn mountinfo_lines_give_device_and_target(
        #[case] line: &str,
        #[case] expected: Option<(&str, &str, &str)>,
    ) {
        let expected =
            expected.map(|(numbers, device, target)| Mount { numbers, device, target: target.to_owned() });
        assert_eq!(mount(line), expected);
    }
}
