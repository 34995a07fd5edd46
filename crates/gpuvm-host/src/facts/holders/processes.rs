//! Who has files open: one look at all processes, for all that is asked of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use gpuvm_core::facts::ProcessFacts;
use gpuvm_core::pci::Bdf;

use crate::facts::Reading;
use crate::root::{HostRoot, list, read_text};

/// How many open files are looked at; a host with more is told that it wasn't seen wholly.
const MOST: usize = 1_000_000;

/// What processes are looked for.
#[derive(Debug, Default)]
pub(super) struct Sought {
    /// Device files, with the functions that they lead to.
    pub(super) files: BTreeMap<PathBuf, BTreeSet<Bdf>>,
    /// Where file systems are mounted whose users are asked for.
    pub(super) mounts: BTreeSet<PathBuf>,
    /// Where any file systems are mounted.
    pub(super) targets: BTreeSet<PathBuf>,
}

/// Who was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The processes that have files of functions open, with the files.
    pub(super) openers: BTreeMap<(Bdf, ProcessFacts), BTreeSet<PathBuf>>,
    /// The processes that use mounted file systems.
    pub(super) users: BTreeMap<PathBuf, BTreeSet<ProcessFacts>>,
}

impl Sought {
    /// Looks at each process once; at none where nothing is sought.
    pub(super) fn find(&self, root: &HostRoot, reading: &Reading) -> Found {
        let mut found = Found::default();
        if self.files.is_empty() && self.mounts.is_empty() {
            return found;
        }
        let (mut looked, mut hidden) = (0, 0);
        for name in list(&root.path("/proc")).unwrap_or_default() {
            let Ok(pid) = name.parse::<i32>() else { continue };
            let folder = root.path("/proc").join(&name);
            if is_own(root, pid) {
                continue;
            }
            match open_files(&folder) {
                Ok(files) => {
                    looked += files.len();
                    self.note(&folder, pid, files, &mut found);
                }
                Err(ErrorKind::PermissionDenied) => hidden += 1,
                // It has ended while it was looked at.
                Err(_) => {}
            }
            if looked > MOST {
                reading.remark(format!("after {MOST} open files no further processes were looked at"));
                break;
            }
        }
        if hidden > 0 {
            reading.remark(format!("what {hidden} processes of other users have open can't be seen"));
        }
        found
    }

    /// Takes down what of a process's files is sought.
    fn note(&self, folder: &Path, pid: i32, files: Vec<PathBuf>, found: &mut Found) {
        let mut process = None;
        let mut named = || {
            let name = || read_text(&folder.join("comm")).ok().flatten().unwrap_or_default();
            let facts = || ProcessFacts { pid, command: name().trim().to_owned() };
            process.get_or_insert_with(facts).clone()
        };
        for file in files {
            for bdf in self.files.get(&file).into_iter().flatten() {
                found.openers.entry((*bdf, named())).or_default().insert(file.clone());
            }
            if let Some(target) = self.mount_of(&file) {
                found.users.entry(target.clone()).or_default().insert(named());
            }
        }
    }

    /// Returns the mount that a file lies on, if its users are asked for.
    fn mount_of(&self, file: &Path) -> Option<&PathBuf> {
        if self.mounts.is_empty() {
            return None;
        }
        let target = file.ancestors().find(|folder| self.targets.contains(*folder))?;
        self.mounts.get(target)
    }
}

/// Lists a process's open files, its program and the folders that it stands in.
///
/// The kernel's own threads, most of all processes, have no program and nothing open; nor has a process that has ended.
fn open_files(folder: &Path) -> Result<Vec<PathBuf>, ErrorKind> {
    let program = match fs::read_link(folder.join("exe")) {
        Ok(program) => Some(program),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        // What else it has may be seen all the same, and if not, that says why.
        Err(_) => None,
    };
    let fds = fs::read_dir(folder.join("fd")).map_err(|error| error.kind())?;
    let own = ["cwd", "root"].map(|name| folder.join(name));
    let links = fds.flatten().map(|fd| fd.path()).chain(own);
    Ok(links.filter_map(|link| fs::read_link(link).ok()).chain(program).collect())
}

/// Tells whether a process is this one, which stands in some folder too.
fn is_own(root: &HostRoot, pid: i32) -> bool {
    root.path("/") == Path::new("/") && u32::try_from(pid) == Ok(std::process::id())
}
