//! Keeps a port awake for the VMs below it: undo drops a VM's claim; the last claim's end restores the port's policy.

use gpuvm_core::host_ops::{AwakeClaims, PowerPolicy};
use gpuvm_core::pci::Bdf;

use crate::HostError;
use crate::apply::Host;
use crate::power::{self, DriverChange};
use crate::{claims, lock};

/// Claims that a port stays awake, and wakes it where nobody has before.
pub(crate) fn apply(host: &Host<'_>, doing: &str, port: Bdf) -> Result<(), HostError> {
    let _port = lock::port(host.places, port)?;
    let now = power::read(&host.kernel.root, port)?;
    // Written down before it is done: after a crash, cleanup finds the claim and what to come back to.
    claims::edit(host.places, host.boot_id, |table| {
        let entry = table.awake.entry(port).or_insert_with(|| AwakeClaims::new(now));
        entry.adopt(now);
        entry.vms.insert(host.vm.to_string());
    })?;
    power::stay_awake(host.kernel, doing, port)
}

/// Drops a claim; the last one restores the port's policy, and only then leaves the table, so that a crash in between is made
/// good by the next try.
///
/// # Errors
/// Returns what somebody else has changed since: then it is left as it is, and the claim is dropped all the same.
pub(crate) fn undo(host: &Host<'_>, port: Bdf) -> Result<(), HostError> {
    let _port = lock::port(host.places, port)?;
    let mut held = None;
    claims::edit(host.places, host.boot_id, |table| held = table.awake.get(&port).cloned())?;
    let Some(entry) = held.filter(|entry| entry.vms.contains(host.vm.as_str())) else { return Ok(()) };
    let result = if entry.vms.len() > 1 {
        still_awake(host, port, entry.baseline)
    } else {
        power::put_back(host.kernel, port, entry.baseline, DriverChange::Kept)
    };
    match result {
        Ok(()) | Err(HostError::ChangedByOthers { .. }) => drop_claim(host, port)?,
        Err(_) => {}
    }
    result
}

/// Looks whether a port that others still claim is as gpuvm left it; `baseline` is what it was.
fn still_awake(host: &Host<'_>, port: Bdf, baseline: PowerPolicy) -> Result<(), HostError> {
    let now = power::read(&host.kernel.root, port)?;
    // A port that was asleep and is again may be one whose claim was noted and never made.
    if now.is_awake() || now == baseline {
        return Ok(());
    }
    Err(HostError::ChangedByOthers {
        doing: format!("drop the claim on port {port}"),
        what: format!("the power policy of {port}"),
        ours: "awake".to_owned(),
        now: "one that lets it sleep".to_owned(),
    })
}

/// Takes a VM's claim out of the table; where others stay, a policy that somebody else has set is what they come back to.
fn drop_claim(host: &Host<'_>, port: Bdf) -> Result<(), HostError> {
    let now = power::read(&host.kernel.root, port)?;
    claims::edit(host.places, host.boot_id, |table| {
        let Some(entry) = table.awake.get_mut(&port) else { return };
        entry.vms.remove(host.vm.as_str());
        match entry.vms.is_empty() {
            true => drop(table.awake.remove(&port)),
            false => entry.adopt(now),
        }
    })
}
