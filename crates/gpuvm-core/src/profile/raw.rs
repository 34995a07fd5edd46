//! The profile as written: every key that the language has, none of them checked against another.

use super::language::{Key, Kind, words};
use super::problem::Problem;
use super::read::{Choice, Cursor, Leaf, Located};
use super::section::{cpu, device, disk, display, kernel, memory, network};
use super::tree::{Place, Table};
use super::{Accel, FirmwareKind, Listen, Network, Policy, Ready, Rtc, SHUTDOWN_TIMEOUT_MAX, Serial, VmName};
use crate::reset::RebootPolicy;
use crate::reset::repair::RepairPolicy;

/// The keys of a profile.
pub(super) const KEYS: &[Key] = &[
    Key::required("version", Kind::Integer { low: 1, high: 1 }, "The version of the profile language: 1."),
    Key::required(
        "name",
        Kind::Pattern("^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$"),
        "The VM's name; one of each name runs at a time.",
    ),
    Key::default(
        "accel",
        Kind::Words(words::<Accel>),
        "\"kvm\"",
        "What runs the guest's instructions: the host's hardware, or QEMU's translator, which needs nothing.",
    ),
    Key::default(
        "firmware",
        Kind::Words(words::<FirmwareKind>),
        "\"uefi\"",
        "UEFI (OVMF, with variables of the VM's own) or the SeaBIOS that QEMU brings.",
    ),
    Key::default(
        "network",
        Kind::Words(words::<Network>),
        "\"user\"",
        "A VirtIO interface behind QEMU's user-mode NAT, or none.",
    ),
    Key::default(
        "serial",
        Kind::Words(words::<Serial>),
        "\"console\"",
        "Where the serial port's output goes besides the log.",
    ),
    Key::default(
        "display",
        Kind::Words(words::<display::DisplayWord>),
        "\"none\"",
        "A virtual display that VNC shows, for a first install and driver trouble, or none.",
    ),
    Key::default(
        "display-listen",
        Kind::Text,
        "\"unix\"",
        "Where the virtual display is shown: \"unix\", a socket in the VM's folder, or a loopback address and port.",
    ),
    Key::default(
        "rtc",
        Kind::Words(words::<Rtc>),
        "\"utc\"",
        "What the guest's clock shows at its start; Windows wants \"local\".",
    ),
    Key::default(
        "shutdown-timeout",
        Kind::Integer { low: 0, high: SHUTDOWN_TIMEOUT_MAX },
        "60",
        "How many seconds the guest may take to power off when asked to, before QEMU is told to quit.",
    ),
    Key::default(
        "ready",
        Kind::Pattern("^(running$|console:.)"),
        "\"running\"",
        "When the VM counts as up, for `up --detach` and for systemd: \"running\", as soon as the guest runs, or \"console:REGEX\", once a line of its serial port matches.",
    ),
    Key::default(
        "reboot",
        Kind::Words(words::<RebootPolicy>),
        "\"in-place\"",
        "What a reboot of the guest comes to: QEMU's own reset, a new start after the devices were reset and looked at, or the end.",
    ),
    Key::default(
        "repair",
        Kind::Words(words::<RepairPolicy>),
        "\"never\"",
        "How far gpuvm goes by itself to bring a device back that came back sick: not at all, or up to this step of the ladder.",
    ),
    Key::default(
        "extra-args",
        Kind::List(&Kind::Text),
        "[]",
        "Words that are added to QEMU's command line as they are; the VM counts as tainted. Write a -device in JSON: QEMU makes those that are not before gpuvm's own, in their places.",
    ),
    Key::required("memory", Kind::Table(memory::KEYS), "The guest's memory."),
    Key::required("cpu", Kind::Table(cpu::KEYS), "The guest's CPUs."),
    Key::optional("kernel", Kind::Table(kernel::KEYS), "A kernel that is booted directly."),
    Key::optional("device", Kind::Tables(device::KEYS), "The PCI devices that are passed through."),
    Key::optional("disk", Kind::Tables(disk::KEYS), "The disks and CD-ROMs."),
    Key::optional("forward", Kind::Tables(network::KEYS), "Ports of the host that lead to the guest."),
];

/// The profile as written.
#[derive(Debug, Clone, Default)]
pub struct RawProfile {
    /// The end of the file, where tables that are missing are best added.
    pub(super) end: Place,
    pub(super) version: Leaf<i128>,
    pub(super) name: Leaf<VmName>,
    pub(super) accel: Leaf<Accel>,
    pub(super) firmware: Leaf<FirmwareKind>,
    pub(super) network: Leaf<Network>,
    pub(super) serial: Leaf<Serial>,
    pub(super) display: Leaf<display::DisplayWord>,
    pub(super) display_listen: Leaf<Listen>,
    pub(super) rtc: Leaf<Rtc>,
    pub(super) shutdown_timeout: Leaf<u32>,
    pub(super) ready: Leaf<Ready>,
    pub(super) reboot: Leaf<RebootPolicy>,
    pub(super) repair: Leaf<RepairPolicy>,
    pub(super) extra_args: Vec<Located<String>>,
    pub(super) memory: memory::RawMemory,
    pub(super) cpu: cpu::RawCpu,
    pub(super) kernel: Option<kernel::RawKernel>,
    pub(super) devices: Vec<device::RawDevice>,
    pub(super) disks: Vec<disk::RawDisk>,
    pub(super) forwards: Vec<network::RawForward>,
    /// Keys whose value was refused already: their absence is no further problem.
    pub(super) refused: Vec<String>,
}

impl RawProfile {
    /// Reads each leaf by its type and reports all that don't fit, and all keys that the language doesn't have.
    pub(super) fn read(table: &Table, problems: &mut Vec<Problem>) -> Self {
        let mut root = Cursor::new(table, String::new(), KEYS);
        let mut raw = Self {
            end: table.place.end(),
            version: root.integer("version", problems),
            name: root.parsed("name", problems),
            accel: root.choice("accel", problems),
            firmware: root.choice("firmware", problems),
            network: root.choice("network", problems),
            serial: root.choice("serial", problems),
            display: root.choice("display", problems),
            display_listen: root.parsed("display-listen", problems),
            rtc: root.choice("rtc", problems),
            shutdown_timeout: root.count("shutdown-timeout", 0..=SHUTDOWN_TIMEOUT_MAX, problems),
            ready: root.parsed("ready", problems),
            reboot: root.choice("reboot", problems),
            repair: root.choice("repair", problems),
            extra_args: root.list_parsed("extra-args", problems),
            memory: root.table("memory", problems).map(|t| memory::read(t, problems)).unwrap_or_default(),
            cpu: root.table("cpu", problems).map(|t| cpu::read(t, problems)).unwrap_or_default(),
            kernel: root.table("kernel", problems).map(|t| kernel::read(t, problems)),
            devices: read_each(root.tables("device", problems), problems, device::read),
            disks: read_each(root.tables("disk", problems), problems, disk::read),
            forwards: read_each(root.tables("forward", problems), problems, network::read),
            refused: Vec::new(),
        };
        root.finish(problems);
        raw.refused = problems.iter().map(|problem| problem.key.clone()).collect();
        raw
    }
}

fn read_each<T>(
    tables: Vec<Cursor<'_>>,
    problems: &mut Vec<Problem>,
    read: impl Fn(Cursor<'_>, &mut Vec<Problem>) -> T,
) -> Vec<T> {
    tables.into_iter().map(|table| read(table, problems)).collect()
}

impl Choice for Accel {
    const WORDS: &'static [(&'static str, Self)] = &[("kvm", Self::Kvm), ("tcg", Self::Tcg)];
}

impl Choice for FirmwareKind {
    const WORDS: &'static [(&'static str, Self)] = &[("uefi", Self::Uefi), ("bios", Self::Bios)];
}

impl Choice for Serial {
    const WORDS: &'static [(&'static str, Self)] = &[("console", Self::Console), ("log", Self::Log)];
}

impl Choice for Rtc {
    const WORDS: &'static [(&'static str, Self)] = &[("utc", Self::Utc), ("local", Self::Local)];
}

impl Choice for RebootPolicy {
    const WORDS: &'static [(&'static str, Self)] =
        &[("in-place", Self::InPlace), ("relaunch", Self::Relaunch), ("stop", Self::Stop)];
}

impl Choice for RepairPolicy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("never", Self::Never),
        ("hot", Self::Hot),
        ("subordinate", Self::Subordinate),
        ("rescan", Self::Rescan),
    ];
}

impl Choice for Policy {
    const WORDS: &'static [(&'static str, Self)] = &[("strict", Self::Strict), ("prefer", Self::Prefer)];
}
