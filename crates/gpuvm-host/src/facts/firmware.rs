//! QEMU's firmware descriptors, from the folders that QEMU's own documentation names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuvm_core::facts::FirmwareFacts;

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// Least first: a file of the same name in a later folder masks it, and an empty one disables it.
const FOLDERS: [&str; 2] = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"];

/// Reads the descriptors in the order in which they are to be tried: by name, whatever the folder.
///
/// A descriptor that can't be parsed is skipped with a warning, as QEMU's interop rules ask.
pub(super) fn read(root: &HostRoot) -> Result<Vec<FirmwareFacts>, HostError> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in FOLDERS {
        for name in list(&root.path(folder))?.into_iter().filter(|name| name.ends_with(".json")) {
            files.insert(name.clone(), Path::new(folder).join(name));
        }
    }
    let mut descriptors = Vec::new();
    for path in files.into_values() {
        let Some(text) = read_text(&root.path(&path))?.filter(|text| !text.is_empty()) else { continue };
        match serde_json::from_str(&text) {
            Ok(content) => descriptors.push(FirmwareFacts { descriptor: path, content }),
            Err(error) => tracing::warn!("{}: not a firmware descriptor: {error}", path.display()),
        }
    }
    Ok(descriptors)
}
