//! What the kernel says in its log while something is done: why a driver didn't take a device is told there and nowhere else.
//!
//! The log is opened at its end before the deed and read only if the deed fails, so a deed that succeeds costs an open and a seek. Who may not
//! read it hears nothing.

mod since;

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};

use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::reset::Heard;
use gpuvm_core::trouble::{self, Context, Origin};
use gpuvm_sys::access::open_nonblocking;
use gpuvm_sys::errno::EPIPE;
use serde::Serialize;

use crate::HostError;
use crate::root::HostRoot;

pub use since::{Mark, Since};

/// The most lines that are kept, the last ones.
const LINES: usize = 10;
/// The most of the log that is read: more than its usual ring holds.
const BYTES: usize = 8 << 20;
/// Room for one record: `CONSOLE_EXT_LOG_MAX` of older kernels; a smaller buffer is EINVAL.
const RECORD: usize = 8192;

/// Lines that the kernel said, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct KernelSaid(pub Vec<String>);

impl fmt::Display for KernelSaid {
    /// Writes the lines behind an error's own text, and nothing where there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() {
            f.write_str("; the kernel said:")?;
        }
        self.0.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

/// Devices and groups whose lines are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The devices; lines of the bridges above them count too.
    pub devices: Vec<Bdf>,
    /// The groups; lines of their members count too.
    pub groups: Vec<GroupId>,
}

impl About {
    /// Looks for lines of one device.
    pub fn device(bdf: Bdf) -> Self {
        Self { devices: vec![bdf], groups: Vec::new() }
    }

    /// Looks for lines of groups.
    pub fn groups(groups: &[GroupId]) -> Self {
        Self { devices: Vec::new(), groups: groups.to_vec() }
    }

    /// Lists the addresses that lines about them name.
    fn addresses(&self, root: &HostRoot) -> Vec<Bdf> {
        let mut addresses = self.devices.clone();
        for group in &self.groups {
            let folder = root.path(format!("/sys/kernel/iommu_groups/{group}/devices"));
            // What can't be read has no lines; this is an addition to an error that is told anyway.
            let names = crate::root::list(&folder).unwrap_or_default();
            addresses.extend(names.iter().filter_map(|name| name.parse::<Bdf>().ok()));
        }
        let above = addresses.iter().flat_map(|bdf| path_to(root, *bdf)).collect::<Vec<_>>();
        addresses.extend(above);
        addresses
    }
}

/// Lists the bridges above a device, by its place in the tree of devices.
fn path_to(root: &HostRoot, bdf: Bdf) -> Vec<Bdf> {
    let Ok(path) = fs::canonicalize(root.device(bdf)) else { return Vec::new() };
    path.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()
}

/// The kernel's log from a moment on.
#[derive(Debug)]
pub struct KernelLog {
    root: HostRoot,
    about: About,
    file: io::Result<File>,
    heard: VecDeque<String>,
}

impl KernelLog {
    /// Takes the log from now on.
    pub fn from_now(root: &HostRoot, about: About) -> Self {
        let open = || {
            let mut file = open_nonblocking(&root.path("/dev/kmsg"))?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        Self { root: root.clone(), about, file: open(), heard: VecDeque::new() }
    }

    /// Returns the last lines so far that are about what was asked for. May be called again, and then knows what was said since.
    pub fn said(&mut self) -> KernelSaid {
        let text = match &mut self.file {
            Ok(file) => match read_on(file) {
                Ok(text) => text,
                Err(error) => {
                    tracing::debug!("the kernel's log can't be read: {error}");
                    Vec::new()
                }
            },
            Err(error) => {
                tracing::debug!("the kernel's log can't be opened: {error}");
                Vec::new()
            }
        };
        if !text.is_empty() {
            let addresses = self.about.addresses(&self.root);
            let text = String::from_utf8_lossy(&text);
            let ours = text.lines().filter_map(message).filter(|line| self.about.concerns(line, &addresses));
            self.heard.extend(ours.map(str::to_owned));
            self.heard.drain(..self.heard.len().saturating_sub(LINES));
        }
        KernelSaid(self.heard.iter().cloned().collect())
    }

    /// Returns the same, and why nothing can be heard where the log couldn't be opened.
    pub fn heard(&mut self) -> Heard {
        match &self.file {
            Ok(_) => Heard::Said(self.said().0),
            Err(error) => Heard::Deaf(format!("/dev/kmsg: {error}")),
        }
    }
}

/// Does something, and adds to its error what the kernel said about it meanwhile.
///
/// # Errors
/// Returns the deed's error.
pub fn listening<T>(
    root: &HostRoot,
    about: About,
    deed: impl FnOnce() -> Result<T, HostError>,
) -> Result<T, HostError> {
    let mut log = KernelLog::from_now(root, about);
    deed().map_err(|error| error.with_said(|| log.said()))
}

/// Reads what is there now. Each read of the device gives one record; of a file that stands for it, all that fits.
fn read_on(file: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut buffer = vec![0; RECORD];
    while text.len() < BYTES {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => text.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The ring has overwritten what would have come next; the next read goes on behind it.
            Err(error) if error.raw_os_error() == Some(EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

/// Returns the message of a record's line, `6,339,5140900,-;message`; none for a line of its dictionary, which begins with a blank.
fn message(line: &str) -> Option<&str> {
    if line.starts_with(' ') {
        return None;
    }
    let head = |head: &str| head.starts_with(|c: char| c.is_ascii_digit()) && head.contains(',');
    match line.split_once(';') {
        Some((before, message)) if head(before) => Some(message),
        _ => Some(line),
    }
}

impl About {
    /// Tells whether a line is about one of the devices or groups: it names one, or it names no device and is one that is known to
    /// mean trouble (no interrupt remapping, locked memory, no memory).
    fn concerns(&self, line: &str, addresses: &[Bdf]) -> bool {
        let mut named = named(line).peekable();
        if named.peek().is_some() {
            return named.any(|bdf| addresses.contains(&bdf));
        }
        let explained = trouble::explain(line, &Context::default());
        explained.is_some_and(|explanation| explanation.source == Origin::Kernel)
            || self.groups.iter().any(|group| names_group(line, *group))
    }
}

/// Lists the PCI addresses in a line.
fn named(line: &str) -> impl Iterator<Item = Bdf> {
    let words = line.split(|c: char| !c.is_ascii_hexdigit() && c != ':' && c != '.');
    words.filter_map(|word| word.trim_matches([':', '.']).parse().ok())
}

fn names_group(line: &str, group: GroupId) -> bool {
    let text = format!("group {group}");
    let behind = line.split_once(&text).map(|(_, behind)| behind);
    behind.is_some_and(|behind| !behind.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::record(
        "6,339,5140900,-;vfio-pci 0000:81:00.0: resetting",
        Some("vfio-pci 0000:81:00.0: resetting")
    )]
    #[case::dictionary(" DEVICE=+pci:0000:81:00.0", None)]
    #[case::plain("vfio-pci 0000:81:00.0: resetting; now", Some("vfio-pci 0000:81:00.0: resetting; now"))]
    fn a_record_is_stripped_to_its_message(#[case] line: &str, #[case] expected: Option<&str>) {
        assert_eq!(message(line), expected);
    }

    #[rstest]
    #[case::ours("vfio-pci 0000:81:00.0: not ready 1023ms after FLR; waiting", true)]
    #[case::without_domain("DMAR: [DMA Read NO_PASID] Request device [81:00.0] fault addr 0x0", true)]
    #[case::anothers("vfio-pci 0000:41:00.0: not ready 1023ms after FLR; waiting", false)]
    #[case::one_of_two(
        "pcieport 0000:80:00.0: AER: Corrected error message received from 0000:81:00.0",
        true
    )]
    #[case::no_device_but_trouble("vfio_pin_pages_remote: RLIMIT_MEMLOCK (8388608) exceeded", true)]
    #[case::group("iommu group 16: some word about it", true)]
    #[case::group_of_more_digits("iommu group 161: some word about it", false)]
    #[case::nothing_to_do_with_it("usb 1-1: new high-speed USB device", false)]
    #[case::a_time_is_no_address("rtc_cmos 00:04: setting system clock to 2026-11-22T17:31:49", false)]
    fn lines_of_others_are_left_out(#[case] line: &str, #[case] expected: bool) {
        let about = About { devices: vec!["0000:81:00.0".parse().unwrap()], groups: vec![GroupId(16)] };
        assert_eq!(about.concerns(line, &about.devices), expected);
    }

    fn host_with_log(text: &str) -> (tempfile::TempDir, HostRoot) {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        fs::create_dir_all(root.path("/dev")).unwrap();
        fs::write(root.path("/dev/kmsg"), text).unwrap();
        (dir, root)
    }

    fn log_on(root: &HostRoot, text: &str) {
        use std::io::Write;
        let mut file = File::options().append(true).open(root.path("/dev/kmsg")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn only_what_was_said_since_is_heard_and_nothing_is_heard_twice() {
        let (_dir, root) = host_with_log("6,1,1,-;vfio-pci 0000:81:00.0: before\n");
        let mut log = KernelLog::from_now(&root, About::device("0000:81:00.0".parse().unwrap()));
        assert_eq!(log.said(), KernelSaid::default());
        log_on(&root, "6,2,2,-;vfio-pci 0000:81:00.0: after\n SUBSYSTEM=pci\n");
        let expected = KernelSaid(vec!["vfio-pci 0000:81:00.0: after".to_owned()]);
        assert_eq!(log.said(), expected);
        assert_eq!(log.said(), expected);
    }

    #[test]
    fn of_a_flood_the_last_lines_are_kept() {
        let (_dir, root) = host_with_log("");
        let mut log = KernelLog::from_now(&root, About::device("0000:81:00.0".parse().unwrap()));
        let flood: String =
            (0..5000).map(|n| format!("3,{n},9,-;vfio-pci 0000:81:00.0: line {n}\n")).collect();
        log_on(&root, &flood);
        let said = log.said().0;
        assert_eq!((said.len(), said.last().unwrap().as_str()), (LINES, "vfio-pci 0000:81:00.0: line 4999"));
    }

    #[test]
    fn a_host_without_a_log_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = KernelLog::from_now(&HostRoot::new(dir.path()), About::default());
        assert_eq!(log.said().to_string(), "");
    }
}
