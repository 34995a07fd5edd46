//! The rules between keys: defaults, what must be there, what can't stand together. Knows nothing of the host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::problem::{Problem, ProblemKind};
use super::raw::{RawDevice, RawDisk, RawKernel, RawProfile};
use super::read::Located;
use super::tree::Place;
use super::{
    Accel, Cpu, DeviceRequest, Disk, DiskFormat, FirmwareKind, Hugepages, KernelBoot, Memory, Network, Pin,
    Profile, Serial, VERSION,
};
use crate::units::ByteSize;

/// The most vCPUs taken: the Q35 machine's limit of 288 up to QEMU 7.2 (hw/i386/pc_q35.c; later versions take more).
pub const VCPUS_MAX: u32 = 288;

/// The least memory taken: below it neither SeaBIOS nor OVMF gets to boot anything.
pub const GUEST_MEMORY_MIN: ByteSize = ByteSize::mib(32);

/// Turns what was written into what is meant, or reports each rule that is broken.
pub(super) fn check(raw: RawProfile, base: &Path, problems: &mut Vec<Problem>) -> Option<Profile> {
    let mut checker = Checker { refused: raw.refused.clone(), base, problems };
    checker.version(&raw);
    let name = checker.required(raw.name, "name", r#"name = "compute-1""#);
    let size = checker.required(raw.memory.size, "memory.size", r#"[memory] size = "64G""#);
    let count = checker.required(raw.cpu.count, "cpu.count", "[cpu] count = 16");
    let hugepages = value_or(raw.memory.hugepages, Hugepages::Off);
    if let Some(size) = &size {
        checker.memory(size, hugepages);
    }
    let devices = checker.devices(raw.devices);
    let disks = checker.disks(raw.disks);
    let kernel = raw.kernel.and_then(|kernel| checker.kernel(kernel));
    Some(Profile {
        name: name?.value,
        accel: value_or(raw.accel, Accel::Kvm),
        firmware: value_or(raw.firmware, FirmwareKind::Uefi),
        memory: Memory { size: size?.value, hugepages },
        cpu: Cpu { count: count?.value, pin: value_or(raw.cpu.pin, Pin::Auto) },
        kernel,
        devices,
        disks,
        network: value_or(raw.network, Network::User),
        serial: value_or(raw.serial, Serial::Console),
    })
}

fn value_or<T>(leaf: Option<Located<T>>, default: T) -> T {
    leaf.map_or(default, |located| located.value)
}

struct Checker<'a> {
    refused: Vec<String>,
    base: &'a Path,
    problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    fn report(&mut self, key: &str, place: Place, kind: ProblemKind) {
        self.problems.push(Problem { key: key.to_owned(), place, kind });
    }

    /// Asks for a leaf that has no default; one that was refused by its type isn't reported again.
    fn required<T>(
        &mut self,
        leaf: Option<Located<T>>,
        key: &str,
        example: &'static str,
    ) -> Option<Located<T>> {
        self.required_in(leaf, key, example, Place::default())
    }

    fn required_in<T>(
        &mut self,
        leaf: Option<Located<T>>,
        key: &str,
        example: &'static str,
        place: Place,
    ) -> Option<Located<T>> {
        let table_refused = |refused: &String| refused == key || key.starts_with(&format!("{refused}."));
        if leaf.is_none() && !self.refused.iter().filter(|key| !key.is_empty()).any(table_refused) {
            self.report(key, place, ProblemKind::Missing { key: key.to_owned(), example });
        }
        leaf
    }

    fn version(&mut self, raw: &RawProfile) {
        let version = self.required(raw.version.clone(), "version", "version = 1");
        if let Some(Located { value, place }) = version
            && value != i128::from(VERSION)
        {
            self.report("version", place, ProblemKind::Version { found: value });
        }
    }

    fn memory(&mut self, size: &Located<ByteSize>, hugepages: Hugepages) {
        let key = "memory.size";
        if size.value < GUEST_MEMORY_MIN {
            let message =
                format!("`{}` is less than the {GUEST_MEMORY_MIN} that any guest needs", size.value);
            self.report(key, size.place.clone(), ProblemKind::Value { key: key.to_owned(), message });
        } else if !size.value.as_bytes().is_multiple_of(1 << 20) {
            let message = format!("`{}` isn't a whole number of MiB", size.value);
            self.report(key, size.place.clone(), ProblemKind::Value { key: key.to_owned(), message });
        } else if let Hugepages::Size(page) = hugepages
            && !size.value.is_multiple_of(page)
        {
            self.report(key, size.place.clone(), ProblemKind::Unaligned { size: size.value, page });
        }
    }

    fn devices(&mut self, raw: Vec<RawDevice>) -> Vec<DeviceRequest> {
        let mut seen = BTreeSet::new();
        let mut devices = Vec::new();
        for RawDevice { key, place, bdf } in raw {
            let Some(bdf) = self.required_in(bdf, &key, r#"bdf = "0000:81:00.0""#, place) else { continue };
            if seen.insert(bdf.value) {
                devices.push(DeviceRequest { bdf: bdf.value });
            } else {
                let kind = ProblemKind::Twice { key: key.clone(), bdf: bdf.value };
                self.report(&key, bdf.place, kind);
            }
        }
        devices
    }

    fn disks(&mut self, raw: Vec<RawDisk>) -> Vec<Disk> {
        let mut disks: Vec<Disk> = Vec::new();
        for raw in raw {
            let (key, place) = (raw.key.clone(), raw.path.as_ref().map(|path| path.place.clone()));
            let Some(disk) = self.disk(raw) else { continue };
            if disks.iter().any(|other| other.path == disk.path) {
                let kind = ProblemKind::TwiceDisk { key: key.clone(), path: disk.path };
                self.report(&key, place.unwrap_or_default(), kind);
            } else {
                disks.push(disk);
            }
        }
        disks
    }

    fn disk(&mut self, raw: RawDisk) -> Option<Disk> {
        let RawDisk { key, place, path, format } = raw;
        let path = self.required_in(path, &key, r#"path = "/var/lib/gpuvm/disk.img""#, place)?;
        Some(Disk { path: self.path(&path, &key)?, format: value_or(format, DiskFormat::Raw) })
    }

    fn kernel(&mut self, raw: RawKernel) -> Option<KernelBoot> {
        let key = "kernel.path";
        let path = self.required_in(raw.path, key, r#"path = "/boot/vmlinuz""#, raw.place)?;
        let initrd = raw.initrd.and_then(|initrd| self.path(&initrd, "kernel.initrd"));
        let cmdline = raw.cmdline.map_or_else(String::new, |cmdline| cmdline.value);
        Some(KernelBoot { path: self.path(&path, key)?, initrd, cmdline })
    }

    /// Resolves a path against the profile's folder. Any byte but NUL may be in it, and it may not be empty.
    fn path(&mut self, raw: &Located<String>, key: &str) -> Option<PathBuf> {
        if raw.value.is_empty() || raw.value.contains('\0') {
            let message = "a path can't be empty or hold a NUL byte".to_owned();
            self.report(key, raw.place.clone(), ProblemKind::Value { key: key.to_owned(), message });
            return None;
        }
        Some(self.base.join(&raw.value))
    }
}
