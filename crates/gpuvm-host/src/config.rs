//! A device's config space, read from sysfs.

use std::fs::File;
use std::io::Read;

use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::{Snapshot, Verdict, judge};

use crate::HostError;
use crate::apply::Host;
use crate::root::HostRoot;

/// Reads what a verdict needs of a device's config space.
///
/// The read reaches the device itself. In D3hot config space answers without waking; a read of a D3cold device wakes it
/// (drivers/pci/pci-sysfs.c `pci_config_pm_runtime_get`).
///
/// # Errors
/// Returns failures to read, and a file that is too short.
pub fn snapshot(root: &HostRoot, bdf: Bdf) -> Result<Snapshot, HostError> {
    let path = root.device(bdf).join("config");
    let mut bytes = [0; Snapshot::BYTES];
    let read = File::open(&path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(HostError::file("read", &path))?;
    Snapshot::new(&bytes).ok_or_else(|| HostError::content(&path, "", "too short for a header"))
}

/// Checks that a device answers as it did: one that has fallen off the bus hangs or crashes what touches it next.
///
/// # Errors
/// Returns what its config space says instead.
pub(crate) fn answers(host: &Host<'_>, bdf: Bdf) -> Result<(), HostError> {
    let now = snapshot(&host.kernel.root, bdf).map_err(|error| error.to_string());
    // Without a baseline the device is held against itself, which still finds all ones and a reset that doesn't end.
    let before = match (host.baselines.get(&bdf), &now) {
        (Some(before), _) => *before,
        (None, Ok(now)) => *now,
        (None, Err(finding)) => return Err(HostError::NotAnswering { bdf, finding: finding.clone() }),
    };
    match judge(&before, now) {
        Verdict::Alive => Ok(()),
        Verdict::Sick { findings } => {
            let finding = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(HostError::NotAnswering { bdf, finding })
        }
    }
}
