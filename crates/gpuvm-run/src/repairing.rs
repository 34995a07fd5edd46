//! Repairs what came back sick, as far as the profile allows: by the ladders that the plan decided on while the devices were well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::plan::{Plan, Topic, Warning, is_vfio_driver};
use gpuvm_core::reset::repair::{Climbed, Ladder, Rung, Wanted};
use gpuvm_core::reset::{Check, Deed, Finding, Rejected, Snapshot, Verdict};
use gpuvm_host::HostError;
use gpuvm_host::apply::Host;
use gpuvm_host::journal::Journal;
use gpuvm_host::repair::{self, Event, Repaired};
use gpuvm_host::reservation::Reservation;
use gpuvm_host::root::{HostRoot, driver_of, group_of};

use crate::judging::{Judged, record};
use crate::report::{DeviceReport, Evidence, Note, Observer, Phase};

/// What of a repair matters beyond the verdicts.
#[derive(Debug, Default)]
pub(crate) struct Mended {
    /// How long it took; nothing where no rung was tried.
    pub(crate) took: Option<Duration>,
    /// What the devices that were brought back are held against from now on: errors that they counted before count no more.
    pub(crate) baselines: BTreeMap<Bdf, Snapshot>,
    /// The groups of the functions that were found anew.
    groups: BTreeMap<Bdf, Option<GroupId>>,
}

impl Mended {
    /// Writes down the groups that the functions are in now: those that were found anew may be in others than before, each time.
    pub(crate) fn regroup(&self, root: &HostRoot, reservation: &mut Reservation) {
        let now = |bdf: &Bdf| self.groups.get(bdf).copied().unwrap_or_else(|| group_of(root, *bdf).ok());
        let now: BTreeSet<GroupId> = reservation.devices.iter().filter_map(now).collect();
        // Where none is there, nothing is known of groups.
        if !self.groups.is_empty() && !now.is_empty() {
            reservation.groups = now.into_iter().collect();
        }
    }
}

/// Repairs the devices that were judged sick, if the plan has it so, and puts what they are after it in the place of their verdicts.
pub(crate) fn repair(
    host: &Host<'_>,
    journal: &mut Journal,
    plan: &Plan,
    judged: &mut Judged,
    observer: &mut dyn Observer,
) -> Mended {
    let sick = |device: &&DeviceReport| device.judgement.verdict.is_bad();
    let found = |device: &DeviceReport| Some((device.bdf, device.evidence.as_ref()?.after.clone()));
    let sick: BTreeMap<Bdf, Snapshot> = judged.devices.iter().filter(sick).filter_map(found).collect();
    if plan.repair.is_never() || sick.is_empty() {
        return Mended::default();
    }
    let ladders = match in_the_way(host, judged) {
        Some(why) => {
            observer.note(&Note(format!("nothing is repaired: {why}")));
            Vec::new()
        }
        None => plan.ladders.iter().map(|ladder| fitting(ladder, judged)).collect(),
    };
    for Ladder { bdf, left_out, .. } in
        ladders.iter().filter(|l| l.rungs.is_empty() && sick.contains_key(&l.bdf))
    {
        let why: Vec<String> =
            left_out.iter().map(|rejected| format!("no {}: {}", rejected.method, rejected.reason)).collect();
        observer.note(&Note(format!("{bdf} can't be repaired: {}", why.join("; "))));
    }
    let begun = Instant::now();
    let mut told = |event: Event<'_>| match event {
        Event::Climbing { bdf, climb, .. } => observer.phase(&Phase::Repairing { bdf, rung: climb.rung }),
        Event::Judging { .. } => observer.phase(&Phase::Judging),
        Event::Climbed { bdf, climbed } => observer.note(&Note(format!("{bdf}: {climbed}"))),
    };
    // Every rung has a deadline, and a rung that is cut short leaves no verdict: nobody's signal stops it.
    let repaired = repair::repair(host, journal, &ladders, &sick, &|| false, &mut told);
    let took = (!repaired.climbed.is_empty()).then(|| begun.elapsed());
    judged.failures.extend(write_down(host, &sick, &repaired));
    let baselines = sick.iter().filter_map(|(bdf, sick)| {
        Some((*bdf, repaired.helped(*bdf)?.yardstick(host.baselines.get(bdf)?, Some(sick))))
    });
    let baselines = baselines.collect();
    for device in &mut judged.devices {
        let own = repaired.climbed.iter().filter(|(bdf, _)| *bdf == device.bdf);
        let own: Vec<Climbed> = own.map(|(_, climbed)| climbed.clone()).collect();
        let evidence = evidence(host, &repaired, device.bdf);
        come_to(device, own, evidence);
    }
    judged.kept = judged
        .devices
        .iter()
        .filter(|device| device.judgement.verdict.is_bad())
        .map(|device| device.bdf)
        .collect();
    let Repaired { in_flight, left, groups, .. } = repaired;
    judged.failures.extend(in_flight.into_iter().chain(left));
    Mended { took, baselines, groups }
}

/// Leaves out of a ladder what wouldn't do: a device whose planned reset failed is to be reset, and being found anew is no reset.
fn fitting(ladder: &Ladder, judged: &Judged) -> Ladder {
    let of_reset =
        |finding: &Finding| finding.check == Check::Reset && finding.weight.is_some_and(Verdict::is_bad);
    let not_reset = |bdf: &Bdf| {
        let mut devices = judged.devices.iter().filter(|device| device.bdf == *bdf);
        devices.any(|device| device.judgement.findings.iter().any(of_reset))
    };
    let mut fitting = ladder.clone();
    // One that another of its card is tried by would be taken for its own.
    let stands_in = |rung: Rung| rung.stands_in_for_a_reset(Wanted::ByProfile);
    fitting.rungs.retain(|climb| stands_in(climb.rung) || !climb.functions.iter().any(not_reset));
    if fitting.rungs.len() < ladder.rungs.len() {
        let reason = "the card was not reset as planned, and being found anew is no reset".to_owned();
        fitting.left_out.push(Rejected { method: Rung::Rescan.to_string(), reason });
    }
    fitting
}

/// Says why no device can be touched now; nothing where they can be.
fn in_the_way(host: &Host<'_>, judged: &Judged) -> Option<String> {
    let hangs = |error: &HostError| matches!(error, HostError::InFlight { .. });
    if let Some(error) = judged.failures.iter().find(|error| hangs(error)) {
        return Some(error.to_string());
    }
    // A launcher that failed, or was killed, while it took its devices has some of them, and the others are their drivers'.
    let ours = |bdf: &Bdf| match driver_of(&host.kernel.root, *bdf) {
        Ok(Some(driver)) => is_vfio_driver(&driver),
        // One that has vanished is on no driver, and a scan may find it.
        Ok(None) => !host.kernel.root.device(*bdf).exists(),
        Err(_) => false,
    };
    let foreign = host.baselines.keys().find(|bdf| !ours(bdf));
    foreign.map(|bdf| format!("{bdf} is on no VFIO driver"))
}

/// Writes down every rung that was tried, and returns what couldn't be written.
fn write_down(host: &Host<'_>, sick: &BTreeMap<Bdf, Snapshot>, repaired: &Repaired) -> Vec<HostError> {
    let entry = |(bdf, deed): (Bdf, Deed)| {
        let (before, (after, _)) = (host.baselines.get(&bdf)?, repaired.after.get(&bdf)?);
        record(&host.kernel.root, host.places, before, after, deed).err()
    };
    repaired.deeds(sick).filter_map(entry).collect()
}

fn evidence(host: &Host<'_>, repaired: &Repaired, bdf: Bdf) -> Option<Box<Evidence>> {
    let (before, (after, heard)) = (host.baselines.get(&bdf)?, repaired.after.get(&bdf)?);
    Some(Box::new(Evidence { before: before.clone(), after: after.clone(), heard: Some(heard.clone()) }))
}

/// Puts what a device is after its repair in the place of what it was before. One that was well has it only if it fell ill by that.
fn come_to(device: &mut DeviceReport, own: Vec<Climbed>, evidence: Option<Box<Evidence>>) {
    let was_sick = device.judgement.verdict.is_bad();
    let last = own.last().filter(|last| last.judgement.verdict.is_bad() || (was_sick && last.helped()));
    let now = last.map(|last| last.judgement.clone());
    if was_sick {
        device.before_repair = Some(device.judgement.clone());
    }
    // A rung that failed and left nothing bad to be seen proves nothing: then the verdict before stands.
    if let Some(now) = now {
        device.judgement = now;
        device.evidence = evidence;
    }
    if was_sick || device.judgement.verdict.is_bad() {
        device.repair = own;
    }
}

/// Keeps of each device that wasn't healthy between two boots how it was when it was worst: one of each, however often a guest reboots.
pub(crate) fn keep_worst(worst: &mut BTreeMap<Bdf, DeviceReport>, devices: Vec<DeviceReport>) {
    let weight = |device: &DeviceReport| (device.before_repair.is_some(), device.judgement.verdict);
    let healthy = (false, Verdict::Healthy);
    for device in devices {
        if weight(&device) > worst.get(&device.bdf).map_or(healthy, weight) {
            worst.insert(device.bdf, device);
        }
    }
}

/// Tells of a device that was repaired between two boots: how it comes back from the last one is in the report itself.
pub(crate) fn between_boots(device: &DeviceReport) -> Option<Warning> {
    let (before, climbed) = (device.before_repair.as_ref()?, device.repaired_by()?);
    let (bdf, rung) = (device.bdf, climbed.rung);
    let message = format!("between two boots {bdf} came back {}, and was repaired by {rung}", before.verdict);
    Some(Warning { about: Topic::Reset, message })
}
