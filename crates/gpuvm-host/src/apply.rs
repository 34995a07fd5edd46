//! Makes one planned change to the host, after it was written down.

use std::collections::BTreeMap;
use std::time::Duration;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Snapshot;

use crate::HostError;
use crate::journal::{Journal, OpState, Saved};
use crate::kernel::Kernel;
use crate::ops::create_overlay::{self, Overlay};
use crate::ops::hugepages::{self, PoolClaim};
use crate::ops::{
    bind, claim_awake, driver_override, hold_autoprobe, keep_awake, remove, reset_methods, unbind,
};
use crate::places::Places;
use crate::process::ProcessId;
use crate::{power, root};

/// How long the kernel may take to bind or unbind. A reset at bind takes 100 ms; a driver that shuts down a large GPU takes
/// seconds; an unbind that a holder blocks takes for ever.
pub const BIND_DEADLINE: Duration = Duration::from_secs(60);
/// How long an attribute that only stores a value may take.
pub const STORE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a power attribute may take: a device that wakes from D3cold takes its driver's resume, at most some seconds.
pub(crate) const POWER_DEADLINE: Duration = Duration::from_secs(30);

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

/// Writes an operation down, makes it, and writes down that it was made.
///
/// # Errors
/// Returns why it could not be made. It may have been made in part: undoing goes by what the journal holds.
pub fn apply(host: &Host<'_>, journal: &mut Journal, op: &HostOp) -> Result<(), HostError> {
    let saved = saved(host, op)?;
    let seq = journal.intend(op, saved)?;
    match perform(host, op) {
        Ok(()) => journal.mark(seq, OpState::Applied),
        Err(error) => {
            if let HostError::InFlight { pid, .. } = error {
                let child = ProcessId::of(pid);
                let child = child.unwrap_or(ProcessId { pid, start_time: 0 });
                // The caller must hear of the child above all: nothing else tells that the device's lock is held.
                if let Err(unmarked) = journal.mark(seq, OpState::InFlight { child }) {
                    tracing::error!("the journal doesn't say that process {pid} goes on: {unmarked}");
                }
            }
            Err(error)
        }
    }
}

/// Reads what a private operation replaces; and refuses one whose undoing would take away what isn't ours.
fn saved(host: &Host<'_>, op: &HostOp) -> Result<Option<Saved>, HostError> {
    let root = &host.kernel.root;
    Ok(match op {
        HostOp::SetDriverOverride { bdf, .. } => root::override_of(root, *bdf)?.map(Saved::Driver),
        HostOp::KeepAwake { bdf } => Some(Saved::Power(power::read(root, *bdf)?)),
        HostOp::SetResetMethods { bdf, .. } => Some(Saved::ResetMethods(reset_methods::read(root, *bdf)?)),
        HostOp::CreateOverlay { path, backing, format, qemu_img } => {
            create_overlay::check(&Overlay { path, backing, format: *format, qemu_img })?;
            None
        }
        HostOp::Remove { bdf, .. } => Some(Saved::Removed(remove::saved(root, *bdf)?)),
        HostOp::ClaimHugepages { .. }
        | HostOp::ClaimAwake { .. }
        | HostOp::HoldAutoprobe
        | HostOp::Adopt { .. }
        | HostOp::Unbind { .. }
        | HostOp::Bind { .. } => None,
    })
}

fn perform(host: &Host<'_>, op: &HostOp) -> Result<(), HostError> {
    let (kernel, doing) = (host.kernel, op.to_string());
    match op {
        HostOp::ClaimHugepages { node, page, pages } => {
            hugepages::apply(host, &PoolClaim { vm: host.vm, node: *node, page: *page, pages: *pages })
        }
        HostOp::ClaimAwake { port } => claim_awake::apply(host, &doing, *port),
        HostOp::CreateOverlay { path, backing, format, qemu_img } => {
            create_overlay::apply(&Overlay { path, backing, format: *format, qemu_img })
        }
        HostOp::KeepAwake { bdf } => keep_awake::apply(kernel, &doing, *bdf),
        HostOp::SetResetMethods { bdf, methods } => reset_methods::apply(kernel, &doing, *bdf, methods),
        HostOp::Adopt { .. } => Ok(()),
        HostOp::Unbind { bdf, driver } => unbind::apply(kernel, &doing, *bdf, driver),
        HostOp::SetDriverOverride { bdf, driver } => {
            driver_override::apply(kernel, &doing, *bdf, Some(driver))
        }
        HostOp::Bind { bdf, driver } => bind::apply(kernel, &doing, *bdf, driver),
        HostOp::HoldAutoprobe => hold_autoprobe::apply(host, &doing),
        HostOp::Remove { bdf, .. } => remove::apply(kernel, &doing, *bdf),
    }
}
