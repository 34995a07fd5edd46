//! Takes a device from its driver; undo gives it back.

use gpuvm_core::pci::{Bdf, DriverName};

use super::{bind, changed};
use crate::HostError;
use crate::apply::{BIND_DEADLINE, Host};
use crate::kernel::Kernel;
use crate::kernel_log::{About, listening};
use crate::root;

/// Takes a device from a driver.
pub(crate) fn apply(kernel: &Kernel, doing: &str, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    listening(&kernel.root, About::device(bdf), || {
        let path = kernel.root.driver(driver).join("unbind");
        kernel.write(doing, &path, &bdf.to_string(), BIND_DEADLINE)?;
        match root::driver_of(&kernel.root, bdf)? {
            None => Ok(()),
            Some(now) => Err(HostError::no_effect(doing, bdf, format!("driver {now}"))),
        }
    })
}

/// Gives a device back to the driver that it was taken from.
pub(crate) fn undo(host: &Host<'_>, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    let doing = format!("bind {bdf} to {driver}");
    match root::driver_of(&host.kernel.root, bdf)? {
        Some(now) if now == *driver => Ok(()),
        Some(now) => Err(changed(doing, format!("the driver of {bdf}"), driver.as_str(), Some(now))),
        None if !host.kernel.root.driver(driver).exists() => {
            Err(HostError::DriverGone { bdf, driver: driver.clone() })
        }
        None => {
            may_be_taken(host.kernel, bdf, driver)?;
            bind::bind(host.kernel, &doing, bdf, driver)
        }
    }
}

/// An override that names another driver keeps this one off, and all that the kernel says then is "No such device".
fn may_be_taken(kernel: &Kernel, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    match root::override_of(&kernel.root, bdf)? {
        Some(set) if set != *driver => Err(HostError::KeptOff { bdf, driver: driver.clone(), set }),
        _ => Ok(()),
    }
}
