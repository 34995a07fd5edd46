//! Builds the tree.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gpuvm_core::pci::Bdf;

use super::{FakeHost, State};
use crate::fake_qemu::{self, Script};

/// A device of a fake host.
#[derive(Debug, Clone)]
pub struct FakeDevice {
    /// Its address.
    pub bdf: &'static str,
    /// The root port above it; none for a device on the root bus.
    pub port: Option<&'static str>,
    /// Vendor and device id.
    pub id: (u16, u16),
    /// The 24-bit class code.
    pub class: u32,
    /// The driver that has it, and takes it back.
    pub driver: Option<&'static str>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Its node; -1 for none.
    pub node: i32,
    /// Whether it is the boot display, where that is known.
    pub boot_vga: Option<u8>,
    /// Its power attributes as they are found.
    pub power: PowerAttributes,
}

/// The power attributes of a device.
#[derive(Debug, Clone, Copy)]
pub struct PowerAttributes {
    /// `power/control`.
    pub control: &'static str,
    /// `d3cold_allowed`; none for a kernel without ACPI.
    pub d3cold_allowed: Option<&'static str>,
}

/// A two-function card's function 0.
pub fn gpu(bdf: &'static str, group: u32, node: i32) -> FakeDevice {
    FakeDevice {
        bdf,
        port: None,
        id: (0x10de, 0x2330),
        class: 0x03_0200,
        driver: Some("nvidia"),
        group: Some(group),
        node,
        boot_vga: None,
        power: PowerAttributes { control: "on", d3cold_allowed: Some("1") },
    }
}

/// A root port, with nothing below it yet.
fn root_port(bdf: &'static str) -> FakeDevice {
    FakeDevice {
        id: (0x1b36, 0x000c),
        class: 0x06_0400,
        driver: Some("pcieport"),
        group: None,
        power: PowerAttributes { control: "auto", d3cold_allowed: Some("1") },
        ..gpu(bdf, 0, -1)
    }
}

/// An NVMe controller.
pub fn nvme(bdf: &'static str, group: u32, node: i32) -> FakeDevice {
    FakeDevice { id: (0x144d, 0xa80a), class: 0x01_0802, driver: Some("nvme"), ..gpu(bdf, group, node) }
}

impl FakeHost {
    /// Makes a host without devices: two nodes of four CPUs and 64 GiB, an IOMMU, VFIO and KVM.
    ///
    /// # Panics
    /// When the temporary folder can't be filled: a test can't go on without.
    pub fn new() -> Self {
        let host = Self::bare();
        host.file("/proc/sys/kernel/osrelease", "6.12.0-fake\n");
        host.file("/proc/cmdline", "intel_iommu=on\n");
        host.file("/dev/kmsg", "");
        host.folder("/sys/class/iommu/dmar0");
        host.cpus("0-7");
        host.node(0, "0-3", 64 << 20);
        host.node(1, "4-7", 64 << 20);
        host
    }

    /// Makes a host with VFIO and KVM, and without CPUs, memory, an IOMMU or devices.
    pub(super) fn bare() -> Self {
        // In memory where that can be had: gpuvm syncs each line of its journal, which on a disk takes most of a test's time.
        let shm = Path::new("/dev/shm");
        // Its name says what it is of: a test that is killed leaves it behind.
        let mut named = tempfile::Builder::new();
        let named = named.prefix("fake-host-");
        let dir = if shm.is_dir() { named.tempdir_in(shm) } else { named.tempdir() };
        let dir = dir.unwrap_or_else(|error| panic!("make a temporary folder: {error}"));
        let host = Self { dir, state: Rc::new(RefCell::new(State::default())) };
        host.file("/proc/sys/kernel/random/boot_id", "00000000-0000-4000-8000-000000000001\n");
        host.file("/proc/self/mountinfo", "");
        host.file("/proc/swaps", "Filename Type Size Used Priority\n");
        host.file(
            "/proc/net/route",
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n",
        );
        for folder in ["/sys/class/iommu", "/sys/class/block", "/sys/class/net", "/sys/bus/pci/devices"] {
            host.folder(folder);
        }
        for node in ["/dev/vfio/vfio", "/dev/kvm"] {
            host.file(node, "");
        }
        host.file("/sys/bus/pci/drivers_probe", "");
        host.file("/sys/bus/pci/drivers_autoprobe", "1\n");
        host.file("/sys/bus/pci/rescan", "");
        host.driver_dir("vfio-pci");
        // As in the lab: vfio-pci lets a device sleep when it takes it, and keeps it awake when it lets go.
        host.driver_sets_power("vfio-pci", "auto", "on");
        host
    }

    pub(super) fn folder(&self, absolute: &str) {
        let path = self.path(absolute);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
    }

    /// Writes a file of the host.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn file(&self, absolute: &str, content: impl AsRef<[u8]>) {
        let path = self.path(absolute);
        let parent = path.parent().unwrap_or(Path::new("/"));
        let write = || fs::create_dir_all(parent).and_then(|()| fs::write(&path, content));
        write().unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// Makes a link of the host; an absolute target is one below the host's root.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn link(&self, absolute: &str, target: &str) {
        let (path, target) = (self.path(absolute), self.path(target));
        let parent = path.parent().unwrap_or(Path::new("/"));
        let make = || fs::create_dir_all(parent).and_then(|()| symlink(&target, &path));
        make().unwrap_or_else(|error| panic!("link {}: {error}", path.display()));
    }

    /// Takes a file or link away.
    ///
    /// # Panics
    /// When it can't be removed.
    pub fn remove(&self, absolute: &str) {
        let path = self.path(absolute);
        fs::remove_file(&path).unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
    }

    /// Makes QEMU of this host the given binary, in the first folder of PATH.
    pub fn qemu(&self, binary: &Path) {
        for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).take(1) {
            let path = self.root().path(folder).join("qemu-system-x86_64");
            let parent = path.parent().unwrap_or(Path::new("/"));
            let make = || fs::create_dir_all(parent).and_then(|()| symlink(binary, &path));
            make().unwrap_or_else(|error| panic!("link {}: {error}", path.display()));
        }
    }

    /// Makes QEMU of this host a fake that plays a script; returns where it records what it was told.
    ///
    /// # Panics
    /// When the fake can't be built or the script can't be written.
    pub fn fake_qemu(&self, script: &Script) -> PathBuf {
        let dir = self.path("/fake-qemu");
        self.folder("/fake-qemu");
        let record = dir.join("record");
        let script = Script { record: Some(record.clone()), ..script.clone() };
        let written = script.save(&dir).unwrap_or_else(|error| panic!("write the script: {error}"));
        let binary = fake_qemu::binary().unwrap_or_else(|error| panic!("fake-qemu: {error}"));
        let quoted = |path: &Path| format!("'{}'", path.display());
        let env = fake_qemu::SCRIPT_ENV;
        let wrapper = format!("#!/bin/sh\n{env}={} exec {} \"$@\"\n", quoted(&written), quoted(&binary));
        self.qemu(&self.script("/fake-qemu/qemu", &wrapper));
        record
    }

    /// Makes a qemu-img that makes overlays as far as their header; returns where it is.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn fake_qemu_img(&self) -> PathBuf {
        self.script("/fake-qemu/qemu-img", QEMU_IMG)
    }

    /// Writes a program for /bin/sh and returns where it is.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn script(&self, absolute: &str, text: &str) -> PathBuf {
        self.file(absolute, text);
        let (path, mode) = (self.path(absolute), PermissionsExt::from_mode(0o755));
        fs::set_permissions(&path, mode).unwrap_or_else(|error| panic!("chmod: {error}"));
        path
    }

    /// Sets which CPUs are online; each is a core of its own.
    pub fn cpus(&self, list: &str) {
        self.file("/sys/devices/system/cpu/online", format!("{list}\n"));
    }

    /// Adds a node with its CPUs and its memory in KiB, with empty hugepage pools that all of its memory could fill.
    pub fn node(&self, id: u32, cpus: &str, kib: u64) {
        let folder = format!("/sys/devices/system/node/node{id}");
        self.file(&format!("{folder}/cpulist"), format!("{cpus}\n"));
        self.file(&format!("{folder}/distance"), "10 21\n");
        let text = format!("Node {id} MemTotal: {kib} kB\nNode {id} MemFree: {kib} kB\n");
        self.file(&format!("{folder}/meminfo"), text);
        for page_kib in [2048, 1_048_576] {
            let pool = format!("{folder}/hugepages/hugepages-{page_kib}kB");
            self.file(&format!("{pool}/nr_hugepages"), "0\n");
            self.file(&format!("{pool}/free_hugepages"), "0\n");
            self.file(&format!("/fake-kernel/pool-limit/{id}-{page_kib}kB"), (kib / page_kib).to_string());
        }
        let nodes = "/sys/devices/system/node/online";
        let known = fs::read_to_string(self.path(nodes)).unwrap_or_default();
        let list = if known.is_empty() { id.to_string() } else { format!("{},{id}", known.trim()) };
        self.file(nodes, format!("{list}\n"));
    }

    pub(super) fn driver_dir(&self, driver: &str) {
        self.file(&format!("/sys/bus/pci/drivers/{driver}/bind"), "");
        self.file(&format!("/sys/bus/pci/drivers/{driver}/unbind"), "");
    }

    /// Makes a driver set `power/control` when it takes a device, and when it lets go of it.
    pub fn driver_sets_power(&self, driver: &str, at_probe: &str, at_remove: &str) {
        self.file(&format!("/fake-kernel/drivers/{driver}/at-probe"), at_probe);
        self.file(&format!("/fake-kernel/drivers/{driver}/at-remove"), at_remove);
    }

    /// Adds a device, and the root port above it where there is none yet.
    ///
    /// # Panics
    /// When its address is none, or the tree can't be written.
    pub fn device(&self, device: &FakeDevice) {
        let bdf: Bdf = device.bdf.parse().unwrap_or_else(|error| panic!("{error}"));
        let bus = device.bdf.split(':').nth(1).unwrap_or("00");
        let real = match device.port {
            Some(port) => format!("/sys/devices/pci0000:{bus}/{port}/{bdf}"),
            None => format!("/sys/devices/pci0000:{bus}/{bdf}"),
        };
        if let Some(port) =
            device.port.filter(|port| !self.path(&format!("/sys/bus/pci/devices/{port}")).exists())
        {
            let real_port = format!("/sys/devices/pci0000:{bus}/{port}");
            self.device_at(&root_port(port), &real_port);
            self.file(&format!("{real_port}/reset_subordinate"), "");
        }
        self.device_at(device, &real);
    }

    /// Adds a device whose folder is given.
    fn device_at(&self, device: &FakeDevice, real: &str) {
        let bdf: Bdf = device.bdf.parse().unwrap_or_else(|error| panic!("{error}"));
        let attribute = |name: &str, text: String| self.file(&format!("{real}/{name}"), text);
        attribute("power/control", format!("{}\n", device.power.control));
        if let Some(allowed) = device.power.d3cold_allowed {
            attribute("d3cold_allowed", format!("{allowed}\n"));
        }
        attribute("vendor", format!("{:#06x}\n", device.id.0));
        attribute("device", format!("{:#06x}\n", device.id.1));
        attribute("class", format!("{:#08x}\n", device.class));
        attribute("numa_node", format!("{}\n", device.node));
        attribute("driver_override", "(null)\n".to_owned());
        attribute("reset_method", "flr bus\n".to_owned());
        attribute("reset", String::new());
        attribute("resource", "0x00000000e0000000 0x00000000e0ffffff 0x0000000000040200\n".to_owned());
        if let Some(boot_vga) = device.boot_vga {
            attribute("boot_vga", format!("{boot_vga}\n"));
        }
        self.file(&format!("{real}/config"), config(device));
        self.hotplug(bdf, real);
        self.link(&format!("/sys/bus/pci/devices/{bdf}"), real);
        if let Some(group) = device.group {
            self.folder(&format!("/sys/kernel/iommu_groups/{group}/devices"));
            self.link(&format!("/sys/kernel/iommu_groups/{group}/devices/{bdf}"), real);
            self.link(&format!("{real}/iommu_group"), &format!("/sys/kernel/iommu_groups/{group}"));
            self.file(&format!("/dev/vfio/{group}"), "");
        }
        if let Some(driver) = device.driver {
            self.driver_dir(driver);
            self.link(&format!("{real}/driver"), &format!("/sys/bus/pci/drivers/{driver}"));
            self.file(&format!("/fake-kernel/native/{bdf}"), driver);
        }
    }
}

/// The variable that makes the fake qemu-img kill its parent `before` or `after` it has made its image.
pub const KILL_PARENT: &str = "GPUVM_FAKE_QEMU_IMG_KILLS";

/// `qemu-img create -q -f qcow2 -F FORMAT -b BACKING IMAGE`: a header of 24 bytes and the name of the image behind.
const QEMU_IMG: &str = r#"#!/bin/sh
set -eu
[ "$1 $2 $3 $4 $5 $7" = "create -q -f qcow2 -F -b" ] && [ -f "$8" ]
[ "${GPUVM_FAKE_QEMU_IMG_KILLS:-}" != before ] || kill -9 $PPID
printf 'QFI\373\0\0\0\003\0\0\0\0\0\0\0\030\0\0\0\'"$(printf %03o ${#8})"'\0\0\0\0%s' "$8" > "$9"
[ "${GPUVM_FAKE_QEMU_IMG_KILLS:-}" != after ] || kill -9 $PPID
"#;

/// A config space of 256 bytes with a plain header.
fn config(device: &FakeDevice) -> [u8; 256] {
    let mut config = [0; 256];
    config[0..2].copy_from_slice(&device.id.0.to_le_bytes());
    config[2..4].copy_from_slice(&device.id.1.to_le_bytes());
    config[4] = 0x06;
    config[9..12].copy_from_slice(&device.class.to_le_bytes()[..3]);
    // Where its `resource` has it.
    config[0x10..0x14].copy_from_slice(&0xe000_0000_u32.to_le_bytes());
    config[0x3d] = 1;
    config
}
