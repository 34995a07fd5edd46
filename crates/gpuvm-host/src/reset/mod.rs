//! Resets, done by the kernel in a child that is watched.
//!
//! A function reset goes through sysfs (`reset`), whatever driver the device is on: that opens no device, so it is one reset and no more. VFIO is
//! used for what sysfs can't do: the reset of a bus with several functions on it, which asks for a descriptor of every group that it reaches and opens one
//! device, which the kernel resets at opening and at closing besides. Where sysfs can't be written (it is mounted read-only in most
//! containers) and VFIO has the device, `VFIO_DEVICE_RESET` stands in for `reset`.
//!
//! What the kernel calls success proves nothing: who asks for a reset judges the device by its registers afterwards.

mod meaning;
mod mend;
mod run;

use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::plan::is_vfio_driver;
use gpuvm_core::reset::Method;
use gpuvm_sys::errno::{EACCES, ENOENT, EPERM, EROFS};
use gpuvm_sys::reset::{Call, Listed, Only, ResetFailure, ResetOutcome, ResetTold, Step, Way};
use serde::{Deserialize, Serialize};

pub use self::run::{Attempted, Event, FunctionReport, Report, run};
use crate::error::{HostError, ResetStage};
use crate::kernel::Kernel;
use crate::kernel_log::{About, listening};
use crate::root::{HostRoot, driver_of, group_of, read_text};

/// What a reset takes besides the waiting: a function level reset 100 ms, a bus reset a second or two.
const BASE: Duration = Duration::from_secs(10);
/// How long the kernel waits for one function that doesn't come back: `pci_dev_wait` gives up past 60 s, and says `not ready 65535ms`.
const PER_WAIT: Duration = Duration::from_secs(70);
/// Opening the device, resetting it, closing it: each resets it.
const WAITS_OF_VFIO: usize = 3;

/// A reset to be done.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The function that is asked for.
    pub bdf: Bdf,
    /// How.
    pub method: Method,
    /// All functions that it reaches.
    pub functions: &'a [Bdf],
    /// The groups that a hot reset needs.
    pub groups: &'a [GroupId],
}

/// A reset that the kernel says has succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetDone {
    /// How.
    pub method: Method,
    /// By which of the kernel's ways: `reset`, `VFIO_DEVICE_RESET` or `VFIO_DEVICE_PCI_HOT_RESET`.
    pub by: String,
    /// How long the reset took, in ms: opening and closing the device left out.
    pub ms: u64,
    /// How long opening the device took, which resets it, in ms; nothing where none was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_ms: Option<u64>,
    /// How long closing it took, which resets it again, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_ms: Option<u64>,
    /// What a hot reset has reached, as the kernel lists it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affected: Vec<AffectedFunction>,
    /// What `reset_method` lists since, where the kernel didn't take back what it had listed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods_now: Option<String>,
}

/// A function that a hot reset reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffectedFunction {
    /// It.
    pub bdf: Bdf,
    /// Its group.
    pub group: GroupId,
}

/// Resets a device, and waits for the kernel, but no longer than it can take with every function dead.
///
/// # Errors
/// Returns the kernel's refusal with what it means and what the kernel said meanwhile, or that the reset goes on without us.
pub fn perform(kernel: &Kernel, attempt: &Attempt<'_>) -> Result<ResetDone, HostError> {
    kernel.root.lockable(attempt.bdf)?;
    let about = About { devices: attempt.functions.to_vec(), groups: attempt.groups.to_vec() };
    listening(&kernel.root, about, || match attempt.method {
        Method::Hot => by_vfio(kernel, attempt, attempt.groups, Call::Bus),
        _ => by_sysfs(kernel, attempt),
    })
}

/// Returns how long a reset may take at most, with every function dead: then it is given up, and left alone.
pub fn deadline_of(kernel: &Kernel, attempt: &Attempt<'_>) -> Duration {
    match attempt.method {
        Method::Hot => deadline_of_vfio(attempt.functions.len()),
        // What can't be read is told by the reset itself.
        _ => deadline_of_sysfs(&kernel.root, attempt).unwrap_or_else(|_| deadline(1)),
    }
}

/// The wanted method waits, and each that the kernel goes on to.
fn deadline_of_sysfs(root: &HostRoot, attempt: &Attempt<'_>) -> Result<Duration, HostError> {
    let (listed, wanted) = (listed(root, attempt.bdf)?, attempt.method.name());
    let narrow = needs_narrowing(root, attempt.bdf, &listed, wanted)?;
    Ok(deadline(waits_of(if narrow { wanted } else { &listed })))
}

/// Opening, resetting and closing each reset the device, and wait for everything that a reset reaches.
pub(crate) fn deadline_of_vfio(functions: usize) -> Duration {
    deadline(functions.max(1) * WAITS_OF_VFIO)
}

/// Counts how often the kernel waits for a dead function when it goes through its methods: a bus reset is one of the slot, where the port has
/// hot-plug, and then one of the bus (`pci_reset_bus_function`), each given up after 65 s.
fn waits_of(methods: &str) -> usize {
    methods.split_ascii_whitespace().map(|method| if method == "bus" { 2 } else { 1 }).sum()
}

/// Adds up what a reset takes at most that waits so often.
pub(crate) fn deadline(waits: usize) -> Duration {
    BASE + PER_WAIT * u32::from(u8::try_from(waits).unwrap_or(u8::MAX)).max(1)
}

/// Reads a function's list of methods; empty where there is none.
fn listed(root: &HostRoot, bdf: Bdf) -> Result<String, HostError> {
    let text = read_text(&root.device(bdf).join("reset_method"))?.unwrap_or_default();
    Ok(text.trim().to_owned())
}

/// Tells whether the list must be cut down for a reset by one method and no other: the kernel begins with the first, and goes on to the
/// next where one says that it doesn't work here, after a function level reset that was given up too. A `bus` of a function that isn't
/// alone on its bus is no next one: it fails at once, and could not be written back. Kernels before 5.15 have no list, and one order.
fn needs_narrowing(root: &HostRoot, bdf: Bdf, listed: &str, wanted: &str) -> Result<bool, HostError> {
    let mut methods = listed.split_ascii_whitespace();
    let first = methods.next();
    let mut others = methods.filter(|method| *method != wanted).peekable();
    if first.is_none() || first != Some(wanted) || others.peek().is_none() {
        return Ok(first.is_some_and(|first| first != wanted));
    }
    let names = crate::root::list(&root.path("/sys/bus/pci/devices"))?;
    let mut on_bus =
        names.iter().filter_map(|name| name.parse::<Bdf>().ok()).filter(|other| other.bus() == bdf.bus());
    let alone = on_bus.nth(1).is_none();
    Ok(others.any(|method| method != "bus" || alone))
}

fn by_sysfs(kernel: &Kernel, attempt: &Attempt<'_>) -> Result<ResetDone, HostError> {
    let root = &kernel.root;
    let folder = root.device(attempt.bdf);
    let (reset, attribute) = (folder.join("reset"), folder.join("reset_method"));
    let listed = listed(root, attempt.bdf)?;
    let wanted = attempt.method.name();
    let narrow = needs_narrowing(root, attempt.bdf, &listed, wanted)?;
    let others = without_bus(&listed);
    let only = Only { attribute: &attribute, methods: wanted, after: [&listed, &others] };
    let way = Way::Sysfs { reset: &reset, only: narrow.then_some(only) };
    // Each method that the kernel goes on to may wait as long.
    let deadline = deadline_of(kernel, attempt);
    let job = Job { attempt, path: &reset, deadline, by: "reset" };
    match kernel.reset(attempt.bdf, way, deadline).map_err(|source| job.failed_to_start(source))? {
        ResetOutcome::Done(told) => {
            let mut done = job.done(told, None);
            done.methods_now = done.methods_now.map(|_| others);
            Ok(done)
        }
        ResetOutcome::InFlight { pid, step } => Err(job.in_flight(pid, step)),
        ResetOutcome::Failed(failure) if !narrow && unwritable(&failure) && on_vfio(root, attempt.bdf)? => {
            let group = group_of(root, attempt.bdf)?;
            by_vfio(kernel, attempt, &[group], Call::Function)
        }
        ResetOutcome::Failed(failure) => Err(job.failed(failure, &[])),
    }
}

/// Returns the methods without the bus reset that the kernel lists and wouldn't list again: it looks for it before it knows the other
/// functions on the bus.
fn without_bus(listed: &str) -> String {
    let rest = listed.split_ascii_whitespace().filter(|name| *name != "bus");
    rest.collect::<Vec<_>>().join(" ")
}

/// Tells whether sysfs can't be written here, so that nothing was reset.
fn unwritable(failure: &ResetFailure) -> bool {
    let errno = failure.source.raw_os_error();
    failure.step == Step::OpenReset && matches!(errno, Some(EROFS | EACCES | EPERM | ENOENT))
}

fn on_vfio(root: &HostRoot, bdf: Bdf) -> Result<bool, HostError> {
    Ok(driver_of(root, bdf)?.is_some_and(|driver| is_vfio_driver(&driver)))
}

fn by_vfio(
    kernel: &Kernel,
    attempt: &Attempt<'_>,
    groups: &[GroupId],
    call: Call,
) -> Result<ResetDone, HostError> {
    let root = &kernel.root;
    // The device's own group is the one that it is opened through.
    let own = group_of(root, attempt.bdf)?;
    let mut ids = vec![own];
    ids.extend(groups.iter().filter(|id| **id != own));
    let node = |id: &GroupId| root.path(format!("/dev/vfio/{id}"));
    let nodes: Vec<PathBuf> = ids.iter().map(node).collect();
    let paths: Vec<&Path> = nodes.iter().map(PathBuf::as_path).collect();
    let container = root.path("/dev/vfio/vfio");
    let way = Way::Vfio { container: &container, groups: &paths, call };
    let deadline = deadline_of_vfio(attempt.functions.len());
    let by = match call {
        Call::Function => Step::Reset.name(),
        Call::Bus => Step::HotReset.name(),
    };
    let job = Job { attempt, path: nodes.first().map_or(&container, |node| node), deadline, by };
    match kernel.reset(attempt.bdf, way, deadline).map_err(|source| job.failed_to_start(source))? {
        ResetOutcome::Done(told) => Ok(job.done(told, Some(()))),
        ResetOutcome::InFlight { pid, step } => Err(job.in_flight(pid, step)),
        ResetOutcome::Failed(failure) => Err(job.failed(failure, &ids)),
    }
}

/// A reset that was begun, for what is told of it.
struct Job<'a> {
    attempt: &'a Attempt<'a>,
    path: &'a Path,
    deadline: Duration,
    by: &'static str,
}

impl Job<'_> {
    fn doing(&self) -> String {
        format!("reset {} by {}", self.attempt.bdf, self.attempt.method.name())
    }

    fn done(&self, told: ResetTold, opened: Option<()>) -> ResetDone {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        ResetDone {
            method: self.attempt.method,
            by: self.by.to_owned(),
            ms: ms(told.reset),
            open_ms: opened.map(|()| ms(told.open)),
            close_ms: opened.map(|()| ms(told.close)),
            affected: told.affected.iter().filter_map(AffectedFunction::of).collect(),
            methods_now: (told.listed == Listed::SecondChoice).then(String::new),
        }
    }

    fn in_flight(&self, pid: i32, step: Step) -> HostError {
        let value = if self.by == "reset" { "1".to_owned() } else { step.to_string() };
        HostError::InFlight {
            doing: self.doing(),
            path: self.path.to_owned(),
            value,
            seconds: self.deadline.as_secs(),
            pid,
            state: crate::process::describe(pid),
            said: Box::default(),
        }
    }

    fn failed_to_start(&self, source: std::io::Error) -> HostError {
        let call = "start a child for it".to_owned();
        self.error(ResetStage::Before, call, source, String::new())
    }

    fn failed(&self, failure: ResetFailure, groups: &[GroupId]) -> HostError {
        let affected: Vec<_> = failure.told.affected.iter().filter_map(AffectedFunction::of).collect();
        let mut meaning = meaning::of(&failure, self.attempt, &affected);
        if failure.told.listed == Listed::Narrowed {
            let joint = if meaning.is_empty() { "" } else { "; " };
            meaning.push_str(&format!("{joint}its reset_method lists only {} since", self.attempt.method));
        }
        let stage = stage_of(failure.step);
        let path = match failure.step {
            Step::OpenGroup | Step::SetContainer => {
                groups.get(failure.group).map(|id| format!(" /dev/vfio/{id}"))
            }
            Step::OpenReset | Step::WriteReset => Some(format!(" ({})", self.path.display())),
            _ => None,
        };
        let call = format!("{}{}", failure.step, path.unwrap_or_default());
        self.error(stage, call, failure.source, meaning)
    }

    fn error(&self, stage: ResetStage, call: String, source: std::io::Error, meaning: String) -> HostError {
        let (bdf, method) = (self.attempt.bdf, self.attempt.method);
        HostError::Reset { bdf, method, stage, call, source, meaning, said: Box::default() }
    }
}

/// Tells whether a step comes before the reset that is asked for. What opening a device resets besides is judged by its registers.
fn stage_of(step: Step) -> ResetStage {
    match step {
        Step::Narrow
        | Step::OpenReset
        | Step::OpenContainer
        | Step::OpenGroup
        | Step::SetContainer
        | Step::SetIommu
        | Step::HotInfo => ResetStage::Before,
        Step::Child
        | Step::WriteReset
        | Step::Widen
        | Step::OpenDevice
        | Step::Info
        | Step::NoReset
        | Step::Reset
        | Step::HotReset
        | Step::Close => ResetStage::Begun,
    }
}

impl AffectedFunction {
    fn of(told: &gpuvm_sys::reset::Affected) -> Option<Self> {
        let (device, function) = (told.devfn >> 3, told.devfn & 7);
        let text = format!("{:04x}:{:02x}:{device:02x}.{function}", told.segment, told.bus);
        Some(Self { bdf: text.parse().ok()?, group: GroupId(told.group) })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none("", 0)]
    #[case::one("flr", 1)]
    #[case::slot_and_bus("bus", 2)]
    #[case::all_of_an_nvme("flr bus", 3)]
    fn a_bus_reset_waits_twice(#[case] methods: &str, #[case] waits: usize) {
        assert_eq!(waits_of(methods), waits);
        // What the lab's kernel took with a dead card: 65.5 s for each.
        assert!(deadline(waits) > Duration::from_millis(65_500) * u32::try_from(waits).unwrap());
    }
}
