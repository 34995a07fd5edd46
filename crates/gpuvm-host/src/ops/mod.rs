//! The kinds of host operations: one file each, with how it is made and how it is undone.

pub(crate) mod adopt;
pub(crate) mod bind;
pub(crate) mod claim_awake;
pub(crate) mod create_overlay;
pub(crate) mod driver_override;
pub(crate) mod hold_autoprobe;
pub(crate) mod hugepages;
pub(crate) mod keep_awake;
pub(crate) mod remove;
pub(crate) mod reset_methods;
pub(crate) mod unbind;

use gpuvm_core::pci::DriverName;

use crate::HostError;

/// Makes the error for a driver or an override that is neither as it was nor as gpuvm left it.
fn changed(doing: String, what: String, ours: &str, now: Option<DriverName>) -> HostError {
    let now = now.map_or_else(|| "empty".to_owned(), |now| now.to_string());
    HostError::ChangedByOthers { doing, what, ours: ours.to_string(), now }
}
