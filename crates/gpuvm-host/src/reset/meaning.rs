//! What an error of a reset means.

use gpuvm_sys::errno::{EACCES, EAGAIN, EBUSY, EINVAL, ENODEV, ENOENT, ENOSPC, ENOTTY, EPERM};
use gpuvm_sys::reset::{ResetFailure, Step};

use super::{AffectedFunction, Attempt};

/// Says what the kernel means by an error, as `drivers/pci/pci.c` and `drivers/vfio/pci/vfio_pci_core.c` give it; nothing where that isn't known.
pub(super) fn of(failure: &ResetFailure, attempt: &Attempt<'_>, affected: &[AffectedFunction]) -> String {
    let errno = failure.source.raw_os_error().unwrap_or(0);
    let text = match (failure.step, errno) {
        (Step::Child, _) => "whether it was reset isn't known",
        (Step::Narrow, EINVAL) => {
            "the kernel doesn't offer this method for the device now; nothing was reset"
        }
        (Step::Widen, _) => "it was reset, and its reset_method isn't as it was",
        (Step::OpenReset, ENOENT) => "the kernel knows no way to reset it; nothing was reset",
        (Step::NoReset, _) => "the reset that comes with opening it failed, so it has none that works",
        (Step::OpenReset | Step::Narrow, EACCES | EPERM) => "that takes root; nothing was reset",
        (Step::WriteReset | Step::Reset | Step::OpenDevice, ENOTTY) => {
            "no method worked: none is offered for it as it is, or it or its link didn't come back"
        }
        (Step::HotReset, ENOTTY) => "its bus can't be reset, or the link to it didn't come back",
        (Step::HotReset, EINVAL) => return not_ours(attempt, affected),
        (Step::HotInfo, ENODEV) => {
            "this bus can't be reset: it is a root bus, or the kernel knows a device on it that doesn't survive it"
        }
        (Step::HotInfo, ENOSPC) => "it reaches more functions than gpuvm has room for",
        (Step::OpenGroup, EBUSY) => "another process has the group open",
        (Step::OpenGroup, ENOENT) => "no function of the group is on a VFIO driver",
        (Step::SetContainer, EPERM | EINVAL) => {
            "the group isn't viable: a function of it is on another driver"
        }
        (Step::SetIommu, EPERM) => "the IOMMU has no interrupt remapping",
        (Step::OpenDevice, ENODEV) => "the device is on no VFIO driver",
        (Step::WriteReset | Step::Reset | Step::HotReset | Step::OpenDevice, EBUSY | EAGAIN) => {
            "somebody else is at the device, or it has unfinished business"
        }
        (_, EPERM | EACCES) => "that takes root",
        _ => "",
    };
    text.to_owned()
}

/// Names the functions that are in the way of a hot reset: each must be on a VFIO driver, and its group must be given.
fn not_ours(attempt: &Attempt<'_>, affected: &[AffectedFunction]) -> String {
    let foreign = affected.iter().filter(|function| !attempt.groups.contains(&function.group));
    let foreign: Vec<String> =
        foreign.map(|function| format!("{} (group {})", function.bdf, function.group)).collect();
    match foreign.is_empty() {
        true => "a function that it reaches is on no VFIO driver".to_owned(),
        false => format!("it reaches functions that aren't in hand: {}", foreign.join(", ")),
    }
}
