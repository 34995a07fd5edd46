//! Cards that fall ill under gpuvm, on the kernel's own terms: what is told, what is kept, and the way out.
//!
//! Nothing here is simulated above the emulated hardware: config space reads ones, the kernel waits and gives up, QEMU aborts or stops the guest.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::scenarios::{CYCLE, EDU, GPU, NVME, driver_of, leaving_no_trace};
use super::sick::{LinkError, OffTheBus, found_anew, inject, load_injector, set, wait_until};
use super::vm::{Ended, PROFILE, Vm, gpuvm};
use super::{Outcome, doing, ensure};

pub(super) const EDU_PORT: &str = "0000:80:01.0";
/// A card that no scenario here hurts.
const OTHER_GPU: &str = "0000:41:00.0";
const NVME_PORT: &str = "0000:80:02.0";
/// The NVMe of the host `root-bus`, and its port.
const EARLY_NVME: &str = "0000:05:00.0";
const EARLY_PORT: &str = "0000:00:05.0";
/// How long a card is away.
const AWAY: Duration = Duration::from_millis(2500);
/// What no look, reset or refusal takes, unless the kernel waits for a card.
pub(super) const SHORT: Duration = Duration::from_secs(60);
pub(super) const LINGERING: &str = "gpuvm-guest: lingering";

/// What is expected of a sick device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Illness {
    pub(super) bdf: &'static str,
    pub(super) verdict: &'static str,
    /// Words of what was found.
    pub(super) finding: &'static str,
}

/// Falls before its run: refused, remembered, and free again after a good reset.
pub(super) fn before_start() -> Outcome {
    let ill = Illness { bdf: EDU, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        let fallen = OffTheBus::below(EDU_PORT)?;
        // With the GPU, which is well: nothing of it may be left changed either.
        let both = format!("device=[{{bdf=\"{GPU}\"}}, {{bdf=\"{EDU}\"}}]");
        let refused = told(&["up", PROFILE, "--set", &both], 74)?;
        names(&refused, &[EDU, "all ones"])?;
        quarantined(Some(ill))?;
        ensure(driver_of(EDU).is_none() && driver_of(GPU).as_deref() == Some("bochs-drm"), || {
            format!("{EDU} is on {:?}, {GPU} on {:?}", driver_of(EDU), driver_of(GPU))
        })?;
        // The kernel says that this reset has succeeded: the accelerator has no capability by which it would be waited for.
        let dead = told(&["reset", EDU], 74)?;
        names(&dead, &[EDU, "unreachable"])?;
        told(&["quarantine", "clear", EDU], 69)?;
        std::thread::sleep(AWAY);
        fallen.put_back()?;
        // That reset did reach it: its registers are lost, and a second reset doesn't bring them back.
        let impaired = told(&["reset", EDU], 74)?;
        names(&impaired, &[EDU, "impaired"])?;
        told(&["unbind", EDU], 0)?;
        found_anew(&[EDU])?;
        still_refused(EDU)?;
        told(&["reset", EDU], 0)?;
        cleared(EDU)
    })
}

/// Falls when QEMU has been started: QEMU aborts on it, and nothing else is lost.
pub(super) fn at_greeting() -> Outcome {
    let ill = Illness { bdf: EDU, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        let mut vm = start(&[EDU])?;
        qemu(SHORT)?;
        let fallen = OffTheBus::below(EDU_PORT)?;
        let ended = vm.ended(CYCLE)?;
        sick(&ended, ill)?;
        names(&ended.told, &["QEMU ended before the guest ran"])?;
        fallen.put_back()?;
        way_out(ill, Registers::Lost)
    })
}

/// Falls while the guest runs: everything else is given back, the card stays until somebody says otherwise.
pub(super) fn while_running() -> Outcome {
    let ill = Illness { bdf: EDU, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        let mut vm = Vm::start("gpuvm.linger=300")?;
        vm.printed(LINGERING, CYCLE)?;
        let fallen = OffTheBus::below(EDU_PORT)?;
        vm.signal(Signal::SIGTERM)?;
        let ended = vm.ended(CYCLE)?;
        sick(&ended, ill)?;
        ensure(driver_of(GPU).as_deref() == Some("bochs-drm"), || format!("{GPU}: {:?}", driver_of(GPU)))?;
        ensure(driver_of(NVME).as_deref() == Some("nvme"), || format!("{NVME}: {:?}", driver_of(NVME)))?;
        // While it is away it can't be given back, and a reset that the kernel calls a success doesn't help.
        told(&["cleanup"], 74)?;
        told(&["reset", EDU], 74)?;
        std::thread::sleep(AWAY);
        fallen.put_back()?;
        way_out(ill, Registers::Lost)
    })
}

/// Falls once the guest was asked to end.
pub(super) fn during_down() -> Outcome {
    let ill = Illness { bdf: EDU, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        let mut vm = start(&[EDU])?;
        vm.printed(LINGERING, CYCLE)?;
        let qemu = qemu(SHORT)?;
        // The guest doesn't get so far as to power off before the card is gone.
        kill(qemu, Signal::SIGSTOP).map_err(doing("stop QEMU"))?;
        let stopped = vm.signal(Signal::SIGTERM).and_then(|()| OffTheBus::below(EDU_PORT));
        kill(qemu, Signal::SIGCONT).map_err(doing("let QEMU go on"))?;
        let fallen = stopped?;
        sick(&vm.ended(CYCLE)?, ill)?;
        std::thread::sleep(AWAY);
        fallen.put_back()?;
        way_out(ill, Registers::Lost)
    })
}

/// Falls when QEMU is gone and nobody has looked yet.
pub(super) fn after_exit() -> Outcome {
    let ill = Illness { bdf: EDU, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        let mut vm = start(&[EDU])?;
        vm.printed(LINGERING, CYCLE)?;
        let qemu = qemu(SHORT)?;
        vm.signal(Signal::SIGTERM)?;
        vm.printed("gpuvm-guest: power button", CYCLE)?;
        // gpuvm is held until QEMU is a zombie without threads, so that it looks only afterwards.
        vm.signal(Signal::SIGSTOP)?;
        let fallen =
            wait_until("QEMU is gone", SHORT, || is_gone(qemu)).and_then(|()| OffTheBus::below(EDU_PORT));
        vm.signal(Signal::SIGCONT)?;
        let fallen = fallen?;
        sick(&vm.ended(CYCLE)?, ill)?;
        std::thread::sleep(AWAY);
        fallen.put_back()?;
        way_out(ill, Registers::Kept)
    })
}

/// Away for as long as the kernel waits: a reset that takes 65 s to fail, and a card that is well again afterwards.
pub(super) fn gave_up() -> Outcome {
    let ill = Illness { bdf: NVME, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        // On vfio-pci already: a driver that has to let go of a dead disk takes minutes of its own.
        told(&["bind", NVME], 0)?;
        // The kernel would go on to a bus reset, which waits twice as long.
        set(NVME, "reset_method", "flr")?;
        let fallen = OffTheBus::below(NVME_PORT)?;
        let begun = Instant::now();
        let refused = told_within(&["reset", NVME, "--method", "flr"], 74, Duration::from_secs(150))?;
        let took = begun.elapsed();
        ensure(took > Duration::from_secs(60), || format!("given up after {took:?}:\n{refused}"))?;
        names(&refused, &[NVME, "unreachable"])?;
        quarantined(Some(ill))?;
        fallen.put_back()?;
        set(NVME, "reset_method", "default")?;
        told(&["reset", NVME], 0)?;
        told(&["unbind", NVME], 0)?;
        still_refused(NVME)?;
        cleared(NVME)
    })
}

/// Falls off the bus under its guest and stays away: the kernel tries to reset it four times when QEMU lets go of it, some 70 s each, and
/// nothing shortens that.
pub(super) fn fallen_card() -> Outcome {
    let ill = Illness { bdf: NVME, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        let mut vm = Vm::start("gpuvm.linger=300")?;
        vm.printed(LINGERING, CYCLE)?;
        let fallen = OffTheBus::below(NVME_PORT)?;
        vm.signal(Signal::SIGTERM)?;
        sick(&vm.ended(4 * CYCLE)?, ill)?;
        ensure(driver_of(GPU).as_deref() == Some("bochs-drm"), || format!("{GPU}: {:?}", driver_of(GPU)))?;
        fallen.put_back()?;
        way_out(ill, Registers::Lost)
    })
}

/// An uncorrectable error on the way to a device stops its guest.
pub(super) fn link_error() -> Outcome {
    let ill = Illness { bdf: NVME, verdict: "faulted", finding: "" };
    load_injector()?;
    leaving_no_trace(|| {
        let mut vm = start(&[NVME])?;
        vm.printed(LINGERING, CYCLE)?;
        inject(NVME_PORT, LinkError::Nonfatal)?;
        // Nobody has to ask it to end: a guest that is stopped by such an error can't go on.
        let ended = vm.ended(CYCLE)?;
        sick(&ended, ill)?;
        names(&ended.told, &["uncorrectable"])?;
        way_out(ill, Registers::Kept)
    })
}

/// A reset that the kernel refuses: the port can't say whether its link is up, so that the card is waited for one second only (ENOTTY).
pub(super) fn refused_reset() -> Outcome {
    let ill = Illness { bdf: NVME, verdict: "unreachable", finding: "all ones" };
    leaving_no_trace(|| {
        let fallen = OffTheBus::below(NVME_PORT)?;
        let refused = told(&["reset", NVME, "--method", "bus"], 74)?;
        names(&refused, &[NVME, "Inappropriate ioctl", "giving up"])?;
        quarantined(Some(ill))?;
        fallen.put_back()?;
        // The kernel's two attempts reached the card: what is left of it has no registers.
        let impaired = told(&["reset", NVME], 74)?;
        names(&impaired, &[NVME, "impaired"])?;
        told(&["unbind", NVME], 74)?;
        found_anew(&[NVME])?;
        told(&["unbind", NVME], 0)?;
        still_refused(NVME)?;
        told(&["reset", NVME], 0)?;
        cleared(NVME)
    })
}

/// Away while QEMU ends, and back before the kernel gives up: slow, and no more (lab host `root-bus`).
pub(super) fn slow_to_return() -> Outcome {
    leaving_no_trace(|| {
        let mut vm = start(&[EARLY_NVME])?;
        vm.printed(LINGERING, CYCLE)?;
        let fallen = OffTheBus::past_the_kernel(EARLY_PORT)?;
        // Once for the power button, which the guest without its disk may not heed, and once to quit.
        vm.signal(Signal::SIGTERM)?;
        std::thread::sleep(Duration::from_millis(300));
        vm.signal(Signal::SIGTERM)?;
        std::thread::sleep(AWAY);
        fallen.put_back()?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}:\n{}", ended.code, ended.told))?;
        names(&ended.told, &[EARLY_NVME, "degraded"])?;
        quarantined(None)
    })
}

pub(super) fn start(devices: &[&str]) -> Result<Vm, String> {
    start_with("gpuvm.linger=300", devices, &[])
}

/// Starts a small guest with words of its own, with devices and settings.
pub(super) fn start_with(words: &str, devices: &[&str], settings: &[&str]) -> Result<Vm, String> {
    let listed: Vec<String> = devices.iter().map(|bdf| format!("{{bdf = \"{bdf}\"}}")).collect();
    let set = format!("device=[{}]", listed.join(", "));
    let small = [&set, "memory.size=256M", "cpu.count=1"];
    Vm::start_with(words, &[&small[..], settings].concat())
}

/// Checks how gpuvm ended, what it told, and that the device is kept.
fn sick(ended: &Ended, ill: Illness) -> Outcome {
    ensure(ended.code == Some(74), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;
    names(&ended.told, &[ill.bdf, ill.verdict])?;
    quarantined(Some(ill))?;
    ensure(driver_of(ill.bdf).as_deref() == Some("vfio-pci"), || {
        format!("{} is on {:?}", ill.bdf, driver_of(ill.bdf))
    })?;
    still_refused(ill.bdf)?;
    // The VM's other devices are free, and the VM itself isn't before its cleanup.
    let other = format!("device=[{{bdf=\"{OTHER_GPU}\"}}]");
    let reserved = told(&["up", PROFILE, "--set", &other], 75)?;
    names(&reserved, &["lab-compute"])
}

/// What a card has left when it answers again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registers {
    Kept,
    /// A reset has reached it while the kernel couldn't: it has to be found anew.
    Lost,
}

/// The way out of quarantine for a device that a run has left sick.
fn way_out(ill: Illness, registers: Registers) -> Outcome {
    if registers == Registers::Lost {
        let impaired = told(&["reset", ill.bdf], 74)?;
        names(&impaired, &[ill.bdf, "impaired"])?;
        told(&["quarantine", "clear", ill.bdf], 69)?;
        found_anew(&[ill.bdf])?;
    }
    told(&["reset", ill.bdf], 0)?;
    told(&["cleanup"], 0)?;
    still_refused(ill.bdf)?;
    cleared(ill.bdf)
}

/// Checks that `up` and `bind` refuse a device in quarantine that nobody has, with what was found.
pub(super) fn still_refused(bdf: &str) -> Outcome {
    let set = format!("device=[{{bdf=\"{bdf}\"}}]");
    names(&told(&["up", PROFILE, "--set", &set], 69)?, &[bdf, "quarantine"])?;
    names(&told(&["bind", bdf], 69)?, &[bdf, "quarantine"])
}

/// Clears a device, and checks that it may be had again.
fn cleared(bdf: &str) -> Outcome {
    told(&["quarantine", "clear", bdf], 0)?;
    quarantined(None)?;
    let set = format!("device=[{{bdf=\"{bdf}\"}}]");
    told(&["plan", PROFILE, "--set", &set], 0).map(drop)
}

/// Checks who is in quarantine, and what for.
pub(super) fn quarantined(expected: Option<Illness>) -> Outcome {
    let output = within(&["quarantine", "--json"], SHORT)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let told: Value = serde_json::from_str(&text).map_err(doing(&text))?;
    let held = told["quarantined"].as_array().ok_or_else(|| text.to_string())?;
    let found: Vec<[&str; 3]> = held
        .iter()
        .map(|held| [&held["bdf"], &held["verdict"], &held["finding"]].map(|v| v.as_str().unwrap_or("")))
        .collect();
    let right = match (expected, found.as_slice()) {
        (None, []) => true,
        (Some(ill), [[bdf, verdict, finding]]) => {
            *bdf == ill.bdf && *verdict == ill.verdict && finding.contains(ill.finding)
        }
        _ => false,
    };
    ensure(right, || format!("expected {expected:?} in quarantine, found {found:?}"))
}

/// Runs gpuvm, checks its exit code, and returns what it told.
pub(super) fn told(args: &[&str], code: i32) -> Result<String, String> {
    told_within(args, code, SHORT)
}

fn told_within(args: &[&str], code: i32, limit: Duration) -> Result<String, String> {
    let output = within(args, limit)?;
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure(output.status.code() == Some(code), || {
        format!("{args:?}: {}, not {code}:\n{told}", output.status)
    })?;
    Ok(told)
}

fn within(args: &[&str], limit: Duration) -> Result<Output, String> {
    let begun = Instant::now();
    let output = gpuvm(args)?;
    let took = begun.elapsed();
    ensure(took < limit, || format!("{args:?} took {took:?}, more than {limit:?}"))?;
    Ok(output)
}

pub(super) fn names(told: &str, what: &[&str]) -> Outcome {
    let missing: Vec<_> = what.iter().filter(|name| !told.contains(**name)).collect();
    ensure(missing.is_empty(), || format!("{missing:?} isn't named in:\n{told}"))
}

/// Waits for gpuvm's QEMU to appear.
pub(super) fn qemu(limit: Duration) -> Result<Pid, String> {
    let begun = Instant::now();
    loop {
        for name in super::snapshot::names(Path::new("/proc")) {
            let Ok(pid) = name.parse::<i32>() else { continue };
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            if words.contains("qemu-system") && words.contains("guest=lab-compute") {
                return Ok(Pid::from_raw(pid));
            }
        }
        ensure(begun.elapsed() < limit, || format!("no QEMU within {limit:?}"))?;
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Tells whether a process has let go of all that it had: gone, or a zombie whose threads are gone.
pub(super) fn is_gone(pid: Pid) -> bool {
    let threads = super::snapshot::names(Path::new(&format!("/proc/{pid}/task")));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    threads.len() <= 1 && matches!(state, None | Some('Z' | 'X'))
}
