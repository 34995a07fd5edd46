//! Makes one planned change to the host, after it was written down.

use std::collections::BTreeMap;
use std::time::Duration;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Snapshot;

use crate::HostError;
use crate::claims::{self, PoolClaim};
use crate::journal::{Journal, OpState};
use crate::kernel::Kernel;
use crate::places::Places;
use crate::process::ProcessId;
use crate::root;

/// How long the kernel may take to bind or unbind. A reset at bind takes 100 ms; a driver that shuts down a large GPU takes
/// seconds; an unbind that a holder blocks takes for ever.
pub const BIND_DEADLINE: Duration = Duration::from_secs(60);
/// How long an attribute that only stores a value may take.
pub const STORE_DEADLINE: Duration = Duration::from_secs(5);

/// A host that changes are made to, on behalf of one VM.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// gpuvm's own folders.
    pub places: &'a Places,
    /// This boot.
    pub boot_id: &'a str,
    /// The VM that the changes are for.
    pub vm: &'a VmName,
    /// What each device said of itself before anything was done.
    pub baselines: &'a BTreeMap<Bdf, Snapshot>,
}

impl<'a> Host<'a> {
    /// Describes a claim of this VM.
    pub(crate) fn claim(&self, node: u32, page: gpuvm_core::units::PageSize, pages: u64) -> PoolClaim<'a> {
        PoolClaim { vm: self.vm, node, page, pages }
    }
}

/// Writes an operation down, makes it, and writes down that it was made.
///
/// # Errors
/// Returns why it could not be made. It may have been made in part: undoing goes by what the journal holds.
pub fn apply(host: &Host<'_>, journal: &mut Journal, op: &HostOp) -> Result<(), HostError> {
    let saved = match op {
        HostOp::SetDriverOverride { bdf, .. } => root::override_of(&host.kernel.root, *bdf)?,
        _ => None,
    };
    let seq = journal.intend(op, saved)?;
    match perform(host, op) {
        Ok(()) => journal.mark(seq, OpState::Applied),
        Err(error) => {
            if let HostError::InFlight { pid, .. } = error {
                let child = ProcessId::of(pid);
                let child = child.unwrap_or(ProcessId { pid, start_time: 0 });
                journal.mark(seq, OpState::InFlight { child })?;
            }
            Err(error)
        }
    }
}

fn perform(host: &Host<'_>, op: &HostOp) -> Result<(), HostError> {
    let doing = op.to_string();
    match op {
        HostOp::ClaimHugepages { node, page, pages } => {
            claims::claim(host.kernel, host.places, host.boot_id, &host.claim(*node, *page, *pages))
        }
        HostOp::Unbind { bdf, driver } => unbind(host.kernel, &doing, *bdf, driver),
        HostOp::SetDriverOverride { bdf, driver } => set_override(host.kernel, &doing, *bdf, Some(driver)),
        HostOp::Bind { bdf, driver } => bind(host.kernel, &doing, *bdf, driver),
    }
}

/// Takes a device from a driver.
pub(crate) fn unbind(kernel: &Kernel, doing: &str, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    let path = kernel.root.driver(driver).join("unbind");
    kernel.write(doing, &path, &bdf.to_string(), BIND_DEADLINE)?;
    match root::driver_of(&kernel.root, bdf)? {
        None => Ok(()),
        Some(now) => Err(HostError::NoEffect { doing: doing.to_owned(), bdf, now: format!("driver {now}") }),
    }
}

/// Gives a device to a driver, by that driver's own `bind`: unlike `drivers_probe` it tells why not.
pub(crate) fn bind(kernel: &Kernel, doing: &str, bdf: Bdf, driver: &DriverName) -> Result<(), HostError> {
    let path = kernel.root.driver(driver).join("bind");
    kernel.write(doing, &path, &bdf.to_string(), BIND_DEADLINE)?;
    match root::driver_of(&kernel.root, bdf)? {
        Some(now) if now == *driver => Ok(()),
        now => {
            let now = now.map_or_else(|| "no driver".to_owned(), |now| format!("driver {now}"));
            Err(HostError::NoEffect { doing: doing.to_owned(), bdf, now })
        }
    }
}

/// Sets or clears `driver_override`. Clearing takes a newline: an empty write changes nothing.
pub(crate) fn set_override(
    kernel: &Kernel,
    doing: &str,
    bdf: Bdf,
    driver: Option<&DriverName>,
) -> Result<(), HostError> {
    let path = kernel.root.device(bdf).join("driver_override");
    let value = driver.map_or("\n", DriverName::as_str);
    kernel.write(doing, &path, value, STORE_DEADLINE)?;
    match root::override_of(&kernel.root, bdf)? {
        now if now.as_ref() == driver => Ok(()),
        now => {
            let now = now.map_or_else(|| "no override".to_owned(), |now| format!("override {now}"));
            Err(HostError::NoEffect { doing: doing.to_owned(), bdf, now })
        }
    }
}
