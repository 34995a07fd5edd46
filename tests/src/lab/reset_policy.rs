//! What a profile says of resets, on a real kernel: its lists are cut down while the VM has the devices, and given back.

use std::collections::BTreeMap;
use std::fs;

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;
use gpuvm_core::reset::Method;
use gpuvm_host::apply::{Host, apply};
use gpuvm_host::journal::Journal;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::places::Places;
use gpuvm_host::root::HostRoot;
use gpuvm_host::undo::undo_all;
use gpuvm_host::{lock, snapshot};
use gpuvm_sys::errno::EINVAL;
use nix::sys::signal::Signal;

use super::scenarios::{CYCLE, EDU, GPU, NVME, leaving_no_trace};
use super::vm::{PROFILE, Vm, gpuvm};
use super::{Outcome, doing, ensure};

/// A card that no other scenario of the same boot needs: what its list loses doesn't come back before the next boot.
const OTHER_GPU: &str = "0000:41:00.0";
/// Both devices by themselves, one that the kernel's FLR alone may reset and one that nothing of the kernel's may.
const RESTRICTED: &str = r#"device=[{bdf="83:00.0", reset="flr"}, {bdf="82:00.0", reset="none"}]"#;

/// The lists are cut down while the guest runs, and whole again after its end and after a launcher's death.
pub(super) fn reset_policy() -> Outcome {
    refused()?;
    leaving_no_trace(|| {
        let mut vm = Vm::start_with("gpuvm.linger=120", &[RESTRICTED])?;
        vm.printed("gpuvm-guest: lingering", CYCLE)?;
        holds(NVME, "flr")?;
        holds(EDU, "")?;
        vm.signal(Signal::SIGTERM)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;
        ensure(ended.told.contains("0000:82:00.0 has reset = \"none\""), || ended.told.clone())
    })?;
    leaving_no_trace(|| {
        let mut vm = Vm::start_with("gpuvm.linger=120", &[RESTRICTED])?;
        vm.printed("gpuvm-guest: lingering", CYCLE)?;
        vm.signal(Signal::SIGKILL)?;
        vm.ended(CYCLE)?;
        holds(NVME, "flr")?;
        let cleaned = gpuvm(&["cleanup"])?;
        ensure(cleaned.status.code() == Some(0), || format!("cleanup: {cleaned:?}"))
    })?;
    kernels_lists()?;
    stale_list()
}

/// What a device can't have is refused before anything is touched, with the reason.
fn refused() -> Outcome {
    leaving_no_trace(|| {
        for (device, reason) in [
            (r#"{bdf="83:00.0", reset="pm"}"#, "no pm: the kernel lists only flr, bus"),
            (
                r#"{bdf="81:00.0", reset="bus"}"#,
                "no bus: listed, but the kernel refuses it: 0000:81:00.1 is on its bus too",
            ),
        ] {
            let output = gpuvm(&["plan", PROFILE, "--set", &format!("device=[{device}]")])?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure(output.status.code() == Some(69) && told.contains(reason), || {
                format!("{device}: {output:?}")
            })?;
        }
        // One function of the card is on another driver, as in the plan of nobody: what the plan says is of both in hand.
        let output = gpuvm(&["plan", PROFILE, "--set", r#"device=[{bdf="81:00.0", reset="hot"}]"#])?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure(told.contains("all of bus 0000:81 is in hand: 0000:81:00.0, 0000:81:00.1"), || told.clone())?;
        let output = gpuvm(&["devices", GPU])?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure(told.contains("0000:81:00.1 is on snd_hda_intel, not on a vfio driver"), || told.clone())
    })
}

/// What the kernel takes for a list, of a device alone on its bus. What the fake host does rests on this.
fn kernels_lists() -> Outcome {
    leaving_no_trace(|| {
        for (written, becomes) in [("flr", "flr"), ("\n", ""), ("bus flr", "bus flr"), ("default", "flr bus")]
        {
            write(NVME, written)?
                .map_err(|errno| format!("{NVME}: {written:?} is refused: errno {errno}"))?;
            holds(NVME, becomes)?;
        }
        for written in ["pm", "flr pm", "warp"] {
            let refused = write(NVME, written)?;
            ensure(refused == Err(EINVAL), || format!("{NVME}: {written:?}: {refused:?}"))?;
            holds(NVME, "flr bus")?;
        }
        Ok(())
    })
}

/// A list with a bus reset that never was one: not even what it holds can be written to it. It is cut down, and put back without.
fn stale_list() -> Outcome {
    holds(OTHER_GPU, "bus")?;
    ensure(write(OTHER_GPU, "bus")? == Err(EINVAL), || {
        "the kernel takes `bus` of one function of two".to_owned()
    })?;
    holds(OTHER_GPU, "bus")?;

    let bdf: Bdf = OTHER_GPU.parse().map_err(doing("parse an address"))?;
    let vm = VmName::new("reset-lists").ok_or("no name")?;
    let (kernel, places) = (Kernel::running(HostRoot::default()), Places::below("/tmp/reset-lists".as_ref()));
    let baselines = BTreeMap::from([(bdf, snapshot::take(&kernel.root, bdf))]);
    lock::make_dir(&places.vm(&vm)).map_err(doing("make a folder"))?;
    let mut journal = Journal::begin(&places.journal(&vm), "this").map_err(doing("begin a journal"))?;
    let host = Host { kernel: &kernel, places: &places, boot_id: "this", vm: &vm, baselines: &baselines };
    apply(&host, &mut journal, &HostOp::SetResetMethods { bdf, methods: Vec::<Method>::new() })
        .map_err(doing("empty the list"))?;
    holds(OTHER_GPU, "")?;
    let left = undo_all(&host, &mut journal, &mut |_| {});
    ensure(left.is_empty(), || format!("{left:?}"))?;
    holds(OTHER_GPU, "")?;
    ensure(journal.open_records().is_empty(), || "the list wasn't given back".to_owned())
}

fn list(bdf: &str) -> String {
    format!("/sys/bus/pci/devices/{bdf}/reset_method")
}

fn holds(bdf: &str, expected: &str) -> Outcome {
    let path = list(bdf);
    let now = fs::read_to_string(&path).map_err(doing(&path))?;
    ensure(now.trim() == expected, || format!("{path} is {:?}, not {expected:?}", now.trim()))
}

/// Writes a list, and returns the kernel's word on it.
fn write(bdf: &str, value: &str) -> Result<Result<(), i32>, String> {
    match fs::write(list(bdf), value) {
        Ok(()) => Ok(Ok(())),
        Err(error) => error.raw_os_error().map(Err).ok_or_else(|| error.to_string()),
    }
}
