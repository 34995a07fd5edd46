//! Two VMs at once that share a node's hugepages and the ports above their devices (lab host `switch`).

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::snapshot::Snapshot;
use super::vm::{Ended, Vm};
use super::{Outcome, doing, ensure};

/// A guest's whole cycle with another one beside it.
const CYCLE: Duration = Duration::from_secs(200);
/// The root port and the switch's upstream port, which both VMs claim.
const SHARED_PORTS: [&str; 2] = ["0000:80:03.0", "0000:84:00.0"];
const DEVICES: [&str; 2] = ["0000:86:00.0", "0000:87:00.0"];
const POOL: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
/// Pages of one VM: 256M of memory.
const PAGES: u64 = 128;

/// The pool and the ports go back only when the last VM is gone, whichever that is; what a third party changes stays.
pub(super) fn two_vms() -> Outcome {
    for port in SHARED_PORTS {
        write(&attribute(port, "power/control"), "auto")?;
    }
    let before = Snapshot::take()?;
    let former = pool()?;
    for first in [0, 1] {
        let mut vms = both_up(former)?;
        stop(&mut vms[first], 0)?;
        expect(former + PAGES, "on", &format!("VM {first} has ended"))?;
        stop(&mut vms[1 - first], 0)?;
        expect(former, "auto", "both have ended")?;
        unchanged(&before)?;
    }
    third_party(former)?;
    unchanged(&before)
}

/// Somebody else sets a device's override and the pool while both run: told by the VM that owns it, and left as it is.
fn third_party(former: u64) -> Outcome {
    let mut vms = both_up(former)?;
    let set = attribute(DEVICES[0], "driver_override");
    write(&set, "pci-stub")?;
    let told = stop(&mut vms[0], 74)?.told;
    ensure(told.contains("driver_override of 0000:86:00.0 is now pci-stub"), || told.clone())?;
    ensure(read(&set)? == "pci-stub", || "the override was overwritten".to_owned())?;
    expect(former + PAGES, "on", "one VM has ended")?;

    write(POOL, &(former + PAGES + 10).to_string())?;
    let told = stop(&mut vms[1], 74)?.told;
    ensure(told.contains("the pool of node 1 is now") && told.contains("somebody else"), || told.clone())?;
    expect(former + PAGES + 10, "auto", "both have ended")?;
    write(POOL, &former.to_string())?;
    write(&set, "\n")
}

/// Brings both VMs up, until their guests have said so.
fn both_up(former: u64) -> Result<[Vm; 2], String> {
    let start = |name: &str, device: &str| {
        Vm::start_with(
            "gpuvm.linger=300",
            &[
                &format!("name={name}"),
                "memory.size=256M",
                "cpu.count=1",
                &format!("device=[{{bdf=\"{device}\"}}]"),
            ],
        )
    };
    // One after the other: the plan of the second must see which CPUs the first has.
    let mut first = start("one", DEVICES[0])?;
    first.printed("gpuvm-guest: lingering", CYCLE)?;
    let mut second = start("two", DEVICES[1])?;
    second.printed("gpuvm-guest: lingering", CYCLE)?;
    expect(former + 2 * PAGES, "on", "both run")?;
    Ok([first, second])
}

fn stop(vm: &mut Vm, code: i32) -> Result<Ended, String> {
    vm.signal(Signal::SIGTERM)?;
    let ended = vm.ended(CYCLE)?;
    ensure(ended.code == Some(code), || format!("exit code {:?}, not {code}:\n{}", ended.code, ended.told))?;
    Ok(ended)
}

fn expect(pages: u64, control: &str, when: &str) -> Outcome {
    let now = pool()?;
    ensure(now == pages, || format!("{when}: the pool has {now} pages, not {pages}"))?;
    for port in SHARED_PORTS {
        let now = read(&attribute(port, "power/control"))?;
        ensure(now == control, || format!("{when}: {port} is {now}, not {control}"))?;
    }
    Ok(())
}

fn unchanged(before: &Snapshot) -> Outcome {
    let differences = before.differences(&Snapshot::take()?);
    ensure(differences.is_empty(), || format!("the host has changed:\n  {}", differences.join("\n  ")))
}

fn pool() -> Result<u64, String> {
    read(POOL)?.parse().map_err(doing(POOL))
}

fn attribute(bdf: &str, name: &str) -> String {
    format!("/sys/bus/pci/devices/{bdf}/{name}")
}

fn read(path: &str) -> Result<String, String> {
    Ok(fs::read_to_string(path).map_err(doing(path))?.trim().to_owned())
}

fn write(path: &str, value: &str) -> Outcome {
    fs::write(path, value).map_err(doing(&format!("write {value:?} to {path}")))
}
