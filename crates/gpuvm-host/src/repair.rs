//! Repairs: the rungs of the ladder are climbed, one after the other, with a look at the devices after each.
//!
//! Each rung is done by the kernel in a child that is watched. What a rung changes for its time is in a journal, as any change is: the VM's
//! own for a launcher and for its cleanup, and one of the repair's own where there is none ([`book`]). Whoever finds such a journal calls
//! [`finish`] before anything else: it brings back what was removed, to the driver that it was on.

pub mod book;
mod climb;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::reset::repair::{Climb, Climbed, Ladder, Rung, climbs};
use gpuvm_core::reset::{Before, Deed, Heard, Snapshot, judge};

pub use self::climb::{climb, deadline_of};
use crate::HostError;
use crate::apply::{self, Host};
use crate::journal::{Journal, Record};
use crate::kernel_log::KernelLog;
use crate::root::group_of;
use crate::snapshot;
use crate::undo::{Part, undo_some};

/// A step on the way, told when it begins.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A rung is tried.
    Climbing {
        /// The device that it is tried for.
        bdf: Bdf,
        /// The rung, with all that it reaches.
        climb: &'a Climb,
        /// How long it may take.
        deadline: Duration,
    },
    /// The functions that it has reached are looked at.
    Judging {
        /// The rung.
        rung: Rung,
    },
    /// One of them is as the rung has left it.
    Climbed {
        /// The function.
        bdf: Bdf,
        /// What came of the rung for it.
        climbed: &'a Climbed,
    },
}

/// What came of a repair.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Every rung that was tried, once for each function that it reached and that there is a baseline of, in order.
    pub climbed: Vec<(Bdf, Climbed)>,
    /// How each of these functions was in the end, and what the kernel said of it since the last rung that reached it began.
    pub after: BTreeMap<Bdf, (Snapshot, Heard)>,
    /// The groups of the functions that were found anew: those may have other numbers.
    pub groups: BTreeMap<Bdf, Option<GroupId>>,
    /// What hasn't come back and goes on in a child: a reservation must be kept for it, and what it reaches is left alone.
    pub in_flight: Vec<HostError>,
    /// The functions that those reach, with the process that waits.
    pub hanging: BTreeMap<Bdf, i32>,
    /// What a repair has changed for its time and couldn't put back. It is still in the journal.
    pub left: Vec<HostError>,
}

impl Repaired {
    /// Lists every rung that was tried, with the function that it reached and how that was before: for the ledger.
    pub fn deeds<'a>(&'a self, sick: &'a BTreeMap<Bdf, Snapshot>) -> impl Iterator<Item = (Bdf, Deed)> + 'a {
        let fell_ill = |at: usize, bdf: Bdf| {
            let mut earlier = self.climbed[..at].iter().filter(move |(of, _)| *of == bdf);
            earlier.any(|(_, climbed)| climbed.judgement.verdict.is_bad())
        };
        self.climbed.iter().enumerate().map(move |(at, (bdf, climbed))| {
            let was_sick = sick.contains_key(bdf) || fell_ill(at, *bdf);
            let before = if was_sick { Before::Sick } else { Before::Well };
            (*bdf, Deed::Repair { before, climbed: climbed.clone() })
        })
    }

    /// Returns the rung that has helped a function; nothing where none has.
    pub fn helped(&self, bdf: Bdf) -> Option<Rung> {
        let mut own = self.climbed.iter().filter(|(of, _)| *of == bdf).map(|(_, climbed)| climbed);
        own.next_back().filter(|last| last.helped()).map(|last| last.rung)
    }
}

/// Climbs as far as is needed for all that is sick, the mildest rung of all devices first; one that reaches several is climbed once.
///
/// `sick` says how the functions came back: what was counted of them since their baselines is no fault of a repair. The host's baselines
/// are what they are judged by. `stop` is asked before each rung.
pub fn repair(
    host: &Host<'_>,
    journal: &mut Journal,
    ladders: &[Ladder],
    sick: &BTreeMap<Bdf, Snapshot>,
    stop: &dyn Fn() -> bool,
    told: &mut dyn FnMut(Event<'_>),
) -> Repaired {
    let mut repaired = Repaired::default();
    let mut ill: BTreeSet<Bdf> = sick.keys().copied().collect();
    for rung in Rung::ALL {
        for (bdf, planned) in climbs(rung, ladders, &ill) {
            // Another one has reached it meanwhile, and has helped.
            if !ill.contains(&bdf) {
                continue;
            }
            if stop() || repaired.blocks(host, &planned) {
                continue;
            }
            told(Event::Climbing { bdf, climb: &planned, deadline: deadline_of(&planned) });
            let known: Vec<Bdf> =
                planned.functions.iter().filter(|bdf| host.baselines.contains_key(bdf)).copied().collect();
            let mut log = KernelLog::of_functions(&host.kernel.root, &known);
            let begun = Instant::now();
            let done = climb(host, journal, bdf, &planned);
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let failure = repaired.note(&planned, done);
            told(Event::Judging { rung });
            for bdf in known {
                repaired.look(host, bdf, sick.get(&bdf), &mut log, (rung, ms, failure.clone()));
                let Some((_, climbed)) = repaired.climbed.last() else { continue };
                told(Event::Climbed { bdf, climbed });
                // A rung that failed makes none ill that is well: what is rougher isn't tried for its sake.
                match (climbed.helped(), climbed.judgement.verdict.is_bad()) {
                    (true, _) => ill.remove(&bdf),
                    (false, true) => ill.insert(bdf),
                    (false, false) => false,
                };
            }
            if rung == Rung::Rescan {
                let of = |bdf: &Bdf| (*bdf, group_of(&host.kernel.root, *bdf).ok());
                repaired.groups.extend(planned.functions.iter().map(of));
            }
        }
    }
    repaired
}

impl Repaired {
    /// Tells whether a rung would run into what hangs: it holds the locks of its functions and of their port, and a removal that of all
    /// removals and scans of the machine (pci_rescan_remove_lock).
    fn blocks(&self, host: &Host<'_>, planned: &Climb) -> bool {
        let spared = host.kernel.root.clone().sparing(self.hanging.clone());
        let mut reached = planned.functions.iter().chain(&planned.port);
        (planned.rung == Rung::Rescan && !self.in_flight.is_empty())
            || reached.any(|bdf| spared.lockable(*bdf).is_err())
    }

    /// Notes what came of a rung, and returns why it failed, in words.
    fn note(&mut self, planned: &Climb, done: climb::Done) -> Option<String> {
        let failed = done.result.err();
        let text = failed.as_ref().or(done.left.first()).map(ToString::to_string);
        // What fails while it is put back may hang as well as the rung itself.
        let hangs = |error: &HostError| matches!(error, HostError::InFlight { .. });
        let (in_flight, left): (Vec<_>, Vec<_>) = done.left.into_iter().partition(hangs);
        for error in failed.into_iter().filter(hangs).chain(in_flight) {
            if let HostError::InFlight { pid, .. } = error {
                self.hanging.extend(planned.functions.iter().map(|bdf| (*bdf, pid)));
            }
            self.in_flight.push(error);
        }
        self.left.extend(left);
        text
    }

    /// Looks at a function that a rung has reached.
    fn look(
        &mut self,
        host: &Host<'_>,
        bdf: Bdf,
        sick: Option<&Snapshot>,
        log: &mut KernelLog,
        (rung, ms, failure): (Rung, u64, Option<String>),
    ) {
        let Some(baseline) = host.baselines.get(&bdf) else { return };
        let root = host.kernel.root.clone().sparing(self.hanging.clone());
        let (after, heard) = (snapshot::take(&root, bdf), log.heard(bdf));
        let judgement = judge(&rung.yardstick(baseline, sick), &after, &heard);
        self.climbed.push((bdf, Climbed { rung, ms, failure, judgement }));
        self.after.insert(bdf, (after, heard));
    }
}

/// Finishes what a repair has begun that a journal holds: what was removed is found anew and given to the driver that it was on. Whoever
/// takes over a journal calls this before it judges devices or undoes anything: a device that isn't there is no sick one.
///
/// It may be called at any time: it does nothing where there is nothing to finish.
pub fn finish(host: &Host<'_>, journal: &mut Journal, told: &mut dyn FnMut(&HostOp)) -> Vec<HostError> {
    let open = journal.open_records();
    let gone = |record: &Record| match record.op {
        HostOp::Remove { bdf, .. } => !host.kernel.root.device(bdf).exists(),
        _ => false,
    };
    let mut failures = Vec::new();
    // What is found is not to be taken by its own driver on the way, nor is a claim of before still there for sure.
    if open.iter().any(gone) && !open.iter().any(|record| record.op == HostOp::HoldAutoprobe) {
        failures.extend(apply::apply(host, journal, &HostOp::HoldAutoprobe).err());
    }
    let removed = |op: &HostOp| match op {
        HostOp::Remove { .. } => Part::Undone,
        _ => Part::Kept,
    };
    failures.extend(undo_some(host, journal, &removed, told));
    failures.extend(drop_claim(host, journal));
    failures
}

/// Lets found devices have drivers again, as far as nobody else claims that they have none.
fn drop_claim(host: &Host<'_>, journal: &mut Journal) -> Vec<HostError> {
    let claim = |op: &HostOp| match op {
        HostOp::HoldAutoprobe => Part::Undone,
        _ => Part::Kept,
    };
    undo_some(host, journal, &claim, &mut |_| {})
}
