//! The whole command line of a plan.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::arg::Arg;
use super::pcie::Siblings;
use super::{cpu, drive, machine, memory, monitor, net, pcie, vfio};
use crate::plan::{Firmware, PciTopology, Plan, RootPort, SlotUse};

/// How QEMU is given a file or socket: by name, or already open, so that it needs no right to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handle {
    /// By name.
    Path(PathBuf),
    /// By the number of a file descriptor that it inherits.
    Fd(i32),
}

/// The files and sockets that exist only once a VM is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handles {
    /// The QMP monitor's listening socket.
    pub monitor: Handle,
    /// The serial port's listening socket.
    pub serial: Handle,
    /// The VM's own copy of the firmware's variables; used with UEFI only.
    pub vars: Handle,
    /// The disks that are not given by their path in the plan, by their index there.
    pub disks: BTreeMap<usize, Handle>,
    /// Whether the guest waits for `cont`.
    pub start: Start,
}

/// Whether a guest runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It waits for the monitor's `cont`, so that vCPUs can be pinned first.
    Paused,
    /// It runs at once, as a person who copies the command line expects.
    Running,
}

/// Renders the arguments that come after QEMU's own name.
pub fn argv(plan: &Plan, handles: &Handles) -> Vec<OsString> {
    let mut argv = Vec::new();
    for arg in args(plan, handles) {
        arg.render_to(&mut argv);
    }
    argv
}

/// Builds the arguments one by one, for those who print them line by line.
pub fn args(plan: &Plan, handles: &Handles) -> Vec<Arg> {
    let mut args = machine::args(plan);
    args.extend(cpu::args(plan));
    args.extend(memory::args(plan));
    args.push(Arg::plain("-rtc", "base=utc"));
    if handles.start == Start::Paused {
        args.push(Arg::bare("-S"));
    }
    args.extend(monitor::monitor(&handles.monitor));
    args.extend(monitor::serial(&handles.serial));
    if let Firmware::Uefi(firmware) = &plan.firmware {
        args.extend(drive::flash(firmware, &handles.vars));
    }
    if let Some(kernel) = &plan.kernel {
        args.push(Arg::plain("-kernel", &kernel.path));
        args.extend(kernel.initrd.iter().map(|initrd| Arg::plain("-initrd", initrd)));
        if !kernel.cmdline.is_empty() {
            args.push(Arg::plain("-append", &kernel.cmdline));
        }
    }
    args.push(machine::pvpanic());
    for port in &plan.pcie.ports {
        args.push(pcie::arg(port, siblings(&plan.pcie, port)));
        args.extend(behind(plan, handles, port));
    }
    args
}

fn siblings(topology: &PciTopology, port: &RootPort) -> Siblings {
    let shared = topology.ports.iter().any(|other| other.slot == port.slot && other.index != port.index);
    if shared { Siblings::Some } else { Siblings::None }
}

fn behind(plan: &Plan, handles: &Handles, port: &RootPort) -> Vec<Arg> {
    let bus = pcie::bus(port);
    match &port.holds {
        SlotUse::Passthrough { functions } => vfio::args(plan, port.index, &bus, functions),
        SlotUse::Disk { index } => {
            let Some(disk) = plan.disks.get(*index) else { return Vec::new() };
            let named = Handle::Path(disk.disk.path.clone());
            drive::disk(*index, disk, handles.disks.get(index).unwrap_or(&named), &bus)
        }
        SlotUse::Net => net::net(&bus).to_vec(),
        SlotUse::Rng => net::rng(&bus).to_vec(),
    }
}
