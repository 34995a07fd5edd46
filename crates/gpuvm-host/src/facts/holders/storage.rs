//! Mounted file systems, swap, and block devices that somebody has claimed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gpuvm_core::facts::{Holder, Users};
use gpuvm_sys::errno::EBUSY;

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// What of the host's storage rests on hardware.
#[derive(Debug, Default)]
pub(super) struct Storage {
    /// Each mount and swap space, with the sysfs folders that it rests on.
    pub(super) found: Vec<(Holder, BTreeSet<PathBuf>)>,
    /// Where anything at all is mounted, and what.
    pub(super) targets: BTreeMap<PathBuf, String>,
    pub(super) blocks: BlockDevices,
}

impl Storage {
    /// Finds it all, through stacked devices down to the hardware.
    pub(super) fn read(root: &HostRoot) -> Result<Self, HostError> {
        let mut found = Vec::new();
        let blocks = BlockDevices::read(root)?;
        let mounts = read_text(&root.path("/proc/self/mountinfo"))?.unwrap_or_default();
        // One folder of the hypervisor's may be mounted in many places.
        let mut shared = BTreeMap::new();
        for Mount { device, target, channel, .. } in mounts.lines().filter_map(mount) {
            let Some(channel) = channel else { continue };
            let holder = Holder::Mount { device: unescape(device), target, users: Users::default() };
            let devices = match shared.entry((channel, device)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(channel.devices(root, &unescape(device))?),
            };
            found.push((holder, devices.clone()));
        }
        for Mount { numbers, device, target, .. } in
            mounts.lines().filter_map(mount).filter(Mount::is_on_block)
        {
            let holder = Holder::Mount { device: device.to_owned(), target, users: Users::default() };
            let below = blocks.below_numbers(numbers).or_else(|| blocks.below_node(device));
            found.push((holder, below.unwrap_or_default()));
        }
        let swaps = read_text(&root.path("/proc/swaps"))?.unwrap_or_default();
        for device in swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()) {
            let below = blocks.below_node(device).unwrap_or_default();
            found.push((Holder::Swap { device: unescape(device) }, below));
        }
        let target = |mount: Mount<'_>| (PathBuf::from(mount.target), mount.device.to_owned());
        let targets = mounts.lines().filter_map(mount).map(target).collect();
        Ok(Self { found, targets, blocks })
    }

    /// Asks the kernel whether anybody has claimed a block device below: ZFS and btrfs pools, idle arrays and volumes, mounts in
    /// another namespace. An exclusive open that isn't for writing takes nothing away from anybody (open(2), O_EXCL).
    pub(super) fn in_use(&self, device: &Path) -> Option<Holder> {
        self.blocks.folders.iter().filter(|(_, folder)| folder.starts_with(device)).find_map(|(name, _)| {
            let node = self.blocks.root.path("/dev").join(name);
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
    /// By which kind of virtio device it comes, where it is a folder of the hypervisor's.
    channel: Option<Channel>,
}

/// A kind of virtio device by which folders of the hypervisor's are mounted, by their tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Channel {
    Plan9,
    Virtiofs,
}

impl Channel {
    fn of(kind: &str, options: &str) -> Option<Self> {
        let elsewhere =
            || options.split(',').any(|option| option.starts_with("trans=") && option != "trans=virtio");
        match kind {
            "9p" if !elsewhere() => Some(Self::Plan9),
            "virtiofs" => Some(Self::Virtiofs),
            _ => None,
        }
    }

    /// Finds the devices that may carry a tag: the one that has it, else all of the kind.
    fn devices(self, root: &HostRoot, tag: &str) -> Result<BTreeSet<PathBuf>, HostError> {
        let (driver, tags) = match self {
            Self::Plan9 => ("/sys/bus/virtio/drivers/9pnet_virtio", None),
            // Before Linux 6.9 nothing tells the tags of virtiofs.
            Self::Virtiofs => ("/sys/bus/virtio/drivers/virtiofs", Some("/sys/fs/virtiofs")),
        };
        let (folder, file, device) = match tags {
            None => (root.path(driver), "mount_tag", ""),
            Some(tags) => (root.path(tags), "tag", "device"),
        };
        let resolve = |path: PathBuf| fs::canonicalize(path).ok();
        let mut tagged = BTreeSet::new();
        for name in list(&folder)? {
            let own = folder.join(name);
            let said = if own.join(file).is_file() { read_text(&own.join(file))? } else { None };
            if said.is_some_and(|said| said.trim_end_matches(['\0', '\n']) == tag) {
                tagged.extend(resolve(own.join(device)));
            }
        }
        if !tagged.is_empty() {
            return Ok(tagged);
        }
        let all = list(&root.path(driver))?.into_iter().filter(|name| name.starts_with("virtio"));
        Ok(all.filter_map(|name| resolve(root.path(driver).join(name))).collect())
    }
}

impl Mount<'_> {
    /// Tells whether it is none of the kernel's own file systems.
    fn is_on_block(&self) -> bool {
        self.channel.is_none() && (self.device.starts_with("/dev/") || !self.numbers.starts_with("0:"))
    }
}

/// Takes a file system out of a line of mountinfo (Documentation/filesystems/proc.rst 3.5).
fn mount(line: &str) -> Option<Mount<'_>> {
    let (fields, rest) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(2);
    let (numbers, target) = (fields.next()?, fields.nth(1)?);
    let mut rest = rest.split(' ');
    let (kind, device) = (rest.next()?, rest.next()?);
    let channel = Channel::of(kind, rest.next().unwrap_or_default());
    Some(Mount { numbers, device, target: unescape(target), channel })
}

/// Undoes the kernel's octal escapes for blanks and backslashes.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// Block devices and what they rest on.
#[derive(Debug, Default)]
pub(super) struct BlockDevices {
    root: HostRoot,
    /// The resolved folder of each whole device and partition, by kernel name.
    pub(super) folders: BTreeMap<String, PathBuf>,
}

impl BlockDevices {
    fn read(root: &HostRoot) -> Result<Self, HostError> {
        let class = root.path("/sys/class/block");
        let resolve = |name: String| Some((name.clone(), fs::canonicalize(class.join(name)).ok()?));
        Ok(Self { root: root.clone(), folders: list(&class)?.into_iter().filter_map(resolve).collect() })
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
    pub(super) fn below(&self, name: String) -> BTreeSet<PathBuf> {
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
        let expected = expected.map(|(numbers, device, target)| Mount {
            numbers,
            device,
            target: target.to_owned(),
            channel: None,
        });
        assert_eq!(mount(line).filter(Mount::is_on_block), expected);
    }
}
