//! Gives the host back after a launcher that died.

use std::time::Duration;

use gpuvm_core::profile::VmName;
use gpuvm_host::apply::Host;
use gpuvm_host::journal::{self, Journal};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use gpuvm_host::reservation::{self, Reservation};
use gpuvm_host::root::list;
use gpuvm_host::{HostError, undo};
use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;

use crate::up::close;

/// How long a QEMU without a launcher may take to flush its disks.
const TERM: Duration = Duration::from_secs(15);
/// How long a killed QEMU may take: a card off the bus holds its exit for 72 s.
const KILL: Duration = Duration::from_secs(90);

/// What became of one VM's remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cleaned {
    /// Its launcher is alive: nothing was touched.
    Running,
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
    /// What is left, in words.
    pub not_given_back: Vec<String>,
    /// The same, for those who add remedies.
    #[serde(skip)]
    pub left: Vec<HostError>,
}

/// Gives back what VMs left behind whose launcher is dead; all of them, or one.
///
/// Nothing is done twice: it may be killed at any point and run again.
///
/// # Errors
/// Returns failures to read gpuvm's own records; what could not be given back is in the reports.
pub fn cleanup(
    kernel: &Kernel,
    places: &Places,
    boot_id: &str,
    only: Option<&VmName>,
) -> Result<Vec<CleanupReport>, HostError> {
    let records = reservation::all(places, boot_id)?;
    let mut names: Vec<VmName> =
        list(&places.run().join("vm"))?.iter().filter_map(|name| VmName::new(name)).collect();
    names.extend(records.iter().map(|record| record.vm.clone()));
    names.sort();
    names.dedup();
    let mut reports = Vec::new();
    for name in names.into_iter().filter(|name| only.is_none_or(|only| only == name)) {
        let record = records.iter().find(|record| record.vm == name);
        reports.push(clean(&Host { kernel, places, boot_id, vm: &name }, record)?);
    }
    Ok(reports)
}

fn clean(host: &Host<'_>, record: Option<&Reservation>) -> Result<CleanupReport, HostError> {
    let name = host.vm.clone();
    if record.is_some_and(|record| record.supervisor.is_alive()) {
        return Ok(CleanupReport {
            name,
            result: Cleaned::Running,
            not_given_back: Vec::new(),
            left: Vec::new(),
        });
    }
    if let Some(qemu) = record.and_then(|record| record.qemu) {
        end_qemu(qemu)?;
    }
    let mut left = Vec::new();
    match Journal::reopen(&host.places.journal(&name), host.boot_id)? {
        Some(mut journal) => {
            left = undo::undo_all(host, &mut journal)?;
            if journal.open_records().is_empty() {
                close(host.places, &name, &mut journal)?;
            }
        }
        // Closed, of another boot, or never begun: only the records are left.
        None => {
            journal::remove_dir(&host.places.vm(&name))?;
            reservation::release(host.places, &name)?;
        }
    }
    let result = if left.is_empty() { Cleaned::Done } else { Cleaned::Left };
    Ok(CleanupReport { name, result, not_given_back: left.iter().map(ToString::to_string).collect(), left })
}

/// Ends a QEMU that has no launcher any more: its devices can't be given back before.
fn end_qemu(qemu: gpuvm_host::process::ProcessId) -> Result<(), HostError> {
    let path = std::path::PathBuf::from(format!("/proc/{}", qemu.pid));
    for (signal, patience) in [(Signal::SIGTERM, TERM), (Signal::SIGKILL, KILL)] {
        if !qemu.is_alive() {
            return Ok(());
        }
        // Opened while it is known to be the one that was recorded, a pidfd can't come to mean another process.
        let sent =
            pidfd_open(qemu.pid).and_then(|fd| pidfd_send_signal(std::os::fd::AsFd::as_fd(&fd), signal));
        if let Err(error) = sent
            && qemu.is_alive()
        {
            return Err(HostError::file("signal the QEMU of", &path)(error));
        }
        let begun = std::time::Instant::now();
        while qemu.is_alive() && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    match qemu.is_alive() {
        false => Ok(()),
        true => Err(HostError::File {
            doing: "end the QEMU of",
            path,
            source: std::io::Error::other(
                "it is still there after SIGKILL: the kernel has not let go of its devices",
            ),
        }),
    }
}
