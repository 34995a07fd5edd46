//! Gives the host back: undoes what the journal holds, last first, and only what is still as gpuvm left it.

use std::collections::BTreeSet;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::reset::{Verdict, judge};

use crate::apply::{self, Host};
use crate::journal::{Journal, OpState, Record};
use crate::process::ProcessId;
use crate::{HostError, claims, config, root};

/// Undoes everything a journal holds, and returns what could not be undone.
///
/// Each device's operations are tried whatever became of the other devices', and up to its first that fails: what comes
/// before it in the journal rests on it, and a device that doesn't answer or hangs is not to be touched further. An
/// operation may have been made or not, since a crash can come between the note and the deed: undoing looks at the host.
///
/// A journal that can't be written, on a full disk for example, stops nothing: giving back comes first.
pub fn undo_all(host: &Host<'_>, journal: &mut Journal) -> Vec<HostError> {
    let mut failures = Vec::new();
    let mut blocked = BTreeSet::new();
    for record in journal.open_records() {
        if record.op.bdf().is_some_and(|bdf| blocked.contains(&bdf)) {
            continue;
        }
        match undo(host, &record) {
            Ok(()) => failures.extend(journal.mark(record.seq, OpState::Undone).err()),
            // Reported once, and never overwritten: there is nothing left for us to give back.
            Err(error @ HostError::ChangedByOthers { .. }) => {
                failures.extend(journal.mark(record.seq, OpState::Undone).err());
                failures.push(error);
            }
            Err(error) => {
                failures.extend(journal.mark(record.seq, stuck(&error)).err());
                blocked.extend(record.op.bdf());
                failures.push(error);
            }
        }
    }
    failures
}

fn stuck(error: &HostError) -> OpState {
    match error {
        HostError::InFlight { pid, .. } => {
            OpState::InFlight { child: ProcessId::of(*pid).unwrap_or(ProcessId { pid: *pid, start_time: 0 }) }
        }
        error => OpState::Stuck { message: error.to_string() },
    }
}

fn undo(host: &Host<'_>, record: &Record) -> Result<(), HostError> {
    if let OpState::InFlight { child } = &record.state
        && child.is_alive()
    {
        return Err(still_in_flight(host, record, *child));
    }
    match &record.op {
        HostOp::ClaimHugepages { node, page, pages } => {
            claims::drop_claim(host.kernel, host.places, host.boot_id, &host.claim(*node, *page, *pages))
        }
        HostOp::Bind { bdf, driver } => undo_bind(host, *bdf, driver),
        HostOp::SetDriverOverride { bdf, driver } => undo_override(host, *bdf, driver, record.saved.as_ref()),
        HostOp::Unbind { bdf, driver } => undo_unbind(host, *bdf, driver),
    }
}

fn still_in_flight(host: &Host<'_>, record: &Record, child: ProcessId) -> HostError {
    HostError::InFlight {
        doing: record.op.to_string(),
        path: record.op.bdf().map(|bdf| host.kernel.root.device(bdf)).unwrap_or_default(),
        value: String::new(),
        seconds: 0,
        pid: child.pid,
        state: crate::process::describe(child.pid),
    }
}

fn undo_bind(host: &Host<'_>, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    let doing = format!("unbind {bdf} from {driver}");
    match root::driver_of(&host.kernel.root, bdf)? {
        None => Ok(()),
        Some(now) if now == *driver => {
            answers(host, bdf)?;
            apply::unbind(host.kernel, &doing, bdf, driver)
        }
        Some(now) => Err(changed(doing, format!("the driver of {bdf}"), driver, Some(now))),
    }
}

/// A device that has fallen off the bus hangs or crashes the next driver that touches it.
fn answers(host: &Host<'_>, bdf: Bdf) -> Result<(), HostError> {
    let now = config::snapshot(&host.kernel.root, bdf).map_err(|error| error.to_string());
    // Without a baseline the device is held against itself, which still finds all ones and a reset that doesn't end.
    let before = match (host.baselines.get(&bdf), &now) {
        (Some(before), _) => *before,
        (None, Ok(now)) => *now,
        (None, Err(finding)) => return Err(HostError::NotAnswering { bdf, finding: finding.clone() }),
    };
    match judge(&before, now) {
        Verdict::Alive => Ok(()),
        Verdict::Sick { findings } => {
            let finding = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(HostError::NotAnswering { bdf, finding })
        }
    }
}

fn undo_override(
    host: &Host<'_>,
    bdf: Bdf,
    ours: &DriverName,
    saved: Option<&DriverName>,
) -> Result<(), HostError> {
    let doing = match saved {
        Some(saved) => format!("set driver_override of {bdf} back to {saved}"),
        None => format!("clear driver_override of {bdf}"),
    };
    match root::override_of(&host.kernel.root, bdf)? {
        now if now.as_ref() == saved => Ok(()),
        Some(now) if now == *ours => apply::set_override(host.kernel, &doing, bdf, saved),
        now => Err(changed(doing, format!("driver_override of {bdf}"), ours, now)),
    }
}

fn undo_unbind(host: &Host<'_>, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    let doing = format!("bind {bdf} to {driver}");
    match root::driver_of(&host.kernel.root, bdf)? {
        Some(now) if now == *driver => Ok(()),
        Some(now) => Err(changed(doing, format!("the driver of {bdf}"), driver, Some(now))),
        None if !host.kernel.root.driver(driver).exists() => {
            Err(HostError::DriverGone { bdf, driver: driver.clone() })
        }
        None => apply::bind(host.kernel, &doing, bdf, driver),
    }
}

fn changed(doing: String, what: String, ours: &DriverName, now: Option<DriverName>) -> HostError {
    let now = now.map_or_else(|| "empty".to_owned(), |now| now.to_string());
    HostError::ChangedByOthers { doing, what, ours: ours.to_string(), now }
}
