//! The scenarios. Each leaves the host as it found it, and proves that by a snapshot.

use std::fs;
use std::path::Path;
use std::time::Duration;

use gpuvm_host::HostError;
use gpuvm_host::root::HostRoot;
use nix::sys::signal::Signal;

use super::bad_hosts::{bad_hosts, prefer};
use super::canary::Canary;
use super::placement::Placed;
use super::snapshot::Snapshot;
use super::vm::{PROFILE, Vm, gpuvm};
use super::{Outcome, doing, edu, ensure};

/// A scenario.
pub type Scenario = fn() -> Outcome;

/// All scenarios by name.
pub const ALL: &[(&str, Scenario)] = &[
    ("compute", compute),
    ("deviations", deviations),
    ("isolation", isolation),
    ("sigterm", sigterm),
    ("sigkill", sigkill),
    ("panic", panic),
    ("relaunch", super::relaunch::relaunch),
    ("fallen-card", super::faults::fallen_card),
    ("refusals", refusals),
    ("native-driver", native_driver),
    ("bad-hosts", bad_hosts),
    ("prefer", prefer),
    ("aperture", aperture),
    ("kill-matrix", super::kills::kill_matrix),
    ("two-vms", super::shared::two_vms),
    ("no-iommu", no_iommu),
    ("doctor-host", super::doctor_host::doctor_host),
    ("doctor-no-iommu", super::doctor_host::doctor_no_iommu),
    ("doctor-no-intremap", super::doctor_host::doctor_no_intremap),
    ("no-intremap", no_intremap),
    ("uefi", super::uefi::uefi),
    ("two-gpus", super::two_gpus::two_gpus),
    ("boot-display", super::boot_display::boot_display),
    ("bind", super::bind::bind),
    ("bind-holders", super::bind::holders),
    ("bind-hangs", super::bind::hangs),
    ("bind-stranded", super::bind::stranded),
    ("bind-killed", super::bind::killed),
    ("lock-same", super::lock::same),
    ("lock-moved", super::lock::moved),
    ("lock-grown", super::lock::grown),
    ("messages", super::messages::messages),
    ("messages-intremap", super::messages::messages_intremap),
    ("messages-no-iommu", super::messages::messages_no_iommu),
    ("doctor-card", super::doctor::doctor_card),
    ("doctor-refusals", super::doctor::doctor_refusals),
    ("doctor-boot", super::doctor::doctor_boot),
    ("doctor-errors", super::doctor::doctor_errors),
    ("reset", super::reset::reset),
    ("sick-before-start", super::faults::before_start),
    ("sick-at-greeting", super::faults::at_greeting),
    ("sick-while-running", super::faults::while_running),
    ("sick-during-down", super::faults::during_down),
    ("sick-after-exit", super::faults::after_exit),
    ("sick-gave-up", super::faults::gave_up),
    ("link-error", super::faults::link_error),
    ("refused-reset", super::faults::refused_reset),
    ("slow-to-return", super::faults::slow_to_return),
    ("first-profile", super::init::first_profile),
    ("report", super::init::report),
    ("repair", super::repair::repair),
    ("reset-policy", super::reset_policy::reset_policy),
    ("soak", super::soak::soak),
    ("soak-fault", super::soak::soak_fault),
    ("life", super::life::life),
    ("deaths", super::life::deaths),
    ("service", super::service::service),
    ("reboot-in-a-run", super::installed::reboot_in_a_run),
];

pub(super) const GPU: &str = "0000:81:00.0";
const AUDIO: &str = "0000:81:00.1";
pub(super) const EDU: &str = "0000:82:00.0";
pub(super) const NVME: &str = "0000:83:00.0";
/// A guest's whole cycle, with much to spare for a machine that does other things.
pub(super) const CYCLE: Duration = Duration::from_secs(150);

/// Runs something and checks that the host is the same after it.
///
/// # Errors
/// What did not hold, and what has changed.
pub fn leaving_no_trace(what: impl FnOnce() -> Outcome) -> Outcome {
    let before = Snapshot::take()?;
    what()?;
    let differences = before.differences(&Snapshot::take()?);
    ensure(differences.is_empty(), || format!("the host has changed:\n  {}", differences.join("\n  ")))
}

/// The main job: the guest owns the devices, computes on them, sits where the plan says, and gives everything back.
fn compute() -> Outcome {
    leaving_no_trace(|| {
        let plan = Placed::planned(PROFILE)?;
        let mut vm = Vm::start("gpuvm.factorial=12 gpuvm.linger=60")?;
        let report = vm.reported(CYCLE)?;
        let placed = Placed::of(plan)?;
        placed.check_threads()?;
        placed.check_memory()?;
        // The check itself must be able to fail: a thread that is somewhere else is found.
        let (vcpu, thread) = placed.vcpu_threads()?.into_iter().next().ok_or("no vCPU")?;
        gpuvm_sys::sched::set_affinity(thread, &[0]).map_err(doing("move a vCPU"))?;
        ensure(placed.check_threads().is_err(), || {
            format!("vCPU {vcpu} was moved to CPU 0 and nobody noticed")
        })?;
        vm.signal(Signal::SIGTERM)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;

        ensure(report.errors.is_empty(), || format!("the guest's errors: {:?}", report.errors))?;
        ensure(report.cpus == 3 && report.memory_bytes > 400 << 20, || {
            format!("the guest has {} CPUs and {} bytes", report.cpus, report.memory_bytes)
        })?;
        let edu = report.edu.as_ref().ok_or("the guest found no accelerator")?;
        ensure(edu.factorial_of == 12 && edu.factorial == 479_001_600, || format!("{edu:?}"))?;
        ensure(edu.dma.round_trip == "equal", || format!("{edu:?}"))?;
        let nvme = report.nvme.as_ref().ok_or("the guest found no disk")?;
        ensure(nvme.round_trip == "equal" && nvme.serial == "GPUVMLAB1", || format!("{nvme:?}"))?;
        let gpu = report.pci.iter().find(|f| f.class == "0x030000").ok_or("the guest found no GPU")?;
        let slot = gpu.bdf.split('.').next().unwrap_or_default();
        let classes = report.classes_in(slot);
        let expected =
            [(format!("{slot}.0"), "0x030000".to_owned()), (format!("{slot}.1"), "0x040300".to_owned())];
        ensure(classes == expected, || format!("the GPU's slot holds {classes:?}"))
    })
}

/// What makes a guest differ from the plain one is taken by a real KVM, told before the start, and seen by the guest's kernel.
fn deviations() -> Outcome {
    leaving_no_trace(|| {
        // Linux, asked by two hypervisors, believes KVM, unless that is hidden; then Hyper-V, by its vendor's name.
        let settings = ["cpu.kvm-hidden=true", "cpu.hyperv=true", "cpu.flags=[\"-pmu\"]", "rtc=local"];
        let mut vm = Vm::start_with("loglevel=7", &settings)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;
        ensure(ended.console.contains("Hypervisor detected: Microsoft Hyper-V"), || ended.console.clone())
    })?;
    leaving_no_trace(|| {
        let tainted = r#"extra-args=["-smbios", "type=1,product=a,, comma"]"#;
        let settings = ["cpu.kvm-hidden=true", "cpu.hyperv=true", "cpu.hv-vendor-id=gpuvm lab", tainted];
        let mut vm = Vm::start_with("loglevel=7", &settings)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;
        ensure(!ended.console.contains("Hypervisor detected"), || ended.console.clone())?;
        ensure(ended.console.contains("DMI: QEMU a, comma"), || ended.console.clone())?;
        ensure(ended.told.contains("TAINTED"), || ended.told.clone())
    })
}

/// Isolation is real: a device that is told to write outside the guest's memory hits nothing, and the kernel says so.
fn isolation() -> Outcome {
    leaving_no_trace(|| {
        // Above 4 GiB, where the guest has neither memory nor a BAR: addresses that its IOMMU domain doesn't map.
        let range = 0x1_0000_0000..0x10_0000_0000;
        let unguarded = Canary::place("unguarded", range.clone())?;
        let guarded = Canary::place("guarded", range)?;
        // First the counter-proof: driven by the host, in the host's own domain, the same write does hit.
        edu::write_to(EDU, unguarded.physical(), 8)?;
        ensure(!unguarded.is_intact()?, || {
            "the device can't write at all: the scenario proves nothing".to_owned()
        })?;

        let address = guarded.physical();
        let before = kernel_log()?.len();
        let mut vm = Vm::start(&format!("gpuvm.stray-dma={address:#x}"))?;
        let report = vm.reported(CYCLE)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;
        let stray = report.stray_dma.ok_or("the guest did no stray DMA")?;
        ensure(stray.done, || "the device did not finish its DMA".to_owned())?;
        ensure(guarded.is_intact()?, || {
            format!("the guest's device wrote to the host's memory at {address:#x}")
        })?;
        let log = kernel_log()?;
        let fault = format!("{address:#x}");
        let faults =
            |line: &&String| line.contains("DMAR") && line.contains("82:00.0") && line.contains(&fault);
        let found = log.iter().skip(before).any(|line| faults(&line));
        ensure(found, || format!("no DMAR fault at {fault} in the kernel log:\n{}", log[before..].join("\n")))
    })
}

/// A signal ends the guest by its power button.
fn sigterm() -> Outcome {
    leaving_no_trace(|| {
        let mut vm = Vm::start("gpuvm.linger=120")?;
        vm.printed("gpuvm-guest: lingering", CYCLE)?;
        vm.signal(Signal::SIGINT)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;
        ensure(ended.console.contains("gpuvm-guest: power button"), || ended.console.clone())?;
        ensure(ended.told.contains("its power button was pressed"), || ended.told.clone())
    })
}

/// A guest whose kernel panics is told so, and ended.
fn panic() -> Outcome {
    leaving_no_trace(|| {
        let mut vm = Vm::start("gpuvm.panic")?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(1), || {
            format!("exit code {:?}; gpuvm told:\n{}\n{}", ended.code, ended.told, ended.console)
        })?;
        ensure(ended.told.contains("the guest panicked"), || ended.told.clone())
    })
}

/// A launcher that is killed leaves a QEMU that ends, a host that nobody else may take, and enough to give it back.
fn sigkill() -> Outcome {
    leaving_no_trace(|| {
        let mut vm = Vm::start("gpuvm.linger=120")?;
        vm.printed("gpuvm-guest: lingering", CYCLE)?;
        vm.signal(Signal::SIGKILL)?;
        vm.ended(CYCLE)?;
        let again = gpuvm(&["up", PROFILE])?;
        ensure(again.status.code() == Some(75), || format!("up after a kill: {again:?}"))?;
        let cleaned = gpuvm(&["cleanup"])?;
        ensure(cleaned.status.code() == Some(0), || format!("cleanup: {cleaned:?}"))?;
        let nothing = gpuvm(&["cleanup", "lab-compute"])?;
        ensure(nothing.status.code() == Some(0), || format!("second cleanup: {nothing:?}"))
    })
}

pub(super) fn driver_of(bdf: &str) -> Option<String> {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{bdf}/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Runs `gpuvm up` with other devices, and checks that it refuses with a code and names what it must.
pub(super) fn refused(devices: &[&str], code: i32, names: &[&str]) -> Outcome {
    let listed: Vec<String> = devices.iter().map(|bdf| format!("{{bdf = \"{bdf}\"}}")).collect();
    let set = format!("device=[{}]", listed.join(", "));
    refused_with(&["--set", &set], code, names)
}

fn refused_with(args: &[&str], code: i32, names: &[&str]) -> Outcome {
    leaving_no_trace(|| {
        let output = gpuvm(&[&["up", PROFILE], args].concat())?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure(output.status.code() == Some(code), || {
            format!("{args:?}: exit {:?}, not {code}:\n{told}", output.status)
        })?;
        let missing: Vec<_> = names.iter().filter(|name| !told.contains(**name)).collect();
        ensure(missing.is_empty(), || format!("{args:?}: {missing:?} isn't named in:\n{told}"))
    })
}

/// What a host needs itself, or what somebody else decided about, is refused by name, and nothing is touched.
fn refusals() -> Outcome {
    refused(&["0000:00:01.0"], 69, &["0000:00:01.0", "boot display"])?;
    refused(&["0000:01:00.0"], 69, &["0000:01:00.0", "e1000e", "default route"])?;
    refused(&["0000:02:00.0"], 69, &["0000:02:00.0", "nvme", "/mnt/lab-data"])?;
    refused(&["0000:04:01.0"], 69, &["0000:04:01.0", "0000:04:02.0", "group"])?;
    refused(&[AUDIO], 69, &[AUDIO, GPU, "bochs-drm"])?;
    refused(&["0000:7f:00.0"], 78, &["0000:7f:00.0", "no such PCI device"])?;
    refused(&["0000:80:00.0"], 78, &["0000:80:00.0", "bridge"])?;
    refused_with(
        &["--set", "kernel.path=/lab/guest/none"],
        78,
        &["/lab/guest/none", "kernel.path", "No such file"],
    )?;
    refused_with(&["--set", "memory.size=64G"], 69, &["node 1", "64G"])?;
    refused_with(&["--set", "cpu.count=5"], 69, &["node 1", "4 CPUs"])?;
    // A disk that the host has mounted, as a guest's VirtIO disk; NVMe names change between boots.
    let mounts = fs::read_to_string("/proc/mounts").map_err(doing("/proc/mounts"))?;
    let mounted =
        mounts.lines().find(|line| line.contains(" /mnt/lab-data ")).and_then(|line| line.split(' ').next());
    let mounted = mounted.ok_or("nothing is mounted on /mnt/lab-data")?;
    refused_with(
        &["--set", &format!("disk=[{{path=\"{mounted}\"}}]")],
        69,
        &[mounted, "in use by the host itself"],
    )?;
    refused_with(
        &["--set", "memory.size=3000M", "--set", "memory.hugepages=off"],
        69,
        &["node 1", "free or only cache"],
    )?;
    // As many hugepages as the node has memory: that some of it is in use is found only by asking the kernel.
    let pages = node_kib(1)? / 2048;
    let size = format!("memory.size={}M", pages * 2);
    refused_with(&["--set", &size], 69, &["node 1", &format!("{pages} hugepages"), "could make the pool"])
}

/// One function of the GPU left on its native driver by hand: refused, whichever way that was done.
fn native_driver() -> Outcome {
    leaving_no_trace(|| {
        let attribute = format!("/sys/bus/pci/devices/{AUDIO}/driver_override");
        write(&attribute, "snd_hda_intel")?;
        let refused = refused(&[GPU], 69, &[AUDIO, "snd_hda_intel", "driver_override"]);
        write(&attribute, "\n")?;
        refused
    })?;
    // And the kernel's own word on it, in the state that gpuvm's plan would never make: one on vfio-pci, one not.
    leaving_no_trace(|| {
        let driver = "/sys/bus/pci/drivers";
        let attribute = format!("/sys/bus/pci/devices/{GPU}/driver_override");
        write(&format!("{driver}/bochs-drm/unbind"), GPU)?;
        write(&attribute, "vfio-pci")?;
        write(&format!("{driver}/vfio-pci/bind"), GPU)?;
        let checked = check_group_of(GPU, 0xfff_ffff);
        write(&format!("{driver}/vfio-pci/unbind"), GPU)?;
        write(&attribute, "\n")?;
        write(&format!("{driver}/bochs-drm/bind"), GPU)?;
        match checked? {
            Err(HostError::NotViable { members, .. }) if members.contains("snd_hda_intel") => Ok(()),
            other => Err(format!("a group with a function on its native driver: {other:?}")),
        }
    })
}

/// What the kernel says of the IOMMU's address ranges is understood: a guest that fits is let in, one that doesn't is not.
fn aperture() -> Outcome {
    leaving_no_trace(|| {
        let attribute = format!("/sys/bus/pci/devices/{EDU}/driver_override");
        write(&attribute, "vfio-pci")?;
        write("/sys/bus/pci/drivers/vfio-pci/bind", EDU)?;
        let (fits, too_large) = (check_group_of(EDU, 0x1f_ffff_ffff), check_group_of(EDU, u64::MAX));
        write("/sys/bus/pci/drivers/vfio-pci/unbind", EDU)?;
        write(&attribute, "\n")?;
        ensure(matches!(fits, Ok(Ok(()))), || format!("128 GiB: {fits:?}"))?;
        match too_large? {
            // VT-d reserves the interrupt range (0xfee00000), and 48 bits of addresses end at 0xffffffffffff.
            Err(HostError::Aperture { ranges, .. })
                if ranges == "0x0-0xfedfffff, 0xfef00000-0xffffffffffff" =>
            {
                Ok(())
            }
            other => Err(format!("a guest without end: {other:?}")),
        }
    })
}

pub(super) fn check_group_of(bdf: &str, top: u64) -> Result<Result<(), HostError>, String> {
    let link =
        fs::read_link(format!("/sys/bus/pci/devices/{bdf}/iommu_group")).map_err(doing("the group"))?;
    let id = link.file_name().and_then(|name| name.to_str()?.parse().ok()).ok_or("no group")?;
    Ok(gpuvm_host::vfio::check_groups(&HostRoot::default(), &[gpuvm_core::pci::GroupId(id)], top))
}

/// A host without an IOMMU.
fn no_iommu() -> Outcome {
    super::doctor::without_iommu()?;
    refused_with(&[], 69, &["no IOMMU", GPU])
}

/// A host whose IOMMU can't remap interrupts: the kernel refuses to attach, after everything was bound.
fn no_intremap() -> Outcome {
    refused_with(&[], 69, &["interrupt remapping", "group"])
}

pub(super) fn write(path: &str, value: &str) -> Outcome {
    fs::write(Path::new(path), value).map_err(doing(&format!("write {value:?} to {path}")))
}

/// Returns a node's memory in KiB.
pub(super) fn node_kib(node: u32) -> Result<u64, String> {
    let path = format!("/sys/devices/system/node/node{node}/meminfo");
    let text = fs::read_to_string(&path).map_err(doing(&path))?;
    let line = text.lines().find(|line| line.contains("MemTotal:")).ok_or("no MemTotal")?;
    line.split_whitespace().nth(3).and_then(|kib| kib.parse().ok()).ok_or_else(|| line.to_owned())
}

pub(super) fn kernel_log() -> Result<Vec<String>, String> {
    let output = std::process::Command::new("dmesg").output().map_err(doing("dmesg"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}
