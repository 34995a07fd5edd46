//! Removes a device from the kernel; undo has its bus scanned anew and makes the device what it was.
//!
//! The kernel keeps nothing of a device that it removes: not its driver, nor `driver_override`, its power policy or its list of reset
//! methods. All of that is written down before, so that what a repair leaves, whole or cut short, is what was there when it began.

use std::path::PathBuf;
use std::time::Duration;

use gpuvm_core::pci::{Bdf, Bus, DriverName};
use gpuvm_sys::errno::EBUSY;

use super::{bind, changed, driver_override, reset_methods, unbind};
use crate::HostError;
use crate::apply::{BIND_DEADLINE, Host};
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

/// Who has found a device that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It was gone, and a scan of ours has found it, or is to find it: a driver that it has is one that the kernel has given it to.
    ByUs,
    /// It was there when this began: it was never removed, or somebody has had it found.
    Before,
}

/// Has the kernel find a device that is gone, and makes it what it was. One that is there is made so too: whoever began this may have
/// come to its end anywhere. `was` is the driver that the device is given back to in the end.
pub(crate) fn undo(
    host: &Host<'_>,
    (bdf, port): (Bdf, Option<Bdf>),
    saved: Option<&Removed>,
    found: Found,
    was: Option<&DriverName>,
) -> Result<(), HostError> {
    if !host.kernel.root.device(bdf).exists() {
        find(host.kernel, bdf, port)?;
    }
    // What it was is always written down first; without that, nothing was changed.
    saved.map_or(Ok(()), |saved| make_as_it_was(host.kernel, bdf, saved, found, was))
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

/// Makes a device what it was when it was removed. What fails keeps nothing else from being tried, and the first failure is returned;
/// but what doesn't come back has the device's lock, and is the last.
fn make_as_it_was(
    kernel: &Kernel,
    bdf: Bdf,
    saved: &Removed,
    found: Found,
    was: Option<&DriverName>,
) -> Result<(), HostError> {
    let doing = |what: &str| format!("set {what} of {bdf}, which was found anew");
    let set = || {
        if root::override_of(&kernel.root, bdf)? == saved.set {
            return Ok(());
        }
        // A driver that has begun to take it has its lock.
        driver_override::set(kernel, &doing("driver_override"), bdf, saved.set.as_ref(), BIND_DEADLINE)
    };
    let methods = || {
        if reset_methods::read(&kernel.root, bdf)? == saved.reset_methods {
            return Ok(());
        }
        reset_methods::put_back(kernel, &doing("reset_method"), bdf, &saved.reset_methods)
    };
    let driver = || give_driver(kernel, bdf, saved, found, was);
    let power = || power::set(kernel, &doing("the power policy"), bdf, saved.power);
    let mut first = set();
    // Without its override no other driver would take it, or a wrong one. Its power last: drivers have their own ideas of it.
    let without = usize::from(first.is_err());
    let rest: [&dyn Fn() -> Result<(), HostError>; 3] = [&driver, &methods, &power];
    for step in rest.into_iter().skip(without) {
        if matches!(first, Err(HostError::InFlight { .. })) {
            break;
        }
        first = match step() {
            Err(hangs @ HostError::InFlight { .. }) => Err(hangs),
            result => first.and(result),
        };
    }
    first
}

/// How often a driver may be quicker than we are.
const TRIES: usize = 5;

/// Gives a device to the driver that it was on.
///
/// Before Linux 6.19 a device that is found is offered to drivers whatever `drivers_autoprobe` says (ea34511aaf75, "driver core: Check
/// drivers_autoprobe for all added devices"), and some take it only a moment later: it is taken from them again.
fn give_driver(
    kernel: &Kernel,
    bdf: Bdf,
    saved: &Removed,
    found: Found,
    was: Option<&DriverName>,
) -> Result<(), HostError> {
    for left in (0..TRIES).rev() {
        match (&saved.driver, root::driver_of(&kernel.root, bdf)?) {
            (Some(driver), Some(now)) if *driver == now => return Ok(()),
            (None, None) => return Ok(()),
            (Some(driver), None) => {
                match bind::apply(kernel, &format!("bind {bdf} to {driver}"), bdf, driver) {
                    Err(error) if found == Found::ByUs && error.errno() == Some(EBUSY) && left > 0 => {
                        tracing::debug!("a driver was quicker: {error}");
                    }
                    result => return result,
                }
            }
            (_, Some(now)) if found == Found::ByUs => {
                unbind::apply(kernel, &format!("unbind {bdf} from {now}"), bdf, &now)?;
            }
            // It is where it belongs in the end.
            (_, Some(now)) if was == Some(&now) => return Ok(()),
            (driver, now) => {
                let ours = driver.as_ref().map_or("none", |driver| driver.as_str());
                return Err(changed(format!("find {bdf} anew"), format!("the driver of {bdf}"), ours, now));
            }
        }
    }
    let now =
        root::driver_of(&kernel.root, bdf)?.map_or_else(|| "no driver".to_owned(), |now| now.to_string());
    Err(HostError::no_effect(&format!("give {bdf} back to its driver"), bdf, now))
}
