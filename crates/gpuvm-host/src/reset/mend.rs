//! What `gpuvm reset --repair` does where resets have left something sick.

use std::cell::RefCell;
use std::collections::BTreeMap;

use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::ResetJob;
use gpuvm_core::reset::repair::{Climb, Climbed, Ladder, Wanted};
use gpuvm_core::reset::{Check, Deed, Judgement, Snapshot};

use super::run::{Event, FunctionReport, Report, Told, unopened};
use crate::error::HostError;
use crate::kernel::Kernel;
use crate::ledger;
use crate::places::Places;
use crate::process::ProcessId;
use crate::repair::book::repair_alone;
use crate::repair::{self, Repaired};
use crate::reservation::{self, Reservation};

/// Climbs the ladders of all that is sick or wasn't reset, and puts what it is after that in the place of its verdict.
pub(super) fn mend(
    (kernel, places): (&Kernel, &Places),
    job: &ResetJob,
    before: &BTreeMap<Bdf, Snapshot>,
    reservation: &mut Reservation,
    report: &mut Report,
    stop: &dyn Fn() -> bool,
    told: Told<'_>,
) {
    let sick = report.functions.iter().filter(|function| !is_well(&function.judgement));
    let sick: BTreeMap<Bdf, Snapshot> = sick.map(|function| (function.bdf, function.after.clone())).collect();
    // Whatever hangs has the locks of its bus.
    if job.ladders.is_empty() || sick.is_empty() || !reservation.in_flight.is_empty() {
        return;
    }
    let boot_id = reservation.boot_id.clone();
    let mut event = |event: repair::Event<'_>| match event {
        repair::Event::Climbing { bdf, climb, deadline } => told(Event::Repairing { bdf, climb, deadline }),
        repair::Event::Judging { .. } => told(Event::Judging),
        repair::Event::Climbed { bdf, climbed } => told(Event::Climbed { bdf, climbed }),
    };
    let of_host = (kernel, places, boot_id.as_str());
    // Resets take minutes, in which somebody may have opened a group: a rung would pull the device from under that one.
    let busy = RefCell::new(None);
    let stop = || {
        if stop() {
            return true;
        }
        *busy.borrow_mut() = unopened(kernel, reservation).err();
        busy.borrow().is_some()
    };
    let ladders = fitting(&job.ladders, report);
    let repaired = match repair_alone(of_host, before, &ladders, &sick, &stop, &mut event) {
        Ok(repaired) => repaired,
        Err(error) => {
            report.left.push(error);
            return;
        }
    };
    report.left.extend(busy.into_inner());
    report.left.extend(write_down((kernel, places), before, &sick, &repaired));
    for (bdf, before) in before {
        come_to(*bdf, before, sick.contains_key(bdf), &repaired, report);
    }
    if !repaired.in_flight.is_empty() {
        let pid = |error: &HostError| match error {
            HostError::InFlight { pid, .. } => {
                Some(ProcessId::of(*pid).unwrap_or(ProcessId { pid: *pid, start_time: 0 }))
            }
            _ => None,
        };
        reservation.in_flight.extend(repaired.in_flight.iter().filter_map(pid));
        report.left.extend(reservation::update(places, reservation).err());
    }
    report.left.extend(repaired.in_flight.into_iter().chain(repaired.left));
}

/// Leaves out of the ladders what wouldn't do for a device whose reset failed.
fn fitting(ladders: &[Ladder], report: &Report) -> Vec<Ladder> {
    let of_reset = |bdf: &Bdf| {
        let mut functions = report.functions.iter().filter(|function| function.bdf == *bdf);
        functions.any(|function| function.judgement.findings.iter().any(|of| of.check == Check::Reset))
    };
    let fits = |climb: &Climb| {
        climb.rung.stands_in_for_a_reset(Wanted::ByPerson) || !climb.functions.iter().any(of_reset)
    };
    let mut ladders = ladders.to_vec();
    ladders.iter_mut().for_each(|ladder| ladder.rungs.retain(fits));
    ladders
}

/// Tells whether a function was reset and came back well.
pub(super) fn is_well(judgement: &Judgement) -> bool {
    !judgement.verdict.is_bad() && judgement.findings.iter().all(|finding| finding.check != Check::Reset)
}

/// Writes every rung into the ledger, and returns what couldn't be written.
fn write_down(
    (kernel, places): (&Kernel, &Places),
    before: &BTreeMap<Bdf, Snapshot>,
    sick: &BTreeMap<Bdf, Snapshot>,
    repaired: &Repaired,
) -> Vec<HostError> {
    let entry = |(bdf, deed): (Bdf, Deed)| {
        let (before, (after, _)) = (before.get(&bdf)?, repaired.after.get(&bdf)?);
        // A dead card doesn't tell its serial number; one that has come back does.
        let identity = ledger::identity(before).or_else(|| ledger::identity(after))?;
        ledger::record(places, &ledger::entry(&kernel.root, identity, after, deed)).err()
    };
    repaired.deeds(sick).filter_map(entry).collect()
}

/// Puts what a function is after the repair into the report. One that was well, or wasn't looked at, is there only if it fell ill by
/// that.
fn come_to(bdf: Bdf, before: &Snapshot, was_sick: bool, repaired: &Repaired, report: &mut Report) {
    let own: Vec<Climbed> =
        repaired.climbed.iter().filter(|(of, _)| *of == bdf).map(|(_, climbed)| climbed.clone()).collect();
    let known = report.functions.iter_mut().find(|function| function.bdf == bdf);
    let (Some(last), Some((after, heard))) = (own.last(), repaired.after.get(&bdf)) else {
        if let Some(function) = known.filter(|_| was_sick) {
            function.before_repair = Some(function.judgement.clone());
        }
        return;
    };
    let fell_ill = last.judgement.verdict.is_bad();
    let judgement = last.judgement.clone();
    // A rung that failed and left nothing bad to be seen proves nothing: then the verdict before stands.
    let counts = fell_ill || (was_sick && last.helped());
    match known {
        Some(function) if was_sick || fell_ill => {
            function.before_repair = was_sick.then(|| function.judgement.clone());
            function.repair = own;
            if counts {
                (function.judgement, function.after, function.heard) =
                    (judgement, after.clone(), heard.clone());
            }
        }
        None if fell_ill => report.functions.push(FunctionReport {
            bdf,
            method: None,
            judgement,
            repair: own,
            before_repair: None,
            before: before.clone(),
            after: after.clone(),
            heard: heard.clone(),
        }),
        _ => {}
    }
}
