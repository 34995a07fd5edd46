//! A function as it is now: what its registers say, and what the kernel believes.

use std::fs::{self, File};
use std::io::Read;

use gpuvm_core::facts::{BarFacts, Presence};
use gpuvm_core::pci::{Bdf, PciId};
use gpuvm_core::reset::{Check, ConfigSpace, PortSnapshot, Reading, Snapshot, inspect};

use crate::HostError;
use crate::apply::Host;
use crate::facts::upstream;
use crate::root::{self, HostRoot, is_absent, read_hex, read_text};
use crate::{aer, power};

/// Takes a function's snapshot. What can't be read is in it with the reason, so this never fails.
///
/// The read of `config` reaches the device itself. In D3hot config space answers without waking; a read of a D3cold device wakes
/// it (`pci_config_pm_runtime_get` of drivers/pci/pci-sysfs.c).
pub fn take(root: &HostRoot, bdf: Bdf) -> Snapshot {
    let folder = root.device(bdf);
    let text = |name: &str| read_text(&folder.join(name)).map(|text| text.map(|text| text.trim().to_owned()));
    let words = |text: String| text.split_ascii_whitespace().map(str::to_owned).collect();
    Snapshot {
        bdf,
        id: reading(id(root, bdf)),
        virtual_function: virtual_function(root, bdf),
        driver: root::driver_of(root, bdf).ok().flatten(),
        config: config(root, bdf),
        bars: reading(bars(root, bdf)),
        power_state: reading(text("power_state")),
        power: reading(power::read(root, bdf).map(Some)),
        errors: reading(aer::of_function(&folder)),
        reset_methods: reading(text("reset_method").map(|text| text.map(words))),
        port: port(root, bdf),
    }
}

/// Takes of a function's snapshot what tells whether it answers, and as whom.
fn take_identity(root: &HostRoot, bdf: Bdf) -> Snapshot {
    Snapshot {
        bdf,
        id: reading(id(root, bdf)),
        virtual_function: virtual_function(root, bdf),
        driver: None,
        config: config_up_to(root, bdf, ConfigSpace::HEADER),
        bars: Reading::Absent,
        power_state: Reading::Absent,
        power: Reading::Absent,
        errors: Reading::Absent,
        reset_methods: Reading::Absent,
        port: None,
    }
}

fn id(root: &HostRoot, bdf: Bdf) -> Result<Option<PciId>, HostError> {
    let [vendor, device] = ["vendor", "device"].map(|name| read_hex(&root.device(bdf).join(name)));
    let low = |value: u32| u16::try_from(value & 0xffff).unwrap_or(u16::MAX);
    let id = |(vendor, device)| PciId { vendor: low(vendor), device: low(device) };
    Ok(vendor?.zip(device?).map(id))
}

fn virtual_function(root: &HostRoot, bdf: Bdf) -> Presence {
    if root.device(bdf).join("physfn").exists() { Presence::Present } else { Presence::Absent }
}

fn bars(root: &HostRoot, bdf: Bdf) -> Result<Option<Vec<BarFacts>>, HostError> {
    let path = root.device(bdf).join("resource");
    if path.exists() { crate::facts::bars(&path).map(Some) } else { Ok(None) }
}

fn port(root: &HostRoot, bdf: Bdf) -> Option<PortSnapshot> {
    let real = fs::canonicalize(root.device(bdf)).ok()?;
    let above = upstream(&real, bdf);
    let (nearest, root_port) = (*above.last()?, *above.first()?);
    Some(PortSnapshot {
        bdf: nearest,
        config: config(root, nearest),
        root_port,
        root_errors: reading(aer::of_root_port(&root.device(root_port))),
    })
}

/// Reads a function's config space, as far as this user may.
pub(crate) fn config(root: &HostRoot, bdf: Bdf) -> Reading<ConfigSpace> {
    config_up_to(root, bdf, ConfigSpace::MAX)
}

/// Reads the first bytes of a function's config space.
fn config_up_to(root: &HostRoot, bdf: Bdf, most: usize) -> Reading<ConfigSpace> {
    let read = || {
        // A reset that doesn't come back keeps config space to itself (pci_cfg_access_lock), and a reader waits for it.
        root.lockable(bdf)?;
        let path = root.device(bdf).join("config");
        let mut bytes = Vec::new();
        let limit = u64::try_from(most).unwrap_or(u64::MAX);
        match File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(ConfigSpace::new(&bytes))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(HostError::file("read", &path)(error)),
        }
    };
    reading(read())
}

fn reading<T>(result: Result<Option<T>, HostError>) -> Reading<T> {
    match result {
        Ok(Some(value)) => Reading::Read(value),
        Ok(None) => Reading::Absent,
        Err(error) => Reading::Unread(error.to_string()),
    }
}

/// Checks that a device answers as it did: one that has fallen off the bus hangs or crashes what touches it next.
///
/// # Errors
/// Returns what its config space says instead.
pub(crate) fn answers(host: &Host<'_>, bdf: Bdf) -> Result<(), HostError> {
    let mut now = take_identity(&host.kernel.root, bdf);
    if let Some(before) = host.baselines.get(&bdf) {
        now.id = before.id.clone();
    }
    // What answers, and has lost its addresses or its power, is sick and can be touched: the way back leads through here.
    let of_answer =
        |check: Check| matches!(check, Check::Config | Check::AllOnes | Check::Retrying | Check::Identity);
    match inspect(&now).findings.iter().find(|finding| of_answer(finding.check)) {
        Some(finding) => Err(HostError::NotAnswering { bdf, finding: finding.to_string() }),
        None => Ok(()),
    }
}
