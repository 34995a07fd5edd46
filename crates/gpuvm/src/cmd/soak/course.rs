//! The course of a soak: one cycle after the other, each written down before the next one begins.

use std::time::{Duration, Instant};

use gpuvm_core::soak::{Cycle, CycleKind, CycleVerdict, Ended, Line, Next, Why};
use gpuvm_host::ledger::now;
use gpuvm_host::soak::{self, Poll};

use super::book::Book;
use super::progress::Progress;
use crate::exit::Exit;
use crate::failure::Failure;

/// How often the report is drawn while the soak runs; for the first time after the first cycle.
const REPORT: Duration = Duration::from_secs(600);

/// How long it is waited for what somebody else has, before each try: first for a moment, and for 5 minutes in all.
const BUSY: [u64; 14] = [1, 2, 4, 8, 15, 30, 30, 30, 30, 30, 30, 30, 30, 30];

/// Who runs cycles.
pub(super) trait Cycles {
    /// Runs a cycle.
    async fn cycle(&mut self, number: u32, kind: CycleKind, progress: &mut Progress) -> Over;
    /// Returns the signal that has asked for the soak's end meanwhile.
    async fn asked(&mut self) -> Option<&'static str>;
    /// Waits for so long, or until a signal asks for the soak's end.
    async fn wait(&mut self, time: Duration) -> Option<&'static str>;
    /// Keeps the console of a cycle that isn't healthy. Returns why it can't.
    fn keep_console(&mut self, number: u32) -> Option<String>;
    /// Begins to draw the report of the cycles so far. Returns why it can't, or why it couldn't the last time.
    fn draw(&mut self) -> Option<String>;
}

/// A cycle that is over.
pub(super) struct Over {
    pub(super) cycle: Cycle,
    /// The signal that ended it before its time.
    pub(super) interrupted: Option<&'static str>,
}

/// Runs a soak to its end, and writes that down.
pub(super) async fn run(
    book: &mut Book,
    cycles: &mut impl Cycles,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let poll = book.settings.poll.as_deref().map(Poll::start).transpose();
    let poll = poll
        .map_err(|error| Failure::one(Exit::Internal, format!("start the poll's thread: {error}"), None))?;
    let why = all(book, cycles, poll.as_ref(), progress).await;
    if let Some(left) = poll.and_then(Poll::end) {
        progress.tell(&format!("warning: {left}"));
    }
    let line = Line::Ended(Ended { at: now(), why: why? });
    book.append(&line, progress)?;
    Ok(book.record.close()?)
}

/// Runs all cycles. Returns why there are no more.
async fn all(
    book: &mut Book,
    cycles: &mut impl Cycles,
    poll: Option<&Poll>,
    progress: &mut Progress,
) -> Result<Why, Failure> {
    let since = Instant::now();
    let mut drawn = None;
    loop {
        let seconds = book.before_ms / 1000 + since.elapsed().as_secs();
        let (number, kind) = match book.headway.next(&book.settings, seconds) {
            Next::Over(why) => return Ok(why),
            Next::Cycle { number, kind } => (number, kind),
        };
        if let Some(signal) = cycles.asked().await {
            return Ok(interrupted(signal));
        }
        progress.begins(number, kind, &book.tally, &book.settings);
        book.record.note(number, kind)?;
        let mut over = match patiently(number, kind, cycles, progress).await {
            Ok(over) => over,
            Err(signal) => return Ok(interrupted(signal)),
        };
        if let Some(poll) = poll {
            let (polled, told) = poll.take();
            over.cycle.polled = Some(polled);
            told.iter().for_each(|what| progress.tell(&format!("cycle {number}: {what}")));
        }
        over.cycle.own = soak::own_use();
        let verdict = over.cycle.verdict();
        if let (Some(signal), CycleVerdict::Healthy) = (over.interrupted, verdict) {
            // It says nothing that a whole cycle would not: it is run again by whoever goes on.
            return Ok(interrupted(signal));
        }
        // The console of one whose guest never ran is that of another.
        let has_console = over.cycle.outcome.is_some();
        let line = Line::Cycle(Box::new(over.cycle));
        book.append(&line, progress)?;
        if let Line::Cycle(cycle) = &line {
            progress.over(cycle, &book.tally);
        }
        if has_console
            && verdict > CycleVerdict::Healthy
            && let Some(why) = cycles.keep_console(number)
        {
            progress.tell(&format!("warning: {why}"));
        }
        if let Some(signal) = over.interrupted {
            return Ok(interrupted(signal));
        }
        if drawn.is_none_or(|drawn: Instant| drawn.elapsed() > REPORT) {
            // The record is what counts, and goes on without it.
            cycles.draw().into_iter().for_each(|why| progress.tell(&format!("warning: {why}")));
            drawn = Some(Instant::now());
        }
    }
}

/// Runs a cycle, and tries it again where somebody else has what it needs: that is no fault of the guest. Returns the signal that came
/// while it was waited for.
async fn patiently(
    number: u32,
    kind: CycleKind,
    cycles: &mut impl Cycles,
    progress: &mut Progress,
) -> Result<Over, &'static str> {
    let mut over = cycles.cycle(number, kind, progress).await;
    let (mut waited, mut told) = (0, String::new());
    let most: u64 = BUSY.iter().sum();
    for seconds in BUSY {
        let Some(busy) = over.cycle.busy() else { break };
        if let Some(signal) = over.interrupted {
            return Err(signal);
        }
        if busy != told {
            told = busy.to_owned();
            let left = most - waited;
            progress.tell(&format!(
                "cycle {number} has to wait, and is tried again for {left} s at most: {told}"
            ));
        }
        if let Some(signal) = cycles.wait(Duration::from_secs(seconds)).await {
            return Err(signal);
        }
        waited += seconds;
        over = cycles.cycle(number, kind, progress).await;
        over.cycle.waited_ms = waited.saturating_mul(1000);
    }
    if waited > 0 && over.cycle.busy().is_none() {
        progress.tell(&format!("cycle {number} could run after {waited} s"));
    }
    Ok(over)
}

fn interrupted(signal: &str) -> Why {
    Why::Interrupted { signal: signal.to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests;
