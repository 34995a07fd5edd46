//! `-name`, `-uuid`, `-machine` and what belongs to the machine as a whole.

use serde::Serialize;

use super::arg::{Arg, Opts, on_off};
use super::pcie::Siblings;
use crate::plan::{Firmware, Plan};
use crate::profile::{Accel, Rtc};
use crate::reset::RebootPolicy;

/// `-machine`.
struct Machine {
    accel: Accel,
    /// The backend of all memory; none where each node has its own.
    memory_backend: Option<String>,
    flash: bool,
}

impl Machine {
    fn arg(&self) -> Arg {
        let opts = Opts::new()
            .with("type", "q35")
            .with("accel", self.accel.to_string())
            // A guest that uses the VMware port or the HPET gets slower clocks than the ones KVM gives it.
            .with("vmport", on_off(false))
            .with("hpet", on_off(false))
            // A core dump of QEMU would hold all of the guest's memory.
            .with("dump-guest-core", on_off(false))
            .with_some("memory-backend", self.memory_backend.clone())
            .with_some("pflash0", self.flash.then_some(super::drive::FLASH_CODE))
            .with_some("pflash1", self.flash.then_some(super::drive::FLASH_VARS));
        Arg::opts("-machine", opts)
    }
}

/// Renders the switches that come before any device.
pub(super) fn args(plan: &Plan) -> Vec<Arg> {
    let machine = Machine {
        accel: plan.accel,
        memory_backend: (plan.memory.len() == 1).then(|| super::memory::backend(0)),
        flash: matches!(plan.firmware, Firmware::Uefi(_)),
    };
    vec![
        Arg::opts("-name", Opts::new().with("guest", plan.name.as_str()).with("debug-threads", on_off(true))),
        Arg::bare("-no-user-config"),
        Arg::bare("-nodefaults"),
        Arg::plain("-uuid", uuid(plan.name.as_str())),
        machine.arg(),
    ]
}

/// `-device pvpanic-pci`.
#[derive(Serialize)]
struct PvpanicPci {
    driver: &'static str,
    id: &'static str,
    bus: &'static str,
    addr: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    multifunction: bool,
}

/// Renders the device by which a guest's kernel tells that it panicked. It sits on the root bus, in the slot that ports leave
/// free: it is no PCIe device.
pub(super) fn pvpanic(siblings: Siblings) -> Arg {
    let addr = super::pcie::addr(1, 0);
    let multifunction = siblings == Siblings::Some;
    let device = PvpanicPci { driver: "pvpanic-pci", id: "pvpanic0", bus: "pcie.0", addr, multifunction };
    Arg::json("-device", &device)
}

/// Renders the guest's clock.
pub(super) fn rtc(rtc: Rtc) -> Arg {
    let base = match rtc {
        Rtc::Utc => "utc",
        Rtc::Local => "localtime",
    };
    Arg::opts("-rtc", Opts::new().with("base", base))
}

/// Renders `-action`: what a reboot of the guest comes to, where QEMU's own reset of the machine isn't what is wanted. QEMU ends then,
/// and says in its SHUTDOWN event that it was a reset (guest-reset).
pub(super) fn action(reboot: RebootPolicy) -> Option<Arg> {
    match reboot {
        RebootPolicy::InPlace => None,
        RebootPolicy::Relaunch | RebootPolicy::Stop => {
            Some(Arg::opts("-action", Opts::new().with("reboot", "shutdown")))
        }
    }
}

/// Renders what OVMF is told about the room for 64-bit BARs (OvmfPkg/RUNTIME_CONFIG.md).
pub(super) fn mmio64(plan: &Plan) -> Option<Arg> {
    let mib = plan.addresses.ovmf_mmio64_mib?;
    let opts = Opts::new().with("name", "opt/ovmf/X-PciMmio64Mb").with("string", mib.to_string());
    Some(Arg::opts("-fw_cfg", opts))
}

/// Derives the guest's SMBIOS UUID from its name: the same VM has the same one at each start.
fn uuid(name: &str) -> String {
    let namespace = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, b"gpuvm:vm-name");
    uuid::Uuid::new_v5(&namespace, name.as_bytes()).to_string()
}
