//! The whole command line of a plan.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::arg::Arg;
use super::pcie::Siblings;
use super::{cpu, display, drive, machine, memory, monitor, net, pcie, vfio};
use crate::plan::{Firmware, PciTopology, Plan, PlannedDisk, RootPort, SlotUse};
use crate::profile::{Display, Media};

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
    /// The serial port's socket: a path to listen at, or a descriptor that is connected.
    pub serial: Handle,
    /// The VM's own copy of the firmware's variables; used with UEFI only.
    pub vars: Handle,
    /// The disks that are not given by their path in the plan, by their index there.
    pub disks: BTreeMap<usize, Handle>,
    /// The socket of a virtual display, where it has one; QEMU makes it itself.
    pub display: PathBuf,
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

/// Quotes a word for a POSIX shell, where it needs it.
pub fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Renders the arguments that come after QEMU's own name.
pub fn argv(plan: &Plan, handles: &Handles) -> Vec<OsString> {
    let mut argv = Vec::new();
    for arg in args(plan, handles) {
        arg.render_to(&mut argv);
    }
    argv
}

/// Renders the arguments of a QEMU without a machine, that is only asked what it can do by a socket that it inherits connected.
pub fn probe_argv(monitor: i32) -> Vec<OsString> {
    let mut argv = Vec::new();
    let plain = [
        Arg::bare("-nodefaults"),
        Arg::bare("-no-user-config"),
        Arg::plain("-display", "none"),
        Arg::plain("-machine", "none"),
    ];
    for arg in plain.into_iter().chain(monitor::connected_monitor(monitor)) {
        arg.render_to(&mut argv);
    }
    argv
}

/// Builds the arguments one by one, for those who print them line by line.
pub fn args(plan: &Plan, handles: &Handles) -> Vec<Arg> {
    let mut args = machine::args(plan);
    args.extend(display::backend(plan.display, &handles.display));
    args.extend(cpu::args(plan));
    args.extend(memory::args(plan));
    args.push(machine::rtc(plan.rtc));
    args.extend(machine::action(plan.reboot));
    if handles.start == Start::Paused {
        args.push(Arg::bare("-S"));
    }
    args.extend(monitor::monitor(&handles.monitor));
    args.extend(monitor::serial(&handles.serial));
    if let Firmware::Uefi(firmware) = &plan.firmware {
        args.extend(drive::flash(firmware, &handles.vars));
    }
    args.extend(machine::mmio64(plan));
    if let Some(kernel) = &plan.kernel {
        args.push(Arg::plain("-kernel", &kernel.path));
        args.extend(kernel.initrd.iter().map(|initrd| Arg::plain("-initrd", initrd)));
        if !kernel.cmdline.is_empty() {
            args.push(Arg::plain("-append", &kernel.cmdline));
        }
    }
    match plan.display {
        Display::None => args.push(machine::pvpanic(Siblings::None)),
        Display::Virtual(_) => args.extend([machine::pvpanic(Siblings::Some), display::card()]),
    }
    args.extend(plan.pcie.expanders.iter().map(pcie::expander));
    for port in &plan.pcie.ports {
        args.push(pcie::arg(port, siblings(&plan.pcie, port)));
        args.extend(behind(plan, handles, port));
    }
    args.extend(cdroms(plan, handles));
    if !plan.extra_args.is_empty() {
        args.push(Arg::words(&plan.extra_args));
    }
    args
}

/// Renders the CD-ROMs, one on each port of the SATA controller.
fn cdroms(plan: &Plan, handles: &Handles) -> Vec<Arg> {
    let cdroms = plan.disks.iter().enumerate().filter(|(_, disk)| disk.disk.media == Media::Cdrom);
    let cdrom = |(port, (index, disk)): (usize, (usize, &PlannedDisk))| {
        drive::cdrom(index, disk, &file(index, disk, handles), port)
    };
    cdroms.enumerate().flat_map(cdrom).collect()
}

fn file(index: usize, disk: &PlannedDisk, handles: &Handles) -> Handle {
    handles.disks.get(&index).cloned().unwrap_or_else(|| Handle::Path(disk.disk.path.clone()))
}

fn siblings(topology: &PciTopology, port: &RootPort) -> Siblings {
    let place = |port: &RootPort| (port.root, port.slot);
    let shared = topology.ports.iter().any(|other| place(other) == place(port) && other.index != port.index);
    if shared { Siblings::Some } else { Siblings::None }
}

fn behind(plan: &Plan, handles: &Handles, port: &RootPort) -> Vec<Arg> {
    let bus = pcie::bus(port);
    match &port.holds {
        SlotUse::Passthrough { functions } => vfio::args(plan, port.index, &bus, functions),
        SlotUse::Disk { index } => {
            let Some(disk) = plan.disks.get(*index) else { return Vec::new() };
            drive::disk(*index, disk, &file(*index, disk, handles), &bus)
        }
        SlotUse::Net => net::net(&bus, &plan.forwards).to_vec(),
        SlotUse::Usb => display::input(&bus).to_vec(),
        SlotUse::Nothing => Vec::new(),
        SlotUse::Rng => net::rng(&bus).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("q35,accel=kvm", "q35,accel=kvm")]
    #[case("", "''")]
    #[case("a b", "'a b'")]
    #[case(r#"{"driver":"x"}"#, r#"'{"driver":"x"}'"#)]
    #[case("it's", r"'it'\''s'")]
    #[case("$HOME", "'$HOME'")]
    fn words_are_quoted_for_a_shell(#[case] word: &str, #[case] quoted: &str) {
        assert_eq!(quote(word.as_ref()), quoted);
    }
}
