//! Sets `driver_override`; undo puts the former one back.

use std::time::Duration;

use gpuvm_core::host_ops::{Undoing, undoing};
use gpuvm_core::pci::{Bdf, DriverName};

use super::changed;
use crate::HostError;
use crate::apply::{Host, STORE_DEADLINE};
use crate::kernel::Kernel;
use crate::root;

/// Sets or clears `driver_override`. Clearing takes a newline: an empty write changes nothing.
pub(crate) fn apply(
    kernel: &Kernel,
    doing: &str,
    bdf: Bdf,
    driver: Option<&DriverName>,
) -> Result<(), HostError> {
    set(kernel, doing, bdf, driver, STORE_DEADLINE)
}

/// Sets or clears it, and waits so long for whoever has the device's lock.
pub(super) fn set(
    kernel: &Kernel,
    doing: &str,
    bdf: Bdf,
    driver: Option<&DriverName>,
    deadline: Duration,
) -> Result<(), HostError> {
    let path = kernel.root.device(bdf).join("driver_override");
    let value = driver.map_or("\n", DriverName::as_str);
    kernel.write(doing, &path, value, deadline)?;
    match root::override_of(&kernel.root, bdf)? {
        now if now.as_ref() == driver => Ok(()),
        now => {
            let now = now.map_or_else(|| "no override".to_owned(), |now| format!("override {now}"));
            Err(HostError::no_effect(doing, bdf, now))
        }
    }
}

/// Puts back what was there before, unless somebody else has set it since.
pub(crate) fn undo(
    host: &Host<'_>,
    bdf: Bdf,
    ours: &DriverName,
    saved: Option<&DriverName>,
) -> Result<(), HostError> {
    let doing = match saved {
        Some(saved) => format!("set driver_override of {bdf} back to {saved}"),
        None => format!("clear driver_override of {bdf}"),
    };
    let now = root::override_of(&host.kernel.root, bdf)?;
    match undoing(saved, &Some(ours), &now.as_ref()) {
        Undoing::Nothing => Ok(()),
        Undoing::Restore(saved) => apply(host.kernel, &doing, bdf, saved),
        Undoing::ChangedByOthers => {
            Err(changed(doing, format!("driver_override of {bdf}"), ours.as_str(), now))
        }
    }
}
