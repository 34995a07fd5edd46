//! A guest that reboots under `reboot = "relaunch"`: QEMU ends, the kernel resets the devices, gpuvm judges them, and the guest is
//! started again and computes on the same devices. And the other two policies beside it.

use gpuvm_core::lifecycle::{NotAgain, Outcome as End};
use gpuvm_core::reset::{Deed, Method, Verdict};
use gpuvm_host::ledger;
use gpuvm_host::places::Places;

use super::guest::GuestReport;
use super::scenarios::{CYCLE, EDU, NVME, leaving_no_trace};
use super::vm::{Ended, Vm};
use super::{Outcome, ensure};

const REBOOTING: &str = "gpuvm-guest: rebooting";

/// The guest reboots once; each boot computes on the accelerator and writes to the disk.
pub(super) fn relaunch() -> Outcome {
    leaving_no_trace(|| {
        let (entries, resets) = (ends_of(EDU)?.len(), resets_of(EDU)?);
        let ended = run("relaunch")?;
        let (first, second) = boots(&ended)?;
        computed(&first)?;
        computed(&second)?;
        for text in ["the guest has rebooted (1): starting it again", "after 1 reboot", "is healthy"] {
            ensure(ended.told.contains(text), || format!("`{text}` isn't told:\n{}", ended.told))?;
        }
        let asked = ended.told.matches("looking at the devices").count();
        ensure(asked == 2, || format!("the devices were judged {asked} times:\n{}", ended.told))?;
        ensure(ended.told.matches("preparing the host").count() == 1, || ended.told.clone())?;
        // The kernel resets devices in silence when QEMU closes them, so the accelerator's profile asks for one more of its bus, after
        // each QEMU.
        let told = ended.told.matches(&format!("resetting {EDU} by hot")).count();
        let made = resets_of(EDU)? - resets;
        ensure((told, made) == (2, 2), || {
            format!("{told} resets are told, {made} are in the ledger:\n{}", ended.told)
        })?;
        let ends = ends_of(EDU)?;
        let expected = [End::Rebooted { not_again: None }, End::PoweredOff];
        ensure(ends.get(entries..) == Some(&expected), || format!("the ledger of {EDU}: {ends:?}"))
    })?;
    leaving_no_trace(|| {
        let ended = run("stop")?;
        ensure(ended.told.contains("reboot = \"stop\""), || ended.told.clone())?;
        ensure(ended.console.matches("gpuvm_guest").count() == 1, || ended.console.clone())?;
        let ends = ends_of(EDU)?;
        let stopped = End::Rebooted { not_again: Some(NotAgain::Policy) };
        ensure(ends.last() == Some(&stopped), || format!("the ledger of {EDU}: {ends:?}"))
    })?;
    // The guest before has left its word on the disk: this one is the boot after, and the next one reboots in place.
    leaving_no_trace(|| run("in-place").map(drop))?;
    leaving_no_trace(|| {
        let ended = run("in-place")?;
        let (first, second) = boots(&ended)?;
        computed(&first)?;
        computed(&second)?;
        ensure(ended.told.contains("the guest reboots (1)"), || ended.told.clone())?;
        ensure(ended.told.matches("starting QEMU").count() == 1, || ended.told.clone())
    })
}

/// Runs the guest that reboots once, under a policy.
fn run(policy: &str) -> Result<Ended, String> {
    let reboot = format!("reboot=\"{policy}\"");
    let devices = format!("device=[{{bdf=\"{EDU}\", reset=\"hot\"}}, {{bdf=\"{NVME}\"}}]");
    let mut vm = Vm::start_with("gpuvm.factorial=12 gpuvm.reboot-once", &[&reboot, &devices])?;
    let ended = vm.ended(2 * CYCLE)?;
    ensure(ended.code == Some(0), || {
        format!("{policy}: exit code {:?}; gpuvm told:\n{}\n{}", ended.code, ended.told, ended.console)
    })?;
    Ok(ended)
}

/// Returns what the guest reported before it rebooted and after.
fn boots(ended: &Ended) -> Result<(GuestReport, GuestReport), String> {
    let (first, second) = ended
        .console
        .split_once(REBOOTING)
        .ok_or_else(|| format!("the guest didn't reboot:\n{}", ended.console))?;
    Ok((GuestReport::find(first)?, GuestReport::find(second)?))
}

fn computed(report: &GuestReport) -> Outcome {
    ensure(report.errors.is_empty(), || format!("the guest's errors: {:?}", report.errors))?;
    let edu = report.edu.as_ref().ok_or("the guest found no accelerator")?;
    let right = edu.factorial_of == 12 && edu.factorial == 479_001_600 && edu.dma.round_trip == "equal";
    ensure(right, || format!("{edu:?}"))?;
    let nvme = report.nvme.as_ref().ok_or("the guest found no disk")?;
    ensure(nvme.round_trip == "equal", || format!("{nvme:?}"))
}

/// Returns how each guest ended that had a device, oldest first, and checks that the device came back from each.
fn ends_of(bdf: &str) -> Result<Vec<End>, String> {
    let ledgers = ledger::all(&Places::default()).map_err(|error| error.to_string())?;
    let mut ends = Vec::new();
    for entry in ledgers.iter().flat_map(|ledger| &ledger.entries) {
        if let Deed::Run { outcome: Some(outcome), judgement, .. } = &entry.deed
            && entry.device.bdf.to_string() == bdf
        {
            ensure(judgement.verdict <= Verdict::Degraded, || format!("{bdf}: {judgement:?}"))?;
            ends.push(outcome.clone());
        }
    }
    Ok(ends)
}

/// Counts the resets of a device's bus in the ledger that succeeded and that it came back well from.
fn resets_of(bdf: &str) -> Result<usize, String> {
    let ledgers = ledger::all(&Places::default()).map_err(|error| error.to_string())?;
    let entries = ledgers.iter().flat_map(|ledger| &ledger.entries);
    let well = entries.filter(|entry| {
        let good = match &entry.deed {
            Deed::Reset { method: Method::Hot, failure: None, judgement, .. } => !judgement.verdict.is_bad(),
            _ => false,
        };
        good && entry.device.bdf.to_string() == bdf
    });
    Ok(well.count())
}
