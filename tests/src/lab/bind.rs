//! `gpuvm bind` and `gpuvm unbind` on a real kernel: who holds a device, drivers that don't let go, and drivers that don't take it back.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gpuvm_core::plan::BindPlan;

use super::scenarios::{driver_of, leaving_no_trace, refused};
use super::vm::{PROFILE, gpuvm};
use super::{Outcome, doing, ensure};
use crate::killed::{KillPoint, Task, Verb, Victim};

const CARD: [&str; 2] = ["0000:41:00.0", "0000:41:00.1"];
const GROUP: [&str; 2] = ["0000:04:01.0", "0000:04:02.0"];
const EDU: &str = "0000:82:00.0";
const NIC: &str = "0000:01:00.0";
const DISK: &str = "0000:02:00.0";
const DATA: &str = "/mnt/lab-data";
const SIGKILL: i32 = 9;

/// A card comes with its other function and goes back as it was; a group is taken whole or not at all.
pub(super) fn bind() -> Outcome {
    leaving_no_trace(|| {
        told(
            &["bind", CARD[0]],
            0,
            &["0000:41:00.0 is on vfio-pci, taken from bochs-drm", "0000:41:00.1 is on vfio-pci"],
        )?;
        drivers(&CARD, "vfio-pci")?;
        told(&["bind", "0000:41:00"], 0, &["is on vfio-pci already"])?;
        // A VM leaves it bound.
        let set = format!("device=[{{bdf = \"{}\"}}]", CARD[0]);
        told(&["plan", PROFILE, "--set", &set], 0, &["is on vfio-pci, and stays there"])?;
        told(&["cleanup"], 0, &["nothing is left behind"])?;
        told(&["unbind", CARD[0]], 0, &["0000:41:00.0 is on bochs-drm", "0000:41:00.1 is on snd_hda_intel"])?;
        told(&["unbind", CARD[0]], 0, &["nothing to give back"])
    })?;
    leaving_no_trace(|| {
        told(&["bind", GROUP[0]], 69, &[GROUP[1], "group 12", "gpuvm bind 0000:04:01.0 0000:04:02.0"])?;
        told(&["bind", GROUP[0], GROUP[1]], 0, &[])?;
        drivers(&GROUP, "vfio-pci")?;
        told(&["unbind", GROUP[1]], 0, &["0000:04:01.0 is on e1000", "0000:04:02.0 has no driver, as before"])
    })?;
    // Two at once: each comes to an end, and what they did is undone by one.
    leaving_no_trace(|| {
        let start = || {
            Command::new("gpuvm").args(["bind", CARD[0]]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let children = [start(), start()].map(|child| child.map_err(doing("start gpuvm")));
        let mut codes = Vec::new();
        for child in children {
            let output = child?.wait_with_output().map_err(doing("wait for gpuvm"))?;
            codes.push(output.status.code().unwrap_or(-1));
        }
        codes.sort_unstable();
        ensure(codes == [0, 0] || codes == [0, 75], || format!("two binds ended with {codes:?}"))?;
        drivers(&CARD, "vfio-pci")?;
        told(&["unbind", CARD[1]], 0, &[])
    })?;
    // What somebody has bound by hand is freed, and the kernel finds its driver.
    leaving_no_trace(|| {
        let device = format!("/sys/bus/pci/devices/{}", CARD[1]);
        write("/sys/bus/pci/drivers/snd_hda_intel/unbind", CARD[1])?;
        write(&format!("{device}/driver_override"), "vfio-pci")?;
        write("/sys/bus/pci/drivers_probe", CARD[1])?;
        drivers(&CARD[1..], "vfio-pci")?;
        told(&["unbind", CARD[1]], 0, &["0000:41:00.1 is on snd_hda_intel"])
    })
}

/// The mounted disk, the way out, and a card that a process has open are refused by `bind` and by `up`, each holder named.
pub(super) fn holders() -> Outcome {
    leaving_no_trace(|| {
        let mut user = Command::new("sleep")
            .arg("600")
            .current_dir(DATA)
            .spawn()
            .map(Held)
            .map_err(doing("start a process on the disk"))?;
        let named = format!("process {} (sleep) uses", user.0.id());
        told(&["bind", DISK], 69, &[DISK, "nvme", DATA, &named])?;
        refused(&[DISK], 69, &[DISK, DATA, &named])?;
        user.end()?;
        told(&["bind", NIC], 69, &[NIC, "e1000e", "default route"])?;
        refused(&[NIC], 69, &[NIC, "default route"])
    })?;
    leaving_no_trace(|| {
        let node = card_node(CARD[0])?;
        let open = File::options().read(true).write(true).open(&node).map_err(doing(&node))?;
        let holder = Command::new("sleep").arg("600").stdin(open).spawn();
        let mut holder = holder.map(Held).map_err(doing("start a process with the card open"))?;
        let named = format!("process {} (sleep) has {node} open", holder.0.id());
        told(&["bind", CARD[0]], 75, &[CARD[0], "bochs-drm", &named])?;
        refused(&[CARD[0]], 75, &[CARD[0], &named])?;
        holder.end()?;
        told(&["bind", CARD[0]], 0, &[])?;
        told(&["unbind", CARD[0]], 0, &[])
    })
}

/// A process has the VFIO device open and doesn't give it up: told by the deadline, left alone while it hangs, and given back when
/// the process is gone.
pub(super) fn hangs() -> Outcome {
    leaving_no_trace(|| {
        told(&["bind", EDU], 0, &[])?;
        let mut holder = hold(EDU)?;
        let named = format!("process {} (hold-vfio)", holder.0.id());
        told(&["unbind", EDU], 75, &[EDU, &named, "/dev/vfio/17"])?;
        let set = format!("device=[{{bdf = \"{EDU}\"}}]");
        told(&["up", PROFILE, "--set", &set], 75, &[EDU, &named])?;

        let begun = Instant::now();
        let hung = told(
            &["unbind", "--force", EDU],
            74,
            &["has not come back after 60 s", "state ", "waiting in", &named],
        );
        let took = begun.elapsed();
        hung?;
        ensure((60..90).contains(&took.as_secs()), || format!("the unbind came back after {took:?}"))?;
        // Whatever takes the device's lock would hang too: nobody touches it.
        let begun = Instant::now();
        let waiter = "in the hands of the kernel".to_owned();
        told(&["unbind", EDU], 75, &[EDU, &waiter])?;
        told(&["bind", EDU], 75, &[EDU, &waiter])?;
        told(&["plan", PROFILE, "--set", &set], 75, &[EDU, &waiter])?;
        told(&["cleanup"], 74, &["undo: bind 0000:82:00.0 to vfio-pci", &named])?;
        ensure(begun.elapsed() < Duration::from_secs(30), || {
            format!("looking at a device that hangs took {:?}", begun.elapsed())
        })?;
        ensure(driver_of(EDU).is_none(), || format!("{EDU} has a driver: {:?}", driver_of(EDU)))?;

        holder.end()?;
        let begun = Instant::now();
        loop {
            let cleaned = gpuvm(&["cleanup"])?;
            if cleaned.status.code() == Some(0) {
                return ensure(words(&cleaned).contains("0000:82:00.0 is given back"), || words(&cleaned));
            }
            ensure(begun.elapsed() < Duration::from_secs(40), || {
                format!("never given back: {}", words(&cleaned))
            })?;
            std::thread::sleep(Duration::from_secs(1));
        }
    })
}

/// A driver that is gone when its device is to be given back: the device stays listed until somebody has brought the driver back.
pub(super) fn stranded() -> Outcome {
    leaving_no_trace(|| {
        told(&["bind", GROUP[0], GROUP[1]], 0, &[])?;
        modprobe(&["-r", "e1000"])?;
        let result = (|| {
            told(
                &["unbind", GROUP[0]],
                74,
                &["0000:04:01.0 is NOT given back", "modprobe e1000", "0000:04:02.0 has no driver"],
            )?;
            told(&["cleanup"], 74, &["0000:04:01.0 is NOT given back", "isn't loaded any more"])?;
            told(&["bind", GROUP[0], GROUP[1]], 75, &["a bind or unbind of", "gpuvm cleanup"])
        })();
        // It takes its device by itself.
        modprobe(&["e1000"])?;
        result?;
        told(&["cleanup"], 0, &["0000:04:01.0 is given back"])?;
        told(&["cleanup"], 0, &["nothing is left behind"])
    })
}

/// Binds and unbinds that are killed: the first are rolled back, the second finished.
pub(super) fn killed() -> Outcome {
    let plan = gpuvm(&["bind", "--dry-run", "--json", CARD[0]])?;
    let document: serde_json::Value = serde_json::from_slice(&plan.stdout).map_err(doing("read the plan"))?;
    let plan: BindPlan = serde_json::from_value(document["plan"].clone()).map_err(doing("read the plan"))?;
    let operations: usize = plan.sets.iter().map(|set| set.operations.len()).sum();
    let steps = (0..operations).map(KillPoint::BeforeStep);
    for point in steps.chain([KillPoint::AfterWrite(1), KillPoint::BeforeWrite(2), KillPoint::AfterWrite(4)])
    {
        leaving_no_trace(|| {
            dies(Verb::Bind(Box::new(plan.clone())), point)?;
            told(&["cleanup"], 0, &["is given back"])
        })
        .map_err(|error| format!("bind killed at {point:?}: {error}"))?;
    }
    leaving_no_trace(|| {
        dies(Verb::Bind(Box::new(plan.clone())), KillPoint::BeforeRelease)?;
        told(&["cleanup"], 0, &[])?;
        drivers(&CARD, "vfio-pci")?;
        let unbind = gpuvm(&["unbind", "--dry-run", "--json", CARD[0]])?;
        let document: serde_json::Value =
            serde_json::from_slice(&unbind.stdout).map_err(doing("read the plan"))?;
        let unbind = serde_json::from_value(document["plan"].clone()).map_err(doing("read the plan"))?;
        dies(Verb::Unbind(Box::new(unbind)), KillPoint::AfterWrite(1))?;
        told(&["cleanup"], 0, &["is given back"])
    })
}

fn dies(verb: Verb, kill: KillPoint) -> Outcome {
    let program =
        std::env::current_exe().map_err(doing("find this program"))?.with_file_name("killed-launcher");
    let output = Task { fake: None, verb, kill, victim: Victim::Launcher }
        .run(&program)
        .map_err(doing("start killed-launcher"))?;
    ensure(output.status.signal() == Some(SIGKILL), || format!("not killed: {output:?}"))
}

/// Runs gpuvm and checks how it ends and what it tells.
fn told(args: &[&str], code: i32, names: &[&str]) -> Outcome {
    let output = gpuvm(args)?;
    let told = words(&output);
    ensure(output.status.code() == Some(code), || {
        format!("{args:?}: {:?}, not {code}:\n{told}", output.status)
    })?;
    let missing: Vec<_> = names.iter().filter(|name| !told.contains(**name)).collect();
    ensure(missing.is_empty(), || format!("{args:?}: {missing:?} isn't in:\n{told}"))
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn drivers(of: &[&str], driver: &str) -> Outcome {
    for bdf in of {
        ensure(driver_of(bdf).as_deref() == Some(driver), || format!("{bdf} is on {:?}", driver_of(bdf)))?;
    }
    Ok(())
}

/// Finds the file that a display card is used by.
fn card_node(bdf: &str) -> Result<String, String> {
    let folder = format!("/sys/bus/pci/devices/{bdf}/drm");
    let names = super::snapshot::names(std::path::Path::new(&folder));
    let card = names.iter().find(|name| name.starts_with("card")).ok_or(format!("no card in {folder}"))?;
    Ok(format!("/dev/dri/{card}"))
}

/// Starts a process that has a device open through VFIO.
fn hold(bdf: &str) -> Result<Held, String> {
    let link =
        fs::read_link(format!("/sys/bus/pci/devices/{bdf}/iommu_group")).map_err(doing("the group"))?;
    let group = link.file_name().unwrap_or_default();
    let program = std::env::current_exe().map_err(doing("find this program"))?.with_file_name("hold-vfio");
    let mut child = Command::new(program)
        .arg(group)
        .arg(bdf)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(doing("start hold-vfio"))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(doing("read what hold-vfio says"))?;
    }
    let held = Held(child);
    ensure(line.trim() == "holding", || format!("hold-vfio said {line:?}"))?;
    Ok(held)
}

/// A process that holds something, ended in any case.
struct Held(Child);

impl Held {
    fn end(&mut self) -> Outcome {
        self.0.kill().map_err(doing("end the process"))?;
        self.0.wait().map(drop).map_err(doing("wait for the process"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end().ok();
    }
}

fn modprobe(words: &[&str]) -> Outcome {
    let output = Command::new("modprobe").args(words).output().map_err(doing("start modprobe"))?;
    ensure(output.status.success(), || format!("modprobe {words:?}: {output:?}"))
}

fn write(path: &str, value: &str) -> Outcome {
    fs::write(path, value).map_err(doing(&format!("write {value:?} to {path}")))
}
