//! One cycle of a soak: a whole `up` whose guest is watched until it is ready, and then ended as the cycle wants it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::Serial;
use gpuvm_core::reset::repair::{Climbed, Rung};
use gpuvm_core::reset::{Heard, Method, Reading, Snapshot};
use gpuvm_core::soak::{
    Act, Course, Cycle, CycleKind, DeviceCycle, EndedBy, Fault, Happened, JobReport, Lines, OwnUse, Phase,
    PhaseTime, Ready, ResetTime, ResetWay, drift,
};
use gpuvm_host::root::HostRoot;
use gpuvm_host::{HostError, snapshot};
use regex::Regex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until};

use crate::console::Sink;
use crate::error::UpError;
use crate::report::{self, DeviceReport, Note, Observer, Report, ResetReport};
use crate::signals::{Request, Requests, Signals};
use crate::up::{Run, up_asked};

/// When a guest is ready, with the expression that its console is matched with.
#[derive(Debug, Clone)]
pub struct Awaited {
    ready: Ready,
    expect: Option<Regex>,
}

impl Awaited {
    /// Reads the expression.
    ///
    /// # Errors
    /// Returns what is wrong with it.
    pub fn new(ready: Ready) -> Result<Self, regex::Error> {
        let expect = ready.expect.as_deref().map(Regex::new).transpose()?;
        Ok(Self { ready, expect })
    }
}

/// A cycle that is to be run.
#[derive(Debug, Clone, Copy)]
pub struct CycleJob<'a> {
    /// What is run, and where.
    pub run: Run<'a>,
    /// The cycle's number; the first one is 1.
    pub number: u32,
    /// How its guest is to end.
    pub kind: CycleKind,
    /// When its guest is ready to be ended.
    pub ready: &'a Awaited,
    /// What each device said of itself before the first cycle.
    pub first: &'a BTreeMap<Bdf, Snapshot>,
    /// When it began, in seconds since 1970-01-01 UTC.
    pub at: u64,
    /// How long it took to read the host and to plan, in ms: it belongs to the cycle.
    pub plan_ms: u64,
}

/// A cycle that is over.
#[derive(Debug)]
pub struct CycleEnd {
    /// Its line in the record; what the poll command and gpuvm itself came to is for the caller to fill in, and why the guest never ran.
    pub cycle: Cycle,
    /// The signal that ended it before its time: it says nothing of the guest then.
    pub interrupted: Option<&'static str>,
    /// QEMU's version, if it got so far as to tell.
    pub qemu: Option<String>,
    /// Why the guest never ran, or isn't gone.
    pub error: Option<UpError>,
}

/// Reads what each device of a plan says of itself: before the first cycle, for later ones to be held against.
pub fn first_baselines(root: &HostRoot, plan: &Plan) -> BTreeMap<Bdf, Snapshot> {
    let look = |bdf, id| {
        let mut before = snapshot::take(root, bdf);
        // The ids as the kernel read them when it found the device; those of a VF read ffff in its config space.
        before.id = Reading::Read(id);
        (bdf, before)
    };
    plan.owned().map(|device| look(device.bdf, device.id)).collect()
}

/// Runs one cycle, from the reservation until the host is given back.
///
/// The guest's console goes to the sink, where the profile lets it be seen; it is watched in any case.
pub async fn cycle(
    job: &CycleJob<'_>,
    signals: &mut Signals,
    observer: &mut dyn Observer,
    console: Option<Sink>,
) -> CycleEnd {
    let begun = Instant::now();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let (ask, asked) = mpsc::unbounded_channel();
    let watch = Watch::new(job.ready, tell);
    let console = console.filter(|_| job.run.plan.serial == Serial::Console);
    let conductor = Conductor {
        begun,
        course: RefCell::new(Course::new(job.kind, &job.ready.ready, job.run.plan.reboot)),
        happened: Notify::new(),
        watch: &watch,
    };
    conductor.course.borrow_mut().begins(0, Phase::Prepare);
    let mut watched = Watched { conductor: &conductor, inner: observer, qemu: None };
    let mut requests = Requests::new(signals, Some(asked));
    let result = tokio::select! {
        biased;
        result = up_asked(&job.run, &mut requests, Some(watch.sink(console)), &mut watched) => result,
        never = conductor.conduct(&mut heard, &ask) => match never {},
    };
    let qemu = watched.qemu;
    conductor.catch_up(&mut heard, Duration::ZERO);
    let end = conductor.now();
    let signal = requests.signal();
    let ended_by = if signal.is_some() { EndedBy::Signal } else { EndedBy::Itself };
    let outcome = result.as_ref().ok().map(|report| report.outcome.clone());
    let outline = conductor.course.into_inner().finish(end, outcome.as_ref(), ended_by);
    let Came { devices, left, error } = came_back(result, job.first);
    let interrupted = match signal {
        Some(signal) => Some(signal),
        None => signals.pending().await,
    };
    let plan = PhaseTime { phase: Phase::Plan, ms: job.plan_ms };
    let cycle = Cycle {
        number: job.number,
        kind: job.kind,
        at: job.at,
        ms: job.plan_ms + end,
        phases: std::iter::once(plan).chain(outline.phases).collect(),
        outcome,
        faults: outline.faults.into_iter().chain(left).collect(),
        devices,
        job: outline.job,
        polled: None,
        own: OwnUse::default(),
    };
    CycleEnd { cycle, interrupted, qemu, error }
}

/// What is known of the host once a cycle's run is over.
struct Came {
    devices: Vec<DeviceCycle>,
    left: Vec<Fault>,
    error: Option<UpError>,
}

fn came_back(result: Result<Report, UpError>, first: &BTreeMap<Bdf, Snapshot>) -> Came {
    // A device that stays as it is because it is sick is told by its verdict.
    let told = |error: &&HostError| !matches!(error, HostError::Sick { .. });
    let fault = |error: &HostError| Fault::NotGivenBack { message: error.to_string() };
    let left = |left: &[HostError]| left.iter().filter(told).map(fault).collect();
    let device = |one: &DeviceReport, resets: &[u64]| device_cycle(one, resets, first.get(&one.bdf));
    match result {
        Ok(report) => {
            let resets = |bdf| report.kernel_resets.get(bdf).map_or(&[][..], Vec::as_slice);
            let devices = report.devices.iter().map(|one| device(one, resets(&one.bdf))).collect();
            Came { devices, left: left(&report.left), error: None }
        }
        Err(error) => {
            let devices = error.devices.iter().map(|one| device(one, &[])).collect();
            Came { devices, left: left(&error.left), error: Some(error) }
        }
    }
}

/// The most lines of the kernel's that a cycle keeps of a device: as many of the first as of the last.
const KERNEL_LINES: usize = 40;

fn device_cycle(device: &DeviceReport, kernel_resets: &[u64], first: Option<&Snapshot>) -> DeviceCycle {
    let DeviceReport { bdf, judgement, reset, repair, before_repair, evidence } = device;
    let evidence = evidence.as_deref();
    let after = evidence.map(|evidence| &evidence.after);
    let link = after.and_then(Snapshot::link);
    let drift = first.zip(after).map(|(first, after)| drift(first, after, judgement)).unwrap_or_default();
    let healthy = judgement.reason().is_none() && drift.is_empty() && before_repair.is_none();
    let said = evidence.and_then(|evidence| evidence.heard.as_ref()).map_or(&[][..], Heard::lines);
    DeviceCycle {
        bdf: *bdf,
        judgement: judgement.clone(),
        drift,
        speed: link.map(|(speed, _)| speed),
        width: link.map(|(_, width)| width),
        errors: evidence.map(|of| of.after.errors_since(&of.before)).unwrap_or_default(),
        resets: resets(reset.as_ref(), repair, kernel_resets),
        repair: repair.clone(),
        before_repair: before_repair.clone(),
        kernel: if healthy { Vec::new() } else { ends(said) },
    }
}

/// Lists the resets of a device: QEMU's come first, as they did. What a scan of the bus does is no reset.
fn resets(planned: Option<&ResetReport>, repair: &[Climbed], kernel: &[u64]) -> Vec<ResetTime> {
    let of_kernel = kernel.iter().map(|ms| {
        let (by, method, failure) = (ResetWay::Kernel, None, None);
        ResetTime { by, method, ms: *ms, failure }
    });
    let own = |method: Option<Method>, ms: u64, failure: &Option<String>| {
        let failure = failure.clone();
        ResetTime { by: ResetWay::Gpuvm, method, ms, failure }
    };
    let planned = planned.map(|reset| own(Some(reset.method), reset.ms, &reset.failure));
    let repair = repair
        .iter()
        .filter(|climbed| climbed.rung != Rung::Rescan)
        .map(|climbed| own((climbed.rung == Rung::Hot).then_some(Method::Hot), climbed.ms, &climbed.failure));
    of_kernel.chain(planned).chain(repair).collect()
}

fn ends(lines: &[String]) -> Vec<String> {
    if lines.len() <= KERNEL_LINES {
        return lines.to_vec();
    }
    let (first, rest) = lines.split_at(KERNEL_LINES / 2);
    let (left_out, last) = rest.split_at(rest.len() - KERNEL_LINES / 2);
    let left_out = format!("({} lines left out)", left_out.len());
    first.iter().cloned().chain([left_out]).chain(last.iter().cloned()).collect()
}

/// Brings a guest's course together with what drives it.
struct Conductor<'a> {
    begun: Instant,
    course: RefCell<Course>,
    /// Something has happened to the course besides what its conductor tells it.
    happened: Notify,
    watch: &'a Watch,
}

impl Conductor<'_> {
    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    fn take_in(&self, moment: Instant, happened: Happened) {
        self.course.borrow_mut().take_in(self.at(moment), happened);
        self.happened.notify_one();
    }

    /// Takes in what the console said that wasn't yet, and a line that isn't over and hasn't grown for so long.
    fn catch_up(&self, heard: &mut mpsc::UnboundedReceiver<(Instant, Happened)>, quiet: Duration) {
        if let Some(moment) = self.watch.prompt(quiet) {
            self.take_in(moment, Happened::Matched);
        }
        while let Ok((moment, happened)) = heard.try_recv() {
            self.take_in(moment, happened);
        }
    }

    /// Asks of the guest what its course wants, for as long as there is one.
    async fn conduct(
        &self,
        heard: &mut mpsc::UnboundedReceiver<(Instant, Happened)>,
        ask: &mpsc::UnboundedSender<Request>,
    ) -> Infallible {
        loop {
            let due = self.course.borrow().due().map(|due| self.begun + Duration::from_millis(due));
            tokio::select! {
                Some((moment, happened)) = heard.recv() => self.take_in(moment, happened),
                () = self.happened.notified() => {}
                () = sleep_until(due.unwrap_or(self.begun).into()), if due.is_some() => {}
                () = sleep(QUIET), if self.watch.waits() => self.catch_up(heard, QUIET),
            }
            let act = self.course.borrow_mut().act(self.now());
            let request = match act {
                None => continue,
                Some(Act::Stop) => Request::Stop("soak"),
                Some(Act::Crash) => Request::Crash,
                Some(Act::Reset) => Request::Reset,
            };
            // Nobody hears it only once QEMU is gone.
            ask.send(request).ok();
        }
    }
}

/// Tells the course of a guest what its run tells, and passes it on.
struct Watched<'a> {
    conductor: &'a Conductor<'a>,
    inner: &'a mut dyn Observer,
    qemu: Option<String>,
}

impl Observer for Watched<'_> {
    fn phase(&mut self, phase: &report::Phase) {
        let now = Instant::now();
        let begins = |phase| self.conductor.course.borrow_mut().begins(self.conductor.at(now), phase);
        match phase {
            report::Phase::Starting => begins(Phase::Start),
            report::Phase::Running { qemu, .. } => {
                self.qemu = Some(qemu.clone());
                self.conductor.take_in(now, Happened::Runs);
            }
            report::Phase::Rebooting { .. } => {
                self.conductor.watch.begin_anew();
                self.conductor.take_in(now, Happened::Reset);
            }
            report::Phase::Relaunching { .. } => {
                self.conductor.watch.begin_anew();
                self.conductor.take_in(now, Happened::Relaunched);
            }
            report::Phase::Leaving { reason } => {
                self.conductor.take_in(now, Happened::Leaves(reason.clone()))
            }
            report::Phase::Stopping { .. } => begins(Phase::Stop),
            report::Phase::Resetting { .. } => begins(Phase::Reset),
            report::Phase::Ended | report::Phase::Judging => begins(Phase::Judge),
            report::Phase::GivingBack => begins(Phase::GiveBack),
            _ => {}
        }
        self.inner.phase(phase);
    }

    fn note(&mut self, note: &Note) {
        self.inner.note(note);
    }
}

/// A line that isn't over and hasn't grown for so long is a prompt.
const QUIET: Duration = Duration::from_millis(100);

/// Watches a guest's console.
#[derive(Clone)]
struct Watch(Arc<Mutex<Watching>>);

struct Watching {
    lines: Lines,
    /// What is looked for in this boot.
    expect: Option<Regex>,
    job: Option<Job>,
    /// All that is looked for in a boot.
    wanted: (Option<Regex>, Option<Job>),
    tell: mpsc::UnboundedSender<(Instant, Happened)>,
    /// When the last byte came.
    last: Instant,
}

/// A report is waited for.
#[derive(Clone, Copy)]
struct Job;

impl Watch {
    fn new(awaited: &Awaited, tell: mpsc::UnboundedSender<(Instant, Happened)>) -> Self {
        let wanted = (awaited.expect.clone(), awaited.ready.job.then_some(Job));
        let (expect, job) = wanted.clone();
        let (lines, last) = (Lines::default(), Instant::now());
        Self(Arc::new(Mutex::new(Watching { lines, expect, job, wanted, tell, last })))
    }

    fn lock(&self) -> MutexGuard<'_, Watching> {
        // What a panic has left there are whole values.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the sink that watches, and passes on to another one.
    fn sink(&self, mut next: Option<Sink>) -> Sink {
        let watch = self.clone();
        Box::new(move |bytes| {
            watch.lock().take_in(bytes);
            // One that is gone doesn't end the watch.
            if next.as_mut().is_some_and(|next| next(bytes).is_err()) {
                next = None;
            }
            Ok(())
        })
    }

    /// Looks for everything once more: the guest begins anew.
    fn begin_anew(&self) {
        let mut watching = self.lock();
        watching.lines.begin_anew();
        (watching.expect, watching.job) = watching.wanted.clone();
    }

    /// Tells whether a line is waited for, which may be a prompt.
    fn waits(&self) -> bool {
        self.lock().expect.is_some()
    }

    /// Returns since when the line that isn't over is the one that is waited for, if it hasn't grown for so long.
    fn prompt(&self, quiet: Duration) -> Option<Instant> {
        let mut watching = self.lock();
        let expect = watching.expect.as_ref()?;
        let line = watching.lines.unfinished().filter(|_| watching.last.elapsed() >= quiet)?;
        if !expect.is_match(&line) {
            return None;
        }
        watching.expect = None;
        Some(watching.last)
    }
}

impl Watching {
    fn take_in(&mut self, bytes: &[u8]) {
        let Self { lines, expect, job, tell, last, .. } = self;
        *last = Instant::now();
        lines.take_in(bytes, &mut |line| {
            // Nobody hears it only once QEMU is gone. Each is told once, so that no guest fills the queue.
            if expect.as_ref().is_some_and(|expect| expect.is_match(line)) {
                *expect = None;
                tell.send((*last, Happened::Matched)).ok();
            }
            if job.is_some()
                && let Some(report) = JobReport::read(line)
            {
                *job = None;
                tell.send((*last, Happened::Reported(report))).ok();
            }
        });
    }
}
