//! VMs as services, under the real systemd of the lab host `installed`: `gpuvm@.service`, the scopes of detached VMs, and what is made of both at boot.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::installed::{KEPT, UNIT as CLEANUP, boot, driver, kept, program, run};
use super::scenarios::{CYCLE, EDU, GPU, NVME, leaving_no_trace};
use super::snapshot::Snapshot;
use super::vm::{PROFILE, gpuvm};
use super::{Outcome, doing, ensure};

const PROFILES: &str = "/etc/gpuvm/profiles";
const VM: &str = "gpuvm@lab-compute.service";
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/gpuvm@lab-compute.service";
/// What the guest says when it has done its work and lingers.
const LINGERS: &str = "gpuvm-guest: lingering";
/// What is laid beside the units. This host needs something before a guest can be started at boot, where other hosts have it already: all of its CPUs, and a
/// virtual machine that keeps the emulated kernel from rewriting its own code (tests/lab/initramfs/lib). Restarts and timeouts are short, so that what is to
/// extend them has to.
const UNITS: [(&str, &str); 3] = [
    (
        "lab-cpus.service",
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=udevadm settle --timeout=60\n\
         ExecStart=/bin/sh -c 'for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do echo 1 > $cpu; done'\n",
    ),
    (
        "lab-held.service",
        "[Unit]\nAfter=lab-cpus.service\n[Service]\nType=exec\nExecStart=perl /usr/lib/lab/hold-kvm.pl\n",
    ),
    (
        "gpuvm@.service.d/lab.conf",
        "[Unit]\nWants=lab-cpus.service lab-held.service\nAfter=lab-cpus.service lab-held.service\n\
         [Service]\nRestartSec=2s\nTimeoutStartSec=6s\nTimeoutStopSec=4s\n",
    ),
];

/// The life of a VM as a service: up when it is ready, down, failed and restarted by policy, lost with its host and started at the next boot; and of a
/// detached one that outlives its session and not a shutdown.
pub(super) fn service() -> Outcome {
    match boot()? {
        1 => lives_and_goes_down_with_its_host(),
        2 => {
            is_up_again_after_the_boot()?;
            goes_down_with_a_host_that_is_shut_down()
        }
        3 => was_ended_by_its_power_button(),
        other => Err(format!("boot {other}: the host has rebooted by itself")),
    }
}

fn lives_and_goes_down_with_its_host() -> Outcome {
    prepare()?;
    step("detached, survives its session", || leaving_no_trace(survives_its_session))?;
    step("starts and stops", || leaving_no_trace(starts_and_stops))?;
    step("outlasts its timeouts", || leaving_no_trace(outlasts_its_timeouts))?;
    step("ends before it is ready", || leaving_no_trace(ends_before_it_is_ready))?;
    step("is restarted", || leaving_no_trace(is_restarted))?;
    step("stays down with a wrong profile", || leaving_no_trace(stays_down_with_a_wrong_profile))?;

    Snapshot::take()?.keep(&kept("snapshot.json"))?;
    run("systemctl", &["enable", "--now", VM])?;
    run("sync", &[])?;
    // Twice forced: systemd isn't asked, no process is ended, nothing is unmounted.
    run("reboot", &["-f", "-f"])?;
    std::thread::sleep(Duration::from_secs(60));
    Err("the host has not rebooted".to_owned())
}

fn step(name: &str, what: impl FnOnce() -> Outcome) -> Outcome {
    let begun = Instant::now();
    let outcome = what().map_err(|error| format!("{name}: {error}"));
    // What takes the time; nothing depends on it.
    writeln!(std::io::stderr(), "  {name}: {:.1} s", begun.elapsed().as_secs_f64()).ok();
    outcome
}

/// Installs gpuvm as on any machine, and the profiles, whose guest lies on this host's own disk: at boot nothing else is there yet.
fn prepare() -> Outcome {
    fs::create_dir_all(KEPT).map_err(doing(KEPT))?;
    run("scripts/install", &["--bin", &program()?])?;
    for file in ["kernel", "initrd"] {
        fs::copy(Path::new("/lab/guest").join(file), kept(file)).map_err(doing("copy the guest"))?;
    }
    let text = fs::read_to_string(PROFILE).map_err(doing(PROFILE))?;
    let text = text
        .replace("/lab/guest", KEPT)
        .replace("gpuvm.factorial=10", "gpuvm.factorial=10 gpuvm.linger=3600")
        .replace(
            "name = \"lab-compute\"\n",
            "name = \"lab-compute\"\nready = 'console:^gpuvm-guest: lingering'\n",
        );
    // What is left in files when the host goes down is the overlay alone: /run is gone.
    let disk = kept("disk.qcow2").display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &disk, "64M"])?;
    let text = format!("{text}\n[[disk]]\npath = \"{disk}\"\nformat = \"qcow2\"\nmode = \"overlay\"\n");
    write(&profile("lab-compute"), &text)?;
    write(&profile("lab-wrong"), &text.replace("count = 3", "count = 0"))?;
    // Its guest is a firmware that finds nothing to boot, and listens to no power button.
    let stubborn = "version = 1\nname = \"lab-stubborn\"\nfirmware = \"bios\"\nnetwork = \"none\"\nshutdown-timeout = 8\n\
                    [memory]\nsize = \"64M\"\n[cpu]\ncount = 1\npin = \"off\"\n";
    write(&profile("lab-stubborn"), stubborn)?;
    let never =
        stubborn.replace("name = \"lab-stubborn\"", "name = \"lab-never\"\nready = \"console:^never\"");
    write(&profile("lab-never"), &never)?;
    for (name, text) in UNITS {
        write(&Path::new("/etc/systemd/system").join(name), text)?;
    }
    run("systemctl", &["daemon-reload"])?;
    let units = ["gpuvm@.service", "gpuvm-cleanup.service"]
        .map(|name| format!("/usr/local/lib/systemd/system/{name}"));
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output();
    let verify = verify.map_err(doing("systemd-analyze"))?;
    ensure(verify.status.success() && verify.stderr.is_empty(), || format!("{verify:?}"))?;
    let enabled = Command::new("systemctl").args(["is-enabled", VM]).output().map_err(doing("systemctl"))?;
    ensure(enabled.stdout == b"disabled\n", || format!("installed, and not asked for: {enabled:?}"))
}

/// Active when the profile says so and not before, with a status all the way; stopped, the host is as before.
fn starts_and_stops() -> Outcome {
    let mut start =
        Command::new("systemctl").args(["start", VM]).spawn().map_err(doing("systemctl start"))?;
    let (mut statuses, begun) = (Vec::new(), Instant::now());
    let code = loop {
        let shown = show(VM, "ActiveState,StatusText")?;
        if shown.contains("ActiveState=activating") && statuses.last() != Some(&shown) {
            statuses.push(shown);
        }
        if let Some(code) = start.try_wait().map_err(doing("systemctl start"))? {
            break code;
        }
        ensure(begun.elapsed() < CYCLE, || format!("not active by now: {statuses:#?}"))?;
        std::thread::sleep(Duration::from_millis(50));
    };
    ensure(code.success(), || format!("start: {code}\n{}", journal(VM)))?;
    let runs = |text: &String| text.contains("StatusText=the guest runs");
    ensure(statuses.iter().any(runs), || format!("active before its guest was ready: {statuses:#?}"))?;
    let console =
        fs::read_to_string("/var/log/gpuvm/lab-compute/console.log").map_err(doing("console.log"))?;
    ensure(console.contains(LINGERS), || format!("active, and the console has said:\n{console}"))?;
    for bdf in [GPU, EDU, NVME] {
        let driver = driver(bdf);
        ensure(driver == "vfio-pci", || format!("{bdf} has the driver `{driver}` while the unit is active"))?;
    }
    let told = run("systemctl", &["status", "--no-pager", VM])?;
    for text in ["Active: active (running)", "Status: \"the guest runs (QEMU"] {
        ensure(told.contains(text), || format!("no `{text}` in\n{told}"))?;
    }
    stop(VM)?;
    let told = journal(VM);
    ensure(told.contains("the guest powered off when its power button was pressed"), || told.clone())?;
    ensure(!told.contains(LINGERS), || format!("the guest's console is in the journal:\n{told}"))
}

/// A stop that takes twice the unit's own timeout, as its profile has it so.
fn outlasts_its_timeouts() -> Outcome {
    let unit = "gpuvm@lab-stubborn.service";
    run("systemctl", &["start", unit])?;
    let begun = Instant::now();
    stop(unit)?;
    let told = journal(unit);
    ensure(begun.elapsed() > Duration::from_secs(7), || format!("stopped after {:?}", begun.elapsed()))?;
    ensure(told.contains("the guest was ended by telling QEMU to quit"), || told.clone())?;
    // One that is stopped while it starts has not failed.
    run("systemctl", &["start", "--no-block", unit])?;
    until(unit, &["ActiveState=activating", "SubState=start"])?;
    stop(unit)
}

/// A guest that is ended by gpuvm itself before the service was active: that is no failure either, and it isn't started again.
fn ends_before_it_is_ready() -> Outcome {
    let unit = "gpuvm@lab-never.service";
    run("systemctl", &["start", "--no-block", unit])?;
    until(unit, &["ActiveState=activating", "SubState=start"])?;
    let begun = Instant::now();
    while !show(unit, "StatusText")?.contains("the guest runs") {
        ensure(begun.elapsed() < CYCLE, || format!("its guest never ran:\n{}", journal(unit)))?;
        std::thread::sleep(Duration::from_millis(200));
    }
    let down = gpuvm(&["down", "--force", "lab-never"])?;
    ensure(down.status.success(), || format!("{down:?}"))?;
    let ended = ["ActiveState=inactive", "Result=success", "NRestarts=0"];
    until(unit, &ended)?;
    std::thread::sleep(Duration::from_secs(4));
    until(unit, &ended)
}

/// A QEMU that dies, and a gpuvm that is killed: both times the unit fails and is started again.
fn is_restarted() -> Outcome {
    run("systemctl", &["start", VM])?;
    let mut before = record()?;
    for (count, (who, text)) in
        [("qemu", "status=1/FAILURE"), ("supervisor", "taking over what is left of VM lab-compute")]
            .iter()
            .enumerate()
    {
        let pid = pid(&before, who)?;
        run("kill", &["-KILL", &pid])?;
        let restarts = format!("NRestarts={}", count + 1);
        until(VM, &["ActiveState=active", &restarts])?;
        let now = record()?;
        ensure(pid != self::pid(&now, who)?, || format!("{who} is the one that was killed: {now}"))?;
        let told = journal(VM);
        ensure(told.contains(text) && told.contains("Scheduled restart job"), || {
            format!("no `{text}`, or no restart, after {who} was killed:\n{told}")
        })?;
        before = now;
    }
    // Whoever ends it by gpuvm means it.
    let down = gpuvm(&["down", "lab-compute"])?;
    ensure(down.status.success(), || format!("{down:?}"))?;
    until(VM, &["ActiveState=inactive", "Result=success"])?;
    std::thread::sleep(Duration::from_secs(4));
    until(VM, &["ActiveState=inactive", "Result=success"])
}

fn stays_down_with_a_wrong_profile() -> Outcome {
    let unit = "gpuvm@lab-wrong.service";
    let start = Command::new("systemctl").args(["start", unit]).output().map_err(doing("systemctl start"))?;
    ensure(!start.status.success(), || format!("{start:?}"))?;
    std::thread::sleep(Duration::from_secs(5));
    let shown = show(unit, "ActiveState,ExecMainStatus,NRestarts,StatusText")?;
    for line in ["ActiveState=failed", "ExecMainStatus=78", "NRestarts=0", "StatusText=the profile is wrong"]
    {
        ensure(shown.lines().any(|shown| shown == line), || format!("no {line} in\n{shown}"))?;
    }
    let told = journal(unit);
    ensure(told.contains("cpu.count"), || format!("what is wrong isn't told:\n{told}"))?;
    run("systemctl", &["reset-failed", unit]).map(drop)
}

/// A VM that was started in a unit that ends has a scope of its own, which ends as gently as `down`.
fn survives_its_session() -> Outcome {
    let profile = profile("lab-compute").display().to_string();
    // A unit that is over when its command is, and then takes with it what is left in its cgroup: as a session or a CI job does.
    let told = kept("told").display().to_string();
    let detach = format!("exec /usr/local/bin/gpuvm up --detach {profile} > {told} 2>&1");
    let session =
        ["--quiet", "--collect", "-p", "Type=oneshot", "-p", "KillMode=control-group", "sh", "-c", &detach];
    let session = run("systemd-run", &session);
    let told = fs::read_to_string(&told).map_err(doing(&told))?;
    session.map_err(|error| format!("{error}\n{told}"))?;
    ensure(told.contains("lab-compute is up"), || told.clone())?;
    let before = record()?;
    let scopes = scopes()?;
    let [scope] = scopes.as_slice() else { return Err(format!("one scope was expected: {scopes:?}")) };
    for who in ["supervisor", "qemu"] {
        let cgroup = format!("/proc/{}/cgroup", pid(&before, who)?);
        let cgroup =
            fs::read_to_string(&cgroup).map_err(doing(&format!("{who} has not survived: {cgroup}")))?;
        ensure(cgroup.contains(scope), || format!("{who} is in {cgroup}, not in {scope}"))?;
    }
    // Who is refused leaves nothing of itself.
    let again = gpuvm(&["up", "--detach", &profile])?;
    ensure(again.status.code() == Some(75), || format!("{again:?}"))?;
    until_only(&scopes)?;

    run("systemctl", &["stop", scope])?;
    let log = "/var/log/gpuvm/lab-compute/supervisor.log";
    let told = fs::read_to_string(log).map_err(doing(log))?;
    for text in ["the guest powered off when its power button was pressed", "the host is as it was"] {
        ensure(told.contains(text), || format!("no `{text}` after the scope's stop:\n{told}"))?;
    }
    // At once again, by the same name.
    let again = gpuvm(&["up", "--detach", "--wait", "running", &profile])?;
    ensure(again.status.success(), || format!("{again:?}"))?;
    let down = gpuvm(&["down", "--force", "lab-compute"])?;
    ensure(down.status.success(), || format!("{down:?}"))?;
    until_only(&[])
}

/// What the boot's own units have made of it: what was left is cleared and told, and then the VM is up again.
fn is_up_again_after_the_boot() -> Outcome {
    let told = run("journalctl", &["-b", "-o", "cat", "--no-pager", "-u", CLEANUP])?;
    let cleanup = show(CLEANUP, "ActiveState,Result,ExecMainStatus")?;
    for line in ["ActiveState=active", "Result=success", "ExecMainStatus=0"] {
        ensure(cleanup.lines().any(|found| found == line), || format!("no {line} in\n{cleanup}\n{told}"))?;
    }
    for text in
        ["lab-compute is given back", "removed overlay /var/lib/gpuvm/vm/lab-compute/overlays/disk0.qcow2"]
    {
        ensure(told.contains(text), || format!("the cleanup did not tell `{text}`:\n{told}"))?;
    }
    until(VM, &["ActiveState=active"])?;
    let number = |text: &str| text.rsplit('=').next().and_then(|number| number.trim().parse::<u64>().ok());
    let (cleared, begun) = (
        number(&show(CLEANUP, "ExecMainExitTimestampMonotonic")?),
        number(&show(VM, "ExecMainStartTimestampMonotonic")?),
    );
    ensure(cleared.is_some() && cleared < begun, || {
        format!("the VM was begun at {begun:?} us, the cleanup over at {cleared:?}")
    })?;
    stop(VM)?;
    let differences = Snapshot::kept(&kept("snapshot.json"))?.differences(&Snapshot::take()?.lasting());
    ensure(differences.is_empty(), || format!("the host has changed:\n  {}", differences.join("\n  ")))?;
    ensure(fs::symlink_metadata(ENABLED).is_ok(), || format!("{VM} is not enabled any more"))
}

/// Shuts the host down as anybody would, with a detached VM.
fn goes_down_with_a_host_that_is_shut_down() -> Outcome {
    let up = gpuvm(&["up", "--detach", &profile("lab-compute").display().to_string()])?;
    ensure(up.status.success(), || format!("{up:?}"))?;
    // Its devices are to be seen without it.
    fs::rename(profile("lab-compute"), kept("lab-compute.toml")).map_err(doing("put the profile aside"))?;
    run("sync", &[])?;
    run("systemctl", &["reboot"])?;
    std::thread::sleep(Duration::from_secs(150));
    Err("the host has not rebooted".to_owned())
}

fn was_ended_by_its_power_button() -> Outcome {
    let log = "/var/log/gpuvm/lab-compute/supervisor.log";
    let told = fs::read_to_string(log).map_err(doing(log))?;
    let last = told.rsplit("reserving the devices").next().unwrap_or_default();
    for text in [
        "the end of its scope: ending the guest",
        "the guest powered off when its power button was pressed",
        "the host is as it was",
    ] {
        ensure(last.contains(text), || format!("no `{text}` at the host's end:\n{told}"))?;
    }
    let told = run("journalctl", &["-b", "-o", "cat", "--no-pager", "-u", CLEANUP])?;
    ensure(told.contains("nothing is left behind"), || format!("after a shutdown:\n{told}"))?;
    let differences = Snapshot::kept(&kept("snapshot.json"))?.differences(&Snapshot::take()?.lasting());
    ensure(differences.is_empty(), || format!("the host has changed:\n  {}", differences.join("\n  ")))?;
    run("scripts/install", &["--uninstall"])?;
    let left: Vec<_> = [ENABLED, "/usr/local/lib/systemd/system/gpuvm@.service", "/usr/local/bin/gpuvm"]
        .into_iter()
        .filter(|path| fs::symlink_metadata(path).is_ok())
        .collect();
    ensure(left.is_empty(), || format!("left by --uninstall: {left:?}"))
}

fn profile(name: &str) -> PathBuf {
    Path::new(PROFILES).join(format!("{name}.toml"))
}

fn write(path: &Path, text: &str) -> Outcome {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(doing(&folder.display().to_string()))?;
    fs::write(path, text).map_err(doing(&path.display().to_string()))
}

fn show(unit: &str, properties: &str) -> Result<String, String> {
    run("systemctl", &["show", "-p", properties, unit])
}

/// What was said of a unit, for messages too.
fn journal(unit: &str) -> String {
    run("journalctl", &["--sync"]).ok();
    run("journalctl", &["-b", "-o", "cat", "--no-pager", "-u", unit]).unwrap_or_else(|error| error)
}

/// Stops a unit, which is no failure of it.
fn stop(unit: &str) -> Outcome {
    run("systemctl", &["stop", unit])?;
    let shown = show(unit, "ActiveState,Result")?;
    ensure(shown.contains("ActiveState=inactive") && shown.contains("Result=success"), || {
        format!("stopped:\n{shown}\n{}", journal(unit))
    })
}

/// Waits until a unit shows all of these.
fn until(unit: &str, lines: &[&str]) -> Outcome {
    let begun = Instant::now();
    loop {
        let shown = show(unit, "ActiveState,SubState,NRestarts,Result")?;
        if lines.iter().all(|line| shown.lines().any(|found| found == *line)) {
            return Ok(());
        }
        ensure(begun.elapsed() < CYCLE, || format!("no {lines:?} in\n{shown}\n{}", journal(unit)))?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What gpuvm has on record of the VM.
fn record() -> Result<Value, String> {
    let path = "/run/gpuvm/reservations/lab-compute.json";
    let text = fs::read_to_string(path).map_err(doing(path))?;
    serde_json::from_str(&text).map_err(doing(path))
}

fn pid(record: &Value, who: &str) -> Result<String, String> {
    let pid = record[who]["pid"].as_i64().ok_or_else(|| format!("no process of {who} in {record}"))?;
    Ok(pid.to_string())
}

fn scopes() -> Result<Vec<String>, String> {
    let words = ["list-units", "--type=scope", "--no-legend", "--plain", "--all", "gpuvm-*"];
    let output =
        Command::new("systemctl").args(words).stdin(Stdio::null()).output().map_err(doing("systemctl"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Waits until these scopes are the only ones: one whose processes are gone is collected a moment later.
fn until_only(expected: &[String]) -> Outcome {
    let begun = Instant::now();
    loop {
        let scopes = scopes()?;
        if scopes == expected {
            return Ok(());
        }
        ensure(begun.elapsed() < CYCLE, || format!("scopes: {scopes:?}, expected {expected:?}"))?;
        std::thread::sleep(Duration::from_millis(200));
    }
}
