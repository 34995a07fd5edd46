//! The profile as written: every key that the language has, none of them checked against another.

use std::ops::RangeInclusive;

use super::problem::Problem;
use super::read::{Choice, Cursor, Located};
use super::tree::{Place, Table};
use super::{Accel, DiskFormat, FirmwareKind, Hugepages, Network, Pin, Serial, VmName, check};
use crate::pci::Bdf;
use crate::units::{ByteSize, PageSize};

type Leaf<T> = Option<Located<T>>;

/// The profile as written.
#[derive(Debug, Clone, Default)]
pub struct RawProfile {
    pub(super) version: Leaf<i128>,
    pub(super) name: Leaf<VmName>,
    pub(super) accel: Leaf<Accel>,
    pub(super) firmware: Leaf<FirmwareKind>,
    pub(super) network: Leaf<Network>,
    pub(super) serial: Leaf<Serial>,
    pub(super) memory: RawMemory,
    pub(super) cpu: RawCpu,
    pub(super) kernel: Option<RawKernel>,
    pub(super) devices: Vec<RawDevice>,
    pub(super) disks: Vec<RawDisk>,
    /// Keys whose value was refused already: their absence is no further problem.
    pub(super) refused: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct RawMemory {
    pub(super) size: Leaf<ByteSize>,
    pub(super) hugepages: Leaf<Hugepages>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct RawCpu {
    pub(super) count: Leaf<u32>,
    pub(super) pin: Leaf<Pin>,
}

#[derive(Debug, Clone)]
pub(super) struct RawKernel {
    pub(super) place: Place,
    pub(super) path: Leaf<String>,
    pub(super) initrd: Leaf<String>,
    pub(super) cmdline: Leaf<String>,
}

#[derive(Debug, Clone)]
pub(super) struct RawDevice {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) bdf: Leaf<Bdf>,
}

#[derive(Debug, Clone)]
pub(super) struct RawDisk {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) path: Leaf<String>,
    pub(super) format: Leaf<DiskFormat>,
}

impl RawProfile {
    /// Reads each leaf by its type and reports all that don't fit, and all keys that the language doesn't have.
    pub(super) fn read(table: &Table, problems: &mut Vec<Problem>) -> Self {
        let mut root = Cursor::new(table, String::new());
        let mut raw = Self {
            version: root.integer("version", problems),
            name: root.parsed("name", problems),
            accel: root.choice("accel", problems),
            firmware: root.choice("firmware", problems),
            network: root.choice("network", problems),
            serial: root.choice("serial", problems),
            memory: root.table("memory", problems).map(|t| read_memory(t, problems)).unwrap_or_default(),
            cpu: root.table("cpu", problems).map(|t| read_cpu(t, problems)).unwrap_or_default(),
            kernel: root.table("kernel", problems).map(|t| read_kernel(t, problems)),
            devices: read_each(root.tables("device", problems), problems, read_device),
            disks: read_each(root.tables("disk", problems), problems, read_disk),
            refused: Vec::new(),
        };
        root.finish(problems);
        raw.refused = problems.iter().map(|problem| problem.key.clone()).collect();
        raw
    }
}

fn read_each<T>(
    tables: Vec<Cursor<'_>>,
    problems: &mut Vec<Problem>,
    read: impl Fn(Cursor<'_>, &mut Vec<Problem>) -> T,
) -> Vec<T> {
    tables.into_iter().map(|table| read(table, problems)).collect()
}

fn read_memory(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawMemory {
    let memory =
        RawMemory { size: table.parsed("size", problems), hugepages: table.choice("hugepages", problems) };
    table.finish(problems);
    memory
}

fn read_cpu(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawCpu {
    const VCPUS: RangeInclusive<u32> = 1..=check::VCPUS_MAX;
    let cpu = RawCpu { count: table.count("count", VCPUS, problems), pin: table.choice("pin", problems) };
    table.finish(problems);
    cpu
}

fn read_kernel(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawKernel {
    let kernel = RawKernel {
        place: table.place(),
        path: table.text("path", problems),
        initrd: table.text("initrd", problems),
        cmdline: table.text("cmdline", problems),
    };
    table.finish(problems);
    kernel
}

fn read_device(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawDevice {
    let device =
        RawDevice { key: table.key("bdf"), place: table.place(), bdf: table.parsed("bdf", problems) };
    table.finish(problems);
    device
}

fn read_disk(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawDisk {
    let disk = RawDisk {
        key: table.key("path"),
        place: table.place(),
        path: table.text("path", problems),
        format: table.choice("format", problems),
    };
    table.finish(problems);
    disk
}

impl Choice for Accel {
    const WORDS: &'static [(&'static str, Self)] = &[("kvm", Self::Kvm), ("tcg", Self::Tcg)];
}

impl Choice for FirmwareKind {
    const WORDS: &'static [(&'static str, Self)] = &[("uefi", Self::Uefi), ("bios", Self::Bios)];
}

impl Choice for Network {
    const WORDS: &'static [(&'static str, Self)] = &[("user", Self::User), ("none", Self::None)];
}

impl Choice for Serial {
    const WORDS: &'static [(&'static str, Self)] = &[("console", Self::Console), ("log", Self::Log)];
}

impl Choice for Pin {
    const WORDS: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("off", Self::Off)];
}

impl Choice for DiskFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("raw", Self::Raw)];
}

impl Choice for Hugepages {
    const WORDS: &'static [(&'static str, Self)] =
        &[("2M", Self::Size(PageSize::M2)), ("1G", Self::Size(PageSize::G1)), ("off", Self::Off)];
}
