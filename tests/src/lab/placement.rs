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
        let output = gpuvm(&["plan", "--json", profile])?;
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
            let path = format!("/proc/{}/task/{tid}/status", self.qemu);
            let status = fs::read_to_string(&path).map_err(doing(&path))?;
            let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let allowed: CpuSet = allowed.unwrap_or_default().parse().map_err(doing(&path))?;
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

    /// Checks that every page of guest memory is on the planned node, and is a hugepage.
    ///
    /// # Errors
    /// What `numa_maps` says instead.
    pub fn check_memory(&self) -> Result<(), String> {
        let path = format!("/proc/{}/numa_maps", self.qemu);
        let text = fs::read_to_string(&path).map_err(doing(&path))?;
        let line = text.lines().find(|line| line.contains("memory-backend-memfd"));
        let line = line.ok_or_else(|| format!("no guest memory in {path}:\n{text}"))?;
        let pages: Vec<(u32, u64)> = line
            .split(' ')
            .filter_map(|word| {
                let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
                Some((node.parse().ok()?, pages.parse().ok()?))
            })
            .collect();
        let cell = &self.plan.memory[0];
        let page = cell.hugepages.ok_or("no hugepages were planned")?;
        let planned = vec![(cell.host_node.ok_or("no node was planned")?, page.pages_for(cell.size))];
        ensure(pages == planned && line.contains(&format!("kernelpagesize_kB={}", page.as_kib())), || {
            format!("planned {planned:?} of {page}, but: {line}")
        })
    }
}
