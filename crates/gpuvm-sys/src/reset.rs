//! A reset of a device, by sysfs or by VFIO, which a dead device keeps in the kernel for over a minute.
//!
//! It is done by a forked child, in the manner of [`crate::watched`]: this process only watches, the child is never signalled, has a session of its own,
//! blocks all signals and holds no descriptor of ours. It bears the device's address as its name. If this process is gone before the child has begun
//! with the device, it ends without having touched it; once it has begun it goes on to the end, whatever becomes of this process: so the reset methods
//! that it narrowed are always put back.
//!
//! The child tells how far it got through a page that both share, and its exit code is that of a watched write, so that one that was left in flight can be
//! collected by [`crate::watched::reap`].

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use vfio_bindings::bindings::vfio as uapi;

use crate::poll::Deadline;
use crate::vfio::ioctl;
use crate::watched::{
    WriteOutcome, WriteStep, exit, exit_if_orphaned, fork_detached, name_of, wait_by, write_code,
};

/// The most functions that a bus reset can reach: one bus has no more, and a reset of several buses at once is told as ENOSPC.
pub const MAX_FUNCTIONS: usize = 256;
/// The words before the array in `vfio_pci_hot_reset_info` and `vfio_pci_hot_reset`: argsz, flags and count.
const HEAD: usize = 3;
/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1V2: libc::c_int = 3;

/// How a device is to be reset.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// By writing `1` to the device's `reset` attribute.
    Sysfs {
        /// The attribute.
        reset: &'a Path,
        /// The methods to allow meanwhile, where it isn't to be all of them.
        only: Option<Only<'a>>,
    },
    /// By VFIO. Opening the device resets it by itself, before anything else is asked for, and closing it does so again: the kernel's doing.
    Vfio {
        /// `/dev/vfio/vfio`.
        container: &'a Path,
        /// The groups' files: the device's own first, then all others that the reset reaches.
        groups: &'a [&'a Path],
        /// What is asked for.
        call: Call,
    },
}

/// The methods that a reset by sysfs is narrowed to.
#[derive(Debug, Clone, Copy)]
pub struct Only<'a> {
    /// The device's `reset_method` attribute.
    pub attribute: &'a Path,
    /// What is written there before the reset.
    pub methods: &'a str,
    /// What is written there after it, whatever came of it; the second where the kernel doesn't take the first.
    pub after: [&'a str; 2],
}

/// A reset that VFIO does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `VFIO_DEVICE_RESET`, of the function alone, by the methods of `reset_method`.
    Function,
    /// `VFIO_DEVICE_PCI_HOT_RESET`, of everything on its bus.
    Bus,
}

/// How a reset stands.
#[derive(Debug)]
pub enum ResetOutcome {
    /// It is over, and the kernel has told of no failure.
    Done(ResetTold),
    /// It is over and failed.
    Failed(ResetFailure),
    /// The deadline passed; the child goes on until the kernel lets it, and must be collected by [`crate::watched::reap`].
    InFlight {
        /// The child's process id.
        pid: i32,
        /// What it was at.
        step: Step,
    },
}

/// What the child told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResetTold {
    /// How long opening the device took, which resets it; zero without VFIO.
    pub open: Duration,
    /// How long the reset itself took.
    pub reset: Duration,
    /// How long closing the device took, which resets it again; zero without VFIO.
    pub close: Duration,
    /// What a bus reset reaches, as the kernel lists it.
    pub affected: Vec<Affected>,
    /// What the list of methods is now.
    pub listed: Listed,
}

/// What a device's list of methods is after a reset that may have been narrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Listed {
    /// As it was, or as [`Only::after`] has it first.
    #[default]
    AsBefore,
    /// As [`Only::after`] has it second: the kernel didn't take the first.
    SecondChoice,
    /// As [`Only::methods`] has it: the kernel took neither, or the child was killed before.
    Narrowed,
}

impl Listed {
    fn of(number: u32) -> Self {
        [Self::SecondChoice, Self::Narrowed]
            .into_iter()
            .find(|listed| *listed as u32 == number)
            .unwrap_or_default()
    }
}

/// A function that a bus reset reaches (`vfio_pci_dependent_device`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affected {
    /// Its PCI segment.
    pub segment: u16,
    /// Its bus.
    pub bus: u8,
    /// Its device and function.
    pub devfn: u8,
    /// Its IOMMU group.
    pub group: u32,
}

/// A reset that is over and failed.
#[derive(Debug)]
pub struct ResetFailure {
    /// What failed.
    pub step: Step,
    /// The number of the group that it failed at, in the order given.
    pub group: usize,
    /// Why; carries the errno.
    pub source: io::Error,
    /// What was told all the same.
    pub told: ResetTold,
}

macro_rules! steps {
    ($($(#[doc = $doc:literal])* $step:ident = $words:literal),* $(,)?) => {
        /// A part of a reset.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step { $($(#[doc = $doc])* $step),* }

        impl Step {
            const ALL: &'static [Self] = &[$(Self::$step),*];

            /// Names it, under the kernel's name where it has one.
            pub fn name(self) -> &'static str {
                match self { $(Self::$step => $words),* }
            }
        }
    };
}

steps! {
    /// The child itself: what came of the reset isn't known if it was killed.
    Child = "the watched child",
    /// Writing `reset_method`: nothing was reset.
    Narrow = "write reset_method",
    /// open(2) of `reset`: nothing was reset.
    OpenReset = "open reset",
    /// Writing `reset`.
    WriteReset = "write reset",
    /// Writing `reset_method` again.
    Widen = "write reset_method back",
    /// open(2) of the container.
    OpenContainer = "open /dev/vfio/vfio",
    /// open(2) of a group.
    OpenGroup = "open the group",
    /// Putting a group into the container.
    SetContainer = "VFIO_GROUP_SET_CONTAINER",
    /// Attaching the container to the IOMMU.
    SetIommu = "VFIO_SET_IOMMU",
    /// Opening the device, which resets it.
    OpenDevice = "VFIO_GROUP_GET_DEVICE_FD",
    /// Asking what the device can do.
    Info = "VFIO_DEVICE_GET_INFO",
    /// The device says that it can't be reset: the reset that came with opening it failed.
    NoReset = "VFIO_DEVICE_GET_INFO says that it can't be reset",
    /// Asking what a bus reset reaches.
    HotInfo = "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
    /// The reset of the function.
    Reset = "VFIO_DEVICE_RESET",
    /// The reset of the bus.
    HotReset = "VFIO_DEVICE_PCI_HOT_RESET",
    /// Closing the device, which resets it again.
    Close = "close the device",
}

impl Step {
    fn of(number: u32) -> Self {
        let known = usize::try_from(number).ok().and_then(|number| Self::ALL.get(number));
        known.copied().unwrap_or(Self::Child)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Resets a device by a watched child, and waits for at most `deadline`.
///
/// Blocks the calling thread for that long. `bdf` is the device's address, as VFIO and the child are to name it.
///
/// # Errors
/// Only what kept the child from being made: `InvalidInput` for a path with a zero byte, no group or too many, EAGAIN and ENOMEM of fork(2) and mmap(2).
/// What happens to the reset itself is in [`ResetOutcome`].
pub fn reset_watched(bdf: &str, way: Way<'_>, deadline: Duration) -> io::Result<ResetOutcome> {
    let deadline = Deadline::after(deadline);
    let (work, name) = (Work::new(bdf, way)?, name_of(bdf.as_bytes()));
    let page = Shared::map()?;
    let place = page.place;
    let child = fork_detached(&name, |parent| {
        let result = work.run(place, parent);
        exit(result.err().map_or(0, |errno| {
            // SAFETY: the page is mapped for as long as this child lives, and the field is atomic.
            unsafe { place.as_ref() }.errno.store(errno, Ordering::Relaxed);
            write_code(errno)
        }))
    })?;
    Ok(match wait_by(child, deadline)? {
        WriteOutcome::InFlight { pid } => ResetOutcome::InFlight { pid, step: page.step() },
        WriteOutcome::Done => ResetOutcome::Done(page.told()),
        WriteOutcome::Failed(failure) if failure.step == WriteStep::Child => {
            let source = failure.source;
            ResetOutcome::Failed(ResetFailure { step: Step::Child, group: 0, source, told: page.told() })
        }
        WriteOutcome::Failed(_) => ResetOutcome::Failed(page.failure()),
    })
}

/// What the child tells, in memory that both see.
#[repr(C)]
struct Page {
    step: AtomicU32,
    group: AtomicU32,
    errno: AtomicI32,
    listed: AtomicU32,
    open: AtomicU64,
    reset: AtomicU64,
    close: AtomicU64,
    /// A `vfio_pci_hot_reset_info` with its array.
    info: [u32; HEAD + 2 * MAX_FUNCTIONS],
    /// A `vfio_pci_hot_reset` with its array.
    groups: [u32; HEAD + MAX_FUNCTIONS],
}

/// A mapping of a [`Page`], zeroed.
struct Shared {
    place: NonNull<Page>,
}

impl Shared {
    fn map() -> io::Result<Self> {
        let (all, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Page>(), all, how, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A mapping begins at a page, which every alignment divides.
        let place = NonNull::new(place.cast()).ok_or_else(|| io::Error::other("mmap(2) gave no address"))?;
        Ok(Self { place })
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping is of a whole Page, all bits zero is one, and it lives as long as `self`. A child that still runs writes
        // the arrays behind it through the kernel; they are read only after its end.
        unsafe { self.place.as_ref() }
    }

    fn step(&self) -> Step {
        Step::of(self.page().step.load(Ordering::Relaxed))
    }

    fn failure(&self) -> ResetFailure {
        let page = self.page();
        ResetFailure {
            step: self.step(),
            group: usize::try_from(page.group.load(Ordering::Relaxed)).unwrap_or(0),
            source: io::Error::from_raw_os_error(page.errno.load(Ordering::Relaxed)),
            told: self.told(),
        }
    }

    /// Reads what the child has told, once it has ended.
    fn told(&self) -> ResetTold {
        let page = self.page();
        let time = |time: &AtomicU64| Duration::from_nanos(time.load(Ordering::Relaxed));
        ResetTold {
            open: time(&page.open),
            reset: time(&page.reset),
            close: time(&page.close),
            affected: affected(&page.info),
            listed: Listed::of(page.listed.load(Ordering::Relaxed)),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: nothing of this process points into the mapping any more; a child has its own.
        unsafe { libc::munmap(self.place.as_ptr().cast(), size_of::<Page>()) };
    }
}

/// Reads a `vfio_pci_hot_reset_info`: id of the group, then segment, bus and devfn, for each function.
fn affected(info: &[u32]) -> Vec<Affected> {
    let count = info.get(2).map_or(0, |count| usize::try_from(*count).unwrap_or(usize::MAX));
    let list = info.get(HEAD..).unwrap_or_default().chunks_exact(2).take(count);
    list.map(|words| {
        let place = words[1].to_ne_bytes();
        let segment = u16::from_ne_bytes([place[0], place[1]]);
        Affected { group: words[0], segment, bus: place[2], devfn: place[3] }
    })
    .collect()
}

/// All that the child needs, allocated before it is made.
enum Work {
    Sysfs { reset: CString, only: Option<Narrowed> },
    Vfio { bdf: CString, container: CString, groups: Vec<CString>, call: Call },
}

struct Narrowed {
    attribute: CString,
    methods: Vec<u8>,
    after: [Vec<u8>; 2],
}

impl Work {
    fn new(bdf: &str, way: Way<'_>) -> io::Result<Self> {
        let path = |path: &Path| Ok::<_, io::Error>(CString::new(path.as_os_str().as_bytes())?);
        // An empty write(2) never reaches the kernel's attribute.
        let value = |text: &str| format!("{text}\n").into_bytes();
        Ok(match way {
            Way::Sysfs { reset, only } => {
                let narrowed = |only: Only<'_>| {
                    Ok::<_, io::Error>(Narrowed {
                        attribute: path(only.attribute)?,
                        methods: value(only.methods),
                        after: only.after.map(value),
                    })
                };
                Self::Sysfs { reset: path(reset)?, only: only.map(narrowed).transpose()? }
            }
            Way::Vfio { container, groups, call } => {
                if groups.is_empty() || groups.len() > MAX_FUNCTIONS {
                    let text = format!("{} groups, where 1 to {MAX_FUNCTIONS} can be reset", groups.len());
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                let groups = groups.iter().map(|group| path(group)).collect::<Result<_, _>>()?;
                Self::Vfio { bdf: CString::new(bdf)?, container: path(container)?, groups, call }
            }
        })
    }

    /// The child's whole work. Async-signal-safe: system calls only, no allocation, no lock, no panic.
    fn run(&self, place: NonNull<Page>, parent: Pid) -> Result<(), i32> {
        match self {
            Self::Sysfs { reset, only } => by_sysfs(place, parent, reset, only.as_ref()),
            Self::Vfio { bdf, container, groups, call } => {
                by_vfio(place, parent, bdf, container, groups, *call)
            }
        }
    }
}

fn by_sysfs(place: NonNull<Page>, parent: Pid, reset: &CStr, only: Option<&Narrowed>) -> Result<(), i32> {
    // SAFETY: the page is mapped for as long as this child lives, and only atomic fields are used.
    let page = unsafe { place.as_ref() };
    page.at(Step::OpenReset);
    let fd = open(reset, libc::O_WRONLY)?;
    exit_if_orphaned(parent);
    if let Some(only) = only {
        page.at(Step::Narrow);
        store(&only.attribute, &only.methods)?;
        page.list_is(Listed::Narrowed);
    }
    page.at(Step::WriteReset);
    let done = page.time(&page.reset, || write(fd, b"1"));
    let Some(only) = only else { return done };
    if done.is_ok() {
        page.at(Step::Widen);
    }
    let [first, second] = &only.after;
    let back = |list: &[u8], listed| store(&only.attribute, list).map(|()| page.list_is(listed));
    let widened = back(first, Listed::AsBefore).or_else(|_| back(second, Listed::SecondChoice));
    done.and(widened)
}

fn by_vfio(
    place: NonNull<Page>,
    parent: Pid,
    bdf: &CStr,
    container: &CStr,
    groups: &[CString],
    call: Call,
) -> Result<(), i32> {
    // SAFETY: the page is mapped for as long as this child lives, and only atomic fields are used through the reference.
    let page = unsafe { place.as_ref() };
    page.at(Step::OpenContainer);
    let container = open(container, libc::O_RDWR)?;
    // SAFETY: makes the address of a field of the mapping, and reads nothing.
    let list = unsafe { &raw mut (*place.as_ptr()).groups }.cast::<u32>();
    let mut own = -1;
    for (number, group) in (0..).zip(groups) {
        page.group.store(number, Ordering::Relaxed);
        page.at(Step::OpenGroup);
        let fd = open(group, libc::O_RDWR)?;
        own = if number == 0 { fd } else { own };
        page.at(Step::SetContainer);
        // SAFETY: the kernel reads one int through the pointer, which is to `container`.
        unsafe { ioctl::group_set_container(fd, &raw const container) }.map_err(errno)?;
        let offset = HEAD.wrapping_add(usize::try_from(number).unwrap_or(0));
        // SAFETY: there are at most MAX_FUNCTIONS groups, so this stays inside the array.
        let entry = unsafe { list.add(offset) };
        // SAFETY: the entry is aligned and this child's alone: the parent doesn't read this array.
        unsafe { entry.write(fd.cast_unsigned()) };
    }
    page.group.store(0, Ordering::Relaxed);
    page.at(Step::SetIommu);
    // SAFETY: the argument is a plain number, and the kernel keeps nothing of it but the kind.
    unsafe { ioctl::set_iommu(container, TYPE1V2) }.map_err(errno)?;
    // Up to here nothing has touched the device.
    exit_if_orphaned(parent);
    page.at(Step::OpenDevice);
    let device = page.time(&page.open, || {
        // SAFETY: the name ends with a zero byte, and the kernel only reads it.
        unsafe { ioctl::group_get_device_fd(own, bdf.as_ptr()) }.map_err(errno)
    })?;
    let done = match call {
        Call::Function => reset_function(page, device),
        Call::Bus => reset_bus(page, place, device, groups.len()),
    };
    if done.is_ok() {
        page.at(Step::Close);
    }
    let closed = page.time(&page.close, || {
        // SAFETY: the descriptor is this child's, and is used no more.
        Errno::result(unsafe { libc::close(device) }).map(drop).map_err(errno)
    });
    done.and(closed)
}

fn reset_function(page: &Page, device: libc::c_int) -> Result<(), i32> {
    page.at(Step::Info);
    let mut info = uapi::vfio_device_info { argsz: bytes_of(INFO_WORDS), ..Default::default() };
    // SAFETY: the pointer is to a whole vfio_device_info whose argsz says its size, and the kernel writes no more than that.
    unsafe { ioctl::device_get_info(device, &raw mut info) }.map_err(errno)?;
    if info.flags & uapi::VFIO_DEVICE_FLAGS_RESET == 0 {
        page.at(Step::NoReset);
        return Err(libc::ENOTTY);
    }
    page.at(Step::Reset);
    page.time(&page.reset, || {
        // SAFETY: the call takes no argument.
        unsafe { ioctl::device_reset(device) }.map(drop).map_err(errno)
    })
}

fn reset_bus(page: &Page, place: NonNull<Page>, device: libc::c_int, groups: usize) -> Result<(), i32> {
    page.at(Step::HotInfo);
    // SAFETY: makes the address of a field of the mapping, and reads nothing.
    let info = unsafe { &raw mut (*place.as_ptr()).info }.cast::<u32>();
    // SAFETY: the first word of the array is its argsz, which no other process reads now.
    unsafe { info.write(bytes_of(HEAD + 2 * MAX_FUNCTIONS)) };
    // SAFETY: behind the pointer lie as many bytes as argsz says, all this mapping's, and the kernel writes no more than that.
    unsafe { ioctl::device_get_pci_hot_reset_info(device, info.cast()) }.map_err(errno)?;
    page.at(Step::HotReset);
    // SAFETY: as above.
    let reset = unsafe { &raw mut (*place.as_ptr()).groups }.cast::<u32>();
    // SAFETY: the first word of the array, argsz.
    unsafe { reset.write(bytes_of(HEAD.wrapping_add(groups))) };
    // SAFETY: the third word is inside the array.
    let count = unsafe { reset.add(2) };
    // SAFETY: the third word, count; the descriptors behind it were written as the groups were opened.
    unsafe { count.write(u32::try_from(groups).unwrap_or(0)) };
    page.time(&page.reset, || {
        // SAFETY: the kernel reads as many bytes as argsz says, all of this array.
        unsafe { ioctl::device_pci_hot_reset(device, reset.cast_const().cast()) }.map(drop).map_err(errno)
    })
}

/// The size of `vfio_device_info` in words.
const INFO_WORDS: usize = size_of::<uapi::vfio_device_info>() / 4;

/// A count of words in bytes; all of them are small.
fn bytes_of(words: usize) -> u32 {
    u32::try_from(words.wrapping_mul(4)).unwrap_or(0)
}

impl Page {
    /// Notes what is done next.
    fn at(&self, step: Step) {
        self.step.store(step as u32, Ordering::Relaxed);
    }

    /// Notes what the list of methods is now.
    fn list_is(&self, listed: Listed) {
        self.listed.store(listed as u32, Ordering::Relaxed);
    }

    /// Does something, and notes how long it took.
    fn time<T>(&self, place: &AtomicU64, deed: impl FnOnce() -> T) -> T {
        let begun = now();
        let result = deed();
        place.store(now().wrapping_sub(begun), Ordering::Relaxed);
        result
    }
}

/// The monotonic clock in nanoseconds.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a whole timespec; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.cast_unsigned())
}

fn errno(errno: Errno) -> i32 {
    errno as i32
}

fn open(path: &CStr, how: libc::c_int) -> Result<libc::c_int, i32> {
    // SAFETY: the path ends with a zero byte and outlives the call.
    Errno::result(unsafe { libc::open(path.as_ptr(), how | libc::O_CLOEXEC) }).map_err(errno)
}

fn write(fd: libc::c_int, bytes: &[u8]) -> Result<(), i32> {
    // SAFETY: the pointer and the length describe `bytes`, which the kernel only reads.
    let written = Errno::result(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) });
    match written.map_err(errno)? {
        count if count.cast_unsigned() == bytes.len() => Ok(()),
        _ => Err(libc::EIO),
    }
}

/// Writes a whole attribute.
fn store(path: &CStr, bytes: &[u8]) -> Result<(), i32> {
    let fd = open(path, libc::O_WRONLY)?;
    let written = write(fd, bytes);
    // SAFETY: the descriptor is this child's, and is used no more; what the write said is what counts.
    unsafe { libc::close(fd) };
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watched::{reap, still_in_flight};
    use rstest::rstest;
    use std::thread;
    use std::time::Instant;

    const SOON: Duration = Duration::from_secs(10);
    const BDF: &str = "0000:81:00.0";

    fn failure(outcome: ResetOutcome) -> (Step, usize, Option<i32>) {
        match outcome {
            ResetOutcome::Failed(failure) => (failure.step, failure.group, failure.source.raw_os_error()),
            other => panic!("{other:?}"),
        }
    }

    fn by_sysfs(reset: &Path, only: Option<Only<'_>>) -> ResetOutcome {
        reset_watched(BDF, Way::Sysfs { reset, only }, SOON).unwrap()
    }

    fn by_vfio(container: &str, groups: &[&Path]) -> ResetOutcome {
        let way = Way::Vfio { container: Path::new(container), groups, call: Call::Bus };
        reset_watched(BDF, way, SOON).unwrap()
    }

    #[test]
    fn structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<uapi::vfio_pci_hot_reset_info>(), HEAD * 4);
        assert_eq!(size_of::<uapi::vfio_pci_hot_reset>(), HEAD * 4);
        assert_eq!(size_of::<uapi::vfio_pci_dependent_device>(), 8);
        assert_eq!(INFO_WORDS * 4, size_of::<uapi::vfio_device_info>());
        assert_eq!(bytes_of(INFO_WORDS), 24);
    }

    #[test]
    fn a_list_of_functions_is_read_as_far_as_it_goes() {
        let list = |count: u32, tail: &[u32]| affected(&[&[0, 0, count], tail].concat());
        // Segment 1, bus 0x81, device 0x1f, function 2, as the kernel lays it out in memory.
        let place = u32::from_ne_bytes([1, 0, 0x81, 0xfa]);
        let one = Affected { segment: 1, bus: 0x81, devfn: 0xfa, group: 7 };
        assert_eq!(list(1, &[7, place, 9, 9]), [one]);
        assert_eq!(list(2, &[7, place, 7]), [one]);
        assert_eq!(list(u32::MAX, &[7, place]), [one]);
        assert_eq!(list(0, &[7, place]), []);
        assert_eq!(affected(&[]), []);
    }

    #[test]
    fn a_reset_by_the_first_method_is_one_write() {
        let dir = tempfile::tempdir().unwrap();
        let reset = dir.path().join("reset");
        std::fs::write(&reset, "").unwrap();
        let ResetOutcome::Done(told) = by_sysfs(&reset, None) else { panic!() };
        assert_eq!(std::fs::read(&reset).unwrap(), b"1");
        assert!(told.reset > Duration::ZERO && told.open == Duration::ZERO && told.affected.is_empty());
    }

    #[test]
    fn methods_are_put_back_whatever_came_of_the_reset() {
        let dir = tempfile::tempdir().unwrap();
        let (reset, attribute) = (dir.path().join("reset"), dir.path().join("reset_method"));
        std::fs::write(&reset, "").unwrap();
        // A file keeps what lies behind a shorter write, so each write shows.
        std::fs::write(&attribute, "-------\n-").unwrap();
        let only = Only { attribute: &attribute, methods: "pm", after: ["flr pm", "flr"] };
        assert!(
            matches!(by_sysfs(&reset, Some(only)), ResetOutcome::Done(told) if told.listed == Listed::AsBefore)
        );
        assert_eq!(std::fs::read(&attribute).unwrap(), b"flr pm\n\n-");

        std::fs::write(&attribute, "-------").unwrap();
        let failed = failure(by_sysfs(Path::new("/dev/full"), Some(only)));
        assert_eq!(failed, (Step::WriteReset, 0, Some(libc::ENOSPC)));
        assert_eq!(std::fs::read(&attribute).unwrap(), b"flr pm\n");
    }

    #[test]
    fn methods_that_cannot_be_put_back_are_told_though_the_reset_failed_too() {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (reset, attribute) = (dir.path().join("reset"), dir.path().join("reset_method"));
        std::fs::write(&attribute, "").unwrap();
        // A full pipe keeps the reset until its last reader is gone, and fails it then.
        nix::unistd::mkfifo(&reset, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut options = std::fs::File::options();
        let mut pipe = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&reset).unwrap();
        while pipe.write(&[0; 4096]).is_ok() {}
        let device = thread::spawn({
            let attribute = attribute.clone();
            move || {
                let end = Instant::now() + SOON;
                while std::fs::read(&attribute).unwrap().is_empty() {
                    assert!(Instant::now() < end);
                    thread::sleep(Duration::from_millis(2));
                }
                std::fs::remove_file(&attribute).unwrap();
                drop(pipe);
            }
        });
        let only = Only { attribute: &attribute, methods: "pm", after: ["flr pm", "flr"] };
        let outcome = by_sysfs(&reset, Some(only));
        device.join().unwrap();
        let ResetOutcome::Failed(failed) = outcome else { panic!("{outcome:?}") };
        assert_eq!((failed.step, failed.source.raw_os_error()), (Step::WriteReset, Some(libc::EPIPE)));
        assert_eq!(failed.told.listed, Listed::Narrowed);
    }

    #[test]
    fn nothing_is_reset_where_the_methods_cannot_be_narrowed() {
        let dir = tempfile::tempdir().unwrap();
        let reset = dir.path().join("reset");
        std::fs::write(&reset, "").unwrap();
        let only = |attribute| Only { attribute, methods: "pm", after: ["flr pm", "flr"] };
        let failed = failure(by_sysfs(&reset, Some(only(Path::new("/dev/full")))));
        assert_eq!(failed, (Step::Narrow, 0, Some(libc::ENOSPC)));
        let absent = dir.path().join("absent");
        let failed = failure(by_sysfs(&reset, Some(only(&absent))));
        assert_eq!(failed, (Step::Narrow, 0, Some(libc::ENOENT)));
        assert_eq!(std::fs::read(&reset).unwrap(), b"");
    }

    #[test]
    fn failures_name_the_step_the_group_and_the_errno() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        let null = Path::new("/dev/null");
        assert_eq!(failure(by_sysfs(&absent, None)), (Step::OpenReset, 0, Some(libc::ENOENT)));
        let gone = failure(by_vfio(absent.to_str().unwrap(), &[null]));
        assert_eq!(gone, (Step::OpenContainer, 0, Some(libc::ENOENT)));
        assert_eq!(failure(by_vfio("/dev/null", &[&absent])), (Step::OpenGroup, 0, Some(libc::ENOENT)));
        assert_eq!(failure(by_vfio("/dev/null", &[null])), (Step::SetContainer, 0, Some(libc::ENOTTY)));
    }

    #[rstest]
    #[case::no_group(&[])]
    #[case::zero_byte(&["/tmp/a\0b"])]
    fn senseless_input_is_refused_before_a_child_is_made(#[case] groups: &[&str]) {
        let groups: Vec<&Path> = groups.iter().map(Path::new).collect();
        let way = Way::Vfio { container: Path::new("/dev/null"), groups: &groups, call: Call::Function };
        assert_eq!(reset_watched(BDF, way, SOON).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let many = vec![Path::new("/dev/null"); MAX_FUNCTIONS + 1];
        let way = Way::Vfio { container: Path::new("/dev/null"), groups: &many, call: Call::Function };
        assert_eq!(reset_watched(BDF, way, SOON).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_reset_that_hangs_is_left_alone_named_after_the_device_and_collected_later() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("reset");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let way = Way::Sysfs { reset: &fifo, only: None };
        let (pid, step) = match reset_watched(BDF, way, Duration::from_millis(100)).unwrap() {
            ResetOutcome::InFlight { pid, step } => (pid, step),
            other => panic!("{other:?}"),
        };
        assert_eq!(step, Step::OpenReset);
        assert!(still_in_flight(pid).unwrap());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
        assert_eq!(blocked, "fffffffe7ffbfeff", "all but KILL, STOP and glibc's own");
        assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "0000:81:00.0\n");
        assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap().as_raw(), pid);
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 0);

        assert_eq!(std::fs::read(&fifo).unwrap(), b"1");
        let end = Instant::now() + SOON;
        while still_in_flight(pid).unwrap() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(2));
        }
        assert!(matches!(reap(pid).unwrap(), Some(WriteOutcome::Done)));
    }

    #[test]
    fn steps_are_told_by_their_numbers() {
        for step in Step::ALL {
            assert_eq!(Step::of(*step as u32), *step);
            assert!(!step.name().is_empty());
        }
        assert_eq!(Step::of(9999), Step::Child);
    }
}
