//! Messages of the real kernel and the real QEMU, provoked: each is explained by the meaning that it has, and the kernel's log is heard as it is written.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gpuvm_core::pci::Bdf;
use gpuvm_host::HostError;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::kernel_log::{About, KernelLog, listening};
use gpuvm_host::root::HostRoot;
use gpuvm_sys::watched::reap;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scenarios::{EDU, GPU, leaving_no_trace, write};
use super::{Outcome, doing, ensure};

const EDU_GROUP: &str = "/dev/vfio/17";
const DRIVERS: &str = "/sys/bus/pci/drivers";
/// Within this a QEMU ends that is refused; one that isn't, waits for ever.
const REFUSED: &str = "60";

/// Messages of the usual host.
pub(super) fn messages() -> Outcome {
    leaving_no_trace(|| {
        let on_vfio = OnVfio::take(GPU, Some("bochs-drm"))?;
        let said = qemu(&[], &["-device", "vfio-pci,host=0000:81:00.0"])?;
        on_vfio.give_back()?;
        means(&said, "group-not-viable", &["/sys/kernel/iommu_groups/16/devices"])
    })?;
    leaving_no_trace(|| {
        let on_vfio = OnVfio::take(EDU, None)?;
        let checked = of_one_device();
        on_vfio.give_back()?;
        checked
    })?;
    leaving_no_trace(unbind_of_a_held_device)
}

/// What QEMU says of a device that it can't have, for each reason.
fn of_one_device() -> Outcome {
    let device = ["-device", "vfio-pci,host=0000:82:00.0"];
    {
        let _holder = File::options().read(true).write(true).open(EDU_GROUP).map_err(doing(EDU_GROUP))?;
        means(&qemu(&[], &device)?, "group-in-use", &["fuser -v /dev/vfio/17"])?;
    }
    means(
        &qemu(&[], &["-device", "vfio-pci,host=0000:00:00.0"])?,
        "group-no-node",
        &["iommu_groups/0/devices"],
    )?;
    means(&qemu(&[], &["-device", "vfio-pci,host=0000:7f:00.0"])?, "no-such-device", &["lspci"])?;
    means(&qemu(&[], &["-device", "vfio-pci,host=0000:82:00.0,foo=1"])?, "property-not-found", &[])?;
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    means(&qemu(&nobody, &[])?, "kvm-denied", &["ls -l /dev/kvm"])?;
    let edu = EDU.parse::<Bdf>().map_err(doing(EDU))?;
    let mut log = KernelLog::from_now(&HostRoot::default(), About::device(edu));
    let little = [
        "prlimit",
        "--memlock=8388608:8388608",
        "setpriv",
        "--bounding-set=-ipc_lock",
        "--inh-caps=-ipc_lock",
    ];
    means(&qemu(&little, &device)?, "dma-map-memory", &["RLIMIT_MEMLOCK"])?;
    let heard = log.said().0;
    ensure(heard.iter().any(|line| line.contains("RLIMIT_MEMLOCK (8388608) exceeded")), || {
        format!("the kernel's log had no limit of locked memory: {heard:?}")
    })?;
    means(&heard.join("\n"), "memlock", &[])
}

/// An unbind that waits for a process that has the device open: gpuvm's own error has the kernel's words.
fn unbind_of_a_held_device() -> Outcome {
    let edu = EDU.parse::<Bdf>().map_err(doing(EDU))?;
    let on_vfio = OnVfio::take(EDU, None)?;
    let mut holder = hold_device()?;
    let kernel = Kernel::running(HostRoot::default());
    let unbind = Path::new(DRIVERS).join("vfio-pci/unbind");
    let hung = listening(&kernel.root, About::device(edu), || {
        kernel.write("unbind", &unbind, EDU, Duration::from_secs(3))
    });
    holder.kill().map_err(doing("kill the holder"))?;
    holder.wait().map_err(doing("wait for the holder"))?;
    let (said, pid) = in_flight(&hung)?;
    reaped(pid)?;
    write(&on_vfio.attribute(), "\n")?;
    means(&said, "unbind-blocked", &["end that process"])
}

/// Opens the device itself, without a way to be asked for it, and tells when it has it.
fn hold_device() -> Result<Child, String> {
    // VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, VFIO_GROUP_GET_DEVICE_FD (linux/vfio.h).
    let script = r#"open(C, "+<", "/dev/vfio/vfio") or die; open(G, "+<", $ARGV[0]) or die; $c = pack("i", fileno(C));
        ioctl(G, 0x3b68, $c) or die "container: $!"; ioctl(C, 0x3b66, 1) or die "iommu: $!"; $d = "$ARGV[1]\0";
        ioctl(G, 0x3b6a, $d) or die "device: $!"; $| = 1; print "has it\n"; sleep 600;"#;
    let mut holder = Command::new("perl")
        .args(["-e", script, EDU_GROUP, EDU])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(doing("start perl"))?;
    let mut line = String::new();
    let stdout = holder.stdout.take().ok_or("no output")?;
    BufReader::new(stdout).read_line(&mut line).map_err(doing("wait for the holder"))?;
    if line.trim() != "has it" {
        kill(Pid::from_raw(i32::try_from(holder.id()).map_err(doing("pid"))?), Signal::SIGKILL).ok();
        holder.wait().ok();
        return Err("nobody could hold the device".to_owned());
    }
    Ok(holder)
}

/// Returns what the kernel said of a write that hangs, and the process that waits.
fn in_flight(hung: &Result<(), HostError>) -> Result<(String, i32), String> {
    match hung {
        Err(error @ HostError::InFlight { pid, .. }) => Ok((error.said().join("\n"), *pid)),
        other => Err(format!("the write didn't hang: {other:?}")),
    }
}

/// Waits for the end of a write that hung.
fn reaped(pid: i32) -> Outcome {
    for _ in 0..200 {
        if reap(pid).map_err(doing("reap the write"))?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!("process {pid} still waits"))
}

/// A host without interrupt remapping, and QEMU started by hand on it.
pub(super) fn messages_intremap() -> Outcome {
    leaving_no_trace(|| {
        let on_vfio = OnVfio::take(EDU, None)?;
        let edu = EDU.parse::<Bdf>().map_err(doing(EDU))?;
        let mut log = KernelLog::from_now(&HostRoot::default(), About::device(edu));
        let said = qemu(&[], &["-device", "vfio-pci,host=0000:82:00.0"]);
        let heard = log.said().0.join("\n");
        on_vfio.give_back()?;
        means(&said?, "set-iommu-denied", &[])?;
        means(&heard, "no-interrupt-remapping", &["allow_unsafe_interrupts"])
    })
}

/// A host without an IOMMU: vfio-pci doesn't take a device, and gpuvm's error says what the kernel said.
pub(super) fn messages_no_iommu() -> Outcome {
    leaving_no_trace(|| {
        let edu = EDU.parse::<Bdf>().map_err(doing(EDU))?;
        let attribute = format!("/sys/bus/pci/devices/{EDU}/driver_override");
        write(&attribute, "vfio-pci")?;
        let kernel = Kernel::running(HostRoot::default());
        let bind = Path::new(DRIVERS).join("vfio-pci/bind");
        let refused = listening(&kernel.root, About::device(edu), || {
            kernel.write("bind", &bind, EDU, Duration::from_secs(10))
        });
        write(&attribute, "\n")?;
        match refused {
            Err(error @ HostError::Refused { .. }) => {
                means(&error.said().join("\n"), "vfio-probe-invalid", &[EDU])
            }
            other => Err(format!("vfio-pci took a device without a group: {other:?}")),
        }
    })
}

/// A device that was given to vfio-pci by hand.
struct OnVfio {
    bdf: &'static str,
    native: Option<&'static str>,
}

impl OnVfio {
    fn take(bdf: &'static str, native: Option<&'static str>) -> Result<Self, String> {
        let taken = Self { bdf, native };
        if let Some(native) = native {
            write(&format!("{DRIVERS}/{native}/unbind"), bdf)?;
        }
        write(&taken.attribute(), "vfio-pci")?;
        write(&format!("{DRIVERS}/vfio-pci/bind"), bdf)?;
        Ok(taken)
    }

    fn attribute(&self) -> String {
        format!("/sys/bus/pci/devices/{}/driver_override", self.bdf)
    }

    fn give_back(self) -> Outcome {
        write(&format!("{DRIVERS}/vfio-pci/unbind"), self.bdf)?;
        write(&self.attribute(), "\n")?;
        match self.native {
            Some(native) => write(&format!("{DRIVERS}/{native}/bind"), self.bdf),
            None => Ok(()),
        }
    }
}

/// Runs a QEMU that is to be refused, perhaps below another program, and returns what it said.
fn qemu(below: &[&str], words: &[&str]) -> Result<String, String> {
    let machine = ["-machine", "q35,accel=kvm", "-nodefaults", "-display", "none", "-S", "-m", "256M"];
    let all = [below, &["timeout", REFUSED, "qemu-system-x86_64"], &machine, words].concat();
    let output = Command::new(all[0]).args(&all[1..]).stdin(Stdio::null()).output().map_err(doing(all[0]))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(output.status.code() == Some(1), || format!("{all:?}: {}:\n{said}", output.status))?;
    Ok(said)
}

/// Checks what `gpuvm explain` finds in a text: a meaning, with words in its commands.
fn means(text: &str, id: &str, commands: &[&str]) -> Outcome {
    let mut explain = Command::new("gpuvm")
        .args(["explain", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(doing("start gpuvm"))?;
    explain.stdin.take().ok_or("no input")?.write_all(text.as_bytes()).map_err(doing("write to gpuvm"))?;
    let output = explain.wait_with_output().map_err(doing("wait for gpuvm"))?;
    let document: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(doing("gpuvm's document"))?;
    let found = document["messages"].as_array().and_then(|all| all.iter().find(|found| found["id"] == id));
    let found = found.ok_or_else(|| format!("no `{id}` in {document:#} for:\n{text}"))?;
    let listed = found["commands"].to_string();
    let missing: Vec<_> = commands.iter().filter(|words| !listed.contains(**words)).collect();
    ensure(missing.is_empty(), || format!("{id}: {missing:?} isn't in {listed}"))
}
