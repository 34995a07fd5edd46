//! What the fake's kernel does when it is written to.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::plan::is_vfio_driver;
use gpuvm_core::reset::repair::Rung;
use gpuvm_host::HostError;
use gpuvm_host::root::{self, HostRoot};
use gpuvm_sys::errno::{EBUSY, EINVAL, ENODEV, ENOENT, EPERM};
use gpuvm_sys::reset::{Affected, Call, ResetFailure, ResetOutcome, ResetTold, Step, Way};
use gpuvm_sys::watched::{WriteFailure, WriteOutcome, WriteStep};

use super::{Fault, GroupFault, KERNEL_LOG, State, anew};

/// Takes a write as the kernel would.
pub(super) fn write(
    root: &HostRoot,
    state: &RefCell<State>,
    path: &Path,
    bytes: &[u8],
    _deadline: Duration,
) -> io::Result<WriteOutcome> {
    let value = String::from_utf8_lossy(bytes).trim().to_owned();
    let shown = Path::new("/").join(path.strip_prefix(root.path("/")).unwrap_or(path));
    state.borrow_mut().writes.push(format!("{}={value}", shown.display()));
    log(root, state, &shown)?;
    match take_fault(state, &shown) {
        Some(Fault::Errno(errno)) => return Ok(failed(errno)),
        Some(Fault::Lie) => return Ok(WriteOutcome::Done),
        Some(Fault::Hang) => return hang(state),
        Some(Fault::KillsDevice) => {
            // Either the value names it, or it is its own attribute.
            let own = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            let bdf = parse(&value).or_else(|_| parse(&own))?;
            fs::write(root.device(bdf).join("config"), [0xff; 256])?;
        }
        None => {}
    }
    if !path.exists() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        return Ok(WriteOutcome::Failed(WriteFailure { step: WriteStep::Open, source }));
    }
    let result = match path.file_name().and_then(|name| name.to_str()) {
        Some("bind") => bind(root, path, parse(&value)?)?,
        Some("drivers_probe") => probe(root, parse(&value)?)?,
        Some("unbind") => unbind(root, path, parse(&value)?)?,
        Some("driver_override") => {
            fs::write(path, if value.is_empty() { "(null)\n".to_owned() } else { format!("{value}\n") })?;
            Ok(())
        }
        Some("nr_hugepages") => resize(root, path, &value)?,
        Some("control") => store(path, &value, &["on", "auto"])?,
        Some("d3cold_allowed") => store(path, &value, &["0", "1"])?,
        Some("reset_method") => set_reset_methods(root, path, &value)?,
        Some("drivers_autoprobe") => store(path, &value, &["0", "1"])?,
        Some("remove") => anew::remove(root, path, &value)?,
        Some("rescan") => anew::rescan(root, path, &value)?,
        Some("reset_subordinate") => anew::reset_subordinate(root, path, &value)?,
        _ => Err(EINVAL),
    };
    Ok(result.map_or_else(failed, |()| WriteOutcome::Done))
}

/// Adds a record to the kernel's log, with the number that comes next.
pub(super) fn say(log: &Path, text: &str) -> io::Result<()> {
    say_at(log, 1000, text)
}

/// The same at a time, in us since boot.
pub(super) fn say_at(log: &Path, at: u64, text: &str) -> io::Result<()> {
    let number = fs::read_to_string(log)?.lines().filter(|line| !line.starts_with(' ')).count();
    let mut file = fs::File::options().append(true).open(log)?;
    writeln!(file, "4,{number},{at},-;{text}")
}

/// Resets a device as the kernel would: by sysfs what `reset_method` lists, by VFIO what every group is open for.
pub(super) fn reset(
    root: &HostRoot,
    state: &RefCell<State>,
    bdf: &str,
    way: Way<'_>,
) -> io::Result<ResetOutcome> {
    let (path, step, shown) = match way {
        Way::Sysfs { reset, only } => {
            let shown = Path::new("/").join(reset.strip_prefix(root.path("/")).unwrap_or(reset));
            let methods = only.map_or(String::new(), |only| format!(" by {}", only.methods));
            (reset, Step::WriteReset, format!("{}=1{methods}", shown.display()))
        }
        Way::Vfio { groups, call, .. } => {
            let step = if call == Call::Bus { Step::HotReset } else { Step::Reset };
            let names = groups.iter().filter_map(|group| group.file_name()?.to_str());
            let names = names.collect::<Vec<_>>().join(" ");
            (groups[0], step, format!("{step} {bdf} groups {names}"))
        }
    };
    state.borrow_mut().writes.push(shown.clone());
    log(root, state, Path::new(&shown))?;
    let told = ResetTold { reset: Duration::from_millis(104), ..ResetTold::default() };
    let failed = |step, errno, told| {
        let source = io::Error::from_raw_os_error(errno);
        Ok(ResetOutcome::Failed(ResetFailure { step, group: 0, source, told }))
    };
    match take_fault(state, Path::new(&shown)) {
        Some(Fault::Errno(errno)) => return failed(step, errno, told),
        Some(Fault::Hang) => {
            let WriteOutcome::InFlight { pid } = hang(state)? else {
                return Err(io::Error::other("a write that hangs is in flight"));
            };
            return Ok(ResetOutcome::InFlight { pid, step });
        }
        Some(Fault::KillsDevice) => fs::write(root.device(parse(bdf)?).join("config"), [0xff; 256])?,
        Some(Fault::Lie) => return Ok(ResetOutcome::Done(told)),
        None => {}
    }
    match way {
        Way::Sysfs { .. } if !path.exists() => failed(Step::OpenReset, ENOENT, told),
        Way::Sysfs { .. } => Ok(ResetOutcome::Done(told)),
        Way::Vfio { groups, call, .. } => {
            let affected = if call == Call::Bus { on_bus(root, parse(bdf)?)? } else { Vec::new() };
            let given = |group: u32| groups.iter().any(|path| path.ends_with(group.to_string()));
            let foreign = affected.iter().any(|function| !given(function.group));
            let told = ResetTold { affected, ..told };
            if foreign {
                return failed(step, EINVAL, told);
            }
            for function in &told.affected {
                anew::heal(root, bdf_of(function)?, Rung::Hot)?;
            }
            Ok(ResetOutcome::Done(told))
        }
    }
}

fn bdf_of(told: &Affected) -> io::Result<Bdf> {
    let (device, function) = (told.devfn >> 3, told.devfn & 7);
    parse(&format!("{:04x}:{:02x}:{device:02x}.{function}", told.segment, told.bus))
}

/// Lists what is on a function's bus, as VFIO tells it.
fn on_bus(root: &HostRoot, bdf: Bdf) -> io::Result<Vec<Affected>> {
    let mut found = Vec::new();
    for name in root::list(&root.path("/sys/bus/pci/devices")).map_err(io::Error::other)? {
        let Ok(other) = name.parse::<Bdf>() else { continue };
        let group = fs::read_link(root.device(other).join("iommu_group")).ok();
        let group = group.and_then(|link| link.file_name()?.to_str()?.parse().ok());
        if let (true, Some(group)) = (other.bus() == bdf.bus(), group) {
            let number = |text: &str| u8::from_str_radix(text, 16).map_err(io::Error::other);
            let (bus, device) = (number(&name[5..7])?, number(&name[8..10])?);
            let devfn = device << 3 | other.function();
            found.push(Affected { segment: 0, bus, devfn, group });
        }
    }
    Ok(found)
}

/// Says in the kernel's log what it is to say when an attribute is written, in the form of a record of /dev/kmsg.
fn log(root: &HostRoot, state: &RefCell<State>, path: &Path) -> io::Result<()> {
    let path = path.display().to_string();
    let state = state.borrow();
    let lines = state.sayings.iter().filter(|(part, _)| path.contains(part.as_str()));
    for (_, line) in lines {
        say(&root.path(KERNEL_LOG), &format!("{line}\n SUBSYSTEM=pci"))?;
    }
    Ok(())
}

fn failed(errno: i32) -> WriteOutcome {
    let source = io::Error::from_raw_os_error(errno);
    WriteOutcome::Failed(WriteFailure { step: WriteStep::Write, source })
}

fn take_fault(state: &RefCell<State>, path: &Path) -> Option<Fault> {
    let mut state = state.borrow_mut();
    let path = path.display().to_string();
    let at = state.faults.iter().position(|(part, _)| path.contains(part.as_str()))?;
    Some(state.faults.remove(at).1)
}

/// A process that waits stands for the watched child.
fn hang(state: &RefCell<State>) -> io::Result<WriteOutcome> {
    let child = Command::new("sleep").arg("600").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    state.borrow_mut().hanging.push(child);
    Ok(WriteOutcome::InFlight { pid })
}

fn parse(value: &str) -> io::Result<Bdf> {
    value.parse().map_err(io::Error::other)
}

/// Takes a value that the attribute knows.
fn store(path: &Path, value: &str, known: &[&str]) -> io::Result<Result<(), i32>> {
    if !known.contains(&value) {
        return Ok(Err(EINVAL));
    }
    fs::write(path, format!("{value}\n"))?;
    Ok(Ok(()))
}

/// Takes a list of reset methods of which it finds each one now (reset_method_store of drivers/pci/pci.c). What it found when the
/// device appeared may be more: it looked before it knew the other functions on the bus.
fn set_reset_methods(root: &HostRoot, path: &Path, value: &str) -> io::Result<Result<(), i32>> {
    let bdf = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let bdf = parse(&bdf.unwrap_or_default())?;
    let found = format!("reset-methods/{bdf}");
    let found = match known(root, &found) {
        Some(found) => found,
        None => {
            let first = fs::read_to_string(path)?;
            let file = root.path("/fake-kernel").join(&found);
            file.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(file, &first)?;
            first
        }
    };
    let names = root::list(&root.path("/sys/bus/pci/devices")).map_err(io::Error::other)?;
    let mates = names.iter().filter_map(|name| name.parse::<Bdf>().ok());
    let alone = mates.filter(|mate| mate.bus() == bdf.bus()).count() == 1;
    let real: Vec<&str> = found.split_whitespace().filter(|method| alone || *method != "bus").collect();
    let in_order = || ["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus"];
    let wanted: Vec<&str> = match value {
        "default" => in_order().into_iter().filter(|method| real.contains(method)).collect(),
        list => list.split_whitespace().collect(),
    };
    if !wanted.iter().all(|method| real.contains(method)) {
        return Ok(Err(EINVAL));
    }
    fs::write(path, format!("{}\n", wanted.join(" ")))?;
    Ok(Ok(()))
}

/// Reads what the kernel knows and sysfs doesn't show.
pub(super) fn known(root: &HostRoot, name: &str) -> Option<String> {
    fs::read_to_string(root.path("/fake-kernel").join(name)).ok()
}

/// A driver's own idea of a device's power, at probe or remove.
fn set_power(root: &HostRoot, driver: &str, when: &str, bdf: Bdf) -> io::Result<()> {
    match known(root, &format!("drivers/{driver}/{when}")) {
        Some(control) => fs::write(root.device(bdf).join("power/control"), format!("{control}\n")),
        None => Ok(()),
    }
}

fn bind(root: &HostRoot, path: &Path, bdf: Bdf) -> io::Result<Result<(), i32>> {
    let driver_dir = path.parent().unwrap_or(path);
    let driver = driver_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let link = root.device(bdf).join("driver");
    if fs::symlink_metadata(&link).is_ok() {
        return Ok(Err(EBUSY));
    }
    let set = root::override_of(root, bdf).map_err(io::Error::other)?;
    let matches = match set {
        Some(set) => set.as_str() == driver,
        None => known(root, &format!("native/{bdf}")).as_ref() == Some(&driver),
    };
    if !matches {
        return Ok(Err(ENODEV));
    }
    symlink(driver_dir, link)?;
    set_power(root, &driver, "at-probe", bdf)?;
    Ok(Ok(()))
}

/// Offers a device to its driver; that none takes it is no failure to the kernel.
pub(super) fn probe(root: &HostRoot, bdf: Bdf) -> io::Result<Result<(), i32>> {
    let set = root::override_of(root, bdf).map_err(io::Error::other)?;
    let driver = set.map(|set| set.to_string()).or_else(|| known(root, &format!("native/{bdf}")));
    if let Some(driver) = driver {
        let attribute = root.path(format!("/sys/bus/pci/drivers/{driver}/bind"));
        if attribute.exists() {
            bind(root, &attribute, bdf)?.ok();
        }
    }
    Ok(Ok(()))
}

fn unbind(root: &HostRoot, path: &Path, bdf: Bdf) -> io::Result<Result<(), i32>> {
    let link = root.device(bdf).join("driver");
    let bound = fs::read_link(&link).ok();
    if bound.as_deref().and_then(Path::file_name) != path.parent().and_then(Path::file_name) {
        return Ok(Err(ENODEV));
    }
    fs::remove_file(link)?;
    if let Some(driver) = bound.as_deref().and_then(Path::file_name) {
        set_power(root, &driver.to_string_lossy(), "at-remove", bdf)?;
    }
    Ok(Ok(()))
}

/// Gives as many pages as there are, and says nothing about the rest: so does the kernel.
fn resize(root: &HostRoot, path: &Path, value: &str) -> io::Result<Result<(), i32>> {
    let Ok(want) = value.parse::<u64>() else { return Ok(Err(EINVAL)) };
    let pool: PathBuf = path.parent().unwrap_or(path).to_owned();
    let mut names = pool.iter().rev().map(|name| name.to_string_lossy().into_owned());
    let page = names.next().unwrap_or_default().replace("hugepages-", "");
    let node = names.nth(1).unwrap_or_default().replace("node", "");
    let limit =
        known(root, &format!("pool-limit/{node}-{page}")).and_then(|text| text.parse().ok()).unwrap_or(0);
    let read = |name: &str| -> io::Result<u64> {
        fs::read_to_string(pool.join(name))?.trim().parse().map_err(io::Error::other)
    };
    let used = read("nr_hugepages")?.saturating_sub(read("free_hugepages")?);
    let total = want.min(limit).max(used);
    fs::write(pool.join("nr_hugepages"), format!("{total}\n"))?;
    fs::write(pool.join("free_hugepages"), format!("{}\n", total - used))?;
    Ok(Ok(()))
}

/// Attaches a group as the kernel would: every member on a VFIO driver, without a driver, or a bridge.
pub(super) fn check_group(root: &HostRoot, state: &RefCell<State>, group: GroupId) -> Result<(), HostError> {
    match state.borrow().group_faults.get(&group.0) {
        Some(GroupFault::NoInterruptRemapping) => {
            return Err(HostError::NoInterruptRemapping {
                group,
                source: io::Error::from_raw_os_error(EPERM),
            });
        }
        Some(GroupFault::Busy) => {
            return Err(HostError::GroupBusy { group, holder: "1234 (qemu)".to_owned() });
        }
        None => {}
    }
    for name in root::list(&root.path(format!("/sys/kernel/iommu_groups/{group}/devices")))? {
        let Ok(bdf) = name.parse::<Bdf>() else { continue };
        let bridge = root::read_hex(&root.device(bdf).join("class"))?.is_some_and(|class| class >> 16 == 6);
        if let Some(driver) = root::driver_of(root, bdf)?
            && !is_vfio_driver(&driver)
            && !bridge
        {
            return Err(HostError::NotViable { group, members: format!("{bdf} is on {driver}") });
        }
    }
    Ok(())
}
