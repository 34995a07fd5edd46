//! Collects what a report takes of gpuvm's own files and of the kernel's log. Nothing is changed, and nothing is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use gpuvm_core::facts::DeviceFacts;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Identity;
use gpuvm_sys::access::O_NONBLOCK;

use crate::archive::Member;
use crate::ledger;
use crate::places::Places;
use crate::root::{HostRoot, list};

/// The most that is taken of a record: journals have some lines for each device.
const RECORD_MAX: u64 = 4 << 20;
/// The most that is taken of a log, from its end.
const LOG_MAX: u64 = 256 << 10;
/// The most that is taken of the kernel's log, from its end.
const KERNEL_MAX: usize = 512 << 10;
/// How long the kernel's log may take to be read: it grows while it is read.
const PATIENCE: Duration = Duration::from_secs(2);
/// Words of the kernel's lines that concern passthrough, whatever device they name.
const WORDS: [&str; 10] =
    ["VFIO", "vfio", "DMAR", "AMD-Vi", "IOMMU", "iommu", "AER", "pcieport", "kvm", "BOOTFB"];

/// What was found, and what couldn't be read.
#[derive(Debug, Default)]
pub struct Collected {
    /// The files.
    pub members: Vec<Member>,
    /// What couldn't be read, in words.
    pub unread: Vec<String>,
}

/// Whether consoles are taken: what a guest prints is anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consoles {
    /// Their ends.
    Taken,
    /// They are left where they are.
    Left,
}

/// Collects the records and logs of all VMs.
pub fn vms(places: &Places, consoles: Consoles) -> Collected {
    let mut found = Collected::default();
    found.record("gpuvm/claims.json", &places.claims());
    let reservations = places.reservations();
    for name in found.list(&reservations).into_iter().filter(|name| name.ends_with(".json")) {
        found.record(&format!("gpuvm/reservations/{name}"), &reservations.join(&name));
    }
    for vm in found.vms_in(&places.vms()) {
        for name in ["journal", "run.json", "baselines.json"] {
            found.record(&format!("gpuvm/vm/{vm}/{name}"), &places.vm(&vm).join(name));
        }
    }
    let logs: &[&str] = match consoles {
        Consoles::Taken => &["qemu.log.1", "qemu.log", "console.log.1", "console.log"],
        Consoles::Left => &["qemu.log.1", "qemu.log"],
    };
    for vm in found.vms_in(&places.all_logs()) {
        for name in logs {
            found.tail(&format!("logs/{vm}/{name}"), &places.logs(&vm).join(name));
        }
    }
    found
}

/// Collects what the ledger tells of the host's devices. A file is called by ids and place: serial numbers stay inside.
pub fn ledgers(places: &Places, devices: &BTreeMap<Bdf, DeviceFacts>) -> Collected {
    let mut found = Collected::default();
    let ledgers = ledger::all(places).unwrap_or_else(|error| {
        found.unread.push(error.to_string());
        Vec::new()
    });
    let devices: Vec<Identity> =
        devices.iter().map(|(bdf, device)| Identity::of_device(*bdf, device)).collect();
    let mut names = BTreeSet::new();
    for ledger in ledgers {
        let own = |device: &&Identity| ledger.device.as_ref().is_some_and(|own| own.is_same(device));
        let Some(device) = devices.iter().find(own) else { continue };
        let name = format!("{}.{}", device.id, device.bdf).replace([':', '.'], "-");
        let numbered = std::iter::once(name.clone()).chain((2..).map(|n| format!("{name}-{n}")));
        let name = numbered.into_iter().find(|name| names.insert(name.clone())).unwrap_or(name);
        found.record(&format!("gpuvm/ledger/{name}.jsonl"), &ledger.path);
    }
    found
}

/// Collects the kernel's lines about VFIO, IOMMUs, errors of PCI Express, and PCI functions.
pub fn kernel_log(root: &HostRoot) -> Collected {
    let path = root.path("/dev/kmsg");
    let mut found = Collected::default();
    match records(&path) {
        Ok(text) => {
            let told = lines(&text);
            if !told.is_empty() {
                found.members.push(Member::new("kernel.log", told));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => found.unread.push(format!("read {}: {error}", path.display())),
    }
    found
}

/// Reads the kernel's log as far as it has been written: one record by each read (Documentation/ABI/testing/dev-kmsg).
fn records(path: &Path) -> io::Result<String> {
    let mut file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let begun = Instant::now();
    let mut text = Vec::new();
    let mut record = [0; 8192];
    while begun.elapsed() < PATIENCE {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&record[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Records that were overwritten before they were read: it goes on with the oldest that is left.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Chooses the lines that matter and spells them as dmesg does; the last ones where they are too many.
fn lines(records: &str) -> String {
    let mut chosen: Vec<String> = records.lines().filter_map(line).collect();
    let mut size: usize = 0;
    let kept = chosen.iter().rev().take_while(|line| {
        size = size.saturating_add(line.len());
        size <= KERNEL_MAX
    });
    let kept = kept.count();
    chosen.drain(..chosen.len() - kept);
    chosen.concat()
}

/// Spells a record `6,339,5140900,-;message`; lines that begin with a space tell more of the one before.
fn line(record: &str) -> Option<String> {
    let (head, message) = record.split_once(';').filter(|_| !record.starts_with(' '))?;
    let micros: u64 = head.split(',').nth(2)?.parse().ok()?;
    let names_device = || message.split(|c: char| !(c.is_ascii_hexdigit() || ":.".contains(c))).any(is_bdf);
    let wanted = WORDS.iter().any(|word| message.contains(word)) || names_device();
    wanted.then(|| format!("[{:5}.{:06}] {message}\n", micros / 1_000_000, micros % 1_000_000))
}

fn is_bdf(word: &str) -> bool {
    let word = word.trim_end_matches([':', '.']);
    word.len() >= 12 && word.parse::<Bdf>().is_ok()
}

impl Collected {
    /// Adds what another collection has found.
    pub fn extend(&mut self, other: Self) {
        self.members.extend(other.members);
        self.unread.extend(other.unread);
    }

    fn list(&mut self, folder: &Path) -> Vec<String> {
        list(folder).unwrap_or_else(|error| {
            self.unread.push(error.to_string());
            Vec::new()
        })
    }

    fn vms_in(&mut self, folder: &Path) -> Vec<VmName> {
        self.list(folder).iter().filter_map(|name| VmName::new(name)).collect()
    }

    fn record(&mut self, name: &str, path: &Path) {
        self.take(name, path, RECORD_MAX);
    }

    fn tail(&mut self, name: &str, path: &Path) {
        self.take(name, path, LOG_MAX);
    }

    /// Takes the end of a file, if it is one.
    fn take(&mut self, name: &str, path: &Path, most: u64) {
        match end_of(path, most) {
            Ok(Some(content)) => self.members.push(Member::new(name, content)),
            Ok(None) => {}
            Err(error) => self.unread.push(format!("read {}: {error}", path.display())),
        }
    }
}

/// Reads the end of a regular file; others aren't opened, since a pipe has no end.
fn end_of(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let length = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("4,1,12,-;DMAR: IOMMU enabled", Some("[    0.000012] DMAR: IOMMU enabled\n"))]
    #[case(
        "6,339,5140900,-;vfio-pci 0000:81:00.0: enabling device",
        Some("[    5.140900] vfio-pci 0000:81:00.0: enabling device\n")
    )]
    #[case("6,340,5140901,-;nvidia 0000:81:00.0: BAR 1", Some("[    5.140901] nvidia 0000:81:00.0: BAR 1\n"))]
    #[case("6,341,5140902,-;usb 1-1: new device", None)]
    #[case("6,341,5140902,-;at 10:20:30.5 o'clock", None)]
    #[case(" DEVICE=+pci:0000:81:00.0", None)]
    #[case("no record", None)]
    #[case("a,b,c,-;DMAR", None)]
    fn lines_that_concern_devices_are_kept(#[case] record: &str, #[case] kept: Option<&str>) {
        assert_eq!(line(record).as_deref(), kept);
    }

    #[test]
    fn a_log_without_end_is_cut_to_its_last_lines() {
        let records: String = (0..40_000).map(|n| format!("4,{n},{n},-;DMAR: line {n}\n")).collect();
        let kept = lines(&records);
        assert!(kept.len() <= KERNEL_MAX && kept.len() > KERNEL_MAX / 2, "{}", kept.len());
        assert!(kept.ends_with("DMAR: line 39999\n"));
    }

    #[test]
    fn records_and_the_ends_of_logs_are_found_and_what_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::below(folder.path());
        let vm = VmName::new("a").unwrap();
        for (path, content) in [
            (places.vm(&vm).join("journal"), "1\n".to_owned()),
            (places.vm(&vm).join("run.json"), "{}".to_owned()),
            (places.reservations().join("a.json"), "{}".to_owned()),
            (places.logs(&vm).join("qemu.log"), "x".repeat(1 << 20) + "the end"),
            (places.logs(&vm).join("console.log"), "console".to_owned()),
        ] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        // Neither is opened: who opens a pipe waits for its other end.
        nix::unistd::mkfifo(&places.logs(&vm).join("qemu.log.1"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir_all(places.claims()).unwrap();
        std::os::unix::fs::symlink("/proc/sys/vm/compact_memory", places.vm(&vm).join("baselines.json"))
            .unwrap();
        let names = |found: &Collected| found.members.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
        let found = vms(&places, Consoles::Taken);
        let expected = [
            "gpuvm/reservations/a.json",
            "gpuvm/vm/a/journal",
            "gpuvm/vm/a/run.json",
            "logs/a/qemu.log",
            "logs/a/console.log",
        ];
        assert_eq!(names(&found), expected);
        assert_eq!(found.members[3].content.len() as u64, LOG_MAX);
        assert!(found.members[3].content.ends_with(b"the end"));
        assert_eq!(names(&vms(&places, Consoles::Left)), expected[..4]);
    }

    #[test]
    fn the_kernels_log_is_read_without_waiting_for_more() {
        let folder = tempfile::tempdir().unwrap();
        let root = HostRoot::new(folder.path());
        assert!(kernel_log(&root).members.is_empty() && kernel_log(&root).unread.is_empty());
        fs::create_dir_all(root.path("/dev")).unwrap();
        fs::write(root.path("/dev/kmsg"), "4,1,12,-;DMAR: IOMMU enabled\n SUBSYSTEM=pci\n").unwrap();
        let found = kernel_log(&root);
        assert_eq!(found.members[0].content, b"[    0.000012] DMAR: IOMMU enabled\n");
        fs::remove_file(root.path("/dev/kmsg")).unwrap();
        fs::create_dir(root.path("/dev/kmsg")).unwrap();
        assert_eq!(kernel_log(&root).unread.len(), 1);
    }
}
