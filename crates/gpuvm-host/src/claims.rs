//! The table of claims on what VMs share: hugepage pools, the ports above devices, and whether found devices get drivers.

use std::collections::BTreeMap;

use gpuvm_core::host_ops::{AutoprobeClaims, AwakeClaims, PoolClaims};
use gpuvm_core::pci::Bdf;
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::lock;
use crate::places::Places;
use crate::root::read_text;

/// The table of all claims of one boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    boot_id: String,
    /// By node and page, as in `1-2M`.
    pub(crate) hugepages: BTreeMap<String, PoolClaims>,
    /// By port.
    #[serde(default)]
    pub(crate) awake: BTreeMap<Bdf, AwakeClaims>,
    /// On `drivers_autoprobe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) autoprobe: Option<AutoprobeClaims>,
}

impl Table {
    fn is_empty(&self) -> bool {
        self.hugepages.is_empty() && self.awake.is_empty() && self.autoprobe.is_none()
    }
}

/// Changes the table; its lock is held for that alone. A table without claims is no file, and one that stays as it was isn't written.
///
/// # Errors
/// Returns failures to lock, read and write.
pub(crate) fn edit(places: &Places, boot_id: &str, change: impl FnOnce(&mut Table)) -> Result<(), HostError> {
    let _guard = lock::tables(places)?;
    let path = places.claims();
    let before = load(places, boot_id)?;
    let mut table = before.clone();
    change(&mut table);
    if table.is_empty() {
        return lock::remove(&path);
    }
    if table == before {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&table).map_err(|error| HostError::content(&path, "", error))?;
    lock::replace(&path, &text)
}

/// Removes a table of another boot: no such change survives a reboot. Tells whether there was one.
///
/// # Errors
/// Returns failures to lock, read and remove.
pub fn clear_stale(places: &Places, boot_id: &str) -> Result<Stale, HostError> {
    let stale = |table: &Option<Table>| table.as_ref().is_some_and(|table| table.boot_id != boot_id);
    if !stale(&read(places)?) {
        return Ok(Stale::None);
    }
    edit(places, boot_id, |_| {})?;
    Ok(Stale::Removed)
}

/// Whether there was a table of another boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// There was none.
    None,
    /// There was one, and it is gone.
    Removed,
}

fn load(places: &Places, boot_id: &str) -> Result<Table, HostError> {
    let fresh = || Table { boot_id: boot_id.to_owned(), ..Table::default() };
    Ok(read(places)?.filter(|table| table.boot_id == boot_id).unwrap_or_else(fresh))
}

fn read(places: &Places) -> Result<Option<Table>, HostError> {
    let path = places.claims();
    let Some(text) = read_text(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| HostError::content(&path, &text, error))
}
