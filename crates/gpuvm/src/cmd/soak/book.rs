//! What is written down of a soak, and what that comes to so far.

use gpuvm_core::soak::{Headway, Line, Settings, Tally};
use gpuvm_host::soak::Record;

use super::progress::Progress;
use crate::failure::Failure;

/// The record of a soak that runs, and what its lines come to.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) settings: Settings,
    pub(super) record: Record,
    pub(super) headway: Headway,
    pub(super) tally: Tally,
    /// How long it had run before this gpuvm went on with it, in ms.
    pub(super) before_ms: u64,
}

impl Book {
    /// Opens it with the lines that the record has.
    pub(super) fn new(settings: Settings, record: Record, lines: &[Line]) -> Self {
        let (headway, tally) = (Headway::of(lines), Tally::of(lines));
        let before_ms = tally.elapsed_ms();
        Self { settings, record, headway, tally, before_ms }
    }

    /// Tells whether there is nothing to be run.
    pub(super) fn is_over(&self) -> bool {
        self.headway.why().is_some()
    }

    /// Writes a line down, and takes it into account.
    pub(super) fn append(&mut self, line: &Line, progress: &mut Progress) -> Result<(), Failure> {
        let text = self.record.append(line)?;
        self.headway.add(line);
        self.tally.add(line);
        progress.line(&text);
        Ok(())
    }
}
