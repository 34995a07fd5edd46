//! One cycle of a soak: a whole `up` whose guest is watched until it is ready, and then ended as the cycle wants it.

mod came_back;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use gpuvm_core::lifecycle::{Halt, State};
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::Serial;
use gpuvm_core::reset::{Reading, Snapshot};
use gpuvm_core::soak::{Act, Course, Cycle, CycleKind, EndedBy, Happened, OwnUse, Phase, PhaseTime, Ready};
use gpuvm_host::root::HostRoot;
use gpuvm_host::snapshot;
use regex::Regex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until};

use crate::console::Sink;
use crate::error::UpError;
use crate::report::{self, Note, Observer};
use crate::signals::{Request, Requests, Signals};
use crate::up::{Run, up_asked};

use came_back::{Came, came_back};
use watch::{LATE, QUIET, Watch};

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
        result = up_asked(&job.run, &mut requests, Some(watch.sink(console)), None, &mut watched) => result,
        never = conductor.conduct(&mut heard, &ask) => match never {},
    };
    let qemu = watched.qemu;
    conductor.catch_up(&mut heard, Duration::ZERO);
    let end = conductor.now();
    let interrupted = match requests.signal() {
        Some(signal) => Some(signal),
        None => signals.pending().await,
    };
    let ended_by = if interrupted.is_some() { EndedBy::Signal } else { EndedBy::Itself };
    let outcome = result.as_ref().ok().map(|report| report.outcome.clone());
    let outline = conductor.course.into_inner().finish(end, outcome.as_ref(), ended_by);
    let Came { devices, left, error } = came_back(result, job.first);
    let plan = PhaseTime { phase: Phase::Plan, ms: job.plan_ms };
    let cycle = Cycle {
        number: job.number,
        kind: job.kind,
        at: job.at,
        ms: job.plan_ms + end,
        phases: std::iter::once(plan).chain(outline.phases).collect(),
        waited_ms: 0,
        outcome,
        faults: outline.faults.into_iter().chain(left).collect(),
        devices,
        job: outline.job,
        polled: None,
        own: OwnUse::default(),
    };
    CycleEnd { cycle, interrupted, qemu, error }
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
                self.conductor.watch.begin_anew(now + LATE);
                self.conductor.take_in(now, Happened::Reset);
            }
            report::Phase::Relaunching { .. } => {
                self.conductor.watch.begin_anew(now);
                self.conductor.take_in(now, Happened::Relaunched);
            }
            report::Phase::Leaving { reason } => {
                self.conductor.take_in(now, Happened::Leaves(reason.clone()))
            }
            report::Phase::Stopping { .. } => begins(Phase::Stop),
            report::Phase::Resetting { .. } => begins(Phase::Reset),
            report::Phase::Ended | report::Phase::Judging => begins(Phase::Judge),
            report::Phase::Repairing { .. } => begins(Phase::Repair),
            report::Phase::GivingBack => begins(Phase::GiveBack),
            _ => {}
        }
        self.inner.phase(phase);
    }

    fn note(&mut self, note: &Note) {
        self.inner.note(note);
    }

    fn state(&mut self, state: State, halt: Option<&Halt>) {
        self.inner.state(state, halt);
    }
}
