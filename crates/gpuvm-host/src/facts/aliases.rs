//! What the kernel's VFIO drivers say they are for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gpuvm_core::facts::VfioAlias;
use gpuvm_core::pci::DriverName;
use gpuvm_core::plan::{VFIO_ALIAS, fits_alias};

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// Patterns of VFIO's drivers, each with its module.
pub(super) type Aliases = Arc<[(String, String)]>;

/// Reads the aliases of VFIO's drivers, those of other drivers aside.
pub(super) fn read(root: &HostRoot, release: &str) -> Result<Aliases, HostError> {
    listed(&root.path(format!("/lib/modules/{release}/modules.alias")))
}

/// Aliases of VFIO's drivers, each with its module, as a file listed them.
struct Listed {
    file: PathBuf,
    /// Which file it was, and its size and times: depmod(8) makes a new one.
    stamp: Stamp,
    aliases: Aliases,
}

/// Device, inode, size, and the time of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

/// What was read last. The file has over a megabyte, of which a few lines are wanted, and a soak plans anew in each cycle.
static LAST: Mutex<Option<Listed>> = Mutex::new(None);

/// Lists the aliases that a file holds, none if it isn't there; it is read again only if it has changed.
fn listed(file: &Path) -> Result<Aliases, HostError> {
    let stamp = stamp(file);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(last), Some(stamp)) = (&*last, stamp)
        && last.file == file
        && last.stamp == stamp
    {
        return Ok(Arc::clone(&last.aliases));
    }
    let text = read_text(file)?.unwrap_or_default();
    let ours =
        text.lines().filter_map(|line| line.strip_prefix("alias ")).filter(|of| of.starts_with(VFIO_ALIAS));
    let parsed = ours.filter_map(|line| {
        let (pattern, module) = line.split_once(' ')?;
        Some((pattern.to_owned(), module.trim().to_owned()))
    });
    let aliases: Aliases = parsed.collect();
    *last = stamp.map(|stamp| Listed { file: file.to_owned(), stamp, aliases: Arc::clone(&aliases) });
    Ok(aliases)
}

fn stamp(file: &Path) -> Option<Stamp> {
    let of = fs::metadata(file).ok()?;
    Some((of.dev(), of.ino(), of.size(), of.ctime(), of.ctime_nsec()))
}

/// Returns the PCI driver of a module that is loaded: their names differ in more than their dashes.
fn driver(root: &HostRoot, module: &str) -> Option<DriverName> {
    let names = list(&root.path(format!("/sys/module/{module}/drivers"))).unwrap_or_default();
    names.iter().find_map(|name| DriverName::new(name.strip_prefix("pci:")?))
}

/// Returns those that fit a device, each with its driver as it is now.
pub(super) fn fitting(root: &HostRoot, aliases: &Aliases, modalias: Option<&str>) -> Vec<VfioAlias> {
    let fits =
        |(pattern, _): &&(String, String)| modalias.is_some_and(|modalias| fits_alias(pattern, modalias));
    let alias = |(pattern, module): &(String, String)| VfioAlias {
        pattern: pattern.clone(),
        module: module.clone(),
        driver: driver(root, module),
    };
    aliases.iter().filter(fits).map(alias).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_depmod_has_made_anew_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("modules.alias");
        assert_eq!(*listed(&file).unwrap(), []);
        let line = |id: &str, module: &str| format!("alias vfio_pci:v{id}* {module}\n");
        fs::write(&file, format!("alias pci:v0000* nvme\n{}", line("00001234", "one"))).unwrap();
        let one = ("vfio_pci:v00001234*".to_owned(), "one".to_owned());
        assert_eq!(*listed(&file).unwrap(), std::slice::from_ref(&one)[..]);
        assert_eq!(*listed(&file).unwrap(), std::slice::from_ref(&one)[..]);
        let new = dir.path().join("new");
        fs::write(&new, line("00005678", "two")).unwrap();
        fs::rename(&new, &file).unwrap();
        assert_eq!(*listed(&file).unwrap(), [("vfio_pci:v00005678*".to_owned(), "two".to_owned())]);
        fs::remove_file(&file).unwrap();
        assert_eq!(*listed(&file).unwrap(), []);
    }
}
