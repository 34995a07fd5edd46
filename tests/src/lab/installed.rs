//! What only a host with a disk, a boot loader and systemd can show (lab host `installed`): reboots, and what is done at boot.
//!
//! A scenario here is called again after each reboot that it causes; `GPUVM_LAB_BOOT` says which boot it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::scenarios::{CYCLE, EDU, GPU, NVME};
use super::snapshot::Snapshot;
use super::vm::{Vm, gpuvm};
use super::{Outcome, doing, ensure};

/// What one boot leaves to the next, on the host's disk.
pub(super) const KEPT: &str = "/var/lib/lab-scenario";
const OVERLAYS: &str = "/var/lib/gpuvm/vm/lab-compute/overlays";
pub(super) const UNIT: &str = "gpuvm-cleanup.service";
const INSTALLED: [&str; 8] = [
    "/usr/local/bin/gpuvm",
    "/usr/local/lib/systemd/system/gpuvm-cleanup.service",
    "/usr/local/lib/systemd/system/gpuvm@.service",
    "/usr/local/share/bash-completion/completions/gpuvm",
    "/usr/local/share/zsh/site-functions/_gpuvm",
    "/usr/local/share/fish/vendor_completions.d/gpuvm.fish",
    "/usr/local/share/man/man1/gpuvm.1",
    "/usr/local/share/man/man1/gpuvm-up.1",
];

/// The host goes down while a guest has its devices: the boot after it clears what is stale, by its own unit, and tells.
pub(super) fn reboot_in_a_run() -> Outcome {
    match boot()? {
        1 => go_down_in_a_run(),
        2 => cleared_at_boot(),
        other => Err(format!("boot {other}: the host has rebooted by itself")),
    }
}

pub(super) fn boot() -> Result<u32, String> {
    let text = std::env::var("GPUVM_LAB_BOOT")
        .map_err(doing("GPUVM_LAB_BOOT: this takes the lab host `installed`"))?;
    text.parse().map_err(doing("GPUVM_LAB_BOOT"))
}

/// Installs gpuvm as on any machine, starts a guest with devices and a throw-away disk, and restarts the kernel in the middle.
fn go_down_in_a_run() -> Outcome {
    fs::create_dir_all(KEPT).map_err(doing(KEPT))?;
    run("scripts/install", &["--bin", &program()?])?;
    let missing: Vec<_> = INSTALLED.iter().filter(|path| !Path::new(path).exists()).collect();
    ensure(missing.is_empty(), || format!("not installed: {missing:?}"))?;
    let enabled = run("systemctl", &["is-enabled", UNIT])?;
    ensure(enabled.trim() == "enabled", || format!("{UNIT} is {enabled}"))?;
    Snapshot::take()?.keep(&kept("snapshot.json"))?;

    let disk = kept("disk.qcow2").display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &disk, "64M"])?;
    let setting = format!("disk=[{{path=\"{disk}\", format=\"qcow2\", mode=\"overlay\"}}]");
    let mut vm = Vm::start_with("gpuvm.linger=600", &[&setting])?;
    vm.printed("gpuvm-guest: lingering", CYCLE)?;
    for bdf in [GPU, EDU, NVME] {
        let driver = driver(bdf);
        ensure(driver == "vfio-pci", || format!("{bdf} has the driver `{driver}` while the guest runs"))?;
    }
    ensure(overlays() == 1, || format!("{} overlays while the guest runs", overlays()))?;
    // Twice forced: systemd isn't asked, no process is ended, nothing is unmounted.
    run("reboot", &["-f", "-f"])?;
    std::thread::sleep(Duration::from_secs(60));
    Err("the host has not rebooted".to_owned())
}

fn cleared_at_boot() -> Outcome {
    let boots = run("journalctl", &["--list-boots", "--no-pager"])?;
    ensure(boots.lines().count() >= 2, || format!("one journal of both boots was expected:\n{boots}"))?;
    let state = run("systemctl", &["show", "-p", "ActiveState,Result,ExecMainStatus", UNIT])?;
    for line in ["ActiveState=active", "Result=success", "ExecMainStatus=0"] {
        ensure(state.lines().any(|found| found == line), || {
            format!("{UNIT}, at its boot: no {line} in\n{state}")
        })?;
    }
    let told = run("journalctl", &["-b", "-o", "cat", "--no-pager", "-u", UNIT])?;
    for text in
        ["lab-compute is given back", &format!("removed overlay {OVERLAYS}/disk0.qcow2 of an earlier run")]
    {
        ensure(told.contains(text), || format!("the unit did not tell `{text}`:\n{told}"))?;
    }
    ensure(overlays() == 0, || format!("{} overlays after the boot", overlays()))?;

    let again = gpuvm(&["cleanup"])?;
    let printed = String::from_utf8_lossy(&again.stdout).into_owned();
    ensure(again.status.code() == Some(0) && printed.contains("nothing is left behind"), || {
        format!("cleanup after the unit's: {again:?}")
    })?;
    let differences = Snapshot::kept(&kept("snapshot.json"))?.differences(&Snapshot::take()?.lasting());
    ensure(differences.is_empty(), || format!("the host has changed:\n  {}", differences.join("\n  ")))?;

    run("scripts/install", &["--uninstall"])?;
    let left: Vec<_> = INSTALLED.iter().filter(|path| Path::new(path).exists()).collect();
    ensure(left.is_empty(), || format!("left by --uninstall: {left:?}"))
}

/// Finds the program that the lab has put first into PATH.
pub(super) fn program() -> Result<String, String> {
    Ok(run("sh", &["-c", "command -v gpuvm"])?.trim().to_owned())
}

pub(super) fn kept(name: &str) -> PathBuf {
    Path::new(KEPT).join(name)
}

fn overlays() -> usize {
    super::snapshot::names(Path::new(OVERLAYS)).len()
}

pub(super) fn driver(bdf: &str) -> String {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{bdf}/driver")).unwrap_or_default();
    link.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs a program that has to succeed, and returns what it printed.
pub(super) fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(doing(&format!("start {program}")))?;
    ensure(output.status.success(), || format!("{program} {args:?}: {output:?}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
