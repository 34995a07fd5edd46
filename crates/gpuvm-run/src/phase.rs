//! The steps of a run in words.

use std::fmt;

use gpuvm_core::lifecycle::Stage;

use crate::report::Phase;

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Reserving => "reserving the devices".to_owned(),
            Self::Preparing { operations } => format!("preparing the host: {operations} operations"),
            Self::Operation { what } => format!("  {what}"),
            Self::Checking { groups } => {
                format!("asking the kernel whether it lets the IOMMU groups be attached: {groups}")
            }
            Self::Starting => "starting QEMU, paused".to_owned(),
            Self::Pinning { vcpus: 0 } => "leaving vCPUs unpinned".to_owned(),
            Self::Pinning { vcpus } => format!("pinning {vcpus} vCPUs"),
            Self::Running { pid, qemu } => format!("the guest runs (QEMU {qemu}, process {pid})"),
            Self::Adopted { pid, qemu } => {
                format!(
                    "the guest has gone on without a gpuvm, and has one again (QEMU {qemu}, process {pid})"
                )
            }
            Self::Rebooting { count } => format!("the guest reboots ({count})"),
            Self::Leaving { reason } => format!("QEMU shuts down ({reason})"),
            Self::Stopping { stage: Stage::Acpi } => "pressing the guest's power button".to_owned(),
            Self::Stopping { stage: Stage::Quit } => "telling QEMU to quit".to_owned(),
            Self::Stopping { stage: Stage::Kill } => "killing QEMU".to_owned(),
            Self::Ended => "QEMU is gone".to_owned(),
            Self::Resetting { bdf, method } => format!("resetting {bdf} by {method}, as planned"),
            Self::Judging => "looking at the devices".to_owned(),
            Self::Repairing { bdf, rung } => format!("{bdf} is sick, trying to repair it by {rung}"),
            Self::Relaunching { count } => format!("the guest has rebooted ({count}): starting it again"),
            Self::GivingBack => "giving the host back".to_owned(),
            Self::TakingOver { vm } => format!("taking over what is left of VM {vm}"),
            Self::EndingQemu { pid } => format!("ending QEMU (process {pid})"),
            Self::Undoing { what } => format!("  undo: {what}"),
            Self::Releasing => "giving the devices free".to_owned(),
        };
        f.write_str(&text)
    }
}

impl Phase {
    /// Returns its name, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reserving => "reserving",
            Self::Preparing { .. } => "preparing",
            Self::Operation { .. } => "operation",
            Self::Checking { .. } => "checking",
            Self::Starting => "starting",
            Self::Pinning { .. } => "pinning",
            Self::Running { .. } => "running",
            Self::Adopted { .. } => "adopted",
            Self::Rebooting { .. } => "rebooting",
            Self::Leaving { .. } => "leaving",
            Self::Stopping { .. } => "stopping",
            Self::Ended => "ended",
            Self::Resetting { .. } => "resetting",
            Self::Judging => "judging",
            Self::Repairing { .. } => "repairing",
            Self::Relaunching { .. } => "relaunching",
            Self::GivingBack => "giving-back",
            Self::TakingOver { .. } => "taking-over",
            Self::EndingQemu { .. } => "ending-qemu",
            Self::Undoing { .. } => "undoing",
            Self::Releasing => "releasing",
        }
    }
}
