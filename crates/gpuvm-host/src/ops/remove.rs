//! Removes a device from the kernel; undo has its bus scanned anew and makes the device what it was.
//!
//! The kernel keeps nothing of a device that it removes: not its driver, nor `driver_override`, its power policy or its list of reset
//! methods. All of that is written down before, so that what a repair leaves, whole or cut short, is what was there when it began.

use std::path::PathBuf;
use std::time::Duration;

use gpuvm_core::pci::{Bdf, Bus};

use super::{bind, changed, driver_override, reset_methods};
use crate::HostError;
use crate::apply::Host;
use crate::journal::Removed;
use crate::kernel::Kernel;
use crate::kernel_log::{About, listening};
use crate::power;
use crate::root::{self, HostRoot};

/// How long removing a device may take: its driver lets go of it, as in an unbind. One that a process has open takes for ever.
pub(crate) const REMOVE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a scan may take: the kernel waits a minute for a function that is still in reset (pci_bus_wait_rrs).
pub(crate) const RESCAN_DEADLINE: Duration = Duration::from_secs(90);

/// Reads what is lost with a device.
pub(crate) fn saved(root: &HostRoot, bdf: Bdf) -> Result<Removed, HostError> {
    Ok(Removed {
        driver: root::driver_of(root, bdf)?,
        set: root::override_of(root, bdf)?,
        power: power::read(root, bdf)?,
        reset_methods: reset_methods::read(root, bdf)?,
    })
}

/// Removes a device.
pub(crate) fn apply(kernel: &Kernel, doing: &str, bdf: Bdf) -> Result<(), HostError> {
    listening(&kernel.root, About::device(bdf), || {
        let folder = kernel.root.device(bdf);
        kernel.write(doing, &folder.join("remove"), "1", REMOVE_DEADLINE)?;
        match folder.exists() {
            false => Ok(()),
            true => Err(HostError::no_effect(doing, bdf, "its place in sysfs still".to_owned())),
        }
    })
}

/// Has the kernel find a device that is gone, and makes it what it was. One that is there is made so too: whoever began this may have
/// come to its end anywhere.
pub(crate) fn undo(
    host: &Host<'_>,
    bdf: Bdf,
    port: Option<Bdf>,
    saved: Option<&Removed>,
) -> Result<(), HostError> {
    if !host.kernel.root.device(bdf).exists() {
        find(host.kernel, bdf, port)?;
    }
    // What it was is always written down first; without that, nothing was changed.
    saved.map_or(Ok(()), |saved| make_as_it_was(host, bdf, saved))
}

/// Has the kernel scan a device's bus.
fn find(kernel: &Kernel, bdf: Bdf, port: Option<Bdf>) -> Result<(), HostError> {
    let about = About { devices: port.into_iter().chain([bdf]).collect(), groups: Vec::new() };
    listening(&kernel.root, about, || {
        let path = rescan_of(&kernel.root, bdf.bus());
        kernel.write(&format!("scan bus {} anew", bdf.bus()), &path, "1", RESCAN_DEADLINE)?;
        match kernel.root.device(bdf).exists() {
            true => Ok(()),
            false => Err(HostError::NotFoundAnew { bdf, bus: bdf.bus(), said: Box::default() }),
        }
    })
}

/// Returns the attribute that has a bus scanned; that of the whole machine on kernels that have none of the bus (5.5, by mistake).
pub(crate) fn rescan_of(root: &HostRoot, bus: Bus) -> PathBuf {
    let own = root.path(format!("/sys/class/pci_bus/{bus}/rescan"));
    if own.exists() { own } else { root.path("/sys/bus/pci/rescan") }
}

/// Makes a device what it was when it was removed. What fails keeps nothing else from being tried, and the first failure is returned.
fn make_as_it_was(host: &Host<'_>, bdf: Bdf, saved: &Removed) -> Result<(), HostError> {
    let kernel = host.kernel;
    let doing = |what: &str| format!("set {what} of {bdf}, which was found anew");
    let set = || {
        if root::override_of(&kernel.root, bdf)? == saved.set {
            return Ok(());
        }
        driver_override::apply(kernel, &doing("driver_override"), bdf, saved.set.as_ref())
    };
    let methods = || {
        if reset_methods::read(&kernel.root, bdf)? == saved.reset_methods {
            return Ok(());
        }
        reset_methods::put_back(kernel, &doing("reset_method"), bdf, &saved.reset_methods)
    };
    // Its power last: drivers have their own ideas of it.
    let power = || power::set(kernel, &doing("the power policy"), bdf, saved.power);
    let (set, methods) = (set(), methods());
    // Without its override no other driver would take it, or a wrong one.
    let driver = if set.is_ok() { give_driver(host, bdf, saved) } else { Ok(()) };
    set.and(driver).and(methods).and(power())
}

fn give_driver(host: &Host<'_>, bdf: Bdf, saved: &Removed) -> Result<(), HostError> {
    let now = root::driver_of(&host.kernel.root, bdf)?;
    match (&saved.driver, now) {
        (Some(driver), Some(now)) if *driver == now => Ok(()),
        (Some(driver), None) => bind::apply(host.kernel, &format!("bind {bdf} to {driver}"), bdf, driver),
        (None, None) => Ok(()),
        (driver, now) => {
            let ours = driver.as_ref().map_or("none", |driver| driver.as_str());
            Err(changed(format!("find {bdf} anew"), format!("the driver of {bdf}"), ours, now))
        }
    }
}
