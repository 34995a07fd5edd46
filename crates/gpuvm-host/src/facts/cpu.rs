//! CPUs and which of them are threads of one core.

use std::collections::BTreeSet;

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::facts::{CpuFacts, CpuVendor};

use crate::HostError;
use crate::root::{HostRoot, read_parsed, read_text};

pub(super) fn read(root: &HostRoot) -> Result<CpuFacts, HostError> {
    let folder = root.path("/sys/devices/system/cpu");
    let online: CpuSet = read_parsed(&folder.join("online"))?.unwrap_or_default();
    let mut cores = BTreeSet::new();
    for cpu in online.iter() {
        let siblings = folder.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        if let Some(siblings) = read_parsed::<CpuSet>(&siblings)? {
            cores.insert(siblings);
        }
    }
    let cpuinfo = read_text(&root.path("/proc/cpuinfo"))?.unwrap_or_default();
    let amd = cpuinfo.lines().any(|line| line.starts_with("vendor_id") && line.ends_with("AuthenticAMD"));
    let vendor = if amd { CpuVendor::Amd } else { CpuVendor::Other };
    let phys_bits = phys_bits(&cpuinfo);
    Ok(CpuFacts { online, vendor, taken: CpuSet::default(), cores: cores.into_iter().collect(), phys_bits })
}

/// Reads `address sizes : 46 bits physical, 48 bits virtual`.
fn phys_bits(cpuinfo: &str) -> Option<u8> {
    let line = cpuinfo.lines().find(|line| line.starts_with("address sizes"))?;
    line.split_once(':')?.1.split_ascii_whitespace().next()?.parse().ok()
}
