//! Takes over a device that somebody else has bound; undo asks the kernel for a driver.

use gpuvm_core::pci::Bdf;

use crate::HostError;
use crate::apply::{BIND_DEADLINE, Host};
use crate::root;

/// The attribute that takes a device and offers it to each driver.
pub(crate) const PROBE: &str = "/sys/bus/pci/drivers_probe";

/// Offers a device without a driver to those that the kernel has. That none takes it is no failure: nobody knows of one that would.
pub(crate) fn undo(host: &Host<'_>, bdf: Bdf) -> Result<(), HostError> {
    if root::driver_of(&host.kernel.root, bdf)?.is_some() {
        return Ok(());
    }
    let doing = format!("find a driver for {bdf}");
    host.kernel.write(&doing, &host.kernel.root.path(PROBE), &bdf.to_string(), BIND_DEADLINE)
}
