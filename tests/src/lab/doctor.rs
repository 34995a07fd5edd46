//! The doctor's word against the kernel's: what it calls viable attaches, and what it refuses is refused when it is forced by hand.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpuvm_sys::errno::{EBUSY, EPERM};
use gpuvm_sys::vfio::{Container, Group, IommuType};
use serde_json::Value;

use super::scenarios::{EDU, GPU, driver_of, leaving_no_trace};
use super::vm::gpuvm;
use super::{Outcome, doing, ensure};

const AUDIO: &str = "0000:81:00.1";
const DISPLAY: &str = "0000:00:01.0";
const NIC: &str = "0000:01:00.0";
const DISK: &str = "0000:02:00.0";
/// Two functions behind a bridge to conventional PCI: one with the driver e1000, the other without.
const BRIDGED: [&str; 2] = ["0000:04:01.0", "0000:04:02.0"];
const EDU_PORT: &str = "0000:80:01.0";

/// What the doctor found.
struct Examination {
    code: Option<i32>,
    checks: Vec<Value>,
}

impl Examination {
    /// Asks about devices.
    fn of(devices: &[&str]) -> Result<Self, String> {
        let output = gpuvm(&[&["doctor", "--json"], devices].concat())?;
        let document: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("gpuvm doctor {devices:?}: {error}: {output:?}"))?;
        let checks = document["checks"].as_array().cloned().ok_or("the doctor has no checks")?;
        Ok(Self { code: output.status.code(), checks })
    }

    /// Checks that a check ended with a verdict about a subject, and found something with these words in it.
    fn says(&self, name: &str, subject: &str, verdict: &str, words: &str) -> Outcome {
        let about = |check: &&Value| {
            let of = &check["subject"];
            let spelt = match of["kind"].as_str() {
                Some("device") => of["bdf"].as_str().unwrap_or_default().to_owned(),
                Some("group") => format!("group {}", of["group"]),
                _ => "host".to_owned(),
            };
            check["name"] == name && spelt == subject
        };
        let found: Vec<&Value> = self.checks.iter().filter(about).collect();
        let fits = |check: &&Value| {
            check["verdict"] == verdict && check["found"].as_str().is_some_and(|found| found.contains(words))
        };
        ensure(found.iter().any(fits), || {
            format!("{name} of {subject} isn't {verdict} with `{words}`: {found:?}")
        })
    }
}

/// Takes devices to vfio-pci, and gives them back to who had them.
pub(super) struct Bound {
    devices: Vec<(&'static str, Option<String>)>,
}

impl Bound {
    pub(super) fn to_vfio(devices: &[&'static str]) -> Result<Self, String> {
        let mut bound = Self { devices: Vec::new() };
        for bdf in devices {
            bound.devices.push((bdf, driver_of(bdf)));
            write(bdf, "driver_override", "vfio-pci")?;
            if driver_of(bdf).is_some() {
                write(bdf, "driver/unbind", bdf)?;
            }
            probe(bdf)?;
            ensure(driver_of(bdf).as_deref() == Some("vfio-pci"), || {
                format!("{bdf} is on {:?}", driver_of(bdf))
            })?;
        }
        Ok(bound)
    }

    /// Gives one of them back.
    fn give_back(&mut self, bdf: &str) -> Outcome {
        let Some(at) = self.devices.iter().position(|(bound, _)| *bound == bdf) else {
            return Err(format!("{bdf} wasn't bound"));
        };
        let (_, was) = self.devices.remove(at);
        write(bdf, "driver_override", "\n")?;
        if driver_of(bdf).is_some() {
            write(bdf, "driver/unbind", bdf)?;
        }
        if was.is_some() {
            probe(bdf)?;
        }
        ensure(driver_of(bdf) == was, || format!("{bdf} came back to {:?}, not {was:?}", driver_of(bdf)))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // What a scenario that failed leaves behind must not spoil the next one; what can't be given back shows in the snapshot.
        for bdf in self.devices.iter().map(|(bdf, _)| *bdf).rev().collect::<Vec<_>>() {
            self.give_back(bdf).ok();
        }
    }
}

fn write(bdf: &str, attribute: &str, value: &str) -> Outcome {
    let path = format!("/sys/bus/pci/devices/{bdf}/{attribute}");
    fs::write(&path, value).map_err(doing(&format!("write {value:?} to {path}")))
}

fn probe(bdf: &str) -> Outcome {
    fs::write("/sys/bus/pci/drivers_probe", bdf).map_err(doing(&format!("probe {bdf}")))
}

fn group_of(bdf: &str) -> Result<String, String> {
    let link = format!("/sys/bus/pci/devices/{bdf}/iommu_group");
    let target = fs::read_link(&link).map_err(doing(&link))?;
    Ok(target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

fn node_of(bdf: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(format!("/dev/vfio/{}", group_of(bdf)?)))
}

/// Attaches a device's group to a container with the IOMMU set, as QEMU would, without opening the device.
fn attach(bdf: &str) -> Result<io::Result<(Group, Container)>, String> {
    let node = node_of(bdf)?;
    let attach = || {
        let group = Group::open(&node)?;
        let container = Container::open("/dev/vfio/vfio".as_ref())?;
        group.set_container(&container)?;
        container.set_iommu(IommuType::Type1v2)?;
        Ok((group, container))
    };
    Ok(attach())
}

fn refused_with(attached: io::Result<(Group, Container)>, errno: i32, what: &str) -> Outcome {
    let refused = attached.as_ref().err().and_then(io::Error::raw_os_error);
    ensure(refused == Some(errno), || format!("{what}: {attached:?}, not errno {errno}"))
}

/// A card that fits, its group as a whole, in halves and in use.
pub(super) fn doctor_card() -> Outcome {
    leaving_no_trace(|| {
        let group = format!("group {}", group_of(GPU)?);
        let free = Examination::of(&[GPU])?;
        free.says("driver-owner", GPU, "ok", "bochs-drm")?;
        free.says("driver-owner", AUDIO, "ok", "snd_hda_intel")?;
        free.says("boot-display", GPU, "ok", "")?;
        free.says("firmware-framebuffer", GPU, "ok", "")?;
        free.says("group-members", &group, "ok", "")?;
        free.says("group-viable", &group, "not-applicable", "")?;
        // Facts A1: the kernel lists `bus` for function 0 and would refuse it.
        free.says("reset-methods", GPU, "ok", "`bus` is listed and would be refused")?;
        free.says("reset-domain", GPU, "ok", AUDIO)?;
        free.says("acs-path", GPU, "ok", "isolates")?;
        free.says("acs-override", "host", "ok", "")?;
        free.says("pci-bridge", GPU, "ok", "")?;
        let refused = fs::write(format!("/sys/bus/pci/devices/{GPU}/reset"), "1");
        ensure(refused.is_err(), || format!("{GPU} was reset by its bus, which the doctor calls stale"))?;

        let mut bound = Bound::to_vfio(&[GPU, AUDIO])?;
        Examination::of(&[GPU])?.says("group-viable", &group, "ok", "")?;
        let attached = attach(GPU)?.map_err(doing("attach a group that is viable"))?;
        let in_use = Examination::of(&[GPU])?;
        in_use.says("group-viable", &group, "failed", "has it open")?;
        ensure(in_use.code == Some(69), || format!("exit code {:?}", in_use.code))?;
        refused_with(attach(GPU)?, EBUSY, "a second attachment")?;
        drop(attached);
        Examination::of(&[GPU])?.says("group-viable", &group, "ok", "")?;

        bound.give_back(AUDIO)?;
        let half = Examination::of(&[GPU])?;
        half.says("group-viable", &group, "failed", &format!("{AUDIO} is on snd_hda_intel"))?;
        refused_with(attach(GPU)?, EPERM, "an attachment of half a group")?;
        bound.give_back(GPU)
    })
}

/// A host without an IOMMU: no groups, and nothing that attaches.
pub(super) fn without_iommu() -> Outcome {
    let found = Examination::of(&[EDU])?;
    found.says("iommu-group", EDU, "failed", "drives no IOMMU")?;
    ensure(found.code == Some(69), || format!("exit code {:?}", found.code))
}

/// Devices that don't fit: the boot display, what the host uses, a group with a stranger.
pub(super) fn doctor_refusals() -> Outcome {
    leaving_no_trace(|| {
        let display = Examination::of(&[DISPLAY])?;
        display.says("boot-display", DISPLAY, "failed", "boot display")?;
        display.says("reset-methods", DISPLAY, "warning", "no way to reset")?;
        display.says("reset-domain", DISPLAY, "not-applicable", "root bus")?;
        ensure(display.code == Some(69), || format!("exit code {:?}", display.code))?;
        Examination::of(&[NIC])?.says("device-holders", NIC, "failed", "route")?;
        Examination::of(&[DISK])?.says("device-holders", DISK, "failed", "/mnt/lab-data")?;

        write(EDU, "driver_override", "pci-stub")?;
        let set_aside = Examination::of(&[EDU])?.says("driver-owner", EDU, "failed", "pci-stub");
        write(EDU, "driver_override", "\n")?;
        set_aside?;

        let [e1000, other] = BRIDGED;
        let group = format!("group {}", group_of(other)?);
        let alone = Examination::of(&[other])?;
        alone.says("group-members", &group, "failed", &format!("{e1000} Ethernet controller"))?;
        alone.says("pci-bridge", other, "warning", "0000:03:00.0")?;
        alone.says("acs-path", other, "warning", e1000)?;
        let mut bound = Bound::to_vfio(&[other])?;
        Examination::of(&[other])?.says("group-viable", &group, "failed", &format!("{e1000} is on e1000"))?;
        refused_with(attach(other)?, EPERM, "an attachment beside e1000")?;
        bound.give_back(other)?;
        // With both of them there is nobody else, and the kernel agrees: the bridge stays with it.
        let mut bound = Bound::to_vfio(&BRIDGED)?;
        let both = Examination::of(&BRIDGED)?;
        both.says("group-members", &group, "ok", "bridge")?;
        both.says("group-viable", &group, "ok", "")?;
        drop(attach(other)?.map_err(doing("attach a group with a bridge"))?);
        BRIDGED.iter().try_for_each(|bdf| bound.give_back(bdf))
    })
}

/// An error on the way to a device, injected into the port above it by the kernel's own means, is counted and told.
pub(super) fn doctor_errors() -> Outcome {
    Examination::of(&[EDU])?.says("error-counters", EDU, "not-applicable", "")?;
    run("modprobe", &["aer_inject", "aer_mask_override=1"])?;
    // struct aer_error_inj of drivers/pci/pcie/aer_inject.c: bus, device, function, uncorrectable, correctable, four words of a header, domain.
    const COMPLETION_TIMEOUT: u32 = 0x4000;
    let mut error = vec![0x80, 0x01, 0x00, 0x00];
    for word in [COMPLETION_TIMEOUT, 0, 0, 0, 0, 0, 0] {
        error.extend(word.to_ne_bytes());
    }
    let node = "/dev/aer_inject";
    let injected = fs::File::options().write(true).open(node).and_then(|mut node| node.write_all(&error));
    injected.map_err(doing(node))?;
    let counter = format!("/sys/bus/pci/devices/{EDU_PORT}/aer_dev_nonfatal");
    let begun = Instant::now();
    while !fs::read_to_string(&counter).map_err(doing(&counter))?.contains("TOTAL_ERR_NONFATAL 1") {
        ensure(begun.elapsed() < Duration::from_secs(20), || format!("{counter} doesn't count the error"))?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Examination::of(&[EDU])?.says("error-counters", EDU, "warning", &format!("{EDU_PORT} has counted"))
}

fn run(program: &str, args: &[&str]) -> Outcome {
    let output = std::process::Command::new(program).args(args).output().map_err(doing(program))?;
    ensure(output.status.success(), || format!("{program} {args:?}: {output:?}"))
}

/// What the next boot would do: modules that nothing loads, a rule by id that catches three cards, an initramfs that is older than
/// the rule.
pub(super) fn doctor_boot() -> Outcome {
    let disk = "0000:83:00.0";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(doing("osrelease"))?;
    let initramfs = format!("/boot/initrd.img-{}", release.trim());
    let first = Examination::of(&[disk])?;
    first.says("pcie-link", disk, "ok", "x1 at 2.5 GT/s")?;
    first.says("vfio-modules", "host", "warning", "nothing loads it")?;
    first.says("id-rules", "host", "ok", "no rule")?;
    first.says("initramfs-rules", "host", "unknown", "no initramfs")?;

    let modules = File::make("/etc/modules-load.d/vfio-pci.conf", b"vfio-pci\n")?;
    let rule = "options vfio-pci ids=1234:1111\n";
    let rules = File::make("/etc/modprobe.d/gpuvm-lab.conf", rule.as_bytes())?;
    let image = File::make(&initramfs, &packed("")?)?;
    let stale = Examination::of(&[GPU])?;
    stale.says("vfio-modules", "host", "ok", &modules.0)?;
    stale.says("id-rules", "host", "warning", "catches 3 devices, 2 of which aren't to be passed")?;
    stale.says("initramfs-rules", "host", "warning", "1234:1111")?;
    // Made anew, it says the same; the doctor sees that it is another file.
    fs::write(&image.0, packed(rule)?).map_err(doing(&image.0))?;
    let fresh = Examination::of(&[GPU])?;
    fresh.says("initramfs-rules", "host", "ok", "the same")?;
    drop(rules);
    let gone = Examination::of(&[GPU])?;
    gone.says("initramfs-rules", "host", "warning", "which /etc doesn't")?;
    gone.says("id-rules", "host", "warning", "catches 3 devices")
}

/// A file that is taken away at the end.
struct File(String);

impl File {
    fn make(path: &str, content: &[u8]) -> Result<Self, String> {
        if let Some(folder) = std::path::Path::new(path).parent() {
            fs::create_dir_all(folder).map_err(doing(path))?;
        }
        fs::write(path, content).map_err(doing(path))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // The lab host forgets it anyway.
        fs::remove_file(&self.0).ok();
    }
}

/// Makes an initramfs as Debian's tools do: cpio, packed with zstd, VFIO's driver and a file of rules in it.
fn packed(rule: &str) -> Result<Vec<u8>, String> {
    let script = r#"set -e; dir=$(mktemp -d); cd "$dir"
        mkdir -p etc/modprobe.d usr/lib/modules/x; printf %s "$1" > etc/modprobe.d/gpuvm-lab.conf
        touch usr/lib/modules/x/vfio-pci.ko.xz; find . | cpio -o -H newc --quiet | zstd -q -c; rm -r "$dir""#;
    let output = std::process::Command::new("bash").args(["-c", script, "pack", rule]).output();
    let output = output.map_err(doing("bash"))?;
    ensure(output.status.success() && !output.stdout.is_empty(), || {
        format!("pack an initramfs: {output:?}")
    })?;
    Ok(output.stdout)
}
