//! `gpuvm reset` on a real kernel, and the same asked by plain VFIO calls: what gpuvm claims is what they see.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use gpuvm_core::reset::{Deed, Entry, Method};
use gpuvm_host::places::Places;
use gpuvm_host::root::HostRoot;
use gpuvm_host::{ledger, snapshot};
use gpuvm_sys::errno::{EINVAL, ENODEV, EPERM};
use serde_json::Value;

use super::scenarios::{EDU, NVME, driver_of, leaving_no_trace};
use super::vm::gpuvm;
use super::{Outcome, doing, ensure};

const CARD: [&str; 2] = ["0000:41:00.0", "0000:41:00.1"];
const GROUP: [&str; 2] = ["0000:04:01.0", "0000:04:02.0"];
/// The boot display: on a root bus, without any capability.
const DISPLAY: &str = "0000:00:01.0";
/// The flag of a device that the kernel could reset when it was opened.
const CAN_RESET: i64 = 1;

/// Each way to reset a device, on the device that has it.
pub(super) fn reset() -> Outcome {
    function_level()?;
    bus()?;
    hot()?;
    one_function_in_hand()?;
    foreign_member()?;
    without_reset()
}

/// FLR of the disk: taken from its driver and given back, and again where it is.
fn function_level() -> Outcome {
    leaving_no_trace(|| {
        let claimed = claim(&[NVME, "--method", "flr"], 0)?;
        claimed.is_reset(NVME, "flr", "reset")?;
        let last = last_entry(NVME)?;
        let written = matches!(&last.deed, Deed::Reset { method: Method::Flr, failure: None, .. });
        ensure(written, || format!("the ledger says {last:?}"))?;
        bound(&[NVME], || {
            let seen = ioctl("reset", NVME)?;
            ensure(seen.flags()? & CAN_RESET != 0 && seen.errno("reset")? == 0, || format!("{seen:?}"))?;
            claim(&[NVME, "--method", "flr"], 0)?.is_reset(NVME, "flr", "reset")?;
            on_vfio(&[NVME])
        })
    })
}

/// Bus reset of the accelerator, which is alone on its bus and has nothing else; by its port or by VFIO.
fn bus() -> Outcome {
    leaving_no_trace(|| {
        claim(&[EDU], 0)?.is_reset(EDU, "bus", "reset")?;
        bound(&[EDU], || {
            let seen = ioctl("reset", EDU)?;
            ensure(seen.flags()? & CAN_RESET != 0 && seen.errno("reset")? == 0, || format!("{seen:?}"))?;
            let seen = ioctl("hot", EDU)?;
            let claimed = claim(&[EDU, "--method", "hot"], 0)?;
            claimed.is_reset(EDU, "hot", "VFIO_DEVICE_PCI_HOT_RESET")?;
            claimed.reaches(&seen)?;
            ensure(seen.errno("hot-reset")? == 0, || format!("{seen:?}"))
        })
    })
}

/// Hot reset of the card, with both functions in hand: taken by gpuvm, or one bound by somebody before.
fn hot() -> Outcome {
    leaving_no_trace(|| {
        let claimed = claim(&[CARD[0], "--method", "hot"], 0)?;
        for function in CARD {
            claimed.is_reset(function, "hot", "VFIO_DEVICE_PCI_HOT_RESET")?;
            let last = last_entry(function)?;
            ensure(matches!(&last.deed, Deed::Reset { method: Method::Hot, .. }), || format!("{last:?}"))?;
        }
        bound(&[CARD[0]], || {
            let seen = ioctl_with("hot", CARD[0], &CARD)?;
            ensure(seen.errno("hot-reset")? == 0 && seen.affected.len() == 2, || format!("{seen:?}"))?;
            claimed.reaches(&seen)
        })?;
        by_hand(CARD[0], || {
            claim(&[CARD[0], "--method", "hot"], 0)?.reaches_all(&CARD)?;
            on_vfio(&CARD[..1])?;
            ensure(driver_of(CARD[1]).as_deref() == Some("snd_hda_intel"), || "not given back".to_owned())
        })
    })
}

/// Only the sound function is in hand: gpuvm refuses and names the other, and so does the kernel.
fn one_function_in_hand() -> Outcome {
    leaving_no_trace(|| {
        let names = [CARD[0], "driver bochs-drm", "isn't asked for"];
        refused(&[CARD[1], "--method", "hot"], 69, &names)?;
        refused(&[CARD[1]], 69, &names)?;
        // The bus is in the kernel's list for the first function, which it finds while it is alone there, and never works.
        refused(&[CARD[0], "--method", "bus"], 69, &[CARD[1], "is on its bus too"])?;
        refused(&[CARD[1], "--method", "bus"], 69, &["the kernel doesn't list it"])?;
        by_hand(CARD[1], || {
            // Nothing of the group can be used.
            let seen = ioctl("hot", CARD[1])?;
            ensure(seen.errno("set-container")? == i64::from(EPERM), || format!("{seen:?}"))
        })
    })?;
    leaving_no_trace(|| {
        write("/sys/bus/pci/drivers/bochs-drm/unbind", CARD[0])?;
        by_hand(CARD[1], || {
            refused(&[CARD[1], "--method", "hot"], 69, &[CARD[0], "no driver", "isn't asked for"])?;
            let seen = ioctl("hot", CARD[1])?;
            let einval = seen.errno("hot-reset")? == i64::from(EINVAL);
            ensure(seen.affected.len() == 2 && einval, || format!("{seen:?}"))?;
            ensure(seen.flags()? & CAN_RESET == 0, || format!("{seen:?}"))
        })?;
        write("/sys/bus/pci/drivers_probe", CARD[0])
    })
}

/// A member of the group is somebody else's: nothing is touched, and the kernel would refuse too. With both in hand it goes.
fn foreign_member() -> Outcome {
    leaving_no_trace(|| {
        refused(&[GROUP[0]], 69, &[GROUP[1], "group 12"])?;
        by_hand(GROUP[0], || {
            let seen = ioctl("hot", GROUP[0])?;
            ensure(seen.errno("hot-reset")? == i64::from(EINVAL), || format!("{seen:?}"))
        })?;
        let claimed = claim(&[GROUP[0], GROUP[1], "--method", "hot"], 0)?;
        claimed.reaches_all(&GROUP)?;
        bound(&GROUP, || {
            let seen = ioctl("hot", GROUP[0])?;
            ensure(seen.errno("hot-reset")? == 0, || format!("{seen:?}"))?;
            claimed.reaches(&seen)
        })
    })
}

/// A device without any reset is told as such, and the kernel has none either.
fn without_reset() -> Outcome {
    leaving_no_trace(|| {
        let folder = format!("/sys/bus/pci/devices/{DISPLAY}");
        ensure(fs::metadata(format!("{folder}/reset")).is_err(), || format!("{DISPLAY} has a reset"))?;
        refused(&[DISPLAY], 69, &["can't be reset", "lists no reset method", "root bus"])?;
        by_hand(DISPLAY, || {
            let seen = ioctl("reset", DISPLAY)?;
            let none = seen.flags()? & CAN_RESET == 0 && seen.errno("reset")? != 0;
            ensure(none && seen.errno("hot-reset-info")? == i64::from(ENODEV), || format!("{seen:?}"))
        })
    })
}

/// What gpuvm says that it did.
struct Claim(Value);

fn claim(words: &[&str], code: i32) -> Result<Claim, String> {
    let output = gpuvm(&[&["reset", "--json"], words].concat())?;
    let told = || format!("reset {words:?}: {:?}:\n{output:?}", output.status);
    ensure(output.status.code() == Some(code), told)?;
    serde_json::from_slice(&output.stdout).map(Claim).map_err(doing(&told()))
}

impl Claim {
    /// Checks that a function was reset in a way, and is no worse for it.
    fn is_reset(&self, bdf: &str, method: &str, by: &str) -> Outcome {
        let functions = self.0["functions"].as_array().ok_or("no functions")?;
        let function = functions.iter().find(|function| function["bdf"] == bdf).ok_or(format!("no {bdf}"))?;
        let verdict = &function["judgement"]["verdict"];
        let good = verdict == "healthy" || verdict == "degraded";
        let attempt =
            self.0["attempts"].as_array().and_then(|attempts| attempts.last()).ok_or("no attempt")?;
        let done = &attempt["done"];
        ensure(good && function["method"] == method && done["by"] == by, || format!("{:#}", self.0))?;
        // The kernel waits 100 ms after an FLR; a bus is held in reset for 2 ms, and its link may be up at once. A busy
        // machine's clock leaps: all that is known of the other end is that the kernel has not given up waiting.
        let ms = done["ms"].as_u64().unwrap_or(0);
        ensure((if method == "flr" { 100 } else { 2 }..60_000).contains(&ms), || {
            format!("{bdf}: reset by {method} took {ms} ms")
        })
    }

    /// Checks that it reaches what the plain calls say.
    fn reaches(&self, seen: &Observed) -> Outcome {
        ensure(self.affected() == seen.affected, || {
            format!("{:?}, and the kernel says {seen:?}", self.affected())
        })
    }

    fn reaches_all(&self, functions: &[&str]) -> Outcome {
        let affected = self.affected();
        let all =
            functions.iter().all(|bdf| affected.contains_key(*bdf)) && affected.len() == functions.len();
        ensure(all, || format!("it reaches {affected:?}"))
    }

    fn affected(&self) -> BTreeMap<String, i64> {
        let list = self.0["attempts"][0]["done"]["affected"].as_array().cloned().unwrap_or_default();
        let one =
            |function: &Value| Some((function["bdf"].as_str()?.to_owned(), function["group"].as_i64()?));
        list.iter().filter_map(one).collect()
    }
}

fn refused(words: &[&str], code: i32, names: &[&str]) -> Outcome {
    let output = gpuvm(&[&["reset"], words].concat())?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let all = output.status.code() == Some(code) && names.iter().all(|name| told.contains(name));
    ensure(all, || format!("reset {words:?}: {:?}, not {code} with {names:?}:\n{told}", output.status))
}

/// What plain calls have seen.
#[derive(Debug, Default)]
struct Observed {
    numbers: BTreeMap<String, i64>,
    affected: BTreeMap<String, i64>,
}

impl Observed {
    fn errno(&self, call: &str) -> Result<i64, String> {
        self.numbers.get(call).copied().ok_or(format!("{call} wasn't called: {self:?}"))
    }

    fn flags(&self) -> Result<i64, String> {
        self.errno("flags")
    }
}

fn ioctl(call: &str, bdf: &str) -> Result<Observed, String> {
    ioctl_with(call, bdf, &[bdf])
}

/// Makes plain calls with the groups of these functions.
fn ioctl_with(call: &str, bdf: &str, functions: &[&str]) -> Result<Observed, String> {
    let program = std::env::current_exe().map_err(doing("find this program"))?.with_file_name("vfio-ioctl");
    let mut groups = functions.iter().map(|bdf| group_of(bdf)).collect::<Result<Vec<_>, _>>()?;
    // Functions of one group share its file, which can be open once.
    groups.dedup();
    let output = Command::new(program).arg(call).arg(bdf).args(groups).output();
    let output = output.map_err(doing("start vfio-ioctl"))?;
    let mut seen = Observed::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = words.last().and_then(|word| word.parse().ok()).ok_or(format!("{line:?}"))?;
        match words[..] {
            ["affected", bdf, _] => seen.affected.insert(bdf.to_owned(), number),
            _ => seen.numbers.insert(words[0].to_owned(), number),
        };
    }
    Ok(seen)
}

fn group_of(bdf: &str) -> Result<String, String> {
    let link =
        fs::read_link(format!("/sys/bus/pci/devices/{bdf}/iommu_group")).map_err(doing("the group"))?;
    Ok(link.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn last_entry(bdf: &str) -> Result<Entry, String> {
    let bdf = bdf.parse().map_err(|error| format!("{error}"))?;
    let device = ledger::identity(&snapshot::take(&HostRoot::default(), bdf)).ok_or("no identity")?;
    let mut entries = ledger::history(&Places::default(), &device).map_err(|error| error.to_string())?;
    entries.pop().ok_or(format!("the ledger has nothing of {bdf}"))
}

fn on_vfio(of: &[&str]) -> Outcome {
    let other = of.iter().find(|bdf| driver_of(bdf).as_deref() != Some("vfio-pci"));
    ensure(other.is_none(), || format!("{other:?} isn't on vfio-pci"))
}

/// Does something with devices that `gpuvm bind` has bound.
fn bound(devices: &[&str], what: impl FnOnce() -> Outcome) -> Outcome {
    let run = |verb: &str| {
        let output = gpuvm(&[&[verb], devices].concat())?;
        ensure(output.status.success(), || format!("{verb} {devices:?}: {output:?}"))
    };
    run("bind")?;
    let result = what();
    run("unbind")?;
    result
}

/// Does something with one device that is bound by hand, and gives it back by hand.
fn by_hand(bdf: &str, what: impl FnOnce() -> Outcome) -> Outcome {
    let device = format!("/sys/bus/pci/devices/{bdf}");
    let was = driver_of(bdf);
    if let Some(driver) = &was {
        write(&format!("/sys/bus/pci/drivers/{driver}/unbind"), bdf)?;
    }
    write(&format!("{device}/driver_override"), "vfio-pci")?;
    write("/sys/bus/pci/drivers_probe", bdf)?;
    let result = on_vfio(&[bdf]).and_then(|()| what());
    write("/sys/bus/pci/drivers/vfio-pci/unbind", bdf)?;
    write(&format!("{device}/driver_override"), "\n")?;
    if was.is_some() {
        write("/sys/bus/pci/drivers_probe", bdf)?;
    }
    result
}

fn write(path: &str, value: &str) -> Outcome {
    fs::write(path, value).map_err(doing(&format!("write {value:?} to {path}")))
}
