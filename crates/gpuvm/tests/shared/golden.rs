//! Golden files: what a run prints, kept below `tests/golden`, one file per case.
//!
//! `GPUVM_BLESS=1 cargo test -p gpuvm` writes them anew; a file that no case claims fails the run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// Compares with a golden file, or writes it.
fn golden(folder: &str, file: &str, actual: &str) -> Result<(), String> {
    let path = repository().join("tests/golden").join(folder).join(file);
    if std::env::var_os("GPUVM_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{}: expected\n{expected}\n--- but got\n{actual}", path.display()))
}

/// Compares all cases of a folder and reports all that differ, and all files that no case claims.
pub(crate) fn compare(folder: &str, cases: impl IntoIterator<Item = (String, String)>) {
    compare_as("txt", folder, cases);
}

/// The same, for files of another kind than text.
pub(crate) fn compare_as(kind: &str, folder: &str, cases: impl IntoIterator<Item = (String, String)>) {
    let mut claimed = BTreeSet::new();
    let mut wrong = Vec::new();
    for (name, actual) in cases {
        let file = format!("{name}.{kind}");
        wrong.extend(golden(folder, &file, &actual).err());
        assert!(claimed.insert(file), "{name}: two cases of one name");
    }
    for entry in fs::read_dir(repository().join("tests/golden").join(folder)).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !claimed.contains(&name) {
            wrong.push(format!("{folder}/{name}: no case claims this golden file"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
