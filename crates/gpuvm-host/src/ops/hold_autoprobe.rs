//! Keeps the kernel from offering devices that it finds to drivers: undo drops a claim; the last one's end restores what was there.

use gpuvm_core::host_ops::{Autoprobe, AutoprobeClaims, Undoing, undoing};

use crate::apply::{Host, STORE_DEADLINE};
use crate::kernel::Kernel;
use crate::root::{HostRoot, read_text};
use crate::{HostError, claims, lock};

/// Whether devices that appear are offered to drivers.
pub(crate) const AUTOPROBE: &str = "/sys/bus/pci/drivers_autoprobe";

fn read(root: &HostRoot) -> Result<Autoprobe, HostError> {
    let path = root.path(AUTOPROBE);
    let text = read_text(&path)?.unwrap_or_default();
    match text.trim() {
        "0" => Ok(Autoprobe::Off),
        "1" => Ok(Autoprobe::On),
        other => Err(HostError::content(&path, other, "not a known value")),
    }
}

fn words(value: Autoprobe) -> String {
    format!("drivers_autoprobe {}", digit(value))
}

fn digit(value: Autoprobe) -> &'static str {
    match value {
        Autoprobe::On => "1",
        Autoprobe::Off => "0",
    }
}

fn set(kernel: &Kernel, doing: &str, value: Autoprobe) -> Result<(), HostError> {
    let path = kernel.root.path(AUTOPROBE);
    kernel.write(doing, &path, digit(value), STORE_DEADLINE)?;
    match read(&kernel.root)? {
        now if now == value => Ok(()),
        now => Err(HostError::content(&path, digit(now), "the kernel took another value, and kept this one")),
    }
}

/// Claims it, and switches it off where nobody has before.
pub(crate) fn apply(host: &Host<'_>, doing: &str) -> Result<(), HostError> {
    let _switch = lock::autoprobe(host.places)?;
    let now = read(&host.kernel.root)?;
    // Written down before it is done: after a crash, cleanup finds the claim and what to come back to.
    claims::edit(host.places, host.boot_id, |table| {
        let entry = table.autoprobe.get_or_insert_with(|| AutoprobeClaims::new(now));
        entry.adopt(now);
        entry.holders.insert(host.vm.to_string());
    })?;
    match now {
        Autoprobe::On => set(host.kernel, doing, Autoprobe::Off),
        Autoprobe::Off => Ok(()),
    }
}

/// Drops a claim; the last one restores what was there, and only then leaves the table, so that a crash in between is made good by the
/// next try.
///
/// # Errors
/// Returns that somebody else has switched it on since: then it is left so, and the claim is dropped all the same.
pub(crate) fn undo(host: &Host<'_>) -> Result<(), HostError> {
    let _switch = lock::autoprobe(host.places)?;
    let mut held = None;
    claims::edit(host.places, host.boot_id, |table| held.clone_from(&table.autoprobe))?;
    let Some(entry) = held.filter(|entry| entry.holders.contains(host.vm.as_str())) else { return Ok(()) };
    let doing = "drop the claim that devices which are found get no driver by themselves";
    let now = read(&host.kernel.root)?;
    // While others claim, it stays off. On it may be by a claim that was noted and never made.
    let stays = entry.holders.len() > 1 && now == Autoprobe::Off;
    let target = if stays { now } else { entry.baseline };
    let result = match undoing(target, &Autoprobe::Off, &now) {
        Undoing::Nothing => Ok(()),
        Undoing::Restore(target) => set(host.kernel, doing, target),
        Undoing::ChangedByOthers => Err(HostError::ChangedByOthers {
            doing: doing.to_owned(),
            what: "what the kernel does with devices that it finds".to_owned(),
            ours: words(Autoprobe::Off),
            now: words(now),
        }),
    };
    match result {
        Ok(()) | Err(HostError::ChangedByOthers { .. }) => drop_claim(host)?,
        Err(_) => {}
    }
    result
}

/// Takes a claim out of the table; where others stay, what somebody else has switched on is what they come back to.
fn drop_claim(host: &Host<'_>) -> Result<(), HostError> {
    let now = read(&host.kernel.root)?;
    claims::edit(host.places, host.boot_id, |table| {
        let Some(entry) = table.autoprobe.as_mut() else { return };
        entry.holders.remove(host.vm.as_str());
        match entry.holders.is_empty() {
            true => table.autoprobe = None,
            false => entry.adopt(now),
        }
    })
}
