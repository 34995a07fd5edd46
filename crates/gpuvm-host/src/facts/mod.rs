//! Reads the host into [`HostFacts`], for the scope of one profile.
//!
//! The index of all devices is a list of names; attributes are read only of the devices asked for, their slots and their
//! groups: everything of 10,000 VFs would cost seconds, and reading `config` wakes sleeping devices.

mod cpu;
mod files;
mod firmware;
mod holders;
pub(crate) mod memory;
mod pci;

use std::path::PathBuf;

use gpuvm_core::facts::{Access, HostFacts, KernelFacts, Presence, VfioFacts};
use gpuvm_core::pci::DriverName;
use gpuvm_core::profile::{FirmwareKind, Profile};

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// Reads what a plan for this profile needs to know.
///
/// # Errors
/// Returns the first attribute that can't be read or makes no sense; what isn't there is a fact, and no error.
pub fn read(root: &HostRoot, profile: &Profile) -> Result<HostFacts, HostError> {
    let mut facts = HostFacts {
        kernel: kernel(root)?,
        cpus: cpu::read(root)?,
        nodes: memory::nodes(root)?,
        iommus: list(&root.path("/sys/class/iommu"))?,
        vfio: vfio(root),
        kvm: access(root, "/dev/kvm"),
        qemu: find(root, "qemu-system-x86_64"),
        qemu_img: find(root, "qemu-img"),
        ..HostFacts::default()
    };
    pci::read(root, profile, &mut facts)?;
    if profile.firmware == FirmwareKind::Uefi {
        facts.firmware = firmware::read(root)?;
    }
    files::read(root, profile, &mut facts);
    Ok(facts)
}

/// Reads which kernel runs, and in which boot.
///
/// # Errors
/// Returns failures to read.
pub fn kernel(root: &HostRoot) -> Result<KernelFacts, HostError> {
    let read = |path: &str| {
        Ok::<_, HostError>(
            read_text(&root.path(path))?.map(|text| text.trim().to_owned()).unwrap_or_default(),
        )
    };
    Ok(KernelFacts {
        release: read("/proc/sys/kernel/osrelease")?,
        boot_id: read("/proc/sys/kernel/random/boot_id")?,
        cmdline: read("/proc/cmdline")?,
    })
}

/// Reads what names this boot: records of another one are worth nothing.
///
/// # Errors
/// Returns failures to read, and that there is none.
pub fn boot_id(root: &HostRoot) -> Result<String, HostError> {
    let path = root.path("/proc/sys/kernel/random/boot_id");
    let id = read_text(&path)?.unwrap_or_default().trim().to_owned();
    if id.is_empty() { Err(HostError::content(&path, "", "there is no boot id")) } else { Ok(id) }
}

fn vfio(root: &HostRoot) -> VfioFacts {
    let driver = root.driver(&DriverName::vfio_pci()).exists();
    VfioFacts {
        container: access(root, "/dev/vfio/vfio"),
        iommufd: access(root, "/dev/iommu"),
        pci_driver: if driver { Presence::Present } else { Presence::Absent },
    }
}

/// Asks whether a device node may be used, without opening it.
fn access(root: &HostRoot, node: &str) -> Access {
    let path = root.path(node);
    if !path.exists() {
        return Access::Missing;
    }
    match gpuvm_sys::access::read_write(&path) {
        Ok(()) => Access::Usable,
        Err(_) => Access::Denied,
    }
}

/// Finds a program in PATH, and names it as the host would.
fn find(root: &HostRoot, program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| root.path(file).is_file())
}
