//! What the host's own files add to the table of quirks.

use std::path::Path;

use gpuvm_core::reset::quirks::{FOLDER, LocalQuirks};

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// Reads the files by name. What is wrong in one of them is a fact, and no failure to read.
pub(super) fn read(root: &HostRoot) -> Result<LocalQuirks, HostError> {
    let mut quirks = LocalQuirks::default();
    for name in list(&root.path(FOLDER))?.into_iter().filter(|name| name.ends_with(".toml")) {
        let path = Path::new(FOLDER).join(name);
        let Some(text) = read_text(&root.path(&path))? else { continue };
        quirks.add(&path.display().to_string(), &text);
    }
    Ok(quirks)
}
