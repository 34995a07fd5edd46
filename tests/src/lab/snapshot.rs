//! Everything of a host that gpuvm may change, taken down so that before and after can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::doing;

/// A host's state. Compare two with [`Snapshot::differences`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Attributes by path.
    attributes: BTreeMap<String, String>,
    /// CPUs that each thread may run on, by number and start time: threads come and go.
    affinity: BTreeMap<(String, String), String>,
}

/// `irq` isn't among them: the kernel gives a driver another number each time it binds.
const DEVICE_ATTRIBUTES: [&str; 6] =
    ["driver_override", "enable", "reset_method", "d3cold_allowed", "power/control", "msi_bus"];

/// What isn't the same in two boots of one host.
const PER_BOOT: [&str; 2] = ["modules", "mounts"];

impl Snapshot {
    /// Takes the state of this host.
    ///
    /// # Errors
    /// What can't be read.
    pub fn take() -> Result<Self, String> {
        let mut attributes = BTreeMap::new();
        devices(&mut attributes)?;
        pools(&mut attributes)?;
        for (name, path) in [("modules", "/proc/modules"), ("mounts", "/proc/self/mountinfo")] {
            let text = fs::read_to_string(path).map_err(doing(path))?;
            let mut names: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
            names.sort_unstable();
            attributes.insert(name.to_owned(), names.join(" "));
        }
        for folder in ["/run/gpuvm/bound", "/run/gpuvm/reservations", "/run/gpuvm/vm"] {
            attributes.insert(folder.to_owned(), names(Path::new(folder)).join(" "));
        }
        let claims = fs::read_to_string("/run/gpuvm/claims.json").unwrap_or_default();
        attributes.insert("claims".to_owned(), claims);
        attributes.insert("open groups".to_owned(), open_groups().join(" "));
        Ok(Self { attributes, affinity: affinity() })
    }

    /// Leaves out what another boot gives anew although nothing has changed: mounts, which modules are there by now, threads.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.attributes.retain(|name, _| !PER_BOOT.contains(&name.as_str()));
        self.affinity.clear();
        self
    }

    /// Keeps what lasts of it in a file, for the next boot.
    ///
    /// # Errors
    /// That it can't be written.
    pub fn keep(self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string(&self.lasting().attributes).map_err(doing("spell a snapshot"))?;
        fs::write(path, text).map_err(doing(&path.display().to_string()))
    }

    /// Reads what [`Self::keep`] has kept.
    ///
    /// # Errors
    /// That it can't be read.
    pub fn kept(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(doing(&path.display().to_string()))?;
        let attributes = serde_json::from_str(&text).map_err(doing("read a snapshot"))?;
        Ok(Self { attributes, affinity: BTreeMap::new() })
    }

    /// Lists what differs; nothing for an equal host.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for key in self.attributes.keys().chain(after.attributes.keys()) {
            let (before, now) = (self.attributes.get(key), after.attributes.get(key));
            if before != now {
                found.push(format!("{key}: {before:?} -> {now:?}"));
            }
        }
        for (thread, before) in &self.affinity {
            if let Some(now) = after.affinity.get(thread).filter(|now| *now != before) {
                found.push(format!("CPUs of thread {}: {before} -> {now}", thread.0));
            }
        }
        found.dedup();
        found
    }
}

fn devices(attributes: &mut BTreeMap<String, String>) -> Result<(), String> {
    let root = Path::new("/sys/bus/pci/devices");
    for name in names(root) {
        let device = root.join(&name);
        let driver = fs::read_link(device.join("driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).map(|name| name.display().to_string());
        attributes.insert(format!("{name} driver"), driver.unwrap_or_default());
        for attribute in DEVICE_ATTRIBUTES {
            // Not every device has each of them.
            if let Ok(text) = fs::read_to_string(device.join(attribute)) {
                attributes.insert(format!("{name} {attribute}"), text.trim().to_owned());
            }
        }
    }
    match attributes.is_empty() {
        true => Err("there are no PCI devices".to_owned()),
        false => Ok(()),
    }
}

fn pools(attributes: &mut BTreeMap<String, String>) -> Result<(), String> {
    let nodes = Path::new("/sys/devices/system/node");
    for node in names(nodes).into_iter().filter(|name| name.starts_with("node")) {
        let pools = nodes.join(node).join("hugepages");
        for pool in names(&pools) {
            for file in ["nr_hugepages", "free_hugepages"] {
                let path = pools.join(&pool).join(file);
                let text = fs::read_to_string(&path).map_err(doing(&path.display().to_string()))?;
                attributes.insert(path.display().to_string(), text.trim().to_owned());
            }
        }
    }
    Ok(())
}

/// Lists which VFIO nodes some process has open.
fn open_groups() -> Vec<String> {
    let mut open = Vec::new();
    for process in names(Path::new("/proc")) {
        let fds = Path::new("/proc").join(process).join("fd");
        for fd in names(&fds) {
            let target = fs::read_link(fds.join(fd)).unwrap_or_default();
            if target.starts_with("/dev/vfio") {
                open.push(target.display().to_string());
            }
        }
    }
    open.sort();
    open
}

fn affinity() -> BTreeMap<(String, String), String> {
    let mut threads = BTreeMap::new();
    let processes = names(Path::new("/proc"));
    let tasks =
        processes.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())).flat_map(|process| {
            let tasks = Path::new("/proc").join(process).join("task");
            names(&tasks).into_iter().map(move |task| (task.clone(), tasks.join(task)))
        });
    for (task, folder) in tasks {
        // A thread that ends while it is looked at is none of ours.
        let (Ok(stat), Ok(status)) =
            (fs::read_to_string(folder.join("stat")), fs::read_to_string(folder.join("status")))
        else {
            continue;
        };
        let start = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).unwrap_or("");
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("");
        threads.insert((task, start.to_owned()), cpus.trim().to_owned());
    }
    threads
}

/// Lists the names in a folder in order, none where there is no folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
