//! What each error comes to: message, remedy and exit code, a golden file for each in `tests/golden/errors`.
//!
//! The tables are exhaustive: a variant that has no line here doesn't compile.

use std::io;
use std::time::Duration;

use gpuvm_core::cpulist::CpuSet;
use gpuvm_core::lifecycle::Exit as Ended;
use gpuvm_core::pci::{Bdf, DriverName, GroupId};
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::{Check, Finding, Method, Verdict};
use gpuvm_core::units::PageSize;
use gpuvm_host::ResetStage;
use gpuvm_host::errno::{EINVAL, EIO, ENODEV, ENOENT, ENOSPC, ENOTTY, ESRCH};
use gpuvm_host::kernel_log::KernelSaid;
use gpuvm_host::reservation::{Owner, ProcessRole};
use gpuvm_sys::process::{SpawnError, SpawnStep};

use super::*;

#[path = "../../tests/shared/golden.rs"]
mod golden;

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn bdf() -> Bdf {
    "0000:81:00.0".parse().unwrap()
}

fn driver(name: &str) -> DriverName {
    DriverName::new(name).unwrap()
}

fn unheard() -> Box<KernelSaid> {
    Box::default()
}

fn heard(line: &str) -> Box<KernelSaid> {
    Box::new(KernelSaid(vec![line.to_owned()]))
}

fn other() -> Owner {
    Owner::Vm(VmName::new("other").unwrap())
}

const GROUP: GroupId = GroupId(16);

/// Lists examples of an error's variants, each with a name, and refuses to compile where a variant has none.
macro_rules! examples {
    ($error:ident: $($variant:ident { $($name:literal => { $($field:tt: $value:expr),* $(,)? })+ })+) => {{
        // Never called: it is the compiler that reads it.
        let _exhaustive = |error: &$error| match error {
            $($error::$variant { .. } => ()),+
        };
        vec![$($(($name, $error::$variant { $($field: $value),* })),+),+]
    }};
}

#[allow(clippy::too_many_lines, reason = "a table of all there are")]
fn host_errors() -> Vec<(&'static str, HostError)> {
    let file = |doing, path: &str, number| (doing, path.into(), errno(number));
    let (read, dmar, denied) = file("read", "/sys/class/iommu", EACCES);
    let (write, journal, full) = file("write", "/run/gpuvm/vm/x/journal", ENOSPC);
    let unbind = "/sys/bus/pci/drivers/nvidia/unbind";
    let bind = "/sys/bus/pci/drivers/vfio-pci/bind";
    let pool = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
    examples! { HostError:
        File {
            "file-denied" => { doing: read, path: dmar, source: denied }
            "file-disk-full" => { doing: write, path: journal, source: full }
        }
        Content {
            "content" => { path: "/proc/swaps".into(), value: "xyz".into(), problem: "not a table".into() }
        }
        Refused {
            "refused-bind-without-bars" => {
                doing: "bind 0000:81:00.0 to vfio-pci".into(), path: bind.into(), value: "0000:81:00.0".into(), source: errno(ENODEV), said: unheard(),
            }
            "refused-unbind" => {
                doing: "unbind 0000:81:00.0 from nvidia".into(), path: unbind.into(), value: "0000:81:00.0".into(), source: errno(EIO), said: unheard(),
            }
            "refused-denied" => {
                doing: "unbind 0000:81:00.0 from nvidia".into(), path: unbind.into(), value: "0000:81:00.0".into(), source: errno(EACCES), said: unheard(),
            }
            "refused-by-the-kernels-own-words" => {
                doing: "bind 0000:81:00.0 to vfio-pci".into(), path: bind.into(), value: "0000:81:00.0".into(), source: errno(ENODEV),
                said: heard("vfio-pci 0000:81:00.0: Cannot bind to PF with SR-IOV enabled"),
            }
            "refused-busy" => {
                doing: "claim 256 hugepages of 2M on node 1".into(), path: pool.into(), value: "256".into(), source: errno(EBUSY), said: unheard(),
            }
        }
        InFlight {
            "in-flight" => {
                doing: "unbind 0000:81:00.0 from nvidia".into(), path: unbind.into(), value: "0000:81:00.0".into(), seconds: 60,
                pid: 4242, state: "D in nv_pci_remove".into(),
                said: heard("vfio-pci 0000:81:00.0: No device request channel registered, blocked until released by user"),
            }
        }
        Spared {
            "spared" => { bdf: bdf(), pid: 4242, state: "D in nv_pci_remove".into() }
        }
        NoEffect {
            "no-effect" => { doing: "bind 0000:81:00.0 to vfio-pci".into(), bdf: bdf(), now: "no driver".into(), said: unheard() }
        }
        ChangedByOthers {
            "changed-by-others" => {
                doing: "undo: set driver_override of 0000:81:00.0 to vfio-pci".into(), what: "driver_override of 0000:81:00.0".into(),
                ours: "vfio-pci".into(), now: "pci-stub".into(),
            }
        }
        Hugepages {
            "hugepages" => { node: 1, page: PageSize::G1, need: 64, want: 64, have: 61 }
        }
        PoolNotRestored {
            "pool-not-restored" => { node: 1, page: PageSize::M2, want: 0, have: 12 }
        }
        Overlay {
            "overlay" => {
                path: "/var/lib/gpuvm/vm/x/overlay-0.qcow2".into(), backing: "/srv/a.qcow2".into(), qemu_img: "/usr/bin/qemu-img".into(),
                problem: "Could not write qcow2 header: No space left on device".into(),
            }
        }
        Locked {
            "locked" => { path: "/run/gpuvm/lock".into(), seconds: 10 }
        }
        SoakRuns {
            "soak-runs" => { what: "a soak of VM vm1".to_owned(), owner: "process 4711".to_owned() }
        }
        Soaked {
            "soaked" => { vm: "vm1".to_owned(), pid: 4711 }
        }
        Stale {
            "stale" => { bdf: bdf(), planned: "driver nvidia".into(), now: "driver vfio-pci".into() }
        }
        QemuStuck {
            "qemu-stuck" => { pid: 4242, minutes: 5, state: "4243 D in vfio_unpin_pages_remote".into() }
        }
        NotAnswering {
            "not-answering" => { bdf: bdf(), finding: "its config space reads all ones".into() }
        }
        Sick {
            "sick" => {
                bdf: bdf(), verdict: Verdict::Faulted, finding: "aer_dev_fatal of 0000:81:00.0: 1, was 0: an error".into()
            }
        }
        NotFoundAnew {
            "not-found-anew" => { bdf: bdf(), bus: bdf().bus(), said: unheard() }
        }
        ReachesMore {
            "reaches-more" => { doing: "reset everything below 0000:80:01.0".into(), bdf: "0000:81:00.2".parse().unwrap() }
        }
        NotViable {
            "not-viable" => { group: GROUP, members: "0000:81:00.1 is on snd_hda_intel".into() }
        }
        GroupBusy {
            "group-busy" => { group: GROUP, holder: "4242 (qemu-system-x86)".into() }
        }
        Vfio {
            "vfio" => { group: GROUP, call: "VFIO_GROUP_SET_CONTAINER", source: errno(EINVAL), said: unheard() }
            "vfio-denied" => { group: GROUP, call: "open", source: errno(EPERM), said: unheard() }
            "vfio-for-a-reserved-mapping" => {
                group: GROUP, call: "VFIO_SET_IOMMU", source: errno(EINVAL),
                said: heard("vfio-pci 0000:81:00.0: Firmware has requested this device have a 1:1 IOMMU mapping, rejecting configuring the device without a 1:1 mapping. Contact your platform vendor."),
            }
        }
        NoInterruptRemapping {
            "no-interrupt-remapping" => { group: GROUP, source: errno(EPERM) }
        }
        Aperture {
            "aperture" => { group: GROUP, top: 0x7f_ffff_ffff, ranges: "0x0-0xfedfffff, 0xfef00000-0x7fffffffff".into() }
        }
        Reserved {
            "reserved-by-a-running-vm" => { what: "0000:81:00.0".into(), owner: other(), state: "it runs: QEMU process 4242".into() }
            "reserved-by-one-that-ended" => { what: "0000:81:00.0".into(), owner: other(), state: "ended without giving it back".into() }
            "reserved-by-a-bind" => { what: "0000:81:00.0".into(), owner: Owner::Bind(bdf()), state: "gpuvm process 4242 is alive".into() }
            "reserved-by-a-reset" => { what: "0000:81:00.0".into(), owner: Owner::Reset(bdf()), state: "gpuvm process 4242 is alive".into() }
            "reserved-by-a-bind-that-ended" => { what: "0000:81:00.0".into(), owner: Owner::Bind(bdf()), state: "ended without giving it back".into() }
        }
        AlreadyUp {
            "already-up" => { vm: "x".into(), role: ProcessRole::Gpuvm, pid: 4242 }
            "already-up-without-its-gpuvm" => { vm: "x".into(), role: ProcessRole::Qemu, pid: 4242 }
        }
        Unsupervised { "unsupervised" => { vm: "x".into(), pid: 4711 } }
        LeftBehind {
            "left-behind" => { vm: "x".into() }
        }
        KeptOff {
            "kept-off" => { bdf: bdf(), driver: driver("nvidia"), set: driver("nvme") }
        }
        DriverGone {
            "driver-gone" => { bdf: bdf(), driver: driver("nvidia") }
        }
        Reset {
            "reset" => {
                bdf: bdf(), method: Method::Flr, stage: ResetStage::Begun, call: "write `1` to reset".into(), source: errno(ENOTTY),
                meaning: "no method worked".into(), said: Box::default()
            }
            "reset-hot-of-others" => {
                bdf: bdf(), method: Method::Hot, stage: ResetStage::Begun, call: "VFIO_DEVICE_PCI_HOT_RESET".into(), source: errno(EINVAL),
                meaning: String::new(), said: Box::default()
            }
        }
    }
}

fn launch_errors() -> Vec<(&'static str, LaunchError)> {
    let qemu = || "/usr/bin/qemu-system-x86_64".into();
    let spawn = |number| SpawnError { step: SpawnStep::Exec, source: errno(number) };
    let closed = gpuvm_qmp::Error::Closed { command: "query-cpus-fast".into() };
    examples! { LaunchError:
        Spawn {
            "qemu-not-started" => { qemu: qemu(), source: spawn(ENOENT) }
            "qemu-not-executable" => { qemu: qemu(), source: spawn(EACCES) }
        }
        File {
            "log-disk-full" => { doing: "write", path: "/var/log/gpuvm/x/qemu.stderr".into(), source: errno(ENOSPC) }
        }
        Died {
            "qemu-died" => {
                exit: Ended::Code(1), stderr: "qemu-system-x86_64: -device vfio-pci,host=0000:81:00.0: Permission denied\n".into(), said: unheard(),
            }
            "qemu-died-in-silence" => { exit: Ended::Code(1), stderr: String::new(), said: unheard() }
            "qemu-died-for-want-of-memory" => {
                exit: Ended::Code(1), stderr: "qemu-system-x86_64: cannot set up guest memory 'mem0': Cannot allocate memory\n".into(), said: unheard(),
            }
            "qemu-killed" => { exit: Ended::Signal(9), stderr: String::new(), said: unheard() }
            "qemu-crashed" => { exit: Ended::Signal(11), stderr: String::new(), said: unheard() }
            "qemu-died-of-locked-memory" => {
                exit: Ended::Code(1),
                stderr: "qemu-system-x86_64: -device vfio-pci,host=82:00.0: VFIO_MAP_DMA failed: Cannot allocate memory\n".into(),
                said: heard("vfio_pin_pages_remote: RLIMIT_MEMLOCK (8388608) exceeded"),
            }
            "qemu-killed-for-want-of-memory" => {
                exit: Ended::Signal(9), stderr: String::new(),
                said: heard("Out of memory: Killed process 4242 (qemu-system-x86) total-vm:1kB, anon-rss:1kB"),
            }
        }
        Silent {
            "qemu-silent" => { after: Duration::from_secs(40), stderr: String::new(), said: unheard() }
            "qemu-silent-in-a-reset" => {
                after: Duration::from_secs(40), stderr: String::new(), said: heard("vfio-pci 0000:81:00.0: not ready 32767ms after FLR; waiting"),
            }
        }
        Qmp {
            "qmp-closed" => { 0: closed }
        }
        TooOld {
            "qemu-too-old" => { qemu: qemu(), version: "6.2.0".into() }
        }
        Vcpus {
            "vcpus" => { found: 3, planned: 4 }
        }
        Pin {
            "pin" => { what: "vCPU 1".into(), tid: 4243, cpus: "21".into(), source: errno(ESRCH) }
        }
        NotPinned {
            "not-pinned" => { what: "vCPU 1".into(), tid: 4243, cpus: "21".into(), now: "0-15".into() }
        }
    }
}

fn causes() -> Vec<(&'static str, Cause)> {
    examples! { Cause:
        Host {
            "up-cause-host" => { 0: HostError::LeftBehind { vm: "x".into() } }
        }
        Launch {
            "up-cause-launch" => { 0: LaunchError::Vcpus { found: 3, planned: 4 } }
        }
        SickBefore {
            "up-sick-before" => { bdf: bdf(), finding: Box::new(Finding {
                check: Check::AllOnes,
                weight: Some(Verdict::Unreachable),
                bdf: bdf(),
                register: "config 0x00".to_owned(),
                before: None,
                after: "0xffffffff".to_owned(),
                meaning: "it reads all ones: it has fallen off the bus".to_owned(),
            }) }
        }
        NotAdopted {
            "up-not-adopted" => {
                vm: "x".into(), pid: 4711, source: Box::new(LaunchError::Vcpus { found: 3, planned: 4 }.into())
            }
        }
        Interrupted {
            "up-interrupted" => { signal: "SIGTERM" }
        }
    }
}

/// Spells a failure as it is printed, below the code that gpuvm ends with.
/// Spells a failure as it is printed, each item after its kind, which `--json` tells and programs rely on.
fn spelt(failure: &Failure) -> String {
    let item = |item: &Item| format!("[{}] {}", item.kind, spell("error", item));
    let items: Vec<String> = failure.items.iter().map(item).collect();
    format!("exit {}\n{}\n", failure.code as u8, items.join("\n"))
}

/// Refusals that no host in files brings about: other VMs are seen on a live host alone, and nobody lists so many devices.
fn rare_refusals() -> Vec<(&'static str, Refusal)> {
    let cpus = |list: &str| list.parse::<CpuSet>().unwrap();
    vec![
        ("refusal-taken-cpus", Refusal::TakenCpus { key: "cpu.pin", taken: cpus("4-5") }),
        (
            "refusal-too-few-cpus-beside-other-vms",
            Refusal::TooFewCpus { node: 1, need: 4, count: 8, cpus: cpus("6-7"), taken: cpus("4-5") },
        ),
        ("refusal-too-many-ports", Refusal::TooManyPorts { need: 240, have: 232 }),
    ]
}

fn failed_up(cause: Cause, left: Vec<HostError>) -> Failure {
    UpError { cause: Box::new(cause), devices: Vec::new(), left }.into()
}

#[test]
fn each_error_is_told_as_it_was() {
    let left = HostError::DriverGone { bdf: bdf(), driver: driver("nvidia") };
    let also_left = failed_up(Cause::Interrupted { signal: "SIGINT" }, vec![left]);
    let hosts = host_errors().into_iter().map(|(name, error)| (format!("host-{name}"), Failure::from(error)));
    let launches = launch_errors().into_iter();
    let launches =
        launches.map(|(name, error)| (format!("launch-{name}"), failed_up(Cause::Launch(error), Vec::new())));
    let causes = causes().into_iter().map(|(name, cause)| (name.to_owned(), failed_up(cause, Vec::new())));
    let rare = rare_refusals().into_iter();
    let rare = rare.map(|(name, refusal)| (name.to_owned(), Failure::from(vec![refusal])));
    let all = hosts
        .chain(rare)
        .chain(launches)
        .chain(causes)
        .chain([("up-and-not-given-back".to_owned(), also_left)]);
    golden::compare("errors", all.map(|(name, failure)| (name, spelt(&failure))));
}

/// None of the errors ends in a code that says nothing but "it failed".
#[test]
fn each_exit_code_is_one_that_help_explains() {
    let explained = crate::cli::EXIT_CODES;
    let failures = host_errors().into_iter().map(|(name, error)| (name, Failure::from(error)));
    for (name, failure) in failures {
        assert!(explained.contains(&format!("\n  {} ", failure.code as u8)), "{name}: {:?}", failure.code);
    }
}
