//! Takes down of a host what gpuvm reads of it, so that plans can be made for it elsewhere.
//!
//! Taken down are facts about the machine: PCI devices, groups, nodes, CPUs, hugepages, firmware, and what of the host sits on
//! devices. Serial numbers, addresses of networks and the boot's id are not among them, nor is `config`, whose reading wakes devices.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_core::reset::quirks::FOLDER;
use gpuvm_host::facts;
use gpuvm_host::root::{HostRoot, list, read_text};
use gpuvm_testkit::recorded::{Entry, Recording};

/// Attributes of a PCI function.
const DEVICE: [&str; 30] = [
    "boot_vga",
    "class",
    "current_link_speed",
    "current_link_width",
    "d3cold_allowed",
    "device",
    "driver_override",
    "max_link_speed",
    "max_link_width",
    "modalias",
    "numa_node",
    "power/control",
    "power/runtime_status",
    "power_state",
    "reset_method",
    "resource",
    "resource0_resize",
    "resource1_resize",
    "resource2_resize",
    "resource3_resize",
    "resource4_resize",
    "resource5_resize",
    "revision",
    "secondary_bus_number",
    "sriov_numvfs",
    "sriov_totalvfs",
    "subordinate_bus_number",
    "subsystem_device",
    "subsystem_vendor",
    "vendor",
];
/// Folders of a PCI function that hold what the host calls it.
const NODES: [&str; 8] = ["accel", "drm", "graphics", "infiniband", "misc", "net", "nvme", "sound"];
/// Attributes below `/sys/class/iommu/NAME`: the widths of addresses are in there.
const IOMMU: [&str; 4] = ["amd-iommu/cap", "amd-iommu/features", "intel-iommu/cap", "intel-iommu/ecap"];
/// Attributes of a CPU.
const CPU: [&str; 3] = ["core_id", "physical_package_id", "thread_siblings_list"];
/// Attributes of a node.
const NODE: [&str; 3] = ["cpulist", "distance", "meminfo"];
/// Files that are taken down as they are.
const PLAIN: [&str; 16] = [
    "/etc/os-release",
    "/proc/cmdline",
    "/proc/swaps",
    "/proc/sys/kernel/osrelease",
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/offline",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/smt/control",
    "/sys/devices/system/node/online",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/module/kvm_amd/parameters/nested",
    "/sys/module/kvm_intel/parameters/nested",
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
    "/sys/module/vfio_pci/parameters/disable_idle_d3",
];
/// Stands for the boot's id, which names one boot of one machine.
const BOOT_ID: &str = "00000000-0000-4000-8000-000000000000\n";
/// Where firmware descriptors are.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];

/// A failure in words.
type Result<T> = std::result::Result<T, String>;

/// How much of a host is taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of its devices.
    Host,
    /// The devices that the profiles concern, with their groups and the bridges above.
    Profiles,
}

/// Takes down a host, and the files that profiles name.
///
/// # Errors
/// What can't be read, and what is wrong with a profile.
pub fn record(root: &HostRoot, scope: Scope, profiles: &[PathBuf]) -> Result<Recording> {
    let prefix = fs::canonicalize(root.path("/")).map_err(|error| error.to_string())?;
    let mut recorder = Recorder { root, prefix, recording: Recording::default() };
    let mut files = BTreeSet::new();
    let mut concerned = BTreeSet::new();
    for path in profiles {
        let facts = facts::read(root, &profile(path)?).map_err(|error| error.to_string())?;
        files.extend(facts.files.into_keys());
        concerned.extend(facts.devices.values().flat_map(|device| device.upstream.iter().copied()));
        concerned.extend(facts.devices.into_keys());
    }
    recorder.kernel()?;
    recorder.tables()?;
    recorder.interrupts()?;
    recorder.cpus()?;
    recorder.nodes()?;
    recorder.vfio()?;
    recorder.iommus()?;
    let all = recorder.list("/sys/bus/pci/devices")?;
    let all = all.iter().filter_map(|name| name.parse::<Bdf>().ok());
    let wanted: BTreeSet<Bdf> = all.filter(|bdf| scope == Scope::Host || concerned.contains(bdf)).collect();
    recorder.devices(&wanted)?;
    recorder.names(&wanted)?;
    recorder.groups(&wanted)?;
    recorder.blocks()?;
    recorder.mounts()?;
    recorder.interfaces()?;
    recorder.routes()?;
    recorder.firmware()?;
    recorder.quirks()?;
    recorder.qemu();
    for file in files {
        recorder.size(&file.display().to_string());
    }
    Ok(recorder.recording)
}

fn profile(path: &Path) -> Result<Profile> {
    let text = fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let base = std::path::absolute(path).map_err(|error| error.to_string())?;
    let base = base.parent().unwrap_or(Path::new("/"));
    parse(&Sources::new(path.display().to_string(), text), base)
        .map_err(|problems| format!("{}: {problems:?}", path.display()))
}

struct Recorder<'a> {
    root: &'a HostRoot,
    /// The resolved root, which resolved paths begin with.
    prefix: PathBuf,
    recording: Recording,
}

impl Recorder<'_> {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        list(&self.root.path(folder)).map_err(|error| error.to_string())
    }

    /// Takes down a file, if it is there; a text that doesn't end its last line is given the end.
    fn text(&mut self, path: &str) -> Result<()> {
        if let Some(text) = read_text(&self.root.path(path)).map_err(|error| error.to_string())? {
            self.put(path, text);
        }
        Ok(())
    }

    /// Takes down what the host itself says of devices that don't do as they should.
    fn quirks(&mut self) -> Result<()> {
        let files = self.list(FOLDER)?;
        files
            .iter()
            .filter(|name| name.ends_with(".toml"))
            .try_for_each(|name| self.text(&format!("{FOLDER}/{name}")))
    }

    fn put(&mut self, path: &str, mut text: String) {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.recording.insert(path, Entry::Text(text));
    }

    /// Takes down attributes below a folder. Some attributes of a device can't be read on some of them (EIO, EINVAL): they are left out.
    fn attributes(&mut self, folder: &str, names: &[&str]) {
        for name in names {
            // What can't be read now can't be read by gpuvm either; it isn't in the recording then.
            self.text(&format!("{folder}/{name}")).ok();
        }
    }

    /// Takes down a link, if there is one. Targets that begin with the prefix are those of a host in files.
    fn link(&mut self, path: &str) -> Option<()> {
        let target = fs::read_link(self.root.path(path)).ok()?;
        let target = match target.strip_prefix(&self.prefix) {
            Ok(below) => Path::new("/").join(below),
            Err(_) => target,
        };
        self.recording.insert(path, Entry::Link(target.display().to_string()));
        Some(())
    }

    /// Takes down that a file or device node is there.
    fn size(&mut self, path: &str) {
        if let Ok(metadata) = fs::metadata(self.root.path(path))
            && !metadata.is_dir()
        {
            let bytes = if metadata.is_file() { metadata.len() } else { 0 };
            self.recording.insert(path, Entry::Bytes(bytes));
        }
    }

    /// Resolves a path of the host to one without links.
    fn real(&self, path: &str) -> Option<String> {
        let real = fs::canonicalize(self.root.path(path)).ok()?;
        Some(Path::new("/").join(real.strip_prefix(&self.prefix).ok()?).display().to_string())
    }

    fn kernel(&mut self) -> Result<()> {
        PLAIN.iter().try_for_each(|path| self.text(path))?;
        self.put("/proc/sys/kernel/random/boot_id", BOOT_ID.to_owned());
        // One CPU stands for all: each has some 40 lines, and they are alike.
        let cpuinfo = read_text(&self.root.path("/proc/cpuinfo")).map_err(|error| error.to_string())?;
        if let Some(first) = cpuinfo.as_deref().and_then(|text| text.split("\n\n").next()) {
            self.put("/proc/cpuinfo", first.to_owned());
        }
        Ok(())
    }

    /// Takes down which tables the firmware describes itself by, without what is in them.
    fn tables(&mut self) -> Result<()> {
        let folder = "/sys/firmware/acpi/tables";
        for table in self.list(folder)? {
            self.size(&format!("{folder}/{table}"));
        }
        Ok(())
    }

    /// Takes down the first lines of the interrupts, where those of the machine itself are.
    fn interrupts(&mut self) -> Result<()> {
        const LINES: usize = 8;
        let path = "/proc/interrupts";
        if let Some(text) = read_text(&self.root.path(path)).map_err(|error| error.to_string())? {
            self.put(path, text.lines().take(LINES).map(|line| format!("{line}\n")).collect());
        }
        Ok(())
    }

    fn cpus(&mut self) -> Result<()> {
        let folder = "/sys/devices/system/cpu";
        for cpu in self.list(folder)? {
            if cpu.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok()) {
                self.attributes(&format!("{folder}/{cpu}/topology"), &CPU);
            }
        }
        Ok(())
    }

    fn nodes(&mut self) -> Result<()> {
        let folder = "/sys/devices/system/node";
        for node in self.list(folder)? {
            if node.strip_prefix("node").is_none_or(|number| number.parse::<u32>().is_err()) {
                continue;
            }
            self.attributes(&format!("{folder}/{node}"), &NODE);
            for pool in self.list(&format!("{folder}/{node}/hugepages"))? {
                let pool = format!("{folder}/{node}/hugepages/{pool}");
                self.attributes(&pool, &["free_hugepages", "nr_hugepages"]);
            }
        }
        Ok(())
    }

    fn vfio(&mut self) -> Result<()> {
        for driver in self.list("/sys/bus/pci/drivers")? {
            self.recording.insert(&format!("/sys/bus/pci/drivers/{driver}"), Entry::Folder);
        }
        for node in ["/dev/kvm", "/dev/iommu"] {
            self.size(node);
        }
        for node in self.list("/dev/vfio")? {
            self.size(&format!("/dev/vfio/{node}"));
        }
        Ok(())
    }

    fn iommus(&mut self) -> Result<()> {
        for name in self.list("/sys/class/iommu")? {
            let path = format!("/sys/class/iommu/{name}");
            let Some(real) = self.real(&path) else { continue };
            self.recording.insert(&real, Entry::Folder);
            self.link(&path);
            self.attributes(&real, &IOMMU);
        }
        Ok(())
    }

    fn devices(&mut self, wanted: &BTreeSet<Bdf>) -> Result<()> {
        for bdf in wanted {
            let path = format!("/sys/bus/pci/devices/{bdf}");
            let Some(real) = self.real(&path) else { continue };
            self.recording.insert(&real, Entry::Folder);
            self.link(&path);
            self.attributes(&real, &DEVICE);
            // Nobody can read it: that it is there is what counts.
            self.size(&format!("{real}/reset_subordinate"));
            for link in ["driver", "iommu_group", "physfn"] {
                self.link(&format!("{real}/{link}"));
            }
            for class in NODES {
                for name in self.list(&format!("{real}/{class}"))? {
                    self.recording.insert(&format!("{real}/{class}/{name}"), Entry::Folder);
                }
            }
        }
        Ok(())
    }

    /// Takes down of the list of names what names the devices: some lines of 36,000.
    fn names(&mut self, wanted: &BTreeSet<Bdf>) -> Result<()> {
        let scope = facts::Scope::Devices(wanted.clone());
        let facts = facts::survey(self.root, &scope, facts::Depth::Sysfs, None);
        let names = facts.map_err(|error| error.to_string())?.names;
        let mut list = String::new();
        for (vendor, name) in &names.vendors {
            list.push_str(&format!("{vendor}  {name}\n"));
            for (id, names) in names.devices.iter().filter(|(id, _)| id.vendor == vendor.0) {
                // A card is named below its device, which has a name then.
                let Some(name) = &names.name else { continue };
                list.push_str(&format!("\t{:04x}  {name}\n", id.device));
                for (card, name) in &names.cards {
                    list.push_str(&format!("\t\t{:04x} {:04x}  {name}\n", card.vendor, card.device));
                }
            }
        }
        for (class, name) in &names.classes {
            list.push_str(&format!(
                "C {:02x}  {name}\n\t{:02x}  {name}\n",
                class.base(),
                class.class() & 0xff
            ));
        }
        self.put("/usr/share/misc/pci.ids", list);
        Ok(())
    }

    fn groups(&mut self, wanted: &BTreeSet<Bdf>) -> Result<()> {
        let folder = "/sys/kernel/iommu_groups";
        for group in self.list(folder)? {
            let members = self.list(&format!("{folder}/{group}/devices"))?;
            if !members.iter().any(|name| name.parse().is_ok_and(|bdf| wanted.contains(&bdf))) {
                continue;
            }
            self.attributes(&format!("{folder}/{group}"), &["reserved_regions", "type"]);
            for member in members {
                self.link(&format!("{folder}/{group}/devices/{member}"));
            }
        }
        Ok(())
    }

    /// Takes down block devices that can rest on hardware.
    fn blocks(&mut self) -> Result<()> {
        for name in self.list("/sys/class/block")? {
            let path = format!("/sys/class/block/{name}");
            let Some(real) =
                self.real(&path).filter(|_| !name.starts_with("loop") && !name.starts_with("ram"))
            else {
                continue;
            };
            self.recording.insert(&real, Entry::Folder);
            self.link(&path);
            self.attributes(&real, &["partition"]);
            for slave in self.list(&format!("{real}/slaves"))? {
                self.link(&format!("{real}/slaves/{slave}")).unwrap_or_else(|| {
                    self.recording.insert(&format!("{real}/slaves/{slave}"), Entry::Folder)
                });
            }
            self.multipath(&real)?;
            self.size(&format!("/dev/{name}"));
        }
        for numbers in self.list("/sys/dev/block")? {
            let path = format!("/sys/dev/block/{numbers}");
            let name = self.real(&path).and_then(|real| real.rsplit('/').next().map(str::to_owned));
            if name.is_some_and(|name| !name.starts_with("loop") && !name.starts_with("ram")) {
                self.link(&path);
            }
        }
        Ok(())
    }

    /// Takes down the controllers of an NVMe multipath disk.
    fn multipath(&mut self, disk: &str) -> Result<()> {
        let subsystem = Path::new(disk).ancestors().find(|folder| {
            folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvme-subsys"))
        });
        let Some(subsystem) = subsystem.map(|folder| folder.display().to_string()) else { return Ok(()) };
        for name in self.list(&subsystem)? {
            self.link(&format!("{subsystem}/{name}"));
        }
        Ok(())
    }

    /// Takes down mounted file systems and swap on block devices, and the nodes that they name.
    fn mounts(&mut self) -> Result<()> {
        let read = |path: &str| read_text(&self.root.path(path)).map_err(|error| error.to_string());
        let (mounts, swaps) = (read("/proc/self/mountinfo")?, read("/proc/swaps")?);
        let (mounts, swaps) = (mounts.unwrap_or_default(), swaps.unwrap_or_default());
        let on_block: Vec<(&str, &str)> =
            mounts.lines().filter_map(|line| Some((line, device(line)?))).collect();
        let kept: String = on_block.iter().map(|(line, _)| format!("{line}\n")).collect();
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
        for node in on_block.iter().map(|(_, device)| *device).chain(swaps) {
            if node.starts_with("/dev/") {
                self.link(node).unwrap_or_else(|| self.size(node));
            }
        }
        self.put("/proc/self/mountinfo", kept);
        Ok(())
    }

    /// Takes down network interfaces with hardware below them.
    fn interfaces(&mut self) -> Result<()> {
        for name in self.list("/sys/class/net")? {
            let path = format!("/sys/class/net/{name}");
            let Some(real) = self.real(&path) else { continue };
            let entries = self.list(&real)?;
            let links = entries.iter().filter(|name| *name == "device" || name.starts_with("lower_"));
            let links: Vec<String> = links.map(|link| format!("{real}/{link}")).collect();
            if !links.is_empty() {
                self.recording.insert(&real, Entry::Folder);
                self.link(&path);
            }
            for link in links {
                self.link(&link);
            }
        }
        Ok(())
    }

    /// Takes down default routes, without the addresses of gateways.
    fn routes(&mut self) -> Result<()> {
        let read = |path: &str| read_text(&self.root.path(path)).map_err(|error| error.to_string());
        let (v4, v6) = (read("/proc/net/route")?, read("/proc/net/ipv6_route")?);
        let mut kept = String::new();
        for (at, line) in v4.unwrap_or_default().lines().enumerate() {
            let mut fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if at > 0 && fields.get(1) != Some(&"00000000") {
                continue;
            }
            if let Some(gateway) = fields.get_mut(2).filter(|_| at > 0) {
                *gateway = "00000000";
            }
            kept.push_str(&format!("{}\n", fields.join("\t")));
        }
        self.put("/proc/net/route", kept);
        let unspecified = "0".repeat(32);
        let mut kept = String::new();
        for line in v6.unwrap_or_default().lines() {
            let mut fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if fields.first() == Some(&unspecified.as_str())
                && let Some(next_hop) = fields.get_mut(4)
            {
                *next_hop = &unspecified;
                kept.push_str(&format!("{}\n", fields.join(" ")));
            }
        }
        self.put("/proc/net/ipv6_route", kept);
        Ok(())
    }

    /// Takes down firmware descriptors, and that the files are there that they name.
    fn firmware(&mut self) -> Result<()> {
        for folder in FIRMWARE {
            for name in self.list(folder)?.into_iter().filter(|name| name.ends_with(".json")) {
                let path = format!("{folder}/{name}");
                self.text(&path)?;
                let text = fs::read_to_string(self.root.path(&path)).unwrap_or_default();
                let content: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                for file in file_names(&content) {
                    self.size(&file);
                }
            }
        }
        Ok(())
    }

    fn qemu(&mut self) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        for folder in std::env::split_paths(&path) {
            for program in ["qemu-img", "qemu-system-x86_64"] {
                self.size(&folder.join(program).display().to_string());
            }
        }
    }
}

/// Takes the device out of a line of mountinfo; none for file systems of the kernel's own.
fn device(line: &str) -> Option<&str> {
    let (fields, rest) = line.split_once(" - ")?;
    let (numbers, device) = (fields.split(' ').nth(2)?, rest.split(' ').nth(1)?);
    (device.starts_with("/dev/") || !numbers.starts_with("0:")).then_some(device)
}

/// Finds the files that a firmware descriptor names, wherever in it.
fn file_names(content: &serde_json::Value) -> Vec<String> {
    match content {
        serde_json::Value::Object(object) => {
            let own = object.get("filename").and_then(|name| name.as_str()).map(str::to_owned);
            own.into_iter().chain(object.values().flat_map(file_names)).collect()
        }
        serde_json::Value::Array(values) => values.iter().flat_map(file_names).collect(),
        _ => Vec::new(),
    }
}
