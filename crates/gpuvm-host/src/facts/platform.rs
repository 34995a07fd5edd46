//! The machine, its firmware, its distribution, and what of the running system matters to guests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::doctor::Distribution;
use gpuvm_core::facts::{
    DeviceNode, HostFacts, IommuUnit, PlatformFacts, Presence, SystemFacts, UserFacts, VfioParameters,
};
use gpuvm_core::units::ByteSize;

use super::{Reading, access};
use crate::HostError;
use crate::root::{HostRoot, list, read_parsed, read_text};

/// The nodes that a launcher opens beside those of groups.
const NODES: [&str; 3] = ["/dev/kvm", "/dev/vfio/vfio", "/dev/iommu"];
/// So much of /proc/interrupts is looked at: with hundreds of CPUs and thousands of queues it has megabytes, and who handles
/// interrupts shows in the first lines.
const INTERRUPTS: u64 = 64 << 10;
/// The capability to lock memory without limit (include/uapi/linux/capability.h).
const CAP_IPC_LOCK: u32 = 14;

/// Reads them.
pub(super) fn read(
    root: &HostRoot,
    reading: &Reading,
    facts: &HostFacts,
) -> Result<PlatformFacts, HostError> {
    let text = |path: &str| reading.take(read_text(&root.path(path)));
    let cpus = |name: &str| {
        let path = root.path(format!("/sys/devices/system/cpu/{name}"));
        Ok::<CpuSet, HostError>(reading.take(read_parsed(&path))?.unwrap_or_default())
    };
    let accounts = Accounts { passwd: text("/etc/passwd")?, group: text("/etc/group")? };
    let group_nodes = facts
        .groups
        .keys()
        .filter_map(|group| Some((*group, node(root, &format!("/dev/vfio/{group}"), &accounts)?)));
    // The kernel lists as offline what could ever be there too; nothing can be done about a CPU that isn't.
    let (offline, present) = (cpus("offline")?, cpus("present")?);
    let offline_cpus = if present.is_empty() { offline } else { offline.intersection(&present) };
    Ok(PlatformFacts {
        distribution: distribution(root, reading)?,
        system: system(root, reading)?,
        acpi_tables: acpi_tables(root, reading)?,
        iommu_units: iommu_units(root, reading, &facts.iommus)?,
        iommu_groups: any_group(root),
        interrupt_chips: reading.take(interrupt_chips(&root.path("/proc/interrupts")))?,
        vfio: vfio(root, reading)?,
        virtualization: virtualization(&text("/proc/cpuinfo")?.unwrap_or_default()),
        nodes: NODES
            .into_iter()
            .filter_map(|path| Some((PathBuf::from(path), node(root, path, &accounts)?)))
            .collect(),
        group_nodes: group_nodes.collect(),
        user: user(root, reading, &accounts)?,
        swaps: swaps(&text("/proc/swaps")?.unwrap_or_default()),
        thp: text("/sys/kernel/mm/transparent_hugepage/enabled")?.as_deref().and_then(chosen),
        irqbalance: process(root, "irqbalance"),
        offline_cpus,
        isolated_cpus: cpus("isolated")?,
        smt: text("/sys/devices/system/cpu/smt/control")?.map(|text| text.trim().to_owned()),
    })
}

/// Finds out whose commands to give; nobody's in particular where it can't be read.
pub(super) fn distribution_of(root: &HostRoot) -> Distribution {
    distribution(root, &Reading::lenient()).unwrap_or_default()
}

fn distribution(root: &HostRoot, reading: &Reading) -> Result<Distribution, HostError> {
    let etc = reading.take(read_text(&root.path("/etc/os-release")))?;
    let text = match etc {
        Some(text) => text,
        None => reading.take(read_text(&root.path("/usr/lib/os-release")))?.unwrap_or_default(),
    };
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).to_owned()).unwrap_or_default()
    };
    Ok(Distribution::of(&value("ID"), &value("ID_LIKE")))
}

/// Reads what the firmware says; its blanks are no names, and what it doesn't fill in has no file.
pub(super) fn system(root: &HostRoot, reading: &Reading) -> Result<SystemFacts, HostError> {
    let text = |name: &str| {
        let text = reading.take(read_text(&root.path(format!("/sys/class/dmi/id/{name}"))))?;
        let text = text.map(|text| text.trim().to_owned());
        Ok::<_, HostError>(text.filter(|text| !text.is_empty()))
    };
    Ok(SystemFacts {
        vendor: text("sys_vendor")?,
        product: text("product_name")?,
        board: text("board_name")?,
        bios_vendor: text("bios_vendor")?,
        bios_version: text("bios_version")?,
        bios_date: text("bios_date")?,
    })
}

fn acpi_tables(root: &HostRoot, reading: &Reading) -> Result<Option<BTreeSet<String>>, HostError> {
    let folder = root.path("/sys/firmware/acpi/tables");
    if folder.symlink_metadata().is_err() {
        return Ok(None);
    }
    Ok(Some(reading.take(list(&folder))?.into_iter().collect()))
}

fn iommu_units(
    root: &HostRoot,
    reading: &Reading,
    names: &[String],
) -> Result<BTreeMap<String, IommuUnit>, HostError> {
    let mut units = BTreeMap::new();
    for name in names {
        let folder = root.path(format!("/sys/class/iommu/{name}"));
        let register = |name: &str| reading.take(read_hex64(&folder.join(name)));
        let intel = register("intel-iommu/cap")?.zip(register("intel-iommu/ecap")?);
        let unit = match (intel, register("amd-iommu/features")?) {
            (Some((cap, ecap)), _) => IommuUnit::Intel { cap, ecap },
            (None, Some(features)) => IommuUnit::Amd { features },
            (None, None) => continue,
        };
        units.insert(name.clone(), unit);
    }
    Ok(units)
}

/// Reads a register, in hex without `0x`. AMD's extended features come as two, and which comes first depends on the kernel: the
/// one that is looked for is the larger, since the other has hardly a bit yet.
fn read_hex64(path: &Path) -> Result<Option<u64>, HostError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let words = text.trim().split(':').map(|word| u64::from_str_radix(word, 16));
    let words: Result<Vec<u64>, _> = words.collect();
    words.map(|words| words.into_iter().max()).map_err(|error| HostError::content(path, &text, error))
}

/// Looks whether there is a group; there may be ten thousand.
fn any_group(root: &HostRoot) -> Presence {
    let any = fs::read_dir(root.path("/sys/kernel/iommu_groups")).ok().and_then(|mut groups| groups.next());
    presence(any.is_some())
}

fn presence(there: bool) -> Presence {
    if there { Presence::Present } else { Presence::Absent }
}

/// Reads who handles interrupts.
pub(super) fn interrupt_chips(path: &Path) -> Result<Option<BTreeSet<String>>, HostError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(INTERRUPTS).read_to_end(&mut bytes).map_err(HostError::file("read", path))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::file("open", path)(error)),
    };
    Ok(Some(chips(&String::from_utf8_lossy(&bytes))))
}

/// Takes the word after the counts of all CPUs, as in ` 24:  0  7  IR-PCI-MSI-0000:00:02.0  0-edge  xhci`.
fn chips(text: &str) -> BTreeSet<String> {
    let mut lines = text.lines();
    let cpus = lines.next().unwrap_or_default().split_ascii_whitespace().count();
    let chip = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        number.trim().parse::<u32>().ok()?;
        // The address of a device is left out: who handles interrupts is alike for all of them.
        let chip = rest.split_ascii_whitespace().nth(cpus)?;
        let end = chip.find("-0").filter(|_| chip.contains(':')).unwrap_or(chip.len());
        chip.get(..end).map(str::to_owned)
    };
    lines.filter_map(chip).collect()
}

fn vfio(root: &HostRoot, reading: &Reading) -> Result<VfioParameters, HostError> {
    let parameter = |module: &str, name: &str| {
        reading.take(read_text(&root.path(format!("/sys/module/{module}/parameters/{name}"))))
    };
    let type1 = |name: &str| parameter("vfio_iommu_type1", name);
    let yes = |text: String| text.trim() == "Y";
    Ok(VfioParameters {
        unsafe_interrupts: type1("allow_unsafe_interrupts")?.map(yes),
        dma_entry_limit: type1("dma_entry_limit")?.and_then(|text| text.trim().parse().ok()),
        disable_idle_d3: parameter("vfio_pci", "disable_idle_d3")?.map(yes),
    })
}

fn virtualization(cpuinfo: &str) -> Option<Presence> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?.split_once(':')?.1;
    Some(presence(flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")))
}

/// The names of users and groups.
struct Accounts {
    passwd: Option<String>,
    group: Option<String>,
}

impl Accounts {
    fn user(&self, id: u32) -> String {
        name(self.passwd.as_deref(), id)
    }

    fn group(&self, id: u32) -> String {
        name(self.group.as_deref(), id)
    }
}

/// Finds the name of a number in lines of `NAME:PASSWORD:NUMBER:...`.
fn name(text: Option<&str>, id: u32) -> String {
    let named = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    };
    text.unwrap_or_default().lines().find_map(named).unwrap_or_else(|| id.to_string())
}

/// Looks at a device node, without opening it.
fn node(root: &HostRoot, path: &str, accounts: &Accounts) -> Option<DeviceNode> {
    let metadata = fs::metadata(root.path(path)).ok()?;
    Some(DeviceNode {
        access: access(root, path),
        mode: metadata.mode() & 0o7777,
        owner: accounts.user(metadata.uid()),
        group: accounts.group(metadata.gid()),
    })
}

/// Reads what this process may do; nothing on a host that is only files.
fn user(root: &HostRoot, reading: &Reading, accounts: &Accounts) -> Result<Option<UserFacts>, HostError> {
    let read = |path: &str| reading.take(read_text(&root.path(path)));
    let (Some(status), Some(limits)) = (read("/proc/self/status")?, read("/proc/self/limits")?) else {
        return Ok(None);
    };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let uid = field("Uid").and_then(|ids| ids.split_ascii_whitespace().nth(1)?.parse().ok());
    let Some(uid) = uid else { return Ok(None) };
    let capabilities = field("CapEff").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    // `Max locked memory         8388608              8388608              bytes`
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let limit = limit.and_then(|line| line.split_ascii_whitespace().next());
    // What isn't told is no missing limit.
    let memlock = match limit {
        Some("unlimited") => None,
        Some(limit) => match limit.parse() {
            Ok(bytes) => Some(ByteSize::bytes(bytes)),
            Err(_) => return Ok(None),
        },
        None => return Ok(None),
    };
    Ok(Some(UserFacts {
        uid,
        name: accounts.user(uid),
        ipc_lock: presence(capabilities >> CAP_IPC_LOCK & 1 == 1),
        memlock,
    }))
}

fn swaps(text: &str) -> Vec<String> {
    let devices = text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    devices.map(str::to_owned).collect()
}

/// Takes the word in brackets out of `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Looks whether a program runs, by the name that the kernel has for it.
fn process(root: &HostRoot, name: &str) -> Presence {
    let folder = root.path("/proc");
    // A process that ends meanwhile is no failure.
    let Ok(entries) = fs::read_dir(&folder) else { return Presence::Absent };
    let runs = |entry: fs::DirEntry| {
        let process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        process && fs::read(entry.path().join("comm")).is_ok_and(|comm| comm.trim_ascii() == name.as_bytes())
    };
    presence(entries.flatten().any(runs))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::remapped(
        "           CPU0       CPU1       \n  1:          0          9  IR-IO-APIC   1-edge      i8042\n \
         24:          0          0  IR-PCI-MSI-0000:00:02.0    0-edge      xhci\nNMI:          0          0   Non-maskable\n",
        &["IR-IO-APIC", "IR-PCI-MSI"]
    )]
    #[case::not_remapped(
        "           CPU0       \n  4:        901   IO-APIC   4-edge      ttyS0\n 24:          0  DMAR-MSI   0-edge      dmar0\n",
        &["DMAR-MSI", "IO-APIC"]
    )]
    #[case::cut_in_the_middle("           CPU0       CPU1       \n  1:          0", &[])]
    #[case::nothing("", &[])]
    fn chips_are_the_words_behind_the_counts(#[case] text: &str, #[case] expected: &[&str]) {
        assert_eq!(chips(text).iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("always madvise never\n"), None);
    }

    #[test]
    fn a_number_without_a_name_stays_a_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nkim:x:1000:1000::/home/kim:/bin/sh\n";
        assert_eq!((name(Some(passwd), 1000), name(Some(passwd), 7)), ("kim".to_owned(), "7".to_owned()));
    }
}
