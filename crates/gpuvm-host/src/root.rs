//! The kernel's trees under a prefix, and how their files are read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use gpuvm_core::pci::{Bdf, DriverName, GroupId};

use crate::HostError;

/// The most that is read of any attribute; the largest that gpuvm reads, mountinfo, stays far below.
const MAX_BYTES: u64 = 4 << 20;
/// The most that an attribute of sysfs holds: a page.
const ATTRIBUTE: usize = 4096;

/// Where `/sys`, `/proc`, `/dev` and the rest of the host are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoot {
    prefix: PathBuf,
    /// Functions whose locks are held by a write that doesn't come back, with the process that waits in it.
    spared: BTreeMap<Bdf, i32>,
}

impl Default for HostRoot {
    fn default() -> Self {
        Self::new("/")
    }
}

impl HostRoot {
    /// Takes the host's trees from below a folder: `/` for the real host.
    pub fn new(prefix: impl Into<PathBuf>) -> Self {
        Self { prefix: prefix.into(), spared: BTreeMap::new() }
    }

    /// Leaves alone what takes the locks of these functions, which processes hold that wait in the kernel: reading it would never
    /// come back.
    #[must_use]
    pub fn sparing(mut self, functions: BTreeMap<Bdf, i32>) -> Self {
        self.spared = functions;
        self
    }

    /// Says of each function that is left alone who has it.
    pub fn spared(&self) -> impl Iterator<Item = (Bdf, HostError)> + '_ {
        self.spared.keys().filter_map(|bdf| Some((*bdf, self.lockable(*bdf).err()?)))
    }

    /// Checks that a function's lock may be taken.
    ///
    /// A reset has the port right above its function locked too, config space and all (`pci_reset_function` and `pci_bus_lock` of
    /// drivers/pci/pci.c, since 6.11).
    ///
    /// # Errors
    /// Returns the process that holds it.
    pub(crate) fn lockable(&self, bdf: Bdf) -> Result<(), HostError> {
        let is_below = |function: &Bdf| self.above(*function) == Some(bdf);
        let below = || self.spared.iter().find(|(function, _)| is_below(function)).map(|(_, pid)| pid);
        match self.spared.get(&bdf).or_else(below) {
            None => Ok(()),
            Some(pid) => Err(HostError::Spared { bdf, pid: *pid, state: crate::process::describe(*pid) }),
        }
    }

    /// Returns the bridge right above a function, by its place in the tree of devices.
    fn above(&self, bdf: Bdf) -> Option<Bdf> {
        let real = fs::canonicalize(self.device(bdf)).ok()?;
        real.parent()?.file_name()?.to_str()?.parse().ok()
    }

    /// Returns where an absolute path of the host lies.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.prefix.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// Returns the sysfs folder of a PCI function.
    pub fn device(&self, bdf: Bdf) -> PathBuf {
        self.path(format!("/sys/bus/pci/devices/{bdf}"))
    }

    /// Returns the sysfs folder of a PCI driver.
    pub fn driver(&self, driver: &DriverName) -> PathBuf {
        self.path(format!("/sys/bus/pci/drivers/{driver}"))
    }

    /// Returns a node's pool of hugepages.
    pub fn hugepage_pool(&self, node: u32, page: gpuvm_core::units::PageSize) -> PathBuf {
        self.path(format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{}kB", page.as_kib()))
    }
}

/// Reads an attribute, or `None` where there is no such file.
///
/// # Errors
/// Returns any failure but ENOENT and ENOTDIR (a device that went away in between). Bytes that are no UTF-8 are
/// replaced, so that a damaged file gives a parse error and not a failure to read.
pub fn read_text(path: &Path) -> Result<Option<String>, HostError> {
    let read = || {
        // Room for a whole attribute, or the library would feel its way with small reads first.
        let mut bytes = Vec::with_capacity(ATTRIBUTE);
        fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(HostError::file("read", path)(error)),
    }
}

/// Reads and parses an attribute, or `None` where there is no such file.
///
/// # Errors
/// Returns failures to read, and what is wrong with the content.
pub fn read_parsed<T>(path: &Path) -> Result<Option<T>, HostError>
where
    T: std::str::FromStr<Err: ToString>,
{
    let Some(text) = read_text(path)? else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|error: T::Err| HostError::content(path, &text, error.to_string()))
}

/// Reads an attribute that holds a number in hex with `0x` before it.
///
/// # Errors
/// Returns failures to read, and what is wrong with the content.
pub fn read_hex(path: &Path) -> Result<Option<u32>, HostError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let digits = text.trim().strip_prefix("0x").unwrap_or(text.trim());
    match u32::from_str_radix(digits, 16) {
        Ok(number) => Ok(Some(number)),
        Err(error) => Err(HostError::content(path, &text, error)),
    }
}

/// Returns the last component of a link's target, or `None` where there is no link.
///
/// # Errors
/// Returns any failure but ENOENT and ENOTDIR.
pub fn link_name(path: &Path) -> Result<Option<OsString>, HostError> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(OsString::from)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(HostError::file("read the link", path)(error)),
    }
}

/// Lists the names in a folder in order; none where there is no such folder.
///
/// # Errors
/// Returns any failure but that it isn't there; something else of that name is one.
pub fn list(path: &Path) -> Result<Vec<String>, HostError> {
    let names = || -> io::Result<Vec<String>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    match names() {
        Ok(mut names) => {
            names.sort();
            Ok(names)
        }
        Err(error) if is_absent(&error) && fs::symlink_metadata(path).is_err() => Ok(Vec::new()),
        Err(error) => Err(HostError::file("list", path)(error)),
    }
}

/// Tells whether a failure means that there is no such file.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns the driver that owns a device.
///
/// # Errors
/// Returns failures to read the link, and a driver name that is none.
pub fn driver_of(root: &HostRoot, bdf: Bdf) -> Result<Option<DriverName>, HostError> {
    let link = root.device(bdf).join("driver");
    match link_name(&link)? {
        None => Ok(None),
        Some(name) => {
            let name = name.to_string_lossy().into_owned();
            let driver = DriverName::new(&name);
            driver.map(Some).ok_or_else(|| HostError::content(&link, &name, "no driver's name"))
        }
    }
}

/// Returns a device's `driver_override`; the kernel shows `(null)` for none.
///
/// # Errors
/// Returns failures to read, and that the function's lock can't be had (driver_override_show of drivers/pci/pci-sysfs.c takes it).
pub fn override_of(root: &HostRoot, bdf: Bdf) -> Result<Option<DriverName>, HostError> {
    root.lockable(bdf)?;
    let text = read_text(&root.device(bdf).join("driver_override"))?;
    Ok(text.as_deref().map(str::trim).filter(|name| *name != "(null)").and_then(DriverName::new))
}

/// Returns a device's IOMMU group.
///
/// # Errors
/// Returns failures to read the link, and a device without a group.
pub fn group_of(root: &HostRoot, bdf: Bdf) -> Result<GroupId, HostError> {
    let link = root.device(bdf).join("iommu_group");
    let name = link_name(&link)?.unwrap_or_default();
    let name = name.to_string_lossy();
    name.parse().map(GroupId).map_err(|_| HostError::content(&link, &name, "no IOMMU group"))
}
