//! The folders of modprobe.d(5) and modules-load.d(5).

use std::collections::BTreeMap;

use gpuvm_core::facts::{BootModule, Rule};
use gpuvm_core::modprobe::{module_name, parse};

use super::{matters, worth_keeping};
use crate::HostError;
use crate::facts::Reading;
use crate::root::{HostRoot, list, read_text};

/// Where rules are, the first of a name wins (modprobe.d(5)).
const MODPROBE: [&str; 5] = [
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
];
/// Where lists are, the first of a name wins (modules-load.d(5)).
const MODULES_LOAD: [&str; 4] = [
    "/etc/modules-load.d",
    "/run/modules-load.d",
    "/usr/local/lib/modules-load.d",
    "/usr/lib/modules-load.d",
];
/// Debian's list of old, and systemd's of Debian.
const MODULES: &str = "/etc/modules";

/// Reads the rules that matter.
pub(super) fn modprobe(root: &HostRoot, reading: &Reading) -> Result<Vec<Rule>, HostError> {
    let mut rules = Vec::new();
    for (path, text) in configured(root, &MODPROBE, reading)? {
        let found = parse(&text).into_iter().filter(worth_keeping);
        rules.extend(found.map(|directive| Rule { source: path.clone(), directive }));
    }
    Ok(rules)
}

/// Reads the modules that matter of those that are loaded at boot.
pub(super) fn modules_load(root: &HostRoot, reading: &Reading) -> Result<Vec<BootModule>, HostError> {
    let mut files = configured(root, &MODULES_LOAD, reading)?;
    if let Some(text) = reading.take(read_text(&root.path(MODULES)))? {
        files.push((MODULES.to_owned(), text));
    }
    let mut found: Vec<BootModule> = Vec::new();
    for (path, text) in files {
        // Debian's /etc/modules-load.d/modules.conf is a link to /etc/modules.
        let new: Vec<_> =
            listed(&text).filter(|module| found.iter().all(|have| have.module != *module)).collect();
        found.extend(new.into_iter().map(|module| BootModule { module, source: path.clone() }));
    }
    Ok(found)
}

/// Lists the modules that matter of a list of modules, one a line, options of old behind.
pub(super) fn listed(text: &str) -> impl Iterator<Item = String> + '_ {
    let words = text.lines().filter_map(|line| line.split_ascii_whitespace().next());
    let modules = words.filter(|word| !word.starts_with(['#', ';'])).map(module_name);
    modules.filter(|module| matters(module))
}

/// Reads the `.conf` files of folders, in the order of their names; one of a former folder hides those of the same name.
fn configured(
    root: &HostRoot,
    folders: &[&str],
    reading: &Reading,
) -> Result<Vec<(String, String)>, HostError> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for folder in folders {
        for name in reading.take(list(&root.path(folder)))?.into_iter().filter(|name| name.ends_with(".conf"))
        {
            files.entry(name.clone()).or_insert_with(|| format!("{folder}/{name}"));
        }
    }
    let mut texts = Vec::new();
    for path in files.into_values() {
        if let Some(text) = reading.take(read_text(&root.path(&path)))? {
            texts.push((path, text));
        }
    }
    Ok(texts)
}
