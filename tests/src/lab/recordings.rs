//! Snapshots of devices before and after what was really done to them, for the tests of the verdict (`tests/snapshots/lab`).
//!
//! What the verdict on each should be is written here by hand, from what was done; it is not what gpuvm says.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::{Heard, Snapshot};
use gpuvm_host::root::HostRoot;
use gpuvm_host::snapshot;
use nix::unistd::{Uid, seteuid};
use serde::{Deserialize, Serialize};

use super::doctor::Bound;
use super::sick::{
    LinkError, OffTheBus, attribute, found_anew, get, inject, set, set_slot_power, wait_until, write_config,
};
use super::{Outcome, doing, edu};

const GPU: &str = "0000:81:00.0";
const AUDIO: &str = "0000:81:00.1";
const GPU_PORT: &str = "0000:80:00.0";
const EDU: &str = "0000:82:00.0";
const EDU_PORT: &str = "0000:80:01.0";
const NVME: &str = "0000:83:00.0";
const NVME_PORT: &str = "0000:80:02.0";
const NIC: &str = "0000:01:00.0";
/// The NVMe of the host `root-bus`, and its port.
const EARLY_NVME: &str = "0000:05:00.0";
const EARLY_PORT: &str = "0000:00:05.0";

/// A device before and after something, and what should be said of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recording {
    /// What was done.
    pub about: String,
    /// `lab`: recorded from a real kernel.
    pub source: String,
    /// The device before.
    pub before: Snapshot,
    /// The device after.
    pub after: Snapshot,
    /// What the kernel said between.
    pub heard: Heard,
    /// The verdict that it should come to.
    pub verdict: String,
    /// The checks that should have something against it, or worth knowing.
    pub checks: Vec<String>,
}

/// A recording and its name.
#[derive(Debug, Serialize, Deserialize)]
pub struct Named {
    /// The name of its file.
    pub name: String,
    /// What the file holds.
    pub recording: Recording,
}

/// What is expected of one device in one state.
struct Expected {
    name: &'static str,
    bdf: &'static str,
    verdict: &'static str,
    checks: &'static [&'static str],
}

const fn expect(
    name: &'static str,
    bdf: &'static str,
    verdict: &'static str,
    checks: &'static [&'static str],
) -> Expected {
    Expected { name, bdf, verdict, checks }
}

/// Devices as they were at the beginning of something.
struct Baseline {
    devices: Vec<(&'static str, Snapshot, Log)>,
}

impl Baseline {
    fn of(devices: &[&'static str]) -> Result<Self, String> {
        let devices = devices.iter().map(|bdf| {
            let log = Log::from_now()?;
            Ok((*bdf, snapshot_of(bdf)?, log))
        });
        Ok(Self { devices: devices.collect::<Result<_, String>>()? })
    }
}

/// All that is told of a recording goes here.
type Tell<'a> = dyn FnMut(Named) -> Outcome + 'a;

struct Recorder<'a> {
    tell: &'a mut Tell<'a>,
}

impl Recorder<'_> {
    /// Records a device's state now against its baseline. May be done several times.
    fn now(&mut self, baseline: &mut Baseline, about: &str, expected: &Expected) -> Outcome {
        let found = baseline.devices.iter_mut().find(|(bdf, ..)| *bdf == expected.bdf);
        let (_, before, log) = found.ok_or_else(|| format!("{} has no baseline", expected.bdf))?;
        // In this order, as in a run: what the look itself makes the kernel say is no news of the device.
        let heard = log.about(before)?;
        let after = snapshot_of(expected.bdf)?;
        (self.tell)(Named {
            name: expected.name.to_owned(),
            recording: Recording {
                about: about.to_owned(),
                source: "lab".to_owned(),
                before: before.clone(),
                after,
                heard,
                verdict: expected.verdict.to_owned(),
                checks: expected.checks.iter().map(|&check| check.to_owned()).collect(),
            },
        })
    }

    /// Records one device before and after something.
    fn deed(&mut self, about: &str, expected: &Expected, deed: impl FnOnce() -> Outcome) -> Outcome {
        let mut baseline = Baseline::of(&[expected.bdf])?;
        deed()?;
        self.now(&mut baseline, about, expected)
    }
}

fn snapshot_of(bdf: &str) -> Result<Snapshot, String> {
    Ok(snapshot::take(&HostRoot::default(), bdf.parse().map_err(doing(bdf))?))
}

/// The kernel's log from a moment on. Not gpuvm's own reader: a recording must not depend on what is to be tested with it.
struct Log {
    file: File,
    lines: Vec<String>,
}

impl Log {
    fn from_now() -> Result<Self, String> {
        let path = Path::new("/dev/kmsg");
        let mut file = gpuvm_sys::access::open_nonblocking(path).map_err(doing("open /dev/kmsg"))?;
        file.seek(SeekFrom::End(0)).map_err(doing("seek /dev/kmsg"))?;
        Ok(Self { file, lines: Vec::new() })
    }

    /// Returns the lines so far that name the device or the ports above it.
    fn about(&mut self, device: &Snapshot) -> Result<Heard, String> {
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&record[..bytes]);
                    let line = text.lines().next().and_then(|line| line.split_once(';'));
                    self.lines.extend(line.map(|(_, message)| message.to_owned()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("read /dev/kmsg: {error}")),
            }
        }
        let mut addresses: Vec<Bdf> = vec![device.bdf];
        addresses.extend(device.port.iter().flat_map(|port| [port.bdf, port.root_port]));
        let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        // The IOMMU's reports leave the domain out.
        let names_it = |line: &&String| {
            names
                .iter()
                .any(|name| line.contains(name.as_str()) || line.contains(&format!("[{}]", &name[5..])))
        };
        Ok(Heard::Said(self.lines.iter().filter(names_it).cloned().collect()))
    }
}

/// Makes all recordings of a lab host, those that take long too.
///
/// # Errors
/// What could not be done on this host.
pub fn record<'a>(host: &str, tell: &'a mut Tell<'a>) -> Outcome {
    let mut recorder = Recorder { tell };
    match host {
        "slow-link" => slow_link(&mut recorder),
        "root-bus" => slow_reset(&mut recorder),
        _ => {
            well(&mut recorder)?;
            off_the_bus(&mut recorder)?;
            without_power(&mut recorder)?;
            rewritten(&mut recorder)?;
            seen_by_nobody(&mut recorder)?;
            removed(&mut recorder)?;
            stray_dma(&mut recorder)?;
            link_errors(&mut recorder)?;
            gave_up(&mut recorder)
        }
    }
}

/// Devices that are well.
fn well(recorder: &mut Recorder<'_>) -> Outcome {
    let mut native = Baseline::of(&[NVME])?;
    let bound = Bound::to_vfio(&[NVME])?;
    set(NVME, "power/control", "on")?;
    recorder.now(
        &mut native,
        "an NVMe on its native driver, then on vfio-pci and kept awake",
        &expect("nvme-from-its-driver", NVME, "healthy", &[]),
    )?;
    set(NVME, "reset_method", "flr")?;
    recorder.deed(
        "an NVMe on vfio-pci, awake, reset by FLR",
        &expect("nvme-flr", NVME, "healthy", &[]),
        || set(NVME, "reset", "1"),
    )?;
    set(NVME, "reset_method", "bus")?;
    recorder.deed(
        "an NVMe on vfio-pci, awake, reset by a reset of its bus",
        &expect("nvme-bus-reset", NVME, "healthy", &[]),
        || set(NVME, "reset", "1"),
    )?;
    set(NVME, "reset_method", "default")?;
    recorder.deed(
        "an NVMe on vfio-pci that nobody has opened falls asleep: D3hot",
        &expect("nvme-sleeps", NVME, "healthy", &["power-policy"]),
        || {
            set(NVME, "power/control", "auto")?;
            wait_until("the NVMe sleeps", Duration::from_secs(5), || {
                get(NVME, "power_state").is_ok_and(|state| state == "D3hot")
            })
        },
    )?;
    recorder.deed(
        "an NVMe that sleeps in D3hot is reset by FLR, and sleeps again",
        &expect("nvme-asleep-flr", NVME, "healthy", &[]),
        || {
            set(NVME, "reset", "1")?;
            wait_until("the NVMe sleeps", Duration::from_secs(5), || {
                get(NVME, "power_state").is_ok_and(|state| state == "D3hot")
            })
        },
    )?;
    recorder.deed(
        "the only ways to reset an NVMe are taken from it (reset_method emptied)",
        &expect("nvme-reset-methods-emptied", NVME, "healthy", &["reset-methods"]),
        || set(NVME, "reset_method", "\n"),
    )?;
    set(NVME, "reset_method", "default")?;
    drop(bound);
    cards_well(recorder)
}

fn cards_well(recorder: &mut Recorder<'_>) -> Outcome {
    recorder.deed(
        "the accelerator, which has no PCI Express capability, is reset by a reset of its bus",
        &expect("edu-bus-reset", EDU, "healthy", &[]),
        || set(EDU, "reset", "1"),
    )?;
    let bound = Bound::to_vfio(&[GPU, AUDIO])?;
    let mut pair = Baseline::of(&[GPU, AUDIO])?;
    set(GPU_PORT, "reset_subordinate", "1")?;
    let about = "a card of two functions, both on vfio-pci, after a reset of their bus by the port above";
    recorder.now(&mut pair, about, &expect("gpu-pair-bus-reset", GPU, "healthy", &[]))?;
    recorder.now(&mut pair, about, &expect("gpu-pair-bus-reset-audio", AUDIO, "healthy", &[]))?;
    drop(bound);
    recorder.deed(
        "the command register of an accelerator that no driver has is cleared: the next driver sets it",
        &expect("edu-command-cleared", EDU, "healthy", &[]),
        || write_config(EDU, 4, &[0, 0]),
    )
}

/// Cards off the bus.
fn off_the_bus(recorder: &mut Recorder<'_>) -> Outcome {
    let mut pair = Baseline::of(&[GPU, AUDIO])?;
    let fallen = OffTheBus::below(GPU_PORT)?;
    let about = "a card of two functions, on their native drivers, falls off the bus";
    recorder.now(&mut pair, about, &expect("gpu-off-the-bus", GPU, "unreachable", &["all-ones"]))?;
    recorder.now(&mut pair, about, &expect("gpu-off-the-bus-audio", AUDIO, "unreachable", &["all-ones"]))?;
    std::thread::sleep(Duration::from_secs(2));
    fallen.put_back()?;
    let about = "a card of two functions was off the bus for two seconds, and nobody touched it meanwhile";
    recorder.now(&mut pair, about, &expect("gpu-back-on-the-bus", GPU, "healthy", &[]))?;
    recorder.now(&mut pair, about, &expect("gpu-back-on-the-bus-audio", AUDIO, "healthy", &[]))?;

    let bound = Bound::to_vfio(&[NVME])?;
    set(NVME, "power/control", "on")?;
    let mut disk = Baseline::of(&[NVME])?;
    let fallen = OffTheBus::below(NVME_PORT)?;
    let about = "an NVMe on vfio-pci, awake, falls off the bus";
    recorder.now(&mut disk, about, &expect("nvme-off-the-bus", NVME, "unreachable", &["all-ones"]))?;
    fallen.put_back()?;
    set(NVME, "power/control", "auto")?;
    wait_until("the NVMe sleeps", Duration::from_secs(5), || {
        get(NVME, "power_state").is_ok_and(|state| state == "D3hot")
    })?;
    let mut disk = Baseline::of(&[NVME])?;
    let fallen = OffTheBus::below(NVME_PORT)?;
    // It is woken at once; the kernel finds that it can't, and believes it to be in D3cold. The attribute takes the write.
    set(NVME, "power/control", "on")?;
    recorder.now(
        &mut disk,
        "an NVMe that sleeps in D3hot falls off the bus, and the kernel wakes it",
        &expect("nvme-woken-off-the-bus", NVME, "unreachable", &["all-ones", "power-stuck"]),
    )?;
    fallen.put_back()?;
    recorder.now(
        &mut disk,
        "an NVMe that the kernel couldn't wake while it was off the bus is back on it",
        &expect("nvme-woken-off-the-bus-back", NVME, "impaired", &["power-state", "power-stuck"]),
    )?;
    drop(bound);
    found_anew(&[NVME])?;

    let mut edu = Baseline::of(&[EDU])?;
    let fallen = OffTheBus::below(EDU_PORT)?;
    // The kernel says that this has succeeded, after a fifth of a second.
    set(EDU, "reset", "1")?;
    recorder.now(
        &mut edu,
        "an accelerator that is off the bus is reset; the kernel says that it succeeded (0)",
        &expect("edu-reset-off-the-bus", EDU, "unreachable", &["all-ones", "inaccessible"]),
    )?;
    fallen.put_back()?;
    recorder.now(
        &mut edu,
        "an accelerator that was reset while it was off the bus is back on it, without its registers",
        &expect("edu-reset-off-the-bus-back", EDU, "impaired", &["bars", "inaccessible"]),
    )?;
    found_anew(&[EDU])
}

/// Cards whose slot loses its power.
fn without_power(recorder: &mut Recorder<'_>) -> Outcome {
    let mut cards = Baseline::of(&[EDU])?;
    set_slot_power(EDU_PORT, false)?;
    let about = "an accelerator whose slot has no power";
    recorder.now(&mut cards, about, &expect("edu-without-power", EDU, "unreachable", &["all-ones"]))?;
    set_slot_power(EDU_PORT, true)?;
    let about = "an accelerator whose slot was without power: it answers, and its BARs are lost";
    recorder.now(&mut cards, about, &expect("edu-power-back", EDU, "impaired", &["bars"]))?;
    found_anew(&[EDU])?;

    let bound = Bound::to_vfio(&[GPU, AUDIO])?;
    let mut pair = Baseline::of(&[GPU, AUDIO])?;
    set_slot_power(GPU_PORT, false)?;
    set_slot_power(GPU_PORT, true)?;
    let about = "a card of two functions whose slot was without power: both answer, and their BARs are lost";
    recorder.now(&mut pair, about, &expect("gpu-power-back", GPU, "impaired", &["bars"]))?;
    recorder.now(&mut pair, about, &expect("gpu-power-back-audio", AUDIO, "impaired", &["bars"]))?;
    drop(bound);
    found_anew(&[AUDIO, GPU])
}

/// Registers that somebody has rewritten.
fn rewritten(recorder: &mut Recorder<'_>) -> Outcome {
    const BAR_0: u64 = 0x10;
    let former = super::sick::read_config::<4>(EDU, BAR_0)?;
    recorder.deed(
        "the base address register of an accelerator is zeroed",
        &expect("edu-bar-zeroed", EDU, "impaired", &["bars"]),
        || write_config(EDU, BAR_0, &[0; 4]),
    )?;
    write_config(EDU, BAR_0, &former)?;
    let former = super::sick::read_config::<4>(GPU, BAR_0)?;
    recorder.deed(
        "a base address register of a card is moved to where the kernel hasn't placed it",
        &expect("gpu-bar-moved", GPU, "impaired", &["bars"]),
        || write_config(GPU, BAR_0 + 3, &[former[3] ^ 0x10]),
    )?;
    write_config(GPU, BAR_0, &former)?;
    let bound = Bound::to_vfio(&[NVME])?;
    set(NVME, "power/control", "on")?;
    let power = power_register(NVME)?;
    recorder.deed(
        "an NVMe is put into D3hot behind the kernel's back, which believes it in D0",
        &expect("nvme-put-to-sleep", NVME, "impaired", &["power-state"]),
        || write_config(NVME, power, &[0x0b]),
    )?;
    write_config(NVME, power, &[0x08])?;
    drop(bound);
    Ok(())
}

/// Finds a function's power management control and status register.
fn power_register(bdf: &str) -> Result<u64, String> {
    super::sick::capability(bdf, 0x01).map(|at| at + 4)
}

/// A device that is looked at by who may not see all of it.
fn seen_by_nobody(recorder: &mut Recorder<'_>) -> Outcome {
    let before = snapshot_of(NVME)?;
    // The effective user decides how much of config space a file gives; its owner may still take it back.
    seteuid(Uid::from_raw(65534)).map_err(doing("become nobody"))?;
    let after = snapshot_of(NVME);
    let log = File::open("/dev/kmsg").and_then(|mut log| log.read(&mut [0; 8192]));
    seteuid(Uid::from_raw(0)).map_err(doing("become root again"))?;
    let heard = match log {
        Err(error) => Heard::Deaf(error.to_string()),
        Ok(_) => return Err("nobody may read the kernel's log here".to_owned()),
    };
    (recorder.tell)(Named {
        name: "nvme-seen-by-nobody".to_owned(),
        recording: Recording {
            about: "an NVMe that is well, looked at again by a user who may read the header and no more"
                .to_owned(),
            source: "lab".to_owned(),
            before,
            after: after?,
            heard,
            verdict: "unknown".to_owned(),
            checks: ["log", "unread"].map(str::to_owned).to_vec(),
        },
    })
}

/// A device that the kernel has lost, and finds again.
fn removed(recorder: &mut Recorder<'_>) -> Outcome {
    let mut disk = Baseline::of(&[NVME])?;
    set(NVME, "remove", "1")?;
    recorder.now(
        &mut disk,
        "an NVMe that the kernel has been told to remove",
        &expect("nvme-removed", NVME, "unreachable", &["config"]),
    )?;
    std::fs::write("/sys/bus/pci/rescan", "1").map_err(doing("rescan"))?;
    wait_until("the NVMe has its driver", Duration::from_secs(10), || {
        Path::new(&attribute(NVME, "driver")).exists()
    })?;
    recorder.now(
        &mut disk,
        "an NVMe that was removed, found anew by the kernel",
        &expect("nvme-found-anew", NVME, "healthy", &[]),
    )
}

/// A stray DMA of a device that VFIO has put behind the IOMMU, with nothing mapped.
fn stray_dma(recorder: &mut Recorder<'_>) -> Outcome {
    let bound = Bound::to_vfio(&[EDU])?;
    let group = std::fs::read_link(attribute(EDU, "iommu_group")).map_err(doing("the group"))?;
    let group = group.file_name().and_then(|name| name.to_str()).ok_or("no group")?.to_owned();
    let holder = std::env::current_exe().map_err(doing("own path"))?.with_file_name("hold-vfio");
    let mut edu = Baseline::of(&[EDU])?;
    let mut child = std::process::Command::new(holder)
        .args([group.as_str(), EDU])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map_err(doing("start hold-vfio"))?;
    let mut word = [0; 8];
    let held = child.stdout.as_mut().map(|stdout| stdout.read_exact(&mut word));
    let written = held
        .ok_or("no stdout")?
        .map_err(doing("hold-vfio"))
        .and_then(|()| edu::write_to(EDU, 0x1_0000_0000, 8));
    std::thread::sleep(Duration::from_millis(300));
    child.kill().and_then(|()| child.wait()).map_err(doing("end hold-vfio"))?;
    written?;
    recorder.now(
        &mut edu,
        "an accelerator was told to write where nothing is mapped, and the IOMMU has stopped it",
        &expect("edu-stray-dma", EDU, "healthy", &["iommu-fault"]),
    )?;
    drop(bound);
    Ok(())
}

/// Errors on the link, of the port above a device and of an endpoint that reports its own.
fn link_errors(recorder: &mut Recorder<'_>) -> Outcome {
    let settled = |bdf: &str, error| {
        inject(bdf, error)?;
        std::thread::sleep(Duration::from_millis(1500));
        Ok(())
    };
    recorder.deed(
        "a correctable error of the port above an NVMe",
        &expect("nvme-port-correctable", NVME, "degraded", &["root-port-errors", "correctable-logged"]),
        || settled(NVME_PORT, LinkError::Correctable),
    )?;
    recorder.deed(
        "a correctable error of a network card that reports its own",
        &expect(
            "nic-correctable",
            NIC,
            "degraded",
            &["correctable-errors", "root-port-errors", "correctable-logged"],
        ),
        || settled(NIC, LinkError::Correctable),
    )?;
    recorder.deed(
        "a non-fatal error of a network card; the kernel says that it has recovered",
        &expect(
            "nic-nonfatal",
            NIC,
            "faulted",
            &["nonfatal-errors", "root-port-errors", "uncorrectable-logged"],
        ),
        || settled(NIC, LinkError::Nonfatal),
    )?;
    recorder.deed(
        "a fatal error of a network card: its bus was reset, and the kernel counts at the root port alone",
        &expect("nic-fatal", NIC, "faulted", &["root-port-errors", "uncorrectable-logged"]),
        || settled(NIC, LinkError::Fatal),
    )?;
    let mut pair = Baseline::of(&[GPU, AUDIO])?;
    settled(GPU_PORT, LinkError::Nonfatal)?;
    let about = "a non-fatal error of the port above a card whose drivers know no recovery";
    let checks = &["root-port-errors", "uncorrectable-logged", "recovery-failed"];
    recorder.now(&mut pair, about, &expect("gpu-port-nonfatal", GPU, "faulted", checks))?;
    recorder.now(&mut pair, about, &expect("gpu-port-nonfatal-audio", AUDIO, "faulted", checks))?;
    let bound = Bound::to_vfio(&[NVME])?;
    set(NVME, "power/control", "on")?;
    recorder.deed(
        "a fatal error of the port above an NVMe on vfio-pci: the kernel resets the bus and says that it has recovered",
        &expect("nvme-port-fatal", NVME, "faulted", &["bars", "root-port-errors", "uncorrectable-logged"]),
        || settled(NVME_PORT, LinkError::Fatal),
    )?;
    drop(bound);
    found_anew(&[NVME])
}

/// A reset that takes longer than a second: the card goes away once the kernel has saved its registers, and is back before the kernel
/// gives up.
fn slow_reset(recorder: &mut Recorder<'_>) -> Outcome {
    let bound = Bound::to_vfio(&[EARLY_NVME])?;
    set(EARLY_NVME, "power/control", "on")?;
    set(EARLY_NVME, "reset_method", "flr")?;
    recorder.deed(
        "an NVMe that takes more than two seconds to come back from FLR",
        &expect("nvme-slow-flr", EARLY_NVME, "degraded", &["slow-reset"]),
        || {
            let reset = std::thread::spawn(|| set(EARLY_NVME, "reset", "1"));
            std::thread::sleep(Duration::from_millis(5));
            let fallen = OffTheBus::past_the_kernel(EARLY_PORT)?;
            std::thread::sleep(Duration::from_millis(2500));
            fallen.put_back()?;
            reset.join().map_err(|_| "the thread that resets has panicked".to_owned())?
        },
    )?;
    set(EARLY_NVME, "reset_method", "default")?;
    drop(bound);
    Ok(())
}

/// A card off the bus for as long as the kernel waits for it.
fn gave_up(recorder: &mut Recorder<'_>) -> Outcome {
    refused(
        recorder,
        [
            ("nvme-gave-up", "an NVMe off the bus, for which the kernel has waited 65 s after a reset"),
            ("nvme-gave-up-back", "an NVMe back on the bus after the kernel has given it up"),
        ],
    )
}

/// A reset that the kernel refuses after a second: the port can't say whether its link is up, and the card doesn't answer.
fn slow_link(recorder: &mut Recorder<'_>) -> Outcome {
    refused(
        recorder,
        [
            (
                "nvme-reset-refused",
                "a reset of an NVMe off the bus, refused after a second (ENOTTY): its port doesn't report a link",
            ),
            (
                "nvme-reset-refused-back",
                "an NVMe back on the bus after a reset that was refused after a second",
            ),
        ],
    )
}

/// A bus reset of a card that is off the bus, which the kernel refuses in the end: while it is away, and back. Each with the recording's
/// name and what it is about.
fn refused(recorder: &mut Recorder<'_>, [away, back]: [(&'static str, &'static str); 2]) -> Outcome {
    let bound = Bound::to_vfio(&[NVME])?;
    set(NVME, "power/control", "on")?;
    set(NVME, "reset_method", "bus")?;
    let mut disk = Baseline::of(&[NVME])?;
    let fallen = OffTheBus::below(NVME_PORT)?;
    let refused = set(NVME, "reset", "1");
    let checks = &["all-ones", "inaccessible", "gave-up"];
    recorder.now(&mut disk, away.1, &expect(away.0, NVME, "unreachable", checks))?;
    fallen.put_back()?;
    let checks = &["bars", "inaccessible", "gave-up"];
    recorder.now(&mut disk, back.1, &expect(back.0, NVME, "faulted", checks))?;
    drop(bound);
    found_anew(&[NVME])?;
    match refused {
        Err(_) => Ok(()),
        Ok(()) => Err("the kernel says that a card off the bus was reset".to_owned()),
    }
}
