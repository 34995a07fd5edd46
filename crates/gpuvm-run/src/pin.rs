//! Puts QEMU's threads where the plan wants them, before the guest's first instruction.

use std::fs;
use std::path::PathBuf;

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::plan::Plan;
use gpuvm_qmp::verbs::VcpuThread;
use gpuvm_sys::errno::ESRCH;
use gpuvm_sys::sched;

use crate::error::LaunchError;

/// Pins each vCPU thread to its CPU and all other threads to the emulator's CPUs, and reads back that it took.
pub(crate) fn pin(plan: &Plan, qemu: i32, vcpus: &[VcpuThread]) -> Result<(), LaunchError> {
    let pins = &plan.placement.vcpus;
    if pins.is_empty() {
        return Ok(());
    }
    if vcpus.len() != pins.len() {
        return Err(LaunchError::Vcpus { found: vcpus.len(), planned: pins.len() });
    }
    pin_others(plan, qemu, vcpus)?;
    for pin in pins {
        let thread = vcpus.iter().find(|vcpu| vcpu.index == pin.vcpu);
        let thread = thread.ok_or(LaunchError::Vcpus { found: vcpus.len(), planned: pins.len() })?;
        set(&format!("vCPU {}", pin.vcpu), thread.thread_id, &CpuSet::from_iter([pin.cpu]))?;
    }
    Ok(())
}

/// Pins the threads that are no vCPU; to be done again while the guest runs.
///
/// A thread made later inherits the CPUs of its maker, and that can be a vCPU: the kernel's `kvm-nx-lpage-recovery` (6.12)
/// is made by the first vCPU that runs.
pub(crate) fn pin_others(plan: &Plan, qemu: i32, vcpus: &[VcpuThread]) -> Result<(), LaunchError> {
    if plan.placement.vcpus.is_empty() {
        return Ok(());
    }
    for task in tasks(qemu)? {
        if !vcpus.iter().any(|vcpu| vcpu.thread_id == task) {
            set("a thread of QEMU", task, &plan.placement.emulator)?;
        }
    }
    Ok(())
}

fn set(what: &str, tid: i32, cpus: &CpuSet) -> Result<(), LaunchError> {
    let list: Vec<u32> = cpus.iter().collect();
    let error = |source| LaunchError::Pin { what: what.to_owned(), tid, cpus: cpus.to_string(), source };
    if sched::affinity(tid).is_ok_and(|now| now == list) {
        return Ok(());
    }
    match sched::set_affinity(tid, &list) {
        // A thread that has ended since it was listed needs no CPU.
        Err(gone) if gone.raw_os_error() == Some(ESRCH) => return Ok(()),
        result => result.map_err(error)?,
    }
    // A cpuset narrows the mask without an error (sched_setaffinity(2)).
    let now: CpuSet = match sched::affinity(tid) {
        Err(gone) if gone.raw_os_error() == Some(ESRCH) => return Ok(()),
        result => result.map_err(error)?.into_iter().collect(),
    };
    if now == *cpus {
        return Ok(());
    }
    Err(LaunchError::NotPinned { what: what.to_owned(), tid, cpus: cpus.to_string(), now: now.to_string() })
}

fn tasks(pid: i32) -> Result<Vec<i32>, LaunchError> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let list = || -> std::io::Result<Vec<i32>> {
        let names = fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<std::io::Result<Vec<_>>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    };
    list().map_err(|source| LaunchError::File { doing: "list", path, source })
}
