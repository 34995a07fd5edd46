//! Keeps a device from runtime power management; undo puts its policy back.

use gpuvm_core::host_ops::PowerPolicy;
use gpuvm_core::pci::Bdf;

use crate::apply::Host;
use crate::kernel::Kernel;
use crate::power::{self, DriverChange};
use crate::{HostError, snapshot};

/// Keeps a device awake.
pub(crate) fn apply(kernel: &Kernel, doing: &str, bdf: Bdf) -> Result<(), HostError> {
    power::stay_awake(kernel, doing, bdf)
}

/// Puts the policy back that was there before. A device that doesn't answer is kept awake: going to sleep is one more thing
/// that it would hang in.
pub(crate) fn undo(
    host: &Host<'_>,
    bdf: Bdf,
    saved: PowerPolicy,
    change: DriverChange,
) -> Result<(), HostError> {
    if power::read(&host.kernel.root, bdf)? == saved {
        return Ok(());
    }
    snapshot::answers(host, bdf)?;
    power::put_back(host.kernel, bdf, saved, change)
}
