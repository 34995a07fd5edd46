//! Where a running guest's threads and memory really are, as the kernel tells, against what the plan said.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::plan::Plan;

use super::vm::gpuvm;
use super::{doing, ensure};

/// A plan and the QEMU that runs it.
#[derive(Debug)]
pub struct Placed {
    plan: Plan,
    qemu: i32,
}

impl Placed {
    /// Takes the plan that `gpuvm plan` prints now, before anything is bound.
    ///
    /// # Errors
    /// What failed.
    pub fn planned(profile: &str) -> Result<Plan, String> {
        Self::planned_with(&[profile])
    }

    /// Takes the plan for a profile and what else `gpuvm up` will be given.
    ///
    /// # Errors
    /// What failed.
    pub fn planned_with(args: &[&str]) -> Result<Plan, String> {
        let output = gpuvm(&[&["plan", "--json"], args].concat())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let document: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
            format!("gpuvm plan: {error}\n{text}{}", String::from_utf8_lossy(&output.stderr))
        })?;
        serde_json::from_value(document["plan"].clone()).map_err(doing("the plan"))
    }

    /// Finds the QEMU of a VM.
    ///
    /// # Errors
    /// What failed.
    pub fn of(plan: Plan) -> Result<Self, String> {
        let path = format!("/run/gpuvm/reservations/{}.json", plan.name);
        let text = fs::read_to_string(&path).map_err(doing(&path))?;
        let record: serde_json::Value = serde_json::from_str(&text).map_err(doing(&path))?;
        let qemu = record["qemu"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        Ok(Self { plan, qemu: qemu.ok_or_else(|| format!("no QEMU in {text}"))? })
    }

    /// Returns the thread of each vCPU.
    ///
    /// # Errors
    /// What failed.
    pub fn vcpu_threads(&self) -> Result<BTreeMap<u32, i32>, String> {
        let mut threads = BTreeMap::new();
        for (tid, name) in self.threads()? {
            let vcpu = name.strip_prefix("CPU ").and_then(|rest| rest.split('/').next()?.parse().ok());
            if let Some(vcpu) = vcpu {
                threads.insert(vcpu, tid);
            }
        }
        Ok(threads)
    }

    /// Returns the plan that was followed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the CPUs that a vCPU's thread may run on.
    ///
    /// # Errors
    /// What failed, or that there is no such vCPU.
    pub fn cpus_of_vcpu(&self, vcpu: u32) -> Result<CpuSet, String> {
        let thread = self.vcpu_threads()?.get(&vcpu).copied().ok_or_else(|| format!("no vCPU {vcpu}"))?;
        self.allowed(thread)
    }

    /// Returns the words of QEMU's command line.
    ///
    /// # Errors
    /// What failed.
    pub fn argv(&self) -> Result<Vec<String>, String> {
        let path = format!("/proc/{}/cmdline", self.qemu);
        let text = fs::read_to_string(&path).map_err(doing(&path))?;
        Ok(text.split_terminator('\0').map(str::to_owned).collect())
    }

    fn allowed(&self, thread: i32) -> Result<CpuSet, String> {
        let path = format!("/proc/{}/task/{thread}/status", self.qemu);
        let status = fs::read_to_string(&path).map_err(doing(&path))?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        allowed.unwrap_or_default().parse().map_err(doing(&path))
    }

    fn threads(&self) -> Result<Vec<(i32, String)>, String> {
        let folder = PathBuf::from(format!("/proc/{}/task", self.qemu));
        let mut threads = Vec::new();
        for name in super::snapshot::names(&folder) {
            let comm = fs::read_to_string(folder.join(&name).join("comm")).map_err(doing("comm"))?;
            threads.push((name.parse().map_err(doing("a thread's number"))?, comm.trim().to_owned()));
        }
        Ok(threads)
    }

    /// Checks that each thread may run where the plan says, and nowhere else.
    ///
    /// # Errors
    /// Which thread may run where.
    pub fn check_threads(&self) -> Result<(), String> {
        let placement = &self.plan.placement;
        let vcpus = self.vcpu_threads()?;
        ensure(vcpus.len() == placement.vcpus.len() && !vcpus.is_empty(), || {
            format!("{} vCPU threads, {} planned", vcpus.len(), placement.vcpus.len())
        })?;
        for (tid, name) in self.threads()? {
            let allowed = self.allowed(tid)?;
            let vcpu = vcpus.iter().find(|(_, thread)| **thread == tid).map(|(vcpu, _)| *vcpu);
            let planned = match vcpu {
                Some(vcpu) => {
                    placement.vcpus.iter().filter(|pin| pin.vcpu == vcpu).map(|pin| pin.cpu).collect()
                }
                None => placement.emulator.clone(),
            };
            ensure(allowed == planned, || {
                format!("thread {tid} ({name}) may run on {allowed}, planned {planned}")
            })?;
        }
        Ok(())
    }

    /// Checks that every page of guest memory is on the planned node of its cell, and is a hugepage.
    ///
    /// # Errors
    /// What `numa_maps` says instead.
    pub fn check_memory(&self) -> Result<(), String> {
        let path = format!("/proc/{}/numa_maps", self.qemu);
        let text = fs::read_to_string(&path).map_err(doing(&path))?;
        let mut found: Vec<CellPages> =
            text.lines().filter(|line| line.contains("memory-backend-memfd")).map(CellPages::parse).collect();
        let planned = self.plan.memory.iter().map(|cell| {
            let page = cell.hugepages.ok_or("no hugepages were planned")?;
            let node = cell.host_node.ok_or("no node was planned")?;
            Ok(CellPages { page_kib: page.as_kib(), by_node: vec![(node, page.pages_for(cell.size))] })
        });
        let mut planned = planned.collect::<Result<Vec<_>, String>>()?;
        // The order of the mappings is QEMU's affair.
        found.sort();
        planned.sort();
        ensure(found == planned, || {
            format!("planned {planned:?}, but there are {found:?} in {path}:\n{text}")
        })
    }
}

/// The pages of one memory cell's mapping.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CellPages {
    page_kib: u64,
    /// Nodes and the pages on each, as the kernel lists them.
    by_node: Vec<(u32, u64)>,
}

impl CellPages {
    /// Reads a line of `numa_maps` (Documentation/filesystems/proc.rst), which ends in words like `N1=256 kernelpagesize_kB=2048`.
    fn parse(line: &str) -> Self {
        let mut cell = Self { page_kib: 0, by_node: Vec::new() };
        for (key, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key.strip_prefix('N').and_then(|node| node.parse().ok()) {
                Some(node) => cell.by_node.push((node, value)),
                None if key == "kernelpagesize_kB" => cell.page_kib = value,
                None => {}
            }
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_by_node() {
        let line = "7f40 bind:1 file=/memfd:memory-backend-memfd\\040(deleted) huge dirty=256 N0=1 N1=255 kernelpagesize_kB=2048";
        let cell = CellPages { page_kib: 2048, by_node: vec![(0, 1), (1, 255)] };
        assert_eq!(CellPages::parse(line), cell);
    }
}
