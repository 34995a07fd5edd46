//! A whole `gpuvm reset`: reserve, take, reset in the planned ways, judge, write down, give back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::ResetJob;
use gpuvm_core::reset::repair::{Climb, Climbed};
use gpuvm_core::reset::{
    Check, Deed, Finding, Heard, Judgement, Method, ResetPlan, Snapshot, Step, Verdict, judge,
};
use gpuvm_sys::errno::{EACCES, EINVAL, EPERM, EROFS};
use serde::Serialize;

use super::{Attempt, ResetDone, deadline_of, mend, perform};
use crate::bound::{self, BindError};
use crate::error::{HostError, ResetStage};
use crate::kernel::Kernel;
use crate::kernel_log::KernelLog;
use crate::places::Places;
use crate::process::ProcessId;
use crate::reservation::{self, Reservation};
use crate::root::HostRoot;
use crate::{ledger, snapshot, vfio};

/// A step on the way, told when it begins.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Something is bound, given back or released.
    Bound(bound::Step<'a>),
    /// A reset begins.
    Resetting {
        /// The function.
        bdf: Bdf,
        /// How.
        step: &'a Step,
        /// How long it may take.
        deadline: Duration,
    },
    /// It failed, and another way is tried.
    Next {
        /// The failure.
        error: &'a HostError,
    },
    /// The functions are looked at.
    Judging,
    /// Something is sick, and a rung of the ladder is tried.
    Repairing {
        /// The function.
        bdf: Bdf,
        /// The rung, with all that it reaches.
        climb: &'a Climb,
        /// How long it may take.
        deadline: Duration,
    },
    /// A function is as a rung has left it.
    Climbed {
        /// The function.
        bdf: Bdf,
        /// What came of the rung for it.
        climbed: &'a Climbed,
    },
}

/// Who is told.
pub(super) type Told<'a> = &'a mut dyn FnMut(Event<'_>);

/// What came of a reset.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Every way that was tried, in order.
    pub attempts: Vec<Attempted>,
    /// Every function that was reset, or was to be, with what it was before and is now.
    pub functions: Vec<FunctionReport>,
    /// Functions that stay on a VFIO driver although they were taken from their own: one of them didn't come back well.
    pub staying: Vec<Bdf>,
    /// What is not as it was, in words.
    pub not_given_back: Vec<String>,
    /// The same, for those who add remedies.
    #[serde(skip)]
    pub left: Vec<HostError>,
}

/// A way that was tried.
#[derive(Debug, Serialize)]
pub struct Attempted {
    /// The function that was asked for.
    pub bdf: Bdf,
    /// How.
    pub method: Method,
    /// What it reaches.
    pub functions: Vec<Bdf>,
    /// How long it was waited for, in ms, with all that belongs to it.
    pub took_ms: u64,
    /// What the kernel calls a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<ResetDone>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The failure, for those who add remedies.
    #[serde(skip)]
    pub error: Option<HostError>,
}

/// A function that was reset, or was to be.
#[derive(Debug, Serialize)]
pub struct FunctionReport {
    /// It.
    pub bdf: Bdf,
    /// How it was reset; nothing where it wasn't.
    pub method: Option<Method>,
    /// How it came back: after its repair, of one that was repaired.
    pub judgement: Judgement,
    /// The rungs of the ladder that were tried, of a function that was sick.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repair: Vec<Climbed>,
    /// The verdict before the repair, of a function that was to be repaired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_repair: Option<Judgement>,
    /// It before.
    pub before: Snapshot,
    /// It after.
    pub after: Snapshot,
    /// What the kernel said of it between.
    pub heard: Heard,
}

impl FunctionReport {
    /// Returns the rung that has brought it back, of a function that was sick.
    pub fn repaired_by(&self) -> Option<&Climbed> {
        self.repair.last().filter(|last| last.helped())
    }
}

impl Report {
    /// Tells whether every function that was asked for was reset and came back well, and the host is given back.
    pub fn is_good(&self) -> bool {
        self.left.is_empty() && self.functions.iter().all(|function| mend::is_well(&function.judgement))
    }
}

/// Resets what was planned.
///
/// `stop` is asked before another way is tried, and before another function.
///
/// # Errors
/// Returns who else is at the devices, and why they couldn't be taken: nothing was reset then. All else is in the report.
pub fn run(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    job: &ResetJob,
    stop: &dyn Fn() -> bool,
    told: Told<'_>,
) -> Result<Report, BindError> {
    let mut report = Report {
        attempts: Vec::new(),
        functions: Vec::new(),
        staying: Vec::new(),
        not_given_back: Vec::new(),
        left: Vec::new(),
    };
    let Some(first) = job.resets.first().map(|plan| plan.bdf) else { return Ok(report) };
    let domains = job.reset_domains.clone();
    let mut reservation = Reservation::of_reset(first, boot_id, job.groups(), job.devices(), domains);
    reservation::reserve(places, &reservation)?;
    if let Err(busy) = unopened(kernel, &reservation) {
        return Err(given_up(places, &reservation, busy));
    }
    bound::bind_for_reset(kernel, places, &job.bind, &mut reservation, &mut |step| told(Event::Bound(step)))?;

    let mut watch = Watch::begin(&kernel.root, job);
    for plan in &job.resets {
        // Another one's bus reset has reached it.
        let reached = |attempt: &Attempted| attempt.done.is_some() && attempt.functions.contains(&plan.bdf);
        if report.attempts.iter().any(reached) {
            continue;
        }
        try_in_order(kernel, places, plan, &mut reservation, &mut report, stop, told);
        // Whatever hangs has the locks of its bus.
        if !reservation.in_flight.is_empty() {
            break;
        }
    }
    if let Some(denied) = denied(&mut report) {
        let nothing = &mut |step: bound::Step<'_>| told(Event::Bound(step));
        report.left.extend(bound::end_reset(kernel, places, &mut reservation, &BTreeSet::new(), nothing));
        report.left.extend(bound::settle(places, &reservation, nothing).err());
        return Err(BindError { cause: Box::new(denied), left: report.left });
    }
    told(Event::Judging);
    watch.end(&kernel.root, job, &mut report);
    report.left.extend(write_down(kernel, places, &report));
    mend::mend((kernel, places), job, &watch.before, &mut reservation, &mut report, stop, told);
    give_back(kernel, places, job, &mut reservation, &mut report, told);
    report.not_given_back = report.left.iter().map(ToString::to_string).collect();
    Ok(report)
}

/// Takes the failure out of attempts that have all come to nothing because this user may not: that says nothing of the device.
fn denied(report: &mut Report) -> Option<HostError> {
    let may_not = |attempt: &Attempted| {
        let errno = attempt.error.as_ref().and_then(HostError::errno);
        matches!(errno, Some(EACCES | EPERM | EROFS))
    };
    match report.attempts.iter().all(may_not) {
        true => report.attempts.first_mut().and_then(|attempt| attempt.error.take()),
        false => None,
    }
}

/// Checks that nobody has one of the groups open: a reset would pull the device from under its user.
pub(super) fn unopened(kernel: &Kernel, reservation: &Reservation) -> Result<(), HostError> {
    for group in &reservation.groups {
        if let Some(holder) = vfio::group_holder(&kernel.root, *group)? {
            return Err(HostError::GroupBusy { group: *group, holder });
        }
    }
    Ok(())
}

fn given_up(places: &Places, reservation: &Reservation, cause: HostError) -> BindError {
    let left = reservation::release_bind(places, reservation).err().into_iter().collect();
    BindError { cause: Box::new(cause), left }
}

fn try_in_order(
    kernel: &Kernel,
    places: &Places,
    plan: &ResetPlan,
    reservation: &mut Reservation,
    report: &mut Report,
    stop: &dyn Fn() -> bool,
    told: Told<'_>,
) {
    for step in &plan.steps {
        let last = report.attempts.last();
        if let Some(error) = last.filter(|last| last.bdf == plan.bdf).and_then(|last| last.error.as_ref()) {
            told(Event::Next { error });
        }
        if stop() {
            return;
        }
        let attempt =
            Attempt { bdf: plan.bdf, method: step.method, functions: &step.functions, groups: &step.groups };
        told(Event::Resetting { bdf: plan.bdf, step, deadline: deadline_of(kernel, &attempt) });
        let begun = Instant::now();
        let result = perform(kernel, &attempt);
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (done, error) = match result {
            Ok(done) => (Some(done), None),
            Err(error) => (None, Some(error)),
        };
        let over = done.is_some();
        let pid = match &error {
            Some(HostError::InFlight { pid, .. }) => Some(*pid),
            _ => None,
        };
        report.attempts.push(Attempted {
            bdf: plan.bdf,
            method: step.method,
            functions: step.functions.clone(),
            took_ms,
            done,
            failure: error.as_ref().map(ToString::to_string),
            error,
        });
        if let Some(pid) = pid {
            let child = ProcessId::of(pid).unwrap_or(ProcessId { pid, start_time: 0 });
            reservation.in_flight.push(child);
            report.left.extend(reservation::update(places, reservation).err());
        }
        if over || pid.is_some() {
            return;
        }
    }
}

/// What the functions were before, and the kernel's log since.
struct Watch {
    before: BTreeMap<Bdf, Snapshot>,
    log: KernelLog,
}

impl Watch {
    fn begin(root: &HostRoot, job: &ResetJob) -> Self {
        let steps = job.resets.iter().flat_map(|plan| &plan.steps);
        let reached = steps.flat_map(|step| step.functions.iter().copied());
        let asked = job.resets.iter().map(|plan| plan.bdf);
        let all: BTreeSet<Bdf> =
            reached.chain(asked).chain(job.ladders.iter().map(|ladder| ladder.bdf)).collect();
        let before = all.iter().map(|bdf| (*bdf, snapshot::take(root, *bdf))).collect();
        let all: Vec<Bdf> = all.into_iter().collect();
        Self { before, log: KernelLog::of_functions(root, &all) }
    }

    /// Looks at every function that was reset or was to be.
    fn end(&mut self, root: &HostRoot, job: &ResetJob, report: &mut Report) {
        let pid = |attempt: &Attempted| match attempt.error {
            Some(HostError::InFlight { pid, .. }) => Some(pid),
            _ => None,
        };
        let hangs = report.attempts.iter().filter_map(|attempt| Some((&attempt.functions, pid(attempt)?)));
        let spared =
            hangs.flat_map(|(functions, pid)| functions.iter().map(move |bdf| (*bdf, pid))).collect();
        let root = root.clone().sparing(spared);
        let asked: BTreeSet<Bdf> = job.resets.iter().map(|plan| plan.bdf).collect();
        let touched: BTreeSet<Bdf> =
            report.attempts.iter().flat_map(|attempt| attempt.functions.iter().copied()).collect();
        for bdf in asked.union(&touched).copied() {
            let Some(before) = self.before.get(&bdf) else { continue };
            let reached = |attempt: &&Attempted| attempt.functions.contains(&bdf);
            let method = report
                .attempts
                .iter()
                .filter(reached)
                .find_map(|attempt| attempt.done.as_ref().map(|done| done.method));
            let after = snapshot::take(&root, bdf);
            let heard = self.log.heard(bdf);
            let mut judgement = judge(before, &after, &heard);
            if method.is_none() && asked.contains(&bdf) {
                judgement.findings.push(not_reset(bdf, &report.attempts));
                judgement = Judgement::new(judgement.findings);
            }
            report.functions.push(FunctionReport {
                bdf,
                method,
                judgement,
                repair: Vec::new(),
                before_repair: None,
                before: before.clone(),
                after,
                heard,
            });
        }
    }
}

/// Makes the finding on a function that is to be reset and wasn't.
///
/// A reset that was begun and failed is the device's. One that was refused before, or never tried, says nothing of it: the kernel
/// doesn't offer that way now, somebody else was quicker, or the user wants to stop. Then it is given back as it was, unless another
/// one hangs, which has the locks of its bus.
fn not_reset(bdf: Bdf, attempts: &[Attempted]) -> Finding {
    let own = || attempts.iter().filter(|attempt| attempt.bdf == bdf);
    let last = own().next_back();
    let refused = |attempt: &Attempted| {
        matches!(attempt.error, Some(HostError::Reset { stage: ResetStage::Before, .. }))
    };
    let hangs = |attempt: &Attempted| matches!(attempt.error, Some(HostError::InFlight { .. }));
    let weight = match own().all(refused) && !attempts.iter().any(hangs) {
        true => Verdict::Unknown,
        false => Verdict::Impaired,
    };
    let after = match last {
        Some(Attempted { error: Some(HostError::InFlight { pid, .. }), .. }) => {
            format!("not come back from, in process {pid}")
        }
        Some(attempt) => {
            let errno = attempt.error.as_ref().and_then(HostError::errno).unwrap_or(EINVAL);
            format!("failed ({})", std::io::Error::from_raw_os_error(errno))
        }
        None => "not done".to_owned(),
    };
    let how = last.map_or_else(String::new, |attempt| format!(" by {}", attempt.method.name()));
    Finding {
        check: Check::Reset,
        weight: Some(weight),
        bdf,
        register: format!("reset{how}"),
        before: None,
        after,
        meaning: "it was not reset: what its last user left may be in it".to_owned(),
    }
}

/// Writes each function's reset into the ledger, and returns what couldn't be written.
fn write_down(kernel: &Kernel, places: &Places, report: &Report) -> Vec<HostError> {
    let mut failed = Vec::new();
    for function in &report.functions {
        let reached = |attempt: &&Attempted| attempt.functions.contains(&function.bdf);
        let Some(last) = report.attempts.iter().rfind(reached) else { continue };
        let deed = Deed::Reset {
            method: last.method,
            ms: last.done.as_ref().map_or(last.took_ms, |done| done.ms),
            failure: last.failure.clone(),
            judgement: function.judgement.clone(),
        };
        // Of a card that doesn't answer any more the former snapshot tells better which one it is.
        let identity = ledger::identity(&function.before).or_else(|| ledger::identity(&function.after));
        let Some(identity) = identity else { continue };
        let entry = ledger::entry(&kernel.root, identity, &function.after, deed);
        failed.extend(ledger::record(places, &entry).err());
    }
    failed
}

/// Gives back what was taken, but for what didn't come back well.
fn give_back(
    kernel: &Kernel,
    places: &Places,
    job: &ResetJob,
    reservation: &mut Reservation,
    report: &mut Report,
    told: Told<'_>,
) {
    let bad = report.functions.iter().filter(|function| function.judgement.verdict.is_bad());
    let bad: BTreeSet<Bdf> = bad.map(|function| function.bdf).collect();
    let sets = job.bind.sets.iter().filter(|set| set.devices.iter().any(|bdf| bad.contains(bdf)));
    report.staying = sets.flat_map(|set| set.devices.iter().copied()).collect();
    let staying = report.staying.iter().copied().collect();
    let mut told = |step: bound::Step<'_>| told(Event::Bound(step));
    report.left.extend(bound::end_reset(kernel, places, reservation, &staying, &mut told));
    report.left.extend(bound::settle(places, reservation, &mut told).err());
}
