//! One cycle of a soak: a whole `up` whose guest is watched until it is ready, and then ended as the cycle wants it.

use std::collections::BTreeMap;

use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::reset::{Reading, Snapshot};
use gpuvm_core::soak::{Cycle, CycleKind, OwnUse, Ready};
use gpuvm_host::root::HostRoot;
use gpuvm_host::snapshot;
use regex::Regex;

use crate::console::Sink;
use crate::error::UpError;
use crate::report::Observer;
use crate::signals::Signals;
use crate::up::{Run, up};

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
pub async fn cycle(
    job: &CycleJob<'_>,
    signals: &mut Signals,
    observer: &mut dyn Observer,
    console: Option<Sink>,
) -> CycleEnd {
    let _ = &job.ready.expect;
    let _ = &job.ready.ready;
    let result = up(&job.run, signals, console, observer).await;
    let (outcome, error) = match result {
        Ok(report) => (Some(report.outcome), None),
        Err(error) => (None, Some(error)),
    };
    let cycle = Cycle {
        number: job.number,
        kind: job.kind,
        at: job.at,
        ms: job.plan_ms,
        phases: Vec::new(),
        outcome,
        faults: Vec::new(),
        devices: Vec::new(),
        job: None,
        polled: None,
        own: OwnUse::default(),
    };
    CycleEnd { cycle, interrupted: None, qemu: None, error }
}
