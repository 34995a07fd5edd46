//! The boot display: refused unless the profile allows it, and given back to its driver after it was passed.

use super::scenarios::{CYCLE, driver_of, leaving_no_trace, refused};
use super::vm::{PROFILE, Vm, guest_kernel};
use super::{Outcome, ensure};

const DISPLAY: &str = "0000:00:01.0";

/// The boot display is refused; with `allow-boot-display` a guest boots with it and its driver takes it back.
pub(super) fn boot_display() -> Outcome {
    refused(&[DISPLAY], 69, &[DISPLAY, "boot display", "allow-boot-display"])?;
    leaving_no_trace(|| {
        let device = format!("device=[{{bdf = \"{DISPLAY}\", allow-boot-display = true}}]");
        let mut vm = Vm::up(&[PROFILE, "--set", &device, "--set", &guest_kernel("gpuvm.linger=60")])?;
        let report = vm.reported(CYCLE)?;
        ensure(driver_of(DISPLAY).as_deref() == Some("vfio-pci"), || {
            format!("{DISPLAY} has driver {:?} while the guest runs", driver_of(DISPLAY))
        })?;
        ensure(report.errors.is_empty(), || format!("the guest's errors: {:?}", report.errors))?;
        let displays: Vec<_> = report.pci.iter().filter(|f| f.class == "0x030000").collect();
        ensure(displays.len() == 1 && displays[0].vendor == "0x1234", || {
            format!("the guest's displays: {displays:?}")
        })?;
        vm.signal(nix::sys::signal::Signal::SIGTERM)?;
        let ended = vm.ended(CYCLE)?;
        ensure(ended.code == Some(0), || format!("exit code {:?}; gpuvm told:\n{}", ended.code, ended.told))?;
        ensure(driver_of(DISPLAY).as_deref() == Some("bochs-drm"), || {
            format!("{DISPLAY} came back to {:?}", driver_of(DISPLAY))
        })
    })
}
