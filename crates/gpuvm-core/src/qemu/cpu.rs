//! `-cpu` and `-smp`.

use super::arg::{Arg, Opts, on_off};
use crate::facts::CpuVendor;
use crate::plan::Plan;
use crate::profile::{Accel, FlagState};

/// The Hyper-V interfaces that Windows works best with, after QEMU's docs/system/i386/hyperv.rst, "Recommendations"; those
/// for nested guests and for migration are left out.
const HYPERV: &[&str] = &[
    "hv-relaxed",
    "hv-vapic",
    "hv-vpindex",
    "hv-runtime",
    "hv-time",
    "hv-synic",
    "hv-stimer",
    "hv-frequencies",
    "hv-tlbflush",
    "hv-ipi",
];
/// How often a guest retries a lock before it tells the hypervisor; the value that Hyper-V itself gives.
const HYPERV_SPINLOCKS: &str = "0x1fff";

/// Renders the CPU model and topology.
pub(super) fn args(plan: &Plan) -> [Arg; 2] {
    [Arg::opts("-cpu", model(plan)), Arg::opts("-smp", topology(plan))]
}

fn model(plan: &Plan) -> Opts {
    let mut model = match plan.accel {
        // A guest with passed-through devices can't migrate, so it may see what would bind it to this host: the
        // invariant TSC.
        Accel::Kvm => {
            let host = Opts::new().with("", "host").with("migratable", on_off(false));
            // QEMU leaves this bit out of `host`, and without it an AMD guest sees one thread per core.
            let threads =
                plan.placement.topology.threads > 1 && plan.placement.topology.vendor == CpuVendor::Amd;
            host.with_some("topoext", threads.then_some(on_off(true)))
        }
        Accel::Tcg => Opts::new().with("", "max"),
    };
    if plan.cpu.kvm_hidden {
        model = model.with("kvm", on_off(false));
    }
    if plan.cpu.hyperv {
        model = HYPERV.iter().fold(model, |model, name| model.with(name, on_off(true)));
        model = model.with("hv-spinlocks", HYPERV_SPINLOCKS);
    }
    model = model.with_some("hv-vendor-id", plan.cpu.hv_vendor_id.as_ref().map(ToString::to_string));
    let flags = plan.cpu.flags.iter();
    flags.fold(model, |model, flag| model.with_key(&flag.name, on_off(flag.state == FlagState::On)))
}

fn topology(plan: &Plan) -> Opts {
    let topology = plan.placement.topology;
    Opts::new()
        .with("cpus", topology.count().to_string())
        .with("sockets", topology.sockets.to_string())
        .with("cores", topology.cores.to_string())
        .with("threads", topology.threads.to_string())
}
