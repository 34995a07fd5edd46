//! The record of functions that were bound together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gpuvm_core::pci::{Bdf, DriverName, GroupId};
use gpuvm_core::reset::Snapshot;
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::journal;
use crate::lock;
use crate::places::Places;
use crate::root::{list, read_text};

/// Functions that were bound together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BoundSet {
    /// The name of its folder: a function that was in it at first, and a number where another set has that name.
    pub(super) name: String,
    /// The boot that the record belongs to.
    pub(super) boot_id: String,
    /// Their groups.
    pub(super) groups: Vec<GroupId>,
    /// The functions, with the drivers that they had.
    pub(super) devices: BTreeMap<Bdf, Option<DriverName>>,
    /// Those that are to be given back.
    pub(super) leaving: BTreeSet<Bdf>,
    /// What the functions said of themselves before anything was done.
    #[serde(default)]
    pub(super) baselines: BTreeMap<Bdf, Snapshot>,
}

impl BoundSet {
    /// Returns the set's folder.
    pub(super) fn folder(&self, places: &Places) -> PathBuf {
        places.bound().join(&self.name)
    }

    /// Returns the set's journal.
    pub(super) fn journal(&self, places: &Places) -> PathBuf {
        self.folder(places).join("journal")
    }

    /// Writes the record.
    pub(super) fn store(&self, places: &Places) -> Result<(), HostError> {
        let path = self.folder(places).join(FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|error| HostError::content(&path, "", error))?;
        lock::replace(&path, &text)
    }

    /// Removes the set: nothing is bound by it any more.
    pub(super) fn remove(&self, places: &Places) -> Result<(), HostError> {
        journal::remove_dir(&self.folder(places))
    }
}

const FILE: &str = "set.json";

/// Reads all sets, of whatever boot. One that makes no sense is in the way of its own functions alone: see [`damaged`].
pub(super) fn all(places: &Places) -> Result<Vec<BoundSet>, HostError> {
    Ok(all_read(places)?.into_iter().filter_map(|(_, set)| set.ok()).collect())
}

/// Finds the records that make no sense, with the function that each is named by, and why.
pub(super) fn damaged(places: &Places) -> Result<Vec<(Option<Bdf>, HostError)>, HostError> {
    let damaged = |(name, set): Named| {
        // Behind a function's address there may be a number.
        let first = name.split('-').next().and_then(|bdf| bdf.parse().ok());
        set.err().map(|error| (first, error))
    };
    Ok(all_read(places)?.into_iter().filter_map(damaged).collect())
}

/// A set's folder by its name, and what its record says.
type Named = (String, Result<BoundSet, HostError>);

fn all_read(places: &Places) -> Result<Vec<Named>, HostError> {
    let folder = places.bound();
    let mut sets = Vec::new();
    for name in list(&folder)? {
        match read(&folder.join(&name).join(FILE)) {
            Ok(set) => sets.extend(set.map(|set| (name, Ok(set)))),
            Err(error @ HostError::Content { .. }) => sets.push((name, Err(error))),
            Err(error) => return Err(error),
        }
    }
    Ok(sets)
}

/// Reads one set anew: nothing where it is gone.
pub(super) fn again(places: &Places, set: &BoundSet) -> Result<Option<BoundSet>, HostError> {
    Ok(read(&set.folder(places).join(FILE))?.filter(|now| now.boot_id == set.boot_id))
}

/// Finds a name that no set of this boot has.
pub(super) fn free_name(places: &Places, boot_id: &str, first: Bdf) -> Result<String, HostError> {
    let of_now = |set: &Result<BoundSet, HostError>| set.as_ref().map_or(true, |set| set.boot_id == boot_id);
    let taken: BTreeSet<String> =
        all_read(places)?.into_iter().filter(|(_, set)| of_now(set)).map(|(name, _)| name).collect();
    let names = std::iter::once(first.to_string()).chain((2..).map(|number| format!("{first}-{number}")));
    Ok(names.into_iter().find(|name| !taken.contains(name)).unwrap_or_default())
}

/// Removes folders without a record: their making was cut short before anything was bound.
pub(super) fn clear_unmade(places: &Places) -> Result<(), HostError> {
    let folder = places.bound();
    for name in list(&folder)? {
        if read_text(&folder.join(&name).join(FILE))?.is_none() {
            journal::remove_dir(&folder.join(name))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<BoundSet>, HostError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| HostError::content(path, &text, error))
}
