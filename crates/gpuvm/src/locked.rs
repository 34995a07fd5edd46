//! A profile's lock: the file beside it, and what verbs make of it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use gpuvm_core::facts::HostFacts;
use gpuvm_core::lock::{Change, Lock, Severity, asked, compare};
use gpuvm_core::plan::{Topic, Warning};
use gpuvm_core::profile::Profile;
use gpuvm_host::{facts, given};

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::{Failure, Item, kind};
use crate::hints;
use crate::load::{self, Loaded};

/// The lock of a profile, where it has one.
#[derive(Debug, Clone)]
pub(crate) struct LockFile {
    /// Where it is, or would be.
    pub(crate) path: PathBuf,
    /// What it says.
    pub(crate) lock: Option<Lock>,
    /// Its text.
    pub(crate) text: Option<String>,
}

/// Names the lock of a profile: `vm.lock` beside `vm.toml`.
pub(crate) fn path_of(profile: &Path) -> PathBuf {
    if profile.extension().is_some_and(|end| end == "toml") {
        return profile.with_extension("lock");
    }
    let mut name = profile.file_name().map(OsString::from).unwrap_or_default();
    name.push(".lock");
    profile.with_file_name(name)
}

/// Reads the lock of a profile, if there is one. One that can't be used is never passed over.
pub(crate) fn read(args: &ProfileArgs) -> Result<LockFile, Failure> {
    let path = path_of(&args.profile);
    let text = match given::text(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(LockFile { path, lock: None, text: None });
        }
        Err(error) => {
            let code = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::Profile,
            };
            return Err(Failure::one(code, format!("read {}: {error}", path.display()), None));
        }
    };
    match Lock::parse(&text) {
        Ok(lock) => Ok(LockFile { path, lock: Some(lock), text: Some(text) }),
        Err(error) => {
            let message = format!("{} can't be used: {error}", path.display());
            Err(Failure::one(Exit::Profile, message, Some(hints::bad_lock(args))))
        }
    }
}

/// Reads of the host what a lock of this profile is about.
pub(crate) fn facts_for(cli: &Cli, profile: &Profile, lock: Option<&Lock>) -> Result<HostFacts, Failure> {
    match load::recorded(cli)? {
        Some(recorded) => Ok(recorded.facts),
        None => Ok(facts::for_lock(&load::host_root(cli), &asked(profile), lock)?),
    }
}

/// Says what has changed on the host since it was locked; nothing where it wasn't.
pub(crate) fn changes(cli: &Cli, profile: &Profile, lock: Option<&Lock>) -> Result<Vec<Change>, Failure> {
    let Some(lock) = lock else { return Ok(Vec::new()) };
    let facts = facts_for(cli, profile, Some(lock))?;
    Ok(compare(lock, profile, &facts))
}

/// Tells whether something matters.
pub(crate) fn matter(changes: &[Change]) -> bool {
    changes.iter().any(|change| change.severity() == Severity::Matters)
}

/// Turns changes into what stays visible beside a plan. What nobody knows is for `gpuvm lock --check` to tell.
pub(crate) fn warnings(changes: &[Change]) -> Vec<Warning> {
    let told = changes.iter().filter(|change| change.severity() != Severity::Unknown);
    let message = |change: &Change| match change.severity() {
        Severity::Matters => format!("{change}; `up` refuses this (see gpuvm lock --check)"),
        _ => format!("{change}"),
    };
    told.map(|change| Warning { about: Topic::Lock, message: message(change) }).collect()
}

/// Refuses to go on after changes that matter.
pub(crate) fn refusal(file: &LockFile, args: &ProfileArgs, changes: &[Change]) -> Failure {
    Failure::of(Exit::Unfit, items(file, args, changes))
}

/// Names each change that matters; the last one says what to do.
pub(crate) fn items(file: &LockFile, args: &ProfileArgs, changes: &[Change]) -> Vec<Item> {
    let matter: Vec<&Change> =
        changes.iter().filter(|change| change.severity() == Severity::Matters).collect();
    let item = |(number, change): (usize, &&Change)| Item {
        kind: kind(*change),
        message: format!("since {} was written: {change}", file.path.display()),
        hint: (number + 1 == matter.len()).then(|| hints::changed(args)),
    };
    matter.iter().enumerate().map(item).collect()
}

/// What `up` does about a host that has changed since it was locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnChanges {
    /// What matters is refused, and what may matter is warned of.
    Refuse,
    /// The lock is written anew.
    Accept,
}

/// What `up` goes on with.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The profile, whose devices may be others now.
    pub(crate) loaded: Loaded,
    /// What stays visible as long as the VM lives.
    pub(crate) warnings: Vec<Warning>,
    /// Whether the lock was written anew.
    pub(crate) written: bool,
}

/// Refuses a host that isn't as it was when it was locked, before anything is touched, or locks it as it is.
pub(crate) fn before_up(
    cli: &Cli,
    args: &ProfileArgs,
    loaded: Loaded,
    on_changes: OnChanges,
) -> Result<Judged, Failure> {
    let file = &loaded.lock;
    let changes = changes(cli, &loaded.profile, file.lock.as_ref())?;
    match on_changes {
        OnChanges::Refuse if matter(&changes) => return Err(refusal(file, args, &changes)),
        OnChanges::Refuse => return Ok(Judged { warnings: warnings(&changes), written: false, loaded }),
        OnChanges::Accept => {}
    }
    let known: Vec<&Change> =
        changes.iter().filter(|change| change.severity() != Severity::Unknown).collect();
    if known.is_empty() {
        return Ok(Judged { warnings: Vec::new(), written: false, loaded });
    }
    let loaded = loaded.chosen_anew(cli)?;
    // What can't run isn't locked.
    load::planned(cli, &loaded.profile)?;
    let facts = facts_for(cli, &loaded.profile, None)?;
    write(&loaded.lock.path, &Lock::of(&loaded.profile, &facts)?)?;
    let accepted = |change: &&Change| Warning { about: Topic::Lock, message: format!("accepted: {change}") };
    Ok(Judged { warnings: known.iter().map(accepted).collect(), written: true, loaded })
}

/// Writes a lock at once or not at all, with the owner and the permissions of the one that was there.
pub(crate) fn write(path: &Path, lock: &Lock) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::Permission,
            _ => Exit::Unfit,
        };
        Failure::one(code, format!("write {}: {error}", path.display()), None)
    };
    let text = lock
        .to_toml()
        .map_err(|error| Failure::one(Exit::Internal, format!("spell the lock: {error}"), None))?;
    // A link stays a link: what it leads to is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    replace(&path, text.as_bytes()).map_err(failed)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let new = folder.join(name);
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(&new)?;
        file.write_all(bytes)?;
        if let Ok(old) = fs::metadata(path) {
            let mine = file.metadata()?;
            if (old.uid(), old.gid()) != (mine.uid(), mine.gid()) {
                chown(&new, Some(old.uid()), Some(old.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        }
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // Best effort: the failure itself is what is told.
        fs::remove_file(&new).ok();
    }
    written
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests;
