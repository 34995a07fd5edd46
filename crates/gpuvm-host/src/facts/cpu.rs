//! CPUs and which of them are threads of one core.

use std::collections::BTreeSet;

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::facts::CpuFacts;

use crate::HostError;
use crate::root::{HostRoot, read_parsed};

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
    Ok(CpuFacts { online, cores: cores.into_iter().collect() })
}
