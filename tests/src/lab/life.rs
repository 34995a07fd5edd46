//! VMs that go on without the gpuvm that has started them: their life by the verbs, and whoever dies when.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::time::{Duration, Instant};

use gpuvm_core::control::{Live, State};
use gpuvm_core::lifecycle;
use gpuvm_core::plan::Plan;
use gpuvm_core::reset::Verdict;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::kills::{program, under_policies};
use super::placement::Placed;
use super::scenarios::{CYCLE, EDU, GPU, NVME, leaving_no_trace};
use super::snapshot::Snapshot;
use super::vm::{PROFILE, gpuvm, guest_words};
use super::{Outcome, doing, ensure};
use crate::killed::{ENDED, KillPoint, Task, Verb, Victim};

const VM: &str = "lab-compute";
const SIGKILL: i32 = 9;
const CONSOLE: &str = "/var/log/gpuvm/lab-compute/console.log";

/// A guest with devices, by each verb; its supervisor is killed in between, and another one takes its place.
pub(super) fn life() -> Outcome {
    leaving_no_trace(|| {
        let words = guest_words("gpuvm.linger=600");
        let wait = "console:gpuvm-guest: lingering";
        done(&gpuvm(&[
            "up",
            "--detach",
            "--wait",
            wait,
            "--wait-timeout",
            "150s",
            PROFILE,
            "--set",
            &words,
        ])?)?;
        let first = live()?;
        placed(&first)?;
        listed("running")?;

        done(&gpuvm(&["pause", VM])?)?;
        listed("paused")?;
        done(&gpuvm(&["resume", VM])?)?;
        ensure(live()?.state == State::Running, || format!("{:?}", live()))?;

        slain(first.supervisor.pid)?;
        listed("unsupervised")?;
        let refused = gpuvm(&["cleanup", VM])?;
        ensure(refused.status.code() == Some(75), || format!("cleanup of a VM in use: {refused:?}"))?;
        done(&gpuvm(&["recover", VM])?)?;
        let second = live()?;
        placed(&second)?;
        let qemu = |live: &Live| live.qemu.as_ref().map(|qemu| qemu.pid);
        ensure(qemu(&first) == qemu(&second) && first.supervisor != second.supervisor, || {
            format!("{first:?}\n{second:?}")
        })?;

        // The guest has another console's end now, and a reset brings it to speak: with all of its devices.
        let before = reports()?;
        done(&gpuvm(&["reboot", VM])?)?;
        until("the guest reports once more", CYCLE, || Ok(reports()? > before))?;
        ensure(live()?.reboots == 1, || format!("{:?}", live()))?;

        let down = gpuvm(&["--json", "down", VM, "--timeout", "8s"])?;
        done(&down)?;
        let told: Value = serde_json::from_slice(&down.stdout).map_err(doing("what down told"))?;
        ensure(told["not_given_back"].as_array().is_some_and(Vec::is_empty), || told.to_string())?;
        ensure(told["outcome"]["kind"] == "stopped", || told.to_string())
    })
}

/// Checks that the VM has what its plan says: devices on vfio-pci, and each vCPU on its CPU.
fn placed(live: &Live) -> Outcome {
    for bdf in [GPU, EDU, NVME] {
        let device = live.devices.iter().find(|device| device.bdf.to_string() == bdf);
        let driver = device.and_then(|device| device.driver.as_deref());
        ensure(driver == Some("vfio-pci"), || format!("{bdf}: {device:?}"))?;
        let verdict = device.and_then(|device| device.verdict);
        ensure(verdict == Some(Verdict::Healthy), || format!("{bdf}: {device:?}"))?;
    }
    let cpus: Vec<_> = live.vcpus.iter().map(|vcpu| vcpu.cpu).collect();
    ensure(cpus == [Some(4), Some(5), Some(6)], || format!("{:?}", live.vcpus))?;
    for vcpu in &live.vcpus {
        let now = gpuvm_sys::sched::affinity(vcpu.thread).map_err(doing("where a vCPU may run"))?;
        ensure(vcpu.cpu.is_some_and(|cpu| now == [cpu]), || format!("{vcpu:?} may run on {now:?}"))?;
    }
    Ok(())
}

/// Launchers that are killed in each state of a VM with devices, their QEMUs, and both: after one more call the host is as it was.
pub(super) fn deaths() -> Outcome {
    under_policies(all_deaths)
}

fn all_deaths() -> Outcome {
    use lifecycle::State::{Exited, HostReady, Paused, PoweringDown, Preparing, Quitting, Released, Running};
    let words = guest_words("gpuvm.linger=600");
    let plan = Placed::planned_with(&[PROFILE, "--set", &words])?;
    let before = Snapshot::take()?;
    let with_qemu: Vec<KillPoint> = [Paused, Running, PoweringDown, Quitting].map(KillPoint::In).to_vec();
    let others = [Preparing, HostReady, Exited, Released].map(KillPoint::In);
    let spawned = [KillPoint::Spawned];
    for point in with_qemu.iter().chain(&others).chain(&spawned) {
        let what = format!("supervisor killed at {point:?}");
        killed(&run(&plan, *point, Victim::Launcher)?)?;
        let adopted = matches!(point, KillPoint::In(Running | PoweringDown | Quitting));
        recovered(adopted, *point == KillPoint::In(Released)).map_err(|error| format!("{what}: {error}"))?;
        same(&before, &what)?;
    }
    for point in with_qemu.iter().chain(&spawned) {
        let what = format!("QEMU killed at {point:?}");
        let output = run(&plan, *point, Victim::Qemu)?;
        ensure(output.status.code() == Some(ENDED), || format!("{what}: {output:?}"))?;
        same(&before, &what)?;
        let what = format!("both killed at {point:?}");
        killed(&run(&plan, *point, Victim::Both)?)?;
        done(&gpuvm(&["cleanup"])?).map_err(|error| format!("{what}: {error}"))?;
        same(&before, &what)?;
    }
    Ok(())
}

/// Recovers a VM, and brings it down if its guest goes on.
fn recovered(adopted: bool, over: bool) -> Outcome {
    let output = gpuvm(&["recover", VM])?;
    if over {
        return ensure(output.status.code() == Some(69), || {
            format!("recover of a VM that is over: {output:?}")
        });
    }
    done(&output)?;
    if adopted {
        // Its guest has hardly begun and does not hear the power button, or has been told to end already.
        return match gpuvm(&["down", VM, "--timeout", "2s"])? {
            output if output.status.code() == Some(69) => gone(),
            output => done(&output),
        };
    }
    gone()
}

fn gone() -> Outcome {
    let list = gpuvm(&["--json", "list"])?;
    let told = String::from_utf8_lossy(&list.stdout).into_owned();
    ensure(!told.contains(VM), || format!("the VM is still there: {told}"))
}

fn run(plan: &Plan, kill: KillPoint, victim: Victim) -> Result<Output, String> {
    let verb = Verb::Detached(Box::new(plan.clone()));
    Task { fake: None, verb, kill, victim }.run(&program()?).map_err(doing("start killed-launcher"))
}

fn killed(output: &Output) -> Outcome {
    ensure(output.status.signal() == Some(SIGKILL), || format!("not killed: {output:?}"))
}

fn same(before: &Snapshot, what: &str) -> Outcome {
    let differences = before.differences(&Snapshot::take()?);
    ensure(differences.is_empty(), || {
        format!("{what}: the host has changed:\n  {}", differences.join("\n  "))
    })
}

fn done(output: &Output) -> Outcome {
    ensure(output.status.code() == Some(0), || format!("{output:?}"))
}

fn live() -> Result<Live, String> {
    let output = gpuvm(&["--json", "status", VM])?;
    done(&output)?;
    let document: Value = serde_json::from_slice(&output.stdout).map_err(doing("gpuvm status"))?;
    serde_json::from_value(document["live"].clone()).map_err(doing(&format!("the status {document}")))
}

/// Checks what the list says of the VM, for people and for programs.
fn listed(state: &str) -> Outcome {
    let text = gpuvm(&["list"])?;
    let line =
        String::from_utf8_lossy(&text.stdout).lines().find(|line| line.starts_with(VM)).map(str::to_owned);
    ensure(line.as_ref().is_some_and(|line| line.contains(state)), || format!("{state}: {text:?}"))?;
    let json = gpuvm(&["--json", "list"])?;
    let told = String::from_utf8_lossy(&json.stdout).into_owned();
    ensure(told.contains(&format!("\"{state}\"")), || format!("{state}: {told}"))
}

/// Kills a process, and waits until nothing of it is left.
fn slain(pid: i32) -> Outcome {
    let process = gpuvm_host::process::ProcessId::of(pid).ok_or("it is gone already")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(doing("kill the supervisor"))?;
    until("the supervisor is dead", Duration::from_secs(20), || Ok(!process.is_alive()))
}

/// Counts the guest's reports on its console.
fn reports() -> Result<usize, String> {
    let console = fs::read(CONSOLE).map_err(doing(CONSOLE))?;
    Ok(String::from_utf8_lossy(&console).matches("{\"gpuvm_guest\":1,").count())
}

fn until(what: &str, within: Duration, mut holds: impl FnMut() -> Result<bool, String>) -> Outcome {
    let begun = Instant::now();
    while !holds()? {
        ensure(begun.elapsed() < within, || format!("not within {within:?}: {what}"))?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
