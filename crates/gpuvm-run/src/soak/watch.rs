//! Watches a guest's console for what tells that it is ready.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuvm_core::soak::{Happened, JobReport, Lines};
use regex::Regex;
use tokio::sync::mpsc;

use super::Awaited;
use crate::console::Sink;

/// A line that isn't over and hasn't grown for so long is a prompt.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// What a console says so soon after its machine was reset was said before, and heard late; no firmware gets that far.
pub(super) const LATE: Duration = Duration::from_millis(20);

/// Watches a guest's console.
#[derive(Clone)]
pub(super) struct Watch(Arc<Mutex<Watching>>);

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
    /// What came before is of no boot that goes on.
    from: Instant,
}

/// A report is waited for.
#[derive(Clone, Copy)]
struct Job;

impl Watch {
    pub(super) fn new(awaited: &Awaited, tell: mpsc::UnboundedSender<(Instant, Happened)>) -> Self {
        let wanted = (awaited.expect.clone(), awaited.ready.job.then_some(Job));
        let (expect, job) = wanted.clone();
        let (lines, now) = (Lines::default(), Instant::now());
        Self(Arc::new(Mutex::new(Watching { lines, expect, job, wanted, tell, last: now, from: now })))
    }

    fn lock(&self) -> MutexGuard<'_, Watching> {
        // What a panic has left there are whole values.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the sink that watches, and passes on to another one.
    pub(super) fn sink(&self, mut next: Option<Sink>) -> Sink {
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

    /// Looks for everything once more, from a moment on: the guest begins anew.
    pub(super) fn begin_anew(&self, from: Instant) {
        let mut watching = self.lock();
        watching.from = from;
        watching.lines.begin_anew();
        (watching.expect, watching.job) = watching.wanted.clone();
    }

    /// Tells whether a line is waited for, which may be a prompt.
    pub(super) fn waits(&self) -> bool {
        self.lock().expect.is_some()
    }

    /// Returns since when the line that isn't over is the one that is waited for, if it hasn't grown for so long.
    pub(super) fn prompt(&self, quiet: Duration) -> Option<Instant> {
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
        let Self { lines, expect, job, tell, last, from, .. } = self;
        *last = Instant::now();
        if *last < *from {
            return;
        }
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
