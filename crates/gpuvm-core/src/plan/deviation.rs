//! Where a guest differs from the plain one: what a reader of a bug report must know.

use serde::{Deserialize, Serialize};

use crate::profile::{Display, Profile, Rtc};

/// A way in which a guest differs from the plain one, because the profile says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// The profile's key.
    pub key: String,
    /// What it comes to.
    pub what: String,
}

/// Lists how a profile's guest differs from the plain one.
pub(super) fn of(profile: &Profile) -> Vec<Deviation> {
    let cpu = &profile.cpu;
    let flags = cpu.flags.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let vendor = cpu.hv_vendor_id.as_ref().map(ToString::to_string).unwrap_or_default();
    let words = profile.extra_args.len();
    let roms = profile.devices.iter().filter(|device| device.rom_file.is_some() || device.rombar.is_some());
    let rom = |bdf: String| Deviation {
        key: "device".to_owned(),
        what: format!("{bdf} has its option ROM changed"),
    };
    let known = [
        (
            "cpu.kvm-hidden",
            cpu.kvm_hidden,
            "the guest doesn't see that it runs on KVM, nor gets its clock".to_owned(),
        ),
        ("cpu.hyperv", cpu.hyperv, "the guest sees Hyper-V's interfaces".to_owned()),
        (
            "cpu.hv-vendor-id",
            cpu.hv_vendor_id.is_some(),
            format!("those interfaces name the vendor `{vendor}`"),
        ),
        ("cpu.flags", !cpu.flags.is_empty(), format!("CPU features are changed: {flags}")),
        ("rtc", profile.rtc == Rtc::Local, "the guest's clock shows the host's local time".to_owned()),
        (
            "display",
            profile.display != Display::None,
            "the guest has a virtual display beside what is passed through".to_owned(),
        ),
        (
            "extra-args",
            words > 0,
            format!("TAINTED: {words} words that gpuvm knows nothing of are added to QEMU's command line"),
        ),
    ];
    let said = known.into_iter().filter(|(_, differs, _)| *differs);
    said.map(|(key, _, what)| Deviation { key: key.to_owned(), what })
        .chain(roms.map(|device| rom(device.bdf.to_string())))
        .collect()
}
