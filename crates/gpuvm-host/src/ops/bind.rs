//! Gives a device to a driver; undo takes it away again.

use gpuvm_core::host_ops::PowerControl;
use gpuvm_core::pci::{Bdf, DriverName};

use super::{changed, unbind};
use crate::HostError;
use crate::apply::{BIND_DEADLINE, Host};
use crate::kernel::Kernel;
use crate::kernel_log::{About, listening};
use crate::{power, root, snapshot};

/// Gives a device to a VFIO driver, and keeps it awake if it was.
///
/// vfio-pci lets a device sleep as soon as it has it (`pm_runtime_allow` in vfio_pci_core_register_device).
pub(crate) fn apply(kernel: &Kernel, doing: &str, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    let before = power::read(&kernel.root, bdf)?.control;
    bind(kernel, doing, bdf, driver)?;
    let now = power::read(&kernel.root, bdf)?.control;
    match (before, now) {
        (Some(PowerControl::On), Some(PowerControl::Auto)) => {
            power::set_control(kernel, doing, bdf, PowerControl::On)
        }
        _ => Ok(()),
    }
}

/// Gives a device to a driver, by that driver's own `bind`: unlike `drivers_probe` it tells why not.
pub(super) fn bind(kernel: &Kernel, doing: &str, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    listening(&kernel.root, About::device(bdf), || {
        let path = kernel.root.driver(driver).join("bind");
        kernel.write(doing, &path, &bdf.to_string(), BIND_DEADLINE)?;
        match root::driver_of(&kernel.root, bdf)? {
            Some(now) if now == *driver => Ok(()),
            now => {
                let now = now.map_or_else(|| "no driver".to_owned(), |now| format!("driver {now}"));
                Err(HostError::no_effect(doing, bdf, now))
            }
        }
    })
}

/// Takes a device from the driver that it was given to. One that is on the driver it `was` taken from is where it belongs: the kernel has
/// found it anew since (`remove`, `rescan`).
pub(crate) fn undo(
    host: &Host<'_>,
    bdf: Bdf,
    driver: &DriverName,
    was: Option<&DriverName>,
) -> Result<(), HostError> {
    let doing = format!("unbind {bdf} from {driver}");
    match root::driver_of(&host.kernel.root, bdf)? {
        None => Ok(()),
        Some(now) if was == Some(&now) => Ok(()),
        Some(now) if now == *driver => {
            snapshot::answers(host, bdf)?;
            unbind::apply(host.kernel, &doing, bdf, driver)
        }
        Some(now) => Err(changed(doing, format!("the driver of {bdf}"), driver.as_str(), Some(now))),
    }
}
