//! The repair ladder on the kernel's own terms: cards that come back sick, and the rung that brings each of them back.

use std::fs;
use std::path::Path;

use gpuvm_core::reset::Deed;
use gpuvm_core::reset::repair::Rung;
use gpuvm_host::ledger;
use gpuvm_host::places::Places;
use nix::sys::signal::Signal;

use super::faults::{Illness, LINGERING, SHORT, is_gone, names, qemu, quarantined, start_with, told};
use super::scenarios::{CYCLE, EDU, NVME, driver_of, leaving_no_trace};
use super::sick::{attribute, capability, get, read_config, wait_until, write_config};
use super::vm::{Ended, Vm};
use super::{Outcome, doing, ensure};

const BAR_0: u64 = 0x10;
const POWER: u8 = 0x01;
const PMCSR: u64 = 4;
const D3HOT: u8 = 3;
const WORDS: &str = "gpuvm.factorial=12 gpuvm.linger=300";

/// Two cards fall ill when their QEMU is gone, in ways that are mended by different rungs; then one that nobody may repair, by hand.
pub(super) fn repair() -> Outcome {
    // A BAR 0 that the kernel has saved after it was lost is given back by no reset: it is placed anew when the card is found anew.
    leaving_no_trace(|| {
        let group = group_of(EDU)?;
        let place = get(EDU, "resource")?;
        let mut vm = start_with(WORDS, &[EDU, NVME], &["repair=\"rescan\""])?;
        let ended = falls_ill(&mut vm, || loses_its_address(EDU).and_then(|()| sleeps_unnoticed(NVME)))?;
        ensure(ended.code == Some(0), || format!("exit code {:?}:\n{}", ended.code, ended.told))?;
        names(
            &ended.told,
            &[
                &format!("{EDU} came back impaired"),
                &format!("{NVME} came back impaired"),
                "it was repaired by rescan",
                "it was repaired by hot",
                "the host is as it was",
            ],
        )?;
        tried(EDU, &Rung::ALL)?;
        tried(NVME, &[Rung::Hot])?;
        quarantined(None)?;
        // The kernel needn't give it the group and the place that it had, and this one does.
        ensure(group_of(EDU)? == group && get(EDU, "resource")? == place, || {
            format!("{EDU} is elsewhere now: group {:?}, {:?}", group_of(EDU), get(EDU, "resource"))
        })
    })?;
    leaving_no_trace(|| {
        let ill = Illness { bdf: EDU, verdict: "impaired", finding: "BAR 0" };
        let mut vm = start_with(WORDS, &[EDU, NVME], &[])?;
        // It computes on what was found anew, and writes to what was asleep.
        let report = vm.reported(CYCLE)?;
        ensure(report.errors.is_empty(), || format!("the guest's errors: {:?}", report.errors))?;
        let edu = report.edu.as_ref().ok_or("the guest found no accelerator")?;
        ensure(edu.factorial == 479_001_600 && edu.dma.round_trip == "equal", || format!("{edu:?}"))?;
        let nvme = report.nvme.as_ref().ok_or("the guest found no disk")?;
        ensure(nvme.round_trip == "equal", || format!("{nvme:?}"))?;
        let ended = falls_ill(&mut vm, || loses_its_address(EDU))?;
        ensure(ended.code == Some(74), || format!("exit code {:?}:\n{}", ended.code, ended.told))?;
        ensure(!ended.told.contains("trying to repair"), || ended.told.clone())?;
        names(&ended.told, &[&format!("gpuvm reset --repair rescan {EDU}")])?;
        quarantined(Some(ill))?;
        by_hand(ill)
    })
}

/// The way out of quarantine for what the profile let nobody repair: its VM is gone, and its journal holds it.
fn by_hand(ill: Illness) -> Outcome {
    let would = told(&["reset", "--dry-run", "--repair", "rescan", EDU], 0)?;
    names(&would, &["what is sick after that would be repaired", "1. hot", "2. subordinate", "3. rescan"])?;
    let not_enough = told(&["reset", "--repair", "subordinate", EDU], 74)?;
    names(&not_enough, &["no rung of the ladder has helped", "suspend the host", "switch the host off"])?;
    ensure(!not_enough.contains("repair by rescan"), || not_enough.clone())?;
    quarantined(Some(ill))?;
    ensure(driver_of(EDU).as_deref() == Some("vfio-pci"), || format!("{EDU}: {:?}", driver_of(EDU)))?;
    let repaired = told(&["reset", "--repair", "rescan", EDU], 0)?;
    names(&repaired, &["repaired by rescan, and out of quarantine"])?;
    quarantined(None)?;
    ensure(driver_of(EDU).as_deref() == Some("vfio-pci"), || format!("{EDU}: {:?}", driver_of(EDU)))?;
    told(&["cleanup"], 0)?;
    ensure(driver_of(EDU).is_none(), || format!("{EDU}: {:?}", driver_of(EDU)))
}

/// Ends a guest, and does something to its cards when QEMU is gone and nobody has looked yet.
fn falls_ill(vm: &mut Vm, fault: impl FnOnce() -> Outcome) -> Result<Ended, String> {
    vm.printed(LINGERING, CYCLE)?;
    let qemu = qemu(SHORT)?;
    vm.signal(Signal::SIGTERM)?;
    vm.printed("gpuvm-guest: power button", CYCLE)?;
    vm.signal(Signal::SIGSTOP)?;
    let done = wait_until("QEMU is gone", SHORT, || is_gone(qemu)).and_then(|()| fault());
    vm.signal(Signal::SIGCONT)?;
    done?;
    vm.ended(CYCLE)
}

/// The kernel doesn't know, and no reset brings it back: each one restores what it has saved right before.
fn loses_its_address(bdf: &str) -> Outcome {
    write_config(bdf, BAR_0, &[0; 4])
}

/// It goes to D3hot behind the kernel's back, which takes it for awake: only a reset of its bus wakes it.
fn sleeps_unnoticed(bdf: &str) -> Outcome {
    let register = capability(bdf, POWER)? + PMCSR;
    let [state] = read_config::<1>(bdf, register)?;
    write_config(bdf, register, &[state | D3HOT])
}

/// Checks which rungs of a device are in the ledger, and that the last of them has helped.
fn tried(bdf: &str, expected: &[Rung]) -> Outcome {
    let ledgers = ledger::all(&Places::default()).map_err(|error| error.to_string())?;
    let entries = ledgers.iter().flat_map(|ledger| &ledger.entries);
    let climbed: Vec<(Rung, bool)> = entries
        .filter(|entry| entry.device.bdf.to_string() == bdf)
        .filter_map(|entry| match &entry.deed {
            Deed::Repair { climbed, .. } => Some((climbed.rung, climbed.helped())),
            _ => None,
        })
        .collect();
    let last = expected.len().saturating_sub(1);
    let right: Vec<(Rung, bool)> =
        expected.iter().enumerate().map(|(at, rung)| (*rung, at == last)).collect();
    ensure(climbed == right, || format!("the ledger of {bdf}: {climbed:?}, expected {right:?}"))
}

fn group_of(bdf: &str) -> Result<String, String> {
    let path = attribute(bdf, "iommu_group");
    let link = fs::read_link(Path::new(&path)).map_err(doing(&path))?;
    Ok(link.file_name().unwrap_or_default().to_string_lossy().into_owned())
}
