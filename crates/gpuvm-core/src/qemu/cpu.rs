//! `-cpu` and `-smp`.

use super::arg::{Arg, Opts, on_off};
use crate::facts::CpuVendor;
use crate::plan::Plan;
use crate::profile::Accel;

/// Renders the CPU model and topology.
pub(super) fn args(plan: &Plan) -> [Arg; 2] {
    let cpu = match plan.accel {
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
    let topology = plan.placement.topology;
    let count = topology.cores * topology.threads;
    let smp = Opts::new()
        .with("cpus", count.to_string())
        .with("sockets", "1")
        .with("cores", topology.cores.to_string())
        .with("threads", topology.threads.to_string());
    [Arg::opts("-cpu", cpu), Arg::opts("-smp", smp)]
}
