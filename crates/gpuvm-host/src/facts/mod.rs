//! Reads the host into [`HostFacts`], for the scope of one profile or wider.
//!
//! The index of all devices is a list of names; attributes are read only of the devices asked for, their slots and their
//! groups: everything of 10,000 VFs would cost seconds, and reading `config` wakes sleeping devices.

mod aliases;
mod boot;
mod cpu;
mod detail;
mod files;
mod firmware;
mod holders;
mod index;
mod lock;
pub(crate) mod memory;
mod names;
mod narrow;
mod pci;
mod platform;
mod quirks;
mod reading;

use std::collections::BTreeSet;
use std::path::PathBuf;

use gpuvm_core::doctor::Distribution;
use gpuvm_core::facts::{Access, HostFacts, KernelFacts, Presence, VfioFacts};
use gpuvm_core::pci::{Bdf, DriverName};
use gpuvm_core::profile::{FirmwareKind, Profile};

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

pub use boot::add_initramfs;
pub use index::index;
pub use lock::for_lock;
pub use narrow::narrow;
pub use pci::asked;
pub(crate) use pci::{bars, upstream};
pub(crate) use reading::Reading;

/// Which devices a survey is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// These, with their slots, their groups and the bridges above them.
    Devices(BTreeSet<Bdf>),
    /// The cards that guests are given most: displays and processing accelerators, with their slots and groups as above.
    Cards,
    /// All that the class and the kind of function make worth a look: no virtual functions, and of bridges only those above.
    Passable,
    /// All but virtual functions, which their physical functions count.
    Physical,
    /// All there are.
    All,
}

/// How deep a survey looks into each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What sysfs tells without touching the device.
    Sysfs,
    /// Its config space too, where that wakes nobody.
    Config,
}

/// Finds out whose commands to give, by os-release(5); nobody's in particular where it can't be read.
pub fn distribution(root: &HostRoot) -> Distribution {
    platform::distribution_of(root)
}

/// Reads what a plan for this profile needs to know.
///
/// # Errors
/// Returns the first attribute that can't be read or makes no sense; what isn't there is a fact, and no error.
pub fn read(root: &HostRoot, profile: &Profile) -> Result<HostFacts, HostError> {
    let reading = Reading::strict();
    let mut facts = host(root, &reading)?;
    let asked = pci::asked(profile);
    if !asked.is_empty() {
        pci::read(root, &Scope::Devices(asked), Depth::Sysfs, &reading, &mut facts)?;
    }
    for_profile(root, profile, &reading, &mut facts)?;
    Ok(facts)
}

/// Reads what binding these functions needs to know.
///
/// # Errors
/// As [`read`].
pub fn read_devices(root: &HostRoot, asked: BTreeSet<Bdf>) -> Result<HostFacts, HostError> {
    let reading = Reading::strict();
    let mut facts = host(root, &reading)?;
    pci::read(root, &Scope::Devices(asked), Depth::Sysfs, &reading, &mut facts)?;
    Ok(facts)
}

/// Reads what resetting these functions needs to know: config space too, and everything else on their buses and below.
///
/// # Errors
/// As [`read`].
pub fn read_for_reset(root: &HostRoot, asked: &BTreeSet<Bdf>) -> Result<HostFacts, HostError> {
    let reading = Reading::strict();
    let mut facts = host(root, &reading)?;
    let scope = Scope::Devices(pci::with_buses(root, asked)?);
    pci::read(root, &scope, Depth::Config, &reading, &mut facts)?;
    Ok(facts)
}

/// Reads what there is to know of the host and of the devices in scope. What can't be read goes to
/// [`HostFacts::unread`], and the survey goes on: a broken host is the one that most needs to be looked at.
///
/// # Errors
/// None by reading; the result is that of [`read`] so that both go one way.
pub fn survey(
    root: &HostRoot,
    scope: &Scope,
    depth: Depth,
    profile: Option<&Profile>,
) -> Result<HostFacts, HostError> {
    let reading = Reading::lenient();
    let mut facts = host(root, &reading)?;
    pci::read(root, scope, depth, &reading, &mut facts)?;
    // Whatever the profile's firmware: these facts may serve another profile, and the descriptors are few.
    facts.firmware = reading.take(firmware::read(root))?;
    match profile {
        Some(profile) => files::read(root, profile, &mut facts),
        None => files::read_firmware(root, &mut facts),
    }
    facts.names = names::read(root, &reading, &facts)?;
    facts.platform = platform::read(root, &reading, &facts)?;
    facts.boot = boot::read(root, &facts, &reading)?;
    facts.unread = reading.unread();
    Ok(facts)
}

fn host(root: &HostRoot, reading: &Reading) -> Result<HostFacts, HostError> {
    Ok(HostFacts {
        kernel: reading.take(kernel(root))?,
        cpus: reading.take(cpu::read(root))?,
        nodes: reading.take(memory::nodes(root))?,
        iommus: reading.take(list(&root.path("/sys/class/iommu")))?,
        vfio: vfio(root),
        kvm: access(root, "/dev/kvm"),
        qemu: find(root, "qemu-system-x86_64").or_else(|| rhel_qemu(root)),
        qemu_img: find(root, "qemu-img"),
        quirks: quirks::read(root),
        ..HostFacts::default()
    })
}

fn for_profile(
    root: &HostRoot,
    profile: &Profile,
    reading: &Reading,
    facts: &mut HostFacts,
) -> Result<(), HostError> {
    if profile.firmware == FirmwareKind::Uefi {
        facts.firmware = reading.take(firmware::read(root))?;
    }
    files::read(root, profile, facts);
    Ok(())
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
        build: match read("/proc/version_signature")? {
            signature if signature.is_empty() => read("/proc/version")?,
            signature => signature,
        },
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

/// Finds QEMU where RHEL and its kin have it, which is in nobody's PATH.
fn rhel_qemu(root: &HostRoot) -> Option<PathBuf> {
    let path = PathBuf::from("/usr/libexec/qemu-kvm");
    root.path(&path).is_file().then_some(path)
}

/// Finds a program in PATH, and names it as the host would.
fn find(root: &HostRoot, program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| root.path(file).is_file())
}
