//! How long the parts of a run may take at most: what whoever waits for gpuvm is told.

use std::time::Duration;

use gpuvm_core::lifecycle::{Patience, Stage};
use gpuvm_core::plan::Plan;
use gpuvm_core::reset::wait;

use crate::launch::{COMMAND, greeting_deadline};
use crate::report::Phase;

/// One change of the host or its undoing, without hugepages: locks that another VM holds, a driver that lets go of its device or takes it back.
const CHANGE: Duration = Duration::from_secs(10 * 60);
/// What a GiB of the guest's memory adds to it. A node's pool is resized within a minute and 1 s per GiB, twice where the kernel finds too little, and
/// another VM may be at it right before.
const CHANGE_PER_GIB: Duration = Duration::from_secs(8);
/// A look at the devices, a reset that was planned, a rung of the ladder: without what dead functions add.
const LOOK: Duration = Duration::from_secs(5 * 60);
/// What is done between a stage's end and the word about the next one.
const SLACK: Duration = Duration::from_secs(15);

/// How long each part of one run may take, by the deadlines that gpuvm has itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Longest {
    change: Duration,
    start: Duration,
    look: Duration,
    patience: Patience,
}

impl Longest {
    /// Computes it for a plan.
    pub fn of(plan: &Plan, patience: Patience) -> Self {
        let bytes: u64 = plan.memory.iter().map(|cell| cell.size.as_bytes()).sum();
        let gib = u32::try_from(bytes.div_ceil(1 << 30)).unwrap_or(u32::MAX);
        Self {
            change: CHANGE + CHANGE_PER_GIB.saturating_mul(gib),
            start: greeting_deadline(plan),
            look: LOOK + wait::at_exit(plan.owned().count()),
            patience,
        }
    }

    /// Returns how long it may take until the phase after this one is told; nothing where that is up to the guest.
    pub fn of_phase(&self, phase: &Phase) -> Option<Duration> {
        let time = match phase {
            Phase::Running { .. } | Phase::Adopted { .. } | Phase::Rebooting { .. } => return None,
            Phase::Reserving
            | Phase::Preparing { .. }
            | Phase::Operation { .. }
            | Phase::Checking { .. }
            | Phase::GivingBack
            | Phase::Undoing { .. }
            | Phase::Releasing
            | Phase::TakingOver { .. }
            | Phase::EndingQemu { .. } => self.change,
            Phase::Starting | Phase::Relaunching { .. } => self.start,
            Phase::Pinning { .. } => COMMAND * 2,
            // A QEMU that the kernel holds is not killed before it had its time.
            Phase::Stopping { stage: Stage::Acpi } => self.patience.acpi,
            Phase::Stopping { stage: Stage::Quit } => self.patience.quit + self.patience.exit,
            Phase::Leaving { .. } => self.patience.exit,
            Phase::Stopping { stage: Stage::Kill } => self.patience.killed,
            Phase::Ended | Phase::Resetting { .. } | Phase::Judging | Phase::Repairing { .. } => self.look,
        };
        Some(time + SLACK)
    }
}
