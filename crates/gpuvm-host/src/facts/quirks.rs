//! What the host's own files add to the table of quirks.

use std::path::Path;

use gpuvm_core::reset::quirks::{FOLDER, LocalQuirks};

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// Reads the files by name. What is wrong with one of them, be it that it can't be read, is a fact: those beside it are read.
pub(super) fn read(root: &HostRoot) -> LocalQuirks {
    let mut quirks = LocalQuirks::default();
    let names = list(&root.path(FOLDER)).unwrap_or_else(|error| {
        quirks.unreadable(FOLDER, &why(error));
        Vec::new()
    });
    for name in names.into_iter().filter(|name| name.ends_with(".toml")) {
        let path = Path::new(FOLDER).join(name);
        let file = path.display().to_string();
        match read_text(&root.path(&path)) {
            Ok(Some(text)) => quirks.add(&file, &text),
            Ok(None) => quirks.unreadable(&file, "it leads nowhere"),
            Err(error) => quirks.unreadable(&file, &why(error)),
        }
    }
    quirks
}

/// Says why, without the path, which is told beside it.
fn why(error: HostError) -> String {
    match error {
        HostError::File { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}
