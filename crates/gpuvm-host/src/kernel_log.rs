//! What the kernel says in its log while something is done: why a driver didn't take a device is told there and nowhere else.
//!
//! The log is opened at its end before the deed and read only if the deed fails, so a deed that succeeds costs an open and a seek. Who may not
//! read it hears nothing. For a verdict that isn't enough: [`KernelLog::of_functions`] keeps all lines of each function, and
//! [`KernelLog::heard`] says so where some or all couldn't be heard.

mod since;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};

use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::reset::{Heard, ResetTimes};
use gpuvm_core::trouble::{self, Context, Origin};
use gpuvm_sys::access::open_nonblocking;
use gpuvm_sys::errno::EPIPE;
use serde::Serialize;

use crate::HostError;
use crate::root::HostRoot;

pub use since::{Mark, Since};

/// The most lines that are kept for an error's text, the last ones.
const LINES: usize = 10;
/// The most lines that are kept of a function: as many of the first as of the last. A flood has its cause at the beginning, and what
/// came of it at the end.
const ENDS: usize = 500;
/// The most of the log that is read at once: more than its usual ring holds.
const BYTES: usize = 8 << 20;
/// The most times that it is read in one go, by whoever wants all of it: the kernel may write as fast as it is read.
const ROUNDS: usize = 16;
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
    /// What is kept of each function for a verdict.
    functions: BTreeMap<Bdf, Kept>,
    /// Why lines are missing, if any are.
    lost: Option<String>,
    /// The number of the first record that counts, until one was seen that does.
    from: Option<u64>,
}

/// The lines of one function.
#[derive(Debug, Default)]
struct Kept {
    /// The function, and the bridges above it, as they were in the beginning: a device that is lost has no place in the tree.
    addresses: Vec<Bdf>,
    first: Vec<String>,
    last: VecDeque<String>,
    left_out: usize,
    /// How long its resets took.
    resets: ResetTimes,
}

impl Kept {
    fn add(&mut self, line: &str) {
        if self.first.len() < ENDS {
            self.first.push(line.to_owned());
            return;
        }
        if self.last.len() == ENDS {
            self.last.pop_front();
            self.left_out += 1;
        }
        self.last.push_back(line.to_owned());
    }
}

impl KernelLog {
    /// Takes the log from now on.
    pub fn from_now(root: &HostRoot, about: About) -> Self {
        let open = || {
            let mut file = open_nonblocking(&root.path("/dev/kmsg"))?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let (heard, functions) = (VecDeque::new(), BTreeMap::new());
        Self { root: root.clone(), about, file: open(), heard, functions, lost: None, from: None }
    }

    /// Takes the log from now on, and keeps what it says of each of these functions and the bridges above them, for
    /// [`KernelLog::heard`].
    pub fn of_functions(root: &HostRoot, functions: &[Bdf]) -> Self {
        let about = About { devices: functions.to_vec(), groups: Vec::new() };
        let kept = |bdf: &Bdf| {
            let mut addresses = path_to(root, *bdf);
            addresses.push(*bdf);
            (*bdf, Kept { addresses, ..Kept::default() })
        };
        Self { functions: functions.iter().map(kept).collect(), ..Self::from_now(root, about) }
    }

    /// Takes the log from a moment on that a process of before has noted, as [`KernelLog::of_functions`] does.
    pub fn of_functions_since(root: &HostRoot, functions: &[Bdf], mark: &Mark) -> Self {
        let log = Self::of_functions(root, functions);
        match mark {
            Mark::From(first) => {
                let file = open_nonblocking(&root.path("/dev/kmsg"));
                Self { file, from: Some(*first), ..log }
            }
            Mark::Unread(why) => Self { lost: Some(why.clone()), ..log },
        }
    }

    /// Returns the last lines so far that are about what was asked for. May be called again, and then knows what was said since.
    pub fn said(&mut self) -> KernelSaid {
        if let Err(error) = self.listen() {
            tracing::debug!("the kernel's log can't be heard: {error}");
        }
        KernelSaid(self.heard.iter().cloned().collect())
    }

    /// Returns everything so far about one of the functions that the log was taken for, and whether it is everything. The log is
    /// read once for all of them. In a long run, calling this now and then keeps the kernel from overwriting what wasn't heard
    /// yet.
    pub fn heard(&mut self, bdf: Bdf) -> Heard {
        let failed = self.listen().err().map(|error| format!("/dev/kmsg: {error}"));
        let Some(kept) = self.functions.get(&bdf) else {
            return Heard::Deaf(format!("/dev/kmsg wasn't listened to for {bdf}"));
        };
        match failed {
            Some(why) if kept.first.is_empty() => return Heard::Deaf(why),
            // What was heard before stands.
            Some(why) => self.lost = Some(why),
            None => {}
        }
        let lines: Vec<_> = kept.first.iter().chain(&kept.last).cloned().collect();
        let flood = (kept.left_out > 0).then(|| format!("{} lines in the middle of a flood", kept.left_out));
        match self.lost.clone().or(flood) {
            Some(lost) => Heard::Partly { lines, lost },
            None => Heard::Said(lines),
        }
    }

    /// Returns how long the resets took that were over since this was called last, in ms, of each function that the log was taken for.
    /// Those whose beginning or end wasn't heard aren't among them.
    pub fn take_resets(&mut self) -> Vec<(Bdf, u64)> {
        self.keep_up();
        let taken = |(bdf, kept): (&Bdf, &mut Kept)| {
            let bdf = *bdf;
            kept.resets.take().into_iter().map(move |ms| (bdf, ms))
        };
        self.functions.iter_mut().flat_map(taken).collect()
    }

    /// Takes in what was said since, before the kernel overwrites it: to be called now and then in a long run.
    pub fn keep_up(&mut self) {
        if let Err(error) = self.listen() {
            tracing::debug!("the kernel's log can't be heard: {error}");
        }
    }

    /// Reads what was said since.
    fn listen(&mut self) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let file = match &mut self.file {
                Ok(file) => file,
                Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
            };
            let (text, overwritten) = read_on(file)?;
            if overwritten {
                self.lost =
                    Some("the kernel has overwritten a part of its log before it was read".to_owned());
                self.functions.values_mut().for_each(|kept| kept.resets.missed());
            }
            self.keep(&String::from_utf8_lossy(&text));
            if text.len() < BYTES {
                return Ok(());
            }
        }
        self.lost = Some("the kernel logs faster than its log can be read".to_owned());
        Ok(())
    }

    fn keep(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let addresses = self.about.addresses(&self.root);
        for (record, line) in text.lines().filter_map(|record| Some((record, message(record)?))) {
            if self.is_earlier(record) {
                continue;
            }
            if let Some(at) = stamp(record) {
                self.functions.iter_mut().for_each(|(bdf, kept)| kept.resets.take_in(*bdf, at, line));
            }
            if self.about.concerns(line, &addresses) {
                self.heard.push_back(line.to_owned());
            }
            for kept in self.functions.values_mut() {
                if named(line).any(|named| named.is_any_of(&kept.addresses)) {
                    kept.add(line);
                }
            }
        }
        self.heard.drain(..self.heard.len().saturating_sub(LINES));
    }

    /// Tells whether a record is from before the moment that the log was taken from.
    fn is_earlier(&mut self, record: &str) -> bool {
        let Some(first) = self.from else { return false };
        // A line without a number belongs to the record before it.
        let Some((number, _)) = since::numbered(record) else { return true };
        if number < first {
            return true;
        }
        if number > first {
            self.lost = Some(format!("{} records that the kernel has overwritten since", number - first));
        }
        self.from = None;
        false
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
/// Tells too whether the ring has overwritten something that wasn't read.
fn read_on(file: &mut File) -> io::Result<(Vec<u8>, bool)> {
    let mut text = Vec::new();
    let mut overwritten = false;
    let mut buffer = vec![0; RECORD];
    while text.len() < BYTES {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => text.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The ring has overwritten what would have come next; the next read goes on behind it.
            Err(error) if error.raw_os_error() == Some(EPIPE) => overwritten = true,
            Err(error) => return Err(error),
        }
    }
    Ok((text, overwritten))
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

/// Returns when a record's line was said, `6,339,5140900,-;message`, in us since boot.
fn stamp(line: &str) -> Option<u64> {
    line.split_once(';')?.0.split(',').nth(2)?.parse().ok()
}

impl About {
    /// Tells whether a line is about one of the devices or groups: it names one, or it names no device and is one that is known to
    /// mean trouble (no interrupt remapping, locked memory, no memory).
    fn concerns(&self, line: &str, addresses: &[Bdf]) -> bool {
        let mut named = named(line).peekable();
        if named.peek().is_some() {
            return named.any(|named| named.is_any_of(addresses));
        }
        let explained = trouble::explain(line, &Context::default());
        explained.is_some_and(|explanation| explanation.source == Origin::Kernel)
            || self.groups.iter().any(|group| names_group(line, *group))
    }
}

/// An address in a line.
struct Named {
    bdf: Bdf,
    /// Whether the line names it without its domain: an Intel IOMMU does, and means any.
    any_domain: bool,
}

impl Named {
    fn is_any_of(&self, addresses: &[Bdf]) -> bool {
        let is = |address: &Bdf| {
            self.bdf == *address || (self.any_domain && self.bdf.in_domain_of(*address) == *address)
        };
        addresses.iter().any(is)
    }
}

/// Lists the PCI addresses in a line.
fn named(line: &str) -> impl Iterator<Item = Named> {
    let words = line.split(|c: char| !c.is_ascii_hexdigit() && c != ':' && c != '.');
    words
        .map(|word| word.trim_matches([':', '.']))
        .filter_map(|word| Some(Named { bdf: word.parse().ok()?, any_domain: word.matches(':').count() < 2 }))
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

    #[test]
    fn resets_are_told_once_with_the_logs_own_times() {
        let (_dir, root) = host_with_log("6,1,1000,-;vfio-pci 0000:81:00.0: resetting\n");
        let bdf = "0000:81:00.0".parse().unwrap();
        let mut log = KernelLog::of_functions(&root, &[bdf]);
        log_on(&root, "6,2,2000,-;vfio-pci 0000:81:00.0: reset done\n");
        log_on(&root, "6,3,5000,-;vfio-pci 0000:81:00.0: resetting\n");
        assert_eq!(log.take_resets(), [], "one had begun before, and one isn't over");
        log_on(&root, "6,4,106000,-;vfio-pci 0000:81:00.0: reset done\n SUBSYSTEM=pci\n");
        log_on(&root, "vfio-pci 0000:81:00.0: resetting\nvfio-pci 0000:81:00.0: reset done\n");
        assert_eq!(log.take_resets(), [(bdf, 101)], "what has no time isn't counted");
        assert_eq!(log.take_resets(), []);
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

    const CARD: &str = "0000:81:00.0";
    const PORT: &str = "0000:80:01.0";

    /// A host with a card below a port, and its log.
    fn host_with_card(text: &str) -> (tempfile::TempDir, HostRoot) {
        let (dir, root) = host_with_log(text);
        let real = root.path(format!("/sys/devices/pci0000:80/{PORT}/{CARD}"));
        fs::create_dir_all(&real).unwrap();
        fs::create_dir_all(root.path("/sys/bus/pci/devices")).unwrap();
        std::os::unix::fs::symlink(&real, root.device(CARD.parse().unwrap())).unwrap();
        (dir, root)
    }

    #[test]
    fn each_function_hears_its_own_lines_and_its_bridges_even_once_it_is_gone() {
        let (_dir, root) = host_with_card("6,1,1,-;vfio-pci 0000:81:00.0: before\n");
        let (card, other): (Bdf, Bdf) = (CARD.parse().unwrap(), "0000:41:00.0".parse().unwrap());
        let mut log = KernelLog::of_functions(&root, &[card, other]);
        assert_eq!(log.heard(card), Heard::Said(Vec::new()));
        log_on(
            &root,
            "6,2,2,-;vfio-pci 0000:81:00.0: one\n6,3,3,-;vfio-pci 0000:41:00.0: two\n SUBSYSTEM=pci\n\
             6,4,4,-;pcieport 0000:80:01.0: three\n6,5,5,-;usb 1-1: new device\n",
        );
        fs::remove_file(root.device(card)).unwrap();
        let said = |lines: &[&str]| Heard::Said(lines.iter().map(|line| (*line).to_owned()).collect());
        let ours = ["vfio-pci 0000:81:00.0: one", "pcieport 0000:80:01.0: three"];
        assert_eq!(log.heard(card), said(&ours));
        assert_eq!(log.heard(other), said(&["vfio-pci 0000:41:00.0: two"]));
        assert_eq!(log.heard(card), said(&ours));
    }

    #[test]
    fn of_a_flood_both_ends_are_heard_and_how_much_is_left_out() {
        let (_dir, root) = host_with_card("");
        let card = CARD.parse().unwrap();
        let mut log = KernelLog::of_functions(&root, &[card]);
        let flood: String =
            (0..5000).map(|n| format!("3,{n},9,-;vfio-pci 0000:81:00.0: line {n}\n")).collect();
        log_on(&root, &flood);
        let Heard::Partly { lines, lost } = log.heard(card) else { panic!("not all was heard") };
        assert_eq!(lines.len(), 2 * ENDS);
        assert_eq!(lines.first().unwrap(), "vfio-pci 0000:81:00.0: line 0");
        assert_eq!(lines[ENDS], "vfio-pci 0000:81:00.0: line 4500");
        assert_eq!(lines.last().unwrap(), "vfio-pci 0000:81:00.0: line 4999");
        assert_eq!(lost, "4000 lines in the middle of a flood");
    }

    #[test]
    fn as_many_lines_as_are_kept_are_all_of_them() {
        let (_dir, root) = host_with_card("");
        let card = CARD.parse().unwrap();
        let mut log = KernelLog::of_functions(&root, &[card]);
        let lines: String =
            (0..2 * ENDS).map(|n| format!("3,{n},9,-;vfio-pci 0000:81:00.0: line {n}\n")).collect();
        log_on(&root, &lines);
        assert!(matches!(log.heard(card), Heard::Said(lines) if lines.len() == 2 * ENDS));
    }

    #[test]
    fn who_cannot_hear_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        let card = CARD.parse().unwrap();
        let deaf = KernelLog::of_functions(&root, &[card]).heard(card);
        assert!(matches!(&deaf, Heard::Deaf(why) if why.contains("No such file")), "{deaf:?}");
        // A folder opens and can't be read.
        fs::create_dir_all(root.path("/dev/kmsg")).unwrap();
        let deaf = KernelLog::of_functions(&root, &[card]).heard(card);
        assert!(matches!(&deaf, Heard::Deaf(_)), "{deaf:?}");
        let (_dir, root) = host_with_card("");
        let other = "0000:41:00.0".parse().unwrap();
        assert!(matches!(KernelLog::of_functions(&root, &[card]).heard(other), Heard::Deaf(_)));
    }

    #[test]
    fn a_line_without_a_domain_is_heard_by_whoever_it_may_be_about() {
        let (_dir, root) = host_with_card("");
        let card = "0001:81:00.0".parse().unwrap();
        let mut log = KernelLog::of_functions(&root, &[card]);
        let line = "DMAR: [DMA Read NO_PASID] Request device [81:00.0] fault addr 0x0";
        log_on(&root, &format!("3,1,1,-;{line}\n3,2,2,-;vfio-pci 0000:81:00.0: another's\n"));
        assert_eq!(log.heard(card), Heard::Said(vec![line.to_owned()]));
    }
}
