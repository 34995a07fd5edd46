//! `[cpu]`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::cpulist::CpuSet;
use crate::profile::check::{Checker, value_or};
use crate::profile::language::{Key, Kind, words};
use crate::profile::problem::{Problem, ProblemKind};
use crate::profile::read::{Choice, Cursor, Leaf, Located};
use crate::profile::tree::Place;
use crate::profile::{Accel, Policy, VCPUS_MAX};

/// The guest's CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// How many vCPUs.
    pub count: u32,
    /// Where they run.
    pub pin: Pin,
    /// What happens when they can't be pinned so.
    pub pin_policy: Policy,
    /// The host's CPUs for QEMU's own threads; chosen when not given.
    pub emulator: Option<CpuSet>,
    /// Whether the guest is kept from seeing that it runs on KVM.
    pub kvm_hidden: bool,
    /// Whether the guest gets the Hyper-V interfaces that Windows works best with.
    pub hyperv: bool,
    /// The vendor that those interfaces name.
    pub hv_vendor_id: Option<HvVendorId>,
    /// CPU features that are switched on or off.
    pub flags: Vec<CpuFlag>,
}

/// Where vCPUs run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// Each on a CPU of its own, on the nodes of the devices.
    Auto,
    /// Wherever the host's scheduler puts them.
    Off,
    /// Each on the CPU that is listed for it.
    Cpus(Vec<u32>),
}

/// The words of [`Pin`] that stand alone.
#[derive(Debug, Clone, Copy)]
pub(in crate::profile) enum PinWord {
    Auto,
    Off,
}

impl Choice for PinWord {
    const WORDS: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("off", Self::Off)];
}

/// The 12 letters by which a hypervisor names itself in CPUID leaf 0x40000000.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HvVendorId(String);

impl std::str::FromStr for HvVendorId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // QEMU splits -cpu at each comma, and has no way to write one there (target/i386/cpu.c, x86_cpu_parse_featurestr).
        let printable = text.bytes().all(|b| (b.is_ascii_graphic() || b == b' ') && b != b',');
        match printable && (1..=12).contains(&text.len()) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("`{text}` is no vendor id: 1 to 12 printable ASCII characters but commas")),
        }
    }
}

impl std::fmt::Display for HvVendorId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A CPU feature that is switched on or off, under QEMU's name for it (`qemu-system-x86_64 -cpu help`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuFlag {
    /// Its name.
    pub name: String,
    /// Whether the guest has it.
    pub state: FlagState,
}

/// Whether a guest has a CPU feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagState {
    /// It does.
    On,
    /// It doesn't.
    Off,
}

impl std::str::FromStr for CpuFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (state, name) = match text.split_at_checked(1) {
            Some(("+", name)) => (FlagState::On, name),
            Some(("-", name)) => (FlagState::Off, name),
            _ => return Err(format!("`{text}` is no CPU flag: write \"+name\" or \"-name\"")),
        };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        match !name.is_empty() && name.bytes().all(plain) {
            true => Ok(Self { name: name.to_owned(), state }),
            false => Err(format!("`{text}` is no CPU flag: names have a-z, 0-9, `-`, `_` and `.`")),
        }
    }
}

impl std::fmt::Display for CpuFlag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.state == FlagState::On { '+' } else { '-' };
        write!(f, "{sign}{}", self.name)
    }
}

impl TryFrom<String> for CpuFlag {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CpuFlag> for String {
    fn from(flag: CpuFlag) -> Self {
        flag.to_string()
    }
}

pub(in crate::profile) const KEYS: &[Key] = &[
    Key::required("count", Kind::Integer { low: 1, high: VCPUS_MAX }, "How many vCPUs the guest has."),
    Key::default(
        "pin",
        Kind::Either(&[
            Kind::Words(words::<PinWord>),
            Kind::List(&Kind::Integer { low: 0, high: Cpu::HOST_CPU_MAX }),
        ]),
        "\"auto\"",
        "Where vCPUs run: each on a CPU of its own on the devices' nodes; anywhere; or a list of the host's CPUs, one per vCPU.",
    ),
    Key::default(
        "pin-policy",
        Kind::Words(words::<Policy>),
        "\"strict\"",
        "What happens when vCPUs can't be pinned so: fail, or let them run anywhere with a warning.",
    ),
    Key::optional("emulator", Kind::Text, "The host's CPUs for QEMU's own threads, as in \"0-1,8\"."),
    Key::default(
        "kvm-hidden",
        Kind::Flag,
        "false",
        "Keeps the guest from seeing that it runs on KVM; costs it KVM's clock and other help.",
    ),
    Key::default(
        "hyperv",
        Kind::Flag,
        "false",
        "Gives the guest the Hyper-V interfaces that Windows works best with.",
    ),
    Key::optional(
        "hv-vendor-id",
        Kind::Pattern("^[ -+\\--~]{1,12}$"),
        "The vendor that the Hyper-V interfaces name, for drivers that look at it.",
    ),
    Key::default(
        "flags",
        Kind::List(&Kind::Pattern("^[+-][a-z0-9._-]+$")),
        "[]",
        "CPU features switched on or off, under QEMU's names, as in [\"+invtsc\", \"-pmu\"].",
    ),
];

impl Cpu {
    /// The greatest number of a host's CPU (CONFIG_NR_CPUS_RANGE_END on x86).
    pub(in crate::profile) const HOST_CPU_MAX: u32 = 8191;
}

#[derive(Debug, Clone, Default)]
pub(in crate::profile) struct RawCpu {
    place: Option<Place>,
    count: Leaf<u32>,
    pin: Leaf<Pin>,
    pin_policy: Leaf<Policy>,
    emulator: Leaf<CpuSet>,
    kvm_hidden: Leaf<bool>,
    hyperv: Leaf<bool>,
    hv_vendor_id: Leaf<HvVendorId>,
    flags: Vec<Located<CpuFlag>>,
}

pub(in crate::profile) fn read(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawCpu {
    let cpu = RawCpu {
        place: Some(table.place()),
        count: table.count("count", 1..=VCPUS_MAX, problems),
        pin: read_pin(&mut table, problems),
        pin_policy: table.choice("pin-policy", problems),
        emulator: table.parsed("emulator", problems),
        kvm_hidden: table.flag("kvm-hidden", problems),
        hyperv: table.flag("hyperv", problems),
        hv_vendor_id: table.parsed("hv-vendor-id", problems),
        flags: table.list_parsed("flags", problems),
    };
    table.finish(problems);
    cpu
}

fn read_pin(table: &mut Cursor<'_>, problems: &mut Vec<Problem>) -> Leaf<Pin> {
    if !table.is_list("pin") {
        let Located { value, place } = table.choice("pin", problems)?;
        let value = match value {
            PinWord::Auto => Pin::Auto,
            PinWord::Off => Pin::Off,
        };
        return Some(Located { value, place });
    }
    let Located { value, place } = table.list_of_counts("pin", 0..=Cpu::HOST_CPU_MAX, problems)?;
    Some(Located { value: Pin::Cpus(value), place })
}

pub(in crate::profile) fn check(
    raw: RawCpu,
    accel: Accel,
    end: &Place,
    checker: &mut Checker<'_>,
) -> Option<Cpu> {
    check_kvm_only(&raw, accel, checker);
    check_flags(&raw.flags, checker);
    if let (Some(count), Some(pin)) = (&raw.count, &raw.pin) {
        check_pin(count.value, pin, checker);
    }
    let off = matches!(&raw.pin, Some(Located { value: Pin::Off, .. }));
    if off {
        checker.pointless(raw.pin_policy.clone(), "cpu.pin-policy", "cpu.pin is off");
        checker.pointless(raw.emulator.clone(), "cpu.emulator", "cpu.pin is off");
    }
    if let Some(Located { value, place }) = &raw.emulator
        && value.is_empty()
    {
        checker.value("cpu.emulator", place.clone(), "the list holds no CPU".to_owned());
    }
    let count = match &raw.place {
        Some(table) => checker.required(raw.count, "cpu.count", "count = 16", table),
        None => checker.required(raw.count, "cpu.count", "[cpu]\ncount = 16", end),
    }?;
    Some(Cpu {
        count: count.value,
        pin: value_or(raw.pin, Pin::Auto),
        pin_policy: value_or(raw.pin_policy, Policy::Strict),
        emulator: raw.emulator.map(|emulator| emulator.value),
        kvm_hidden: value_or(raw.kvm_hidden, false),
        hyperv: value_or(raw.hyperv, false),
        hv_vendor_id: raw.hv_vendor_id.map(|id| id.value),
        flags: raw.flags.into_iter().map(|flag| flag.value).collect(),
    })
}

/// KVM alone can hide itself or play Hyper-V; and QEMU drops a vendor id in silence where nothing of Hyper-V is asked for
/// (target/i386/kvm/kvm.c, hyperv_enabled).
fn check_kvm_only(raw: &RawCpu, accel: Accel, checker: &mut Checker<'_>) {
    let asked = |leaf: &Leaf<bool>| leaf.as_ref().filter(|leaf| leaf.value).map(|leaf| leaf.place.clone());
    let kvm_only = [
        ("cpu.kvm-hidden", asked(&raw.kvm_hidden)),
        ("cpu.hyperv", asked(&raw.hyperv)),
        ("cpu.hv-vendor-id", raw.hv_vendor_id.as_ref().map(|id| id.place.clone())),
    ];
    for (key, place) in kvm_only {
        if let Some(place) = place.filter(|_| accel == Accel::Tcg) {
            let kind = ProblemKind::Needs { key: key.to_owned(), other: r#"accel = "kvm""# };
            checker.report(key, place, kind);
        }
    }
    if let Some(id) =
        raw.hv_vendor_id.as_ref().filter(|_| accel == Accel::Kvm && asked(&raw.hyperv).is_none())
    {
        let key = "cpu.hv-vendor-id";
        let kind = ProblemKind::Needs { key: key.to_owned(), other: "hyperv = true" };
        checker.report(key, id.place.clone(), kind);
    }
}

fn check_flags(flags: &[Located<CpuFlag>], checker: &mut Checker<'_>) {
    let mut seen = BTreeSet::new();
    for Located { value, place } in flags {
        if !seen.insert(&value.name) {
            checker.value("cpu.flags", place.clone(), format!("`{}` is listed twice", value.name));
        }
    }
}

fn check_pin(count: u32, pin: &Located<Pin>, checker: &mut Checker<'_>) {
    let Pin::Cpus(cpus) = &pin.value else { return };
    if cpus.len() != count as usize {
        let message = format!("{} CPUs are listed for {count} vCPUs: list one for each", cpus.len());
        checker.value("cpu.pin", pin.place.clone(), message);
    }
    let mut seen = BTreeSet::new();
    for cpu in cpus.iter().filter(|cpu| !seen.insert(**cpu)) {
        checker.value("cpu.pin", pin.place.clone(), format!("CPU {cpu} is listed twice"));
    }
}
