//! Gives the host back after a launcher that died.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Plan;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::{Snapshot, wait};
use gpuvm_host::apply::Host;
use gpuvm_host::claims::{self, Stale};
use gpuvm_host::journal::{self, Journal};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::kernel_log::{Mark, Since};
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Guest, Reservation};
use gpuvm_host::root::list;
use gpuvm_host::{HostError, bound, ledger, orphans, repair, undo};
use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::judging::{self, Begun, Judged, Ran, Resets, Stage, kept};
use crate::repairing;
use crate::report::{DeviceReport, Note, Observer, Phase};
use crate::up::close;

/// How long a QEMU without a launcher may take to flush its disks.
const TERM: Duration = Duration::from_secs(15);
/// How long a killed QEMU may take, besides the resets of devices that don't answer.
const KILL: Duration = Duration::from_secs(60);

/// What became of one VM's remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cleaned {
    /// Its launcher, or another cleanup, is alive: nothing was touched.
    Running,
    /// Its guest runs on without a launcher, as a detached one may: nothing was touched.
    Unsupervised,
    /// Everything is given back.
    Done,
    /// Something could not be given back.
    Left,
}

/// What became of a VM's remains, with what is left.
#[derive(Debug, Serialize)]
pub struct CleanupReport {
    /// The VM.
    pub name: VmName,
    /// What became of them.
    pub result: Cleaned,
    /// What was removed of a run before a reboot, in words.
    pub cleared: Vec<String>,
    /// How each device came back, of a run that nobody had judged.
    pub devices: Vec<DeviceReport>,
    /// What is left, in words.
    pub not_given_back: Vec<String>,
    /// The same, for those who add remedies.
    #[serde(skip)]
    pub left: Vec<HostError>,
}

/// What giving one VM's remains back has come to so far.
#[derive(Debug, Default)]
struct Progress {
    cleared: Vec<String>,
    devices: Vec<DeviceReport>,
    left: Vec<HostError>,
}

/// Gives back what VMs left behind whose launcher is dead; all of them, or one.
///
/// Nothing is done twice: it may be killed at any point and run again. One VM's failure stops no other's. Of a run before a
/// reboot, only gpuvm's own files are removed: the kernel that it had changed is gone.
///
/// # Errors
/// Returns failures to read gpuvm's own records; what could not be given back is in the reports.
pub fn cleanup(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    only: Option<&VmName>,
    observer: &mut dyn Observer,
) -> Result<Vec<CleanupReport>, HostError> {
    // What a repair of somebody else's has removed of a dead VM's devices is no sick device of it.
    let mut told = |step: bound::Step<'_>| {
        if let bound::Step::Undo(op) = step {
            observer.phase(&Phase::Undoing { what: op.to_string() });
        }
    };
    for report in bound::finish_repairs(kernel, places, boot_id, &mut told)? {
        // Those are told of once more by whoever cleans up after binds.
        report.left.iter().for_each(|error| observer.note(&Note(error.to_string())));
    }
    let mut names: Vec<VmName> =
        list(&places.run().join("vm"))?.iter().filter_map(|name| VmName::new(name)).collect();
    names.extend(reservation::names(places)?);
    names.extend(undo::with_overlays(places)?);
    names.sort();
    names.dedup();
    let wanted = names.into_iter().filter(|name| only.is_none_or(|only| only == name));
    let reports =
        wanted.map(|name| clean(kernel, places, boot_id, (name, Guest::Spared), observer)).collect();
    if claims::clear_stale(places, boot_id)? == Stale::Removed {
        observer.note(&Note("removed the claims on shared resources of before the reboot".to_owned()));
    }
    Ok(reports)
}

/// Ends the guest of a VM that has no supervisor, if there is one, and gives back what the VM has.
pub fn end_unsupervised(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    name: &VmName,
    observer: &mut dyn Observer,
) -> CleanupReport {
    clean(kernel, places, boot_id, (name.clone(), Guest::Ended), observer)
}

fn clean(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    (name, guest): (VmName, Guest),
    observer: &mut dyn Observer,
) -> CleanupReport {
    let mut progress = Progress::default();
    let result = match reservation::take_over(places, boot_id, &name, guest) {
        Err(HostError::AlreadyUp { .. }) => Cleaned::Running,
        Err(error @ HostError::Unsupervised { .. }) => {
            progress.left.push(error);
            Cleaned::Unsupervised
        }
        Err(error) => {
            progress.left.push(error);
            Cleaned::Left
        }
        Ok(record) => {
            observer.phase(&Phase::TakingOver { vm: name.clone() });
            let done = give_back(kernel, places, boot_id, &record, &mut progress, observer);
            progress.left.extend(done.err());
            if progress.left.is_empty() { Cleaned::Done } else { Cleaned::Left }
        }
    };
    let not_given_back = progress.left.iter().map(ToString::to_string).collect();
    let Progress { cleared, devices, left } = progress;
    CleanupReport { name, result, cleared, devices, not_given_back, left }
}

/// Ends the QEMU of a VM that was taken over, and undoes its journal.
fn give_back(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    record: &Reservation,
    progress: &mut Progress,
    observer: &mut dyn Observer,
) -> Result<(), HostError> {
    let vm = &record.vm;
    if let Some(qemu) = record.qemu {
        if qemu.is_alive() {
            observer.phase(&Phase::EndingQemu { pid: qemu.pid });
        }
        end_qemu(qemu, KILL + wait::at_exit(record.devices.len()))?;
    }
    let Some(mut journal) = Journal::reopen(&places.journal(vm), boot_id)? else {
        // Closed, of another boot, or never begun: only files are left.
        let (cleared, left) = undo::clear_stale(places, vm, boot_id)?;
        progress.cleared.extend(cleared);
        if !left.is_empty() {
            progress.left.extend(left);
            return Ok(());
        }
        observer.phase(&Phase::Releasing);
        journal::remove_dir(&places.vm(vm))?;
        return reservation::release(places, vm);
    };
    // A launcher that was killed right after it had started QEMU had no time to record it.
    for group in &record.groups {
        if let Some(holder) = gpuvm_host::vfio::group_holder(&kernel.root, *group)? {
            return Err(HostError::GroupBusy { group: *group, holder });
        }
    }
    orphans::check(&kernel.root, &journal.open_records())?;
    // What the devices said of themselves before; nothing where the launcher died before it had asked them.
    let baselines: BTreeMap<Bdf, Snapshot> = kept(&places.baselines(vm))?.unwrap_or_default();
    let host = Host { kernel, places, boot_id, vm, baselines: &baselines };
    // A launcher that died during a repair has left devices that aren't there: those are no sick ones.
    let mut told = |op: &HostOp| observer.phase(&Phase::Undoing { what: op.to_string() });
    progress.left.extend(repair::finish(&host, &mut journal, &mut told));
    // Whatever hangs has locks that a look at the devices would wait for; and what it keeps away is no sick device.
    if progress.left.iter().any(hangs) {
        return Ok(());
    }
    let judged = judge(&host, record, &mut journal, observer)?;
    let mut told = |op: &HostOp| observer.phase(&Phase::Undoing { what: op.to_string() });
    progress.left.extend(undo::undo_some(&host, &mut journal, &|op| judged.part(op), &mut told));
    progress.left.extend(judged.stay(&journal));
    progress.left.extend(judged.failures);
    if !judged.devices.is_empty() && !journal.open_records().is_empty() {
        progress.left.extend(judging::note_judged(places, vm, &judged.devices, Stage::Told).err());
    }
    progress.devices = judged.devices;
    if journal.open_records().is_empty() {
        observer.phase(&Phase::Releasing);
        progress.left.extend(close(places, vm, &mut journal).err());
    }
    Ok(())
}

/// Judges the devices of a run whose launcher was killed before it could: once, since whoever cleans up again was told the verdict.
fn judge(
    host: &Host<'_>,
    record: &Reservation,
    journal: &mut Journal,
    observer: &mut dyn Observer,
) -> Result<Judged, HostError> {
    let Host { kernel, places, baselines, .. } = *host;
    let vm = &record.vm;
    if baselines.is_empty() {
        return Ok(Judged::default());
    }
    if let Some(judged) = judging::noted(places, vm)? {
        return Ok(judged);
    }
    observer.phase(&Phase::Judging);
    let unknown = || Begun { at: ledger::now(), log: Mark::Unread("nobody noted where it was".to_owned()) };
    let begun: Begun = kept(&places.begun(vm))?.unwrap_or_else(unknown);
    let since = Since::read(&kernel.root, &begun.log);
    let took = Duration::from_secs(ledger::now().saturating_sub(begun.at));
    let ran = Ran { vm, qemu: None, started: record.qemu.is_some(), outcome: None, took };
    let (root, ours, heard) = (&kernel.root, judging::our_methods(journal), &mut |bdf| since.of(bdf));
    let mut judged = judging::after_run(root, places, baselines, &ours, heard, Resets::default(), ran);
    repair(host, record, journal, &mut judged, observer)?;
    // A full disk stops nothing: giving back comes first.
    judged.failures.extend(judging::note_judged(places, vm, &judged.devices, Stage::Judged).err());
    Ok(judged)
}

/// Repairs what was judged sick, as far as the plan has it so that was kept with the run.
fn repair(
    host: &Host<'_>,
    record: &Reservation,
    journal: &mut Journal,
    judged: &mut Judged,
    observer: &mut dyn Observer,
) -> Result<(), HostError> {
    #[derive(Deserialize)]
    struct Kept {
        plan: Plan,
    }
    let plan = match kept(&host.places.vm(&record.vm).join("run.json")) {
        Ok(Some(Kept { plan })) => plan,
        Ok(None) => return Ok(()),
        // Another gpuvm's, perhaps: the host is given back all the same.
        Err(error) => {
            observer
                .note(&Note(format!("nothing is repaired: what the profile allows isn't known: {error}")));
            return Ok(());
        }
    };
    let expected = judging::expected(host.baselines, &judging::our_methods(journal));
    let host = &Host { baselines: &expected, ..*host };
    repairing::repair(host, journal, &plan, judged, observer);
    let hanging = judged.failures.iter().filter_map(|error| match error {
        HostError::InFlight { pid, .. } => ProcessId::of(*pid),
        _ => None,
    });
    let mut record = record.clone();
    let known = record.in_flight.len();
    record.in_flight.extend(hanging);
    match record.in_flight.len() == known {
        true => Ok(()),
        false => reservation::update(host.places, &record),
    }
}

fn hangs(error: &HostError) -> bool {
    matches!(error, HostError::InFlight { .. })
}

/// Ends a QEMU that has no launcher any more: its devices can't be given back before.
fn end_qemu(qemu: ProcessId, kill: Duration) -> Result<(), HostError> {
    let path = Path::new("/proc").join(qemu.pid.to_string());
    for (signal, patience) in [(Signal::SIGTERM, TERM), (Signal::SIGKILL, kill)] {
        // The pidfd first, then the look whether it is the recorded one: it can't come to mean another process after that.
        let pidfd = pidfd_open(qemu.pid);
        if !qemu.is_alive() {
            return Ok(());
        }
        let sent = pidfd.and_then(|fd| pidfd_send_signal(fd.as_fd(), signal));
        if let Err(error) = sent
            && qemu.is_alive()
        {
            return Err(HostError::file("signal the QEMU of", &path)(error));
        }
        let begun = Instant::now();
        while qemu.is_alive() && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    match qemu.is_alive() {
        false => Ok(()),
        true => Err(HostError::QemuStuck {
            pid: qemu.pid,
            minutes: kill.as_secs() / 60,
            state: gpuvm_host::process::describe_threads(qemu.pid),
        }),
    }
}
