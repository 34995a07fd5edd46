//! What of the host sits on devices, and who uses them: mounted storage, swap, routes, open device files, the console.

mod console;
mod network;
mod nodes;
mod processes;
mod storage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gpuvm_core::facts::{DeviceFacts, Holder, HostFacts, Users};
use gpuvm_core::pci::Bdf;

use self::processes::{Found, Sought};
use self::storage::Storage;
use super::Reading;
use crate::HostError;
use crate::root::HostRoot;

/// What holds devices.
#[derive(Debug, Default)]
pub(super) struct Holders {
    storage: Storage,
    /// Each interface that carries routes, with the sysfs folders that it rests on.
    routes: Vec<(Holder, BTreeSet<PathBuf>)>,
    /// The functions that any of these rests on: most of 10,000 virtual functions are told from them by one look.
    near: BTreeSet<Bdf>,
}

impl Holders {
    /// Finds what the host itself can't do without, through stacked devices down to the hardware.
    pub(super) fn read(root: &HostRoot) -> Result<Self, HostError> {
        let (storage, routes) = (Storage::read(root)?, network::read(root)?);
        let folders = storage.found.iter().chain(&routes).flat_map(|(_, folders)| folders);
        let on_path =
            |folder: &PathBuf| folder.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        let near =
            folders.chain(storage.blocks.folders.values()).flat_map(|folder| -> Vec<Bdf> { on_path(folder) });
        let near = near.collect();
        Ok(Self { storage, routes, near })
    }

    /// Returns what of the host rests on a device, given its address and its resolved sysfs folder. One file system mounted in
    /// many places (bind mounts) is named once.
    pub(super) fn of(&self, bdf: Bdf, device: &Path) -> Vec<Holder> {
        if !self.near.contains(&bdf) {
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let rests =
            |(_, folders): &&(Holder, BTreeSet<PathBuf>)| folders.iter().any(|f| f.starts_with(device));
        let new = |holder: &&Holder| match holder {
            Holder::Mount { device, .. } | Holder::Swap { device } => seen.insert(device.clone()),
            _ => true,
        };
        let found = self.storage.found.iter().chain(&self.routes).filter(rests).map(|(holder, _)| holder);
        let mut holders: Vec<Holder> = found.filter(new).cloned().collect();
        if holders.is_empty() {
            holders.extend(self.storage.in_use(device));
        }
        holders
    }

    /// Adds who uses the devices in scope: processes that have their files open, those on their file systems, the text console.
    ///
    /// The processes are looked at once for all devices, and not at all where no device has files.
    pub(super) fn add_users(&self, root: &HostRoot, reading: &Reading, facts: &mut HostFacts) {
        let endpoints = facts.devices.iter().filter(|(_, device)| !device.class.is_bridge());
        let devices: BTreeMap<Bdf, &DeviceFacts> = endpoints.map(|(bdf, device)| (*bdf, device)).collect();
        let sought = self.sought(root, &devices);
        let found = sought.find(root, reading);
        for device in facts.devices.values_mut() {
            for holder in &mut device.holders {
                self.add_mount_users(holder, &found);
            }
        }
        for ((bdf, process), files) in found.openers {
            let Some(device) = facts.devices.get_mut(&bdf) else { continue };
            let vfio = files.iter().any(|file| file.starts_with("/dev/vfio"));
            device.holders.push(match vfio {
                true => Holder::Vfio { process, files, vm: None },
                false => Holder::Process { process, files },
            });
        }
        let (framebuffer, functions) = console::read(root).unwrap_or_default();
        for (bdf, device) in &mut facts.devices {
            if functions.contains(bdf) && !device.class.is_bridge() {
                device.holders.push(Holder::Console { framebuffer: framebuffer.clone() });
            }
        }
    }

    fn sought(&self, root: &HostRoot, devices: &BTreeMap<Bdf, &DeviceFacts>) -> Sought {
        let mounted = |holder: &Holder| match holder {
            Holder::Mount { device, .. } => Some(device.clone()),
            _ => None,
        };
        let sources: BTreeSet<String> =
            devices.values().flat_map(|device| device.holders.iter().filter_map(mounted)).collect();
        let targets = &self.storage.targets;
        Sought {
            files: nodes::of(root, devices, &self.storage.blocks),
            mounts: targets
                .iter()
                .filter(|(_, of)| sources.contains(*of))
                .map(|(to, _)| to.clone())
                .collect(),
            targets: targets.keys().cloned().collect(),
        }
    }

    /// Adds the processes that use a file system, wherever it is mounted.
    fn add_mount_users(&self, holder: &mut Holder, found: &Found) {
        if let Holder::Mount { device, users, .. } = holder {
            let of = |(target, _): &(&PathBuf, _)| self.storage.targets.get(*target) == Some(device);
            let all = found.users.iter().filter(of).flat_map(|(_, users)| users.iter().cloned());
            *users = Users::of(&all.collect());
        }
    }
}
