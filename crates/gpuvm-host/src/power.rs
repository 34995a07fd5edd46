//! A device's power attributes in sysfs.

use gpuvm_core::host_ops::{D3cold, PowerControl, PowerPolicy, Undoing, undoing};
use gpuvm_core::pci::Bdf;

use crate::HostError;
use crate::apply::POWER_DEADLINE;
use crate::kernel::Kernel;
use crate::root::{HostRoot, read_text};

const CONTROL: &str = "power/control";
const D3COLD: &str = "d3cold_allowed";

/// Reads a device's policy; nothing for an attribute that the kernel doesn't have, or a device that is gone.
///
/// # Errors
/// Returns failures to read, and values that aren't known.
pub(crate) fn read(root: &HostRoot, bdf: Bdf) -> Result<PowerPolicy, HostError> {
    let folder = root.device(bdf);
    let value = |name: &str| Ok(read_text(&folder.join(name))?.map(|text| text.trim().to_owned()));
    let unknown = |name: &str, text: &str| HostError::content(&folder.join(name), text, "not a known value");
    let control = match value(CONTROL)?.as_deref() {
        None => None,
        Some("on") => Some(PowerControl::On),
        Some("auto") => Some(PowerControl::Auto),
        Some(other) => return Err(unknown(CONTROL, other)),
    };
    let d3cold = match value(D3COLD)?.as_deref() {
        None => None,
        Some("0") => Some(D3cold::Forbidden),
        Some("1") => Some(D3cold::Allowed),
        Some(other) => return Err(unknown(D3COLD, other)),
    };
    Ok(PowerPolicy { control, d3cold })
}

/// Writes `power/control`, and waits for a device that it wakes.
///
/// # Errors
/// Returns the kernel's refusal, or that the write goes on without us.
pub(crate) fn set_control(
    kernel: &Kernel,
    doing: &str,
    bdf: Bdf,
    control: PowerControl,
) -> Result<(), HostError> {
    let value = match control {
        PowerControl::On => "on",
        PowerControl::Auto => "auto",
    };
    kernel.write(doing, &kernel.root.device(bdf).join(CONTROL), value, POWER_DEADLINE)
}

/// Writes `d3cold_allowed`.
///
/// # Errors
/// Returns the kernel's refusal, or that the write goes on without us.
pub(crate) fn set_d3cold(kernel: &Kernel, doing: &str, bdf: Bdf, d3cold: D3cold) -> Result<(), HostError> {
    let value = match d3cold {
        D3cold::Forbidden => "0",
        D3cold::Allowed => "1",
    };
    kernel.write(doing, &kernel.root.device(bdf).join(D3COLD), value, POWER_DEADLINE)
}

/// Sets a policy, where it isn't so already. What the kernel doesn't have is left out.
///
/// # Errors
/// Returns the kernel's refusal, or that the write goes on without us.
pub(crate) fn set(kernel: &Kernel, doing: &str, bdf: Bdf, policy: PowerPolicy) -> Result<(), HostError> {
    let now = read(&kernel.root, bdf)?;
    if let (Some(wanted), Some(_)) = (policy.d3cold.filter(|_| policy.d3cold != now.d3cold), now.d3cold) {
        set_d3cold(kernel, doing, bdf, wanted)?;
    }
    match (policy.control.filter(|_| policy.control != now.control), now.control) {
        (Some(wanted), Some(_)) => set_control(kernel, doing, bdf, wanted),
        _ => Ok(()),
    }
}

/// Writes what keeps a device awake, where it isn't so already.
///
/// # Errors
/// Returns the kernel's refusal, a write that goes on without us, and a kernel that takes it and changes nothing.
pub(crate) fn stay_awake(kernel: &Kernel, doing: &str, bdf: Bdf) -> Result<(), HostError> {
    let now = read(&kernel.root, bdf)?;
    // Power first taken from D3cold, then kept: a device that wakes up comes from D3hot at worst.
    if now.d3cold == Some(D3cold::Allowed) {
        set_d3cold(kernel, doing, bdf, D3cold::Forbidden)?;
    }
    if now.control == Some(PowerControl::Auto) {
        set_control(kernel, doing, bdf, PowerControl::On)?;
    }
    let now = read(&kernel.root, bdf)?;
    if now.is_awake() {
        return Ok(());
    }
    Err(HostError::no_effect(doing, bdf, words(now)))
}

fn words(policy: PowerPolicy) -> String {
    let control = policy.control.map_or("no power/control", control_words);
    let d3cold = policy.d3cold.map_or("no d3cold_allowed", d3cold_words);
    format!("{control}, {d3cold}")
}

/// Spells `power/control` with its name.
pub(crate) fn control_words(control: PowerControl) -> &'static str {
    match control {
        PowerControl::On => "power/control on",
        PowerControl::Auto => "power/control auto",
    }
}

/// Spells `d3cold_allowed` with its name.
pub(crate) fn d3cold_words(d3cold: D3cold) -> &'static str {
    match d3cold {
        D3cold::Forbidden => "d3cold_allowed 0",
        D3cold::Allowed => "d3cold_allowed 1",
    }
}

/// What may have changed a device's `power/control` since gpuvm wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriverChange {
    /// Nothing of gpuvm's: another value is somebody else's.
    Kept,
    /// gpuvm's own changes of the driver: vfio-pci sets `auto` when it takes a device and `on` when it lets go, and other
    /// drivers have their own ideas. Another value is nobody's.
    Rebound,
}

/// Puts back what [`stay_awake`] has changed.
///
/// # Errors
/// Returns what somebody else has changed, after the rest was put back; the kernel's refusal; a write that goes on without us.
pub(crate) fn put_back(
    kernel: &Kernel,
    bdf: Bdf,
    saved: PowerPolicy,
    change: DriverChange,
) -> Result<(), HostError> {
    let doing = format!("put the power policy of {bdf} back");
    let now = read(&kernel.root, bdf)?;
    let changed = |ours: &str, now: &str| HostError::ChangedByOthers {
        doing: doing.clone(),
        what: format!("the power policy of {bdf}"),
        ours: ours.to_owned(),
        now: now.to_owned(),
    };
    let mut others = None;
    if let (Some(saved), Some(now)) = (saved.control, now.control) {
        let ours = if change == DriverChange::Rebound { now } else { PowerControl::On };
        match undoing(saved, &ours, &now) {
            Undoing::Nothing => {}
            Undoing::Restore(saved) => set_control(kernel, &doing, bdf, saved)?,
            Undoing::ChangedByOthers => others = Some(changed(control_words(ours), control_words(now))),
        }
    }
    if let (Some(saved), Some(now)) = (saved.d3cold, now.d3cold) {
        match undoing(saved, &D3cold::Forbidden, &now) {
            Undoing::Nothing => {}
            Undoing::Restore(saved) => set_d3cold(kernel, &doing, bdf, saved)?,
            Undoing::ChangedByOthers => {
                others = Some(changed(d3cold_words(D3cold::Forbidden), d3cold_words(now)));
            }
        }
    }
    others.map_or(Ok(()), Err)
}
