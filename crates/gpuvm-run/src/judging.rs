//! Judges a run's devices against what they said of themselves before it, and writes down how each came back.
//!
//! What this needs is kept beside the journal, so that a cleanup can do it for a launcher that was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::lifecycle::Outcome;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::{
    Check, Deed, Finding, Heard, Judgement, Method, Reading, Snapshot, Step, Verdict, inspect, judge,
};
use gpuvm_host::journal::{Journal, Record};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::kernel_log::Mark;
use gpuvm_host::ledger;
use gpuvm_host::places::Places;
use gpuvm_host::reset::{Attempt, perform};
use gpuvm_host::root::{HostRoot, read_text};
use gpuvm_host::undo::Part;
use gpuvm_host::{HostError, lock, snapshot};
use serde::{Deserialize, Serialize};

use crate::report::{DeviceReport, Evidence, ResetReport};

/// The moment of the baselines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// In seconds since 1970-01-01 UTC.
    pub(crate) at: u64,
    /// Where the kernel's log was.
    pub(crate) log: Mark,
}

/// A run, as the ledger tells of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran<'a> {
    pub(crate) vm: &'a VmName,
    /// QEMU's version.
    pub(crate) qemu: Option<&'a str>,
    /// Whether there was a QEMU, which opens the devices: without one a run is none of theirs.
    pub(crate) started: bool,
    pub(crate) outcome: Option<&'a Outcome>,
    pub(crate) took: Duration,
}

/// How the devices came back.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) devices: Vec<DeviceReport>,
    /// What couldn't be done with them, or written down.
    pub(crate) failures: Vec<HostError>,
    /// Those that stay as they are: the sick ones.
    pub(crate) kept: BTreeSet<Bdf>,
}

impl Begun {
    /// Notes this moment.
    pub(crate) fn now(root: &HostRoot) -> Self {
        Self { at: ledger::now(), log: Mark::now(root) }
    }
}

impl Judged {
    /// Tells whether no device should be given to a guest again as it is.
    pub(crate) fn all_well(&self) -> bool {
        self.kept.is_empty()
    }

    /// Says of each device that is kept and still has changes to undo that it stays as it is.
    pub(crate) fn stay(&self, journal: &Journal) -> Vec<HostError> {
        let open: BTreeSet<Bdf> =
            journal.open_records().iter().filter_map(|record| record.op.bdf()).collect();
        let sick = self.devices.iter().filter(|device| open.contains(&device.bdf));
        let sick = sick.filter(|device| device.judgement.verdict.is_bad());
        sick.filter_map(|device| {
            let finding = device.judgement.reason()?.to_string();
            Some(HostError::Sick { bdf: device.bdf, verdict: device.judgement.verdict, finding })
        })
        .collect()
    }

    /// Tells whether an operation is undone: those of a device that stays as it is are not.
    pub(crate) fn part(&self, op: &HostOp) -> Part {
        if op.bdf().is_some_and(|bdf| self.kept.contains(&bdf)) { Part::Kept } else { Part::Undone }
    }

    /// Adds a device with what was found of it.
    fn add(&mut self, judgement: Judgement, evidence: Evidence, reset: Option<ResetReport>) {
        let bdf = evidence.after.bdf;
        if judgement.verdict.is_bad() {
            self.kept.insert(bdf);
        }
        let evidence = Some(Box::new(evidence));
        let (repair, before_repair) = (Vec::new(), None);
        self.devices.push(DeviceReport { bdf, judgement, reset, repair, before_repair, evidence });
    }
}

/// Judges baselines: before a run there is nothing to hold them against but what the kernel believes. Only of a sick device
/// something is written down.
pub(crate) fn before_run(
    root: &HostRoot,
    places: &Places,
    baselines: &BTreeMap<Bdf, Snapshot>,
    ran: Ran<'_>,
) -> Judged {
    let mut judged = Judged::default();
    for before in baselines.values() {
        let judgement = inspect(before);
        if judgement.verdict.is_bad() {
            judged.failures.extend(record(root, places, before, before, run(ran, &judgement)).err());
        }
        let evidence = Evidence { before: before.clone(), after: before.clone(), heard: None };
        judged.add(judgement, evidence, None);
    }
    judged
}

/// Judges devices as they are now, after the resets that were made, and writes down what was done with each.
pub(crate) fn after_run(
    root: &HostRoot,
    places: &Places,
    baselines: &BTreeMap<Bdf, Snapshot>,
    ours: &OurMethods,
    heard: &mut dyn FnMut(Bdf) -> Heard,
    resets: Resets,
    ran: Ran<'_>,
) -> Judged {
    // What hangs has the locks of all that it reaches: a look there would hang too.
    let spared = root.clone().sparing(resets.hanging);
    let mut judged = Judged { failures: resets.in_flight, ..Judged::default() };
    for (bdf, before) in baselines {
        let (after, heard) = (snapshot::take(&spared, *bdf), heard(*bdf));
        let reset = resets.done.get(bdf);
        let mut findings = judge(&expected(before, ours), &after, &heard).findings;
        findings.extend(reset.and_then(|reset| not_reset(*bdf, reset)));
        let judgement = Judgement::new(findings);
        if let Some(ResetReport { method, ms, failure }) = reset {
            let (failure, judgement) = (failure.clone(), judgement.clone());
            let deed = Deed::Reset { method: *method, ms: *ms, failure, judgement };
            judged.failures.extend(record(root, places, before, &after, deed).err());
        }
        if ran.started || judgement.verdict.is_bad() {
            judged.failures.extend(record(root, places, before, &after, run(ran, &judgement)).err());
        }
        let evidence = Evidence { before: before.clone(), after, heard: Some(heard) };
        judged.add(judgement, evidence, reset.cloned());
    }
    judged
}

/// The reset methods that gpuvm has left functions for the run.
pub(crate) type OurMethods = BTreeMap<Bdf, Vec<Method>>;

/// Finds in a journal what gpuvm has left of devices' reset methods and not put back yet.
pub(crate) fn our_methods(journal: &Journal) -> OurMethods {
    let ours = |record: Record| match record.op {
        HostOp::SetResetMethods { bdf, methods } => Some((bdf, methods)),
        _ => None,
    };
    journal.open_records().into_iter().filter_map(ours).collect()
}

/// Returns what a device should say of itself after a run: the baseline, but for what gpuvm has changed of it on purpose.
fn expected(before: &Snapshot, ours: &OurMethods) -> Snapshot {
    let mut expected = before.clone();
    if let Some(methods) = ours.get(&before.bdf) {
        expected.reset_methods =
            Reading::Read(methods.iter().map(|method| method.name().to_owned()).collect());
    }
    expected
}

/// Makes the finding on a function whose reset the plan wanted and that wasn't reset.
fn not_reset(bdf: Bdf, reset: &ResetReport) -> Option<Finding> {
    Some(Finding {
        check: Check::Reset,
        weight: Some(Verdict::Impaired),
        bdf,
        register: format!("reset by {}", reset.method),
        before: None,
        after: reset.failure.clone()?,
        meaning: "it was not reset as planned: what its guest left may be in it".to_owned(),
    })
}

fn run(ran: Ran<'_>, judgement: &Judgement) -> Deed {
    Deed::Run {
        vm: ran.vm.clone(),
        qemu: ran.qemu.map(str::to_owned),
        outcome: ran.outcome.cloned(),
        ms: u64::try_from(ran.took.as_millis()).unwrap_or(u64::MAX),
        judgement: judgement.clone(),
    }
}

/// Writes down what was done with a device. It is known by its baseline: a dead card doesn't tell its serial number.
pub(crate) fn record(
    root: &HostRoot,
    places: &Places,
    before: &Snapshot,
    after: &Snapshot,
    deed: Deed,
) -> Result<(), HostError> {
    let Some(device) = ledger::identity(before) else {
        tracing::warn!("the ledger can't tell of {}: not even the kernel knows its ids", before.bdf);
        return Ok(());
    };
    ledger::record(places, &ledger::entry(root, device, after, deed))
}

/// The resets that were made once QEMU had ended.
#[derive(Debug, Default)]
pub(crate) struct Resets {
    /// By function: a reset of a bus reaches several.
    done: BTreeMap<Bdf, ResetReport>,
    /// Those that haven't come back.
    in_flight: Vec<HostError>,
    /// The functions that those reach, with the process that waits.
    hanging: BTreeMap<Bdf, i32>,
}

/// Lists the resets that a plan wants once QEMU has ended; one that reaches several devices is made once.
pub(crate) fn planned(plan: &Plan) -> Vec<(Bdf, Step)> {
    let mut steps: Vec<(Bdf, Step)> = Vec::new();
    for device in &plan.devices {
        let Some(step) = device.reset.as_ref().and_then(|reset| reset.after_run.as_ref()) else { continue };
        let made =
            |(_, other): &(Bdf, Step)| other.method == step.method && other.functions == step.functions;
        if step.functions.len() < 2 || !steps.iter().any(made) {
            steps.push((device.bdf, step.clone()));
        }
    }
    steps
}

/// Makes resets, one after the other.
pub(crate) fn reset(kernel: &Kernel, steps: &[(Bdf, Step)], told: &mut dyn FnMut(Method, Bdf)) -> Resets {
    let mut resets = Resets::default();
    for (bdf, step) in steps {
        told(step.method, *bdf);
        let Step { method, functions, groups, .. } = step;
        let begun = std::time::Instant::now();
        let result = perform(kernel, &Attempt { bdf: *bdf, method: *method, functions, groups });
        let (ms, failure) = match result {
            Ok(done) => (done.ms, None),
            Err(error) => {
                let text = error.to_string();
                if let HostError::InFlight { pid, .. } = error {
                    resets.hanging.extend(functions.iter().chain([bdf]).map(|function| (*function, pid)));
                    resets.in_flight.push(error);
                }
                (u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), Some(text))
            }
        };
        for function in functions.iter().chain([bdf]) {
            resets.done.insert(*function, ResetReport { method: *method, ms, failure: failure.clone() });
        }
    }
    resets
}

/// How far a VM's verdicts have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// They are in, and what isn't sick is being given back.
    Judged,
    /// That is done, and whoever asked has them: a cleanup from then on is told to give back the sick ones too.
    Told,
}

/// A VM's verdicts, kept beside its journal.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    stage: Stage,
    verdicts: BTreeMap<Bdf, Judgement>,
}

/// Notes how a VM's devices were judged, so that nobody does it again when some of them are given back.
pub(crate) fn note_judged(
    places: &Places,
    vm: &VmName,
    devices: &[DeviceReport],
    stage: Stage,
) -> Result<(), HostError> {
    let verdicts = devices.iter().map(|device| (device.bdf, device.judgement.clone())).collect();
    keep(&places.judged(vm), &Noted { stage, verdicts })
}

/// Reads how a VM's devices were judged; nothing of those that weren't. The sick ones stay as they are once more if the process that
/// judged them was killed before it could tell.
pub(crate) fn noted(places: &Places, vm: &VmName) -> Result<Option<Judged>, HostError> {
    let Some(Noted { stage, verdicts }) = kept(&places.judged(vm))? else { return Ok(None) };
    if stage == Stage::Told {
        return Ok(Some(Judged::default()));
    }
    let sick = verdicts.iter().filter(|(_, judgement)| judgement.verdict.is_bad());
    let kept = sick.map(|(bdf, _)| *bdf).collect();
    let devices = verdicts
        .into_iter()
        .map(|(bdf, judgement)| {
            let (repair, before_repair) = (Vec::new(), None);
            DeviceReport { bdf, judgement, reset: None, repair, before_repair, evidence: None }
        })
        .collect();
    Ok(Some(Judged { devices, kept, ..Judged::default() }))
}

/// Writes a record as one that is whole or not there.
pub(crate) fn keep(path: &Path, what: &impl Serialize) -> Result<(), HostError> {
    let text = serde_json::to_vec_pretty(what).map_err(|error| HostError::content(path, "", error))?;
    lock::replace(path, &text)
}

/// Reads a record; nothing where it was never written.
pub(crate) fn kept<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, HostError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| HostError::content(path, &text, error))
}
