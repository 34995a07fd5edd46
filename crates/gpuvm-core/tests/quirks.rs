//! The table of quirks: each entry matches what it should and nothing else.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;

use gpuvm_core::facts::{DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::{Bdf, ClassCode, PciId};
use gpuvm_core::profile::Sources;
use gpuvm_core::reset::plan::{affected, in_hand};
use gpuvm_core::reset::quirks::{
    Confidence, EMBEDDED, Effect, LocalQuirks, Role, against_bus_reset, embedded, parse, quirks_of, table,
};
use gpuvm_core::reset::{Method, RebootPolicy, ResetPolicy, ResetWish, reset_plan};
use proptest::prelude::*;
use rstest::rstest;

/// Whom an entry is about: written down once more, from the facts and not from the table.
struct Case {
    name: &'static str,
    vendor: u16,
    /// First and last of each range of device ids.
    ids: &'static [(u16, u16)],
    /// What must hold besides.
    when: fn(&Place) -> bool,
}

impl Case {
    fn has(&self, device: u16) -> bool {
        self.ids.iter().any(|(first, last)| (*first..=*last).contains(&device))
    }
}

/// What a device is like, besides its ids.
#[derive(Debug, Clone, Copy)]
struct Place {
    class: u32,
    revision: u8,
    /// Whether a port is above it, and is what has the ids.
    port: Port,
    kernel: (u32, u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Port {
    /// The device has the ids, on a root bus.
    None,
    /// The device has the ids, below a port of nobody in the table.
    Plain,
    /// The port has the ids, and the device is nobody's.
    HasTheIds,
}

const ALL: fn(&Place) -> bool = |place| place.port != Port::HasTheIds;
/// The kernel marks it wherever it sits, and what is below it where it is a port.
const MARKED: fn(&Place) -> bool = |_| true;
const SINCE_6_12_75: fn(&Place) -> bool = |place| place.kernel >= (6, 12, 75);
const ONLY_6_12_117: fn(&Place) -> bool = |place| place.kernel >= (6, 12, 117) && place.kernel < (6, 13, 0);

const NV: u16 = 0x10de;
const ATI: u16 = 0x1002;
const AMD: u16 = 0x1022;
const INTEL: u16 = 0x8086;

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "nvidia-no-bus-reset", vendor: NV, ids: &[(0x2340, 0x237f)], when: ALL },
    Case { name: "gb10-root-port", vendor: NV, ids: &[(0x22ce, 0x22ce), (0x22d0, 0x22d0)], when: |place| {
        SINCE_6_12_75(place) && (place.port == Port::HasTheIds || place.class == 0x06_0400)
    } },
    Case { name: "rtx-5090-flr", vendor: NV, ids: &[(0x2b85, 0x2b85)], when: ALL },
    Case { name: "rtx-pro-6000-flr", vendor: NV, ids: &[(0x2bb1, 0x2bb1), (0x2bb5, 0x2bb5)], when: ALL },
    Case { name: "rtx-5070-ti-shutdown", vendor: NV, ids: &[(0x2c05, 0x2c05)], when: ALL },
    Case { name: "rtx-5070-ti-gsp", vendor: NV, ids: &[(0x2c05, 0x2c05)], when: ALL },
    Case { name: "gb20x-xid", vendor: NV, ids: &[(0x2b80, 0x2b8f), (0x2c00, 0x2c0f), (0x2f00, 0x2f0f)], when: ALL },
    Case { name: "gtx-10-bus-reset", vendor: NV, when: ALL, ids: &[
        (0x1b01, 0x1b01), (0x1b06, 0x1b06), (0x1b80, 0x1b84), (0x1c02, 0x1c04), (0x1c06, 0x1c06), (0x1c81, 0x1c83),
    ] },
    Case { name: "nvswitch-fabric", vendor: NV, ids: &[(0, 0xffff)], when: |place| ALL(place) && place.class == 0x06_8000 },
    Case { name: "amd-vga-no-pm-reset", vendor: ATI, ids: &[(0, 0xffff)], when: |place| {
        place.class == 0x03_0000 && place.port == Port::Plain
    } },
    Case { name: "amd-polaris-reset", vendor: ATI, when: ALL, ids: &[
        (0x67c0, 0x67df), (0x6fdf, 0x6fdf), (0x67e0, 0x67ff), (0x6980, 0x699f),
    ] },
    Case { name: "amd-vega-reset", vendor: ATI, ids: &[(0x6860, 0x687f), (0x66a0, 0x66af)], when: ALL },
    Case { name: "amd-navi-1x-reset", vendor: ATI, when: ALL, ids: &[
        (0x7310, 0x731f), (0x7340, 0x734f), (0x7360, 0x7360), (0x7362, 0x7362),
    ] },
    Case { name: "amd-mi100-reset", vendor: ATI, ids: &[(0x738c, 0x738c)], when: ALL },
    Case { name: "amd-rx-6000", vendor: ATI, ids: &[(0x73a0, 0x73ff)], when: ALL },
    Case { name: "amd-rx-7900-bus-reset", vendor: ATI, ids: &[(0x744c, 0x744c)], when: ALL },
    Case { name: "amd-rx-9000-d3", vendor: ATI, ids: &[(0x7550, 0x7550)], when: ALL },
    Case { name: "amd-mi300-reset", vendor: ATI, ids: &[(0x74a1, 0x74a1), (0x75a3, 0x75a3)], when: ALL },
    Case { name: "amd-igpu-forced-stop", vendor: ATI, ids: &[(0x15bf, 0x15bf), (0x15c8, 0x15c8)], when: ALL },
    Case { name: "amd-bonaire-hawaii-qemu", vendor: ATI, when: ALL, ids: &[
        (0x6649, 0x6649), (0x6650, 0x6651), (0x6658, 0x6658), (0x665c, 0x665d),
        (0x67a0, 0x67a2), (0x67a8, 0x67aa), (0x67b0, 0x67b1), (0x67b8, 0x67ba), (0x67be, 0x67be),
    ] },
    Case { name: "amd-matisse-no-flr", vendor: AMD, when: ALL, ids: &[
        (0x1487, 0x1487), (0x148c, 0x148c), (0x149c, 0x149c), (0x7901, 0x7901),
    ] },
    Case { name: "amd-npu-no-flr", vendor: AMD, ids: &[(0x1502, 0x1502), (0x17f0, 0x17f0)], when: |place| {
        ALL(place) && place.kernel >= (7, 1, 0)
    } },
    Case { name: "intel-82579-no-flr", vendor: INTEL, ids: &[(0x1502, 0x1503)], when: ALL },
    Case { name: "intel-uhd-630-flr", vendor: INTEL, when: |place| place.port == Port::None, ids: &[
        (0x3e91, 0x3e92), (0x3e98, 0x3e98), (0x9bc5, 0x9bc5), (0x9bc8, 0x9bc8),
    ] },
    Case { name: "intel-arc-a310", vendor: INTEL, ids: &[(0x56a6, 0x56a6)], when: ALL },
    Case { name: "intel-arc-unknown", vendor: INTEL, ids: &[(0x56a0, 0x56a0), (0xe20b, 0xe20b)], when: ALL },
    Case { name: "mediatek-mt7922-no-flr", vendor: 0x14c3, ids: &[(0x0616, 0x0616)], when: ALL },
    Case { name: "mediatek-mt7925-no-flr", vendor: 0x14c3, ids: &[(0x7925, 0x7925)], when: |place| {
        ALL(place) && ONLY_6_12_117(place)
    } },
    Case { name: "solidrun-snet-no-flr", vendor: 0xd063, ids: &[(0x1000, 0x1000)], when: |place| {
        ALL(place) && place.revision == 1
    } },
    Case { name: "atheros-no-bus-reset", vendor: 0x168c, when: MARKED, ids: &[
        (0x0030, 0x0030), (0x0032, 0x0034), (0x003c, 0x003c), (0x003e, 0x003e),
    ] },
    Case { name: "cavium-port-no-bus-reset", vendor: 0x177d, ids: &[(0xa100, 0xa100)], when: MARKED },
    Case { name: "ti-b005-no-bus-reset", vendor: 0x104c, ids: &[(0xb005, 0xb005)], when: MARKED },
    Case { name: "asmedia-1164-no-bus-reset", vendor: 0x1b21, ids: &[(0x1164, 0x1164)], when: SINCE_6_12_75 },
    Case { name: "qualcomm-no-bus-reset", vendor: 0x17cb, when: ONLY_6_12_117, ids: &[
        (0x0308, 0x0308), (0x1103, 0x1103), (0x1107, 0x1107),
    ] },
    Case { name: "mellanox-no-pm-reset", vendor: 0x15b3, when: ALL, ids: &[
        (0xcb84, 0xcb84), (0xcf6c, 0xcf6c), (0xcf70, 0xcf70), (0xcf80, 0xcf80),
    ] },
];

/// Vendors that no entry is about, beside the first and the last there could be.
const NOBODY: [u16; 5] = [0x0000, 0x1af4, 0x10dd, 0x10df, 0xffff];

const GPU: &str = "0000:81:00.0";
const AUDIO: &str = "0000:81:00.1";
const PORT: &str = "0000:80:01.0";

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// A host with one device, made anew for each place and changed for each id.
fn host(place: Place) -> HostFacts {
    let mut facts = HostFacts::default();
    let (major, minor, patch) = place.kernel;
    facts.kernel.release = format!("{major}.{minor}.{patch}");
    let mut device = DeviceFacts::new("1af4:0001".parse().unwrap(), ClassCode::new(place.class).unwrap());
    device.revision = Some(place.revision);
    if place.port != Port::None {
        device.upstream = vec![bdf(PORT)];
        facts.ports.insert(bdf(PORT), "1af4:0002".parse().unwrap());
    }
    facts.devices.insert(bdf(GPU), device);
    facts
}

/// Puts ids where the place has them, and looks up what is known.
fn names(facts: &mut HostFacts, place: Place, id: PciId) -> Vec<&str> {
    match place.port {
        Port::HasTheIds => *facts.ports.values_mut().next().unwrap() = id,
        _ => facts.devices.values_mut().next().unwrap().id = id,
    }
    let at = *facts.devices.keys().next().unwrap();
    quirks_of(at, facts).iter().map(|found| found.quirk.name.as_str()).collect()
}

/// The cases stand in the order of the table.
fn expected(place: &Place, id: PciId) -> Vec<&'static str> {
    let has = |case: &&Case| case.vendor == id.vendor && case.has(id.device) && (case.when)(place);
    CASES.iter().filter(has).map(|case| case.name).collect()
}

const LATEST: (u32, u32, u32) = (7, 1, 8);

#[test]
fn the_table_parses_and_each_entry_about_devices_has_a_case() {
    let entries = parse(&Sources::new("quirks.toml", EMBEDDED)).unwrap();
    let of_devices = entries.iter().filter(|quirk| quirk.vendor.is_some());
    let named: Vec<&str> = of_devices.map(|quirk| quirk.name.as_str()).collect();
    let cases: Vec<&str> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(named, cases);
    assert_eq!(entries.len(), embedded().len());
    let kernels: Vec<&str> =
        entries.iter().filter(|quirk| quirk.vendor.is_none()).map(|quirk| quirk.name.as_str()).collect();
    // These have theirs where they are judged: doctor/isolation/kernel_bugs.rs, and at the end of this file.
    let judged = [
        "kernel-reset-lies",
        "kernel-bus-reset-refused",
        "kernel-dead-config-saved",
        "kernel-slow-registers",
    ];
    assert_eq!(kernels, judged);
}

/// All ids of all vendors of the table and of some others, in each kind of place.
#[rstest]
#[case::vga_below_a_port(Place { class: 0x03_0000, revision: 1, port: Port::Plain, kernel: LATEST })]
#[case::port_that_has_the_ids(Place { class: 0x03_0000, revision: 1, port: Port::HasTheIds, kernel: LATEST })]
#[case::on_a_root_bus(Place { class: 0x03_0000, revision: 0, port: Port::None, kernel: (6, 12, 117) })]
fn every_id_matches_what_it_should_and_nothing_else(#[case] place: Place) {
    let vendors: BTreeSet<u16> = CASES.iter().map(|case| case.vendor).chain(NOBODY).collect();
    let mut facts = host(place);
    for vendor in vendors {
        // The cases of one vendor at a time: there are a million ids.
        let cases: Vec<&Case> =
            CASES.iter().filter(|case| case.vendor == vendor && (case.when)(&place)).collect();
        for device in 0..=u16::MAX {
            let id = PciId { vendor, device };
            let found = names(&mut facts, place, id);
            assert!(
                found.into_iter().eq(cases.iter().filter(|case| case.has(device)).map(|case| case.name)),
                "{id} in {place:?}"
            );
        }
    }
}

/// The ends of all ranges and their neighbours, in every combination of places.
#[test]
fn the_ends_of_each_range_match_in_every_place() {
    let kernels = [
        (6, 1, 0),
        (6, 12, 0),
        (6, 12, 74),
        (6, 12, 75),
        (6, 12, 116),
        (6, 12, 117),
        (6, 12, 400),
        (6, 13, 0),
        (7, 0, 9),
        (7, 1, 0),
        LATEST,
        (9, 0, 0),
    ];
    let classes = [0x03_0000, 0x03_0200, 0x06_0400, 0x06_8000, 0x12_0000];
    for kernel in kernels {
        for class in classes {
            for port in [Port::None, Port::Plain, Port::HasTheIds] {
                for revision in [0, 1, 2] {
                    let place = Place { class, revision, port, kernel };
                    let mut facts = host(place);
                    for case in CASES {
                        for (first, last) in case.ids {
                            let ends = [first.wrapping_sub(1), *first, *last, last.wrapping_add(1)];
                            for device in ends {
                                let id = PciId { vendor: case.vendor, device };
                                let found = names(&mut facts, place, id);
                                assert_eq!(found, expected(&place, id), "{id} in {place:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Each entry matches somewhere: a case whose conditions never hold would prove nothing.
#[test]
fn each_case_matches_in_some_place() {
    for case in CASES {
        let id = PciId { vendor: case.vendor, device: case.ids[0].0 };
        let matches = [LATEST, (6, 12, 117)].into_iter().any(|kernel| {
            [0x03_0000, 0x06_8000].into_iter().any(|class| {
                [Port::None, Port::Plain, Port::HasTheIds].into_iter().any(|port| {
                    let place = Place { class, revision: 1, port, kernel };
                    names(&mut host(place), place, id).contains(&case.name)
                })
            })
        });
        assert!(matches, "{}", case.name);
    }
}

#[test]
fn entries_say_what_they_must() {
    for quirk in embedded() {
        let name = &quirk.name;
        let first = quirk.behaviour.chars().next().unwrap();
        assert!(!quirk.behaviour.ends_with('.') && !quirk.advice.ends_with('.'), "{name}: no full stop");
        assert!(
            first.is_lowercase()
                || quirk.behaviour.split(' ').next().unwrap().chars().any(char::is_uppercase),
            "{name}"
        );
        assert!(!quirk.source.is_empty() && !quirk.advice.is_empty(), "{name}");
        // Only what is read in the kernel's source may change a plan.
        if quirk.has(Effect::NoBusReset) {
            assert_eq!(quirk.confidence, Confidence::KernelSource, "{name}");
        }
        assert!(
            quirk.role == Role::Device || quirk.has(Effect::NoBusReset),
            "{name}: what is a port to do with it"
        );
    }
}

/// A card of two functions below a port, all of it on vfio-pci.
fn card(id: &str, release: &str) -> HostFacts {
    let mut facts = HostFacts::default();
    facts.kernel.release = release.to_owned();
    let mut add = |at: &str, id: &str, class: u32| {
        let mut device = DeviceFacts::new(id.parse().unwrap(), ClassCode::new(class).unwrap());
        device.upstream = vec![bdf(PORT)];
        device.group = Some(gpuvm_core::pci::GroupId(1));
        device.driver = gpuvm_core::pci::DriverName::new("vfio-pci");
        device.reset_methods = vec!["flr".to_owned(), "bus".to_owned()];
        device.reset_method_file = Presence::Present;
        facts.devices.insert(bdf(at), device);
    };
    add(GPU, id, 0x03_0200);
    add(AUDIO, "10de:22e8", 0x04_0300);
    facts.ports.insert(bdf(PORT), "8086:352a".parse().unwrap());
    facts
}

fn steps(facts: &HostFacts, at: &str, wish: ResetWish) -> (Vec<Method>, String) {
    let hands = in_hand(&BTreeSet::from([gpuvm_core::pci::GroupId(1)]), facts);
    let plan = reset_plan(bdf(at), wish, &hands, facts);
    let rejected = plan.rejected.iter().find(|rejected| rejected.method == "hot");
    let why = rejected.map(|rejected| rejected.reason.clone()).unwrap_or_default();
    (plan.steps.iter().map(|step| step.method).collect(), why)
}

#[rstest]
#[case::nobody("10de:2684", "7.1.8", &[Method::Flr, Method::Hot], "")]
#[case::gh200("10de:2342", "7.1.8", &[Method::Flr], "nvidia-no-bus-reset, by the kernel's source")]
#[case::said_by_a_user("10de:2b85", "7.1.8", &[Method::Flr, Method::Hot], "")]
#[case::marked_by_this_kernel("17cb:1103", "6.12.117", &[Method::Flr], "qualcomm-no-bus-reset")]
#[case::not_yet_marked("17cb:1103", "6.12.116", &[Method::Flr, Method::Hot], "")]
#[case::no_longer_marked("17cb:1103", "7.1.8", &[Method::Flr, Method::Hot], "")]
#[case::which_of_them_is_not_said("17cb:1103", "6.12.0-3-amd64", &[Method::Flr], "qualcomm-no-bus-reset")]
fn what_the_kernel_marks_has_no_bus_reset(
    #[case] id: &str,
    #[case] release: &str,
    #[case] expected: &[Method],
    #[case] why: &str,
) {
    let facts = card(id, release);
    // The other function is on that bus, too.
    for at in [GPU, AUDIO] {
        let (steps, rejected) = steps(&facts, at, ResetWish::default());
        assert_eq!(steps, expected, "{at}: {rejected}");
        assert!(rejected.contains(why) && rejected.is_empty() == why.is_empty(), "{rejected}");
    }
}

#[rstest]
#[case::gb10("10de:22ce", "6.12.75", false)]
#[case::gb10_unmarked("10de:22ce", "6.12.74", true)]
#[case::cavium("177d:a100", "6.1.0", false)]
#[case::a_device_that_is_no_port("10de:2342", "7.1.8", true)]
fn what_is_below_a_marked_port_has_no_bus_reset(
    #[case] port: &str,
    #[case] release: &str,
    #[case] hot: bool,
) {
    let mut facts = card("10de:2684", release);
    facts.ports.insert(bdf(PORT), port.parse().unwrap());
    let (steps, _) = steps(&facts, GPU, ResetWish::default());
    assert_eq!(steps.contains(&Method::Hot), hot);
    let reach = affected(bdf(GPU), &facts);
    assert_eq!(against_bus_reset(bdf(GPU), &reach, &facts).is_none(), hot);
}

#[test]
fn the_kernels_bus_reset_is_gone_as_well() {
    let mut facts = card("10de:2342", "7.1.8");
    facts.devices.remove(&bdf(AUDIO));
    let wish = ResetWish { policy: ResetPolicy::Bus, avoid_flr: false };
    let plan = reset_plan(bdf(GPU), wish, &BTreeSet::from([bdf(GPU)]), &facts);
    assert_eq!(plan.steps, []);
    assert!(plan.reason.contains("nvidia-no-bus-reset"), "{}", plan.reason);
}

#[rstest]
#[case::as_it_is(ResetWish::default(), RebootPolicy::InPlace, Some(Effect::FlrHangs))]
#[case::half_heeded(ResetWish { policy: ResetPolicy::Auto, avoid_flr: true }, RebootPolicy::InPlace, Some(Effect::RelaunchOnReboot))]
#[case::heeded(ResetWish { policy: ResetPolicy::Hot, avoid_flr: false }, RebootPolicy::Relaunch, None)]
fn what_a_profile_has_got_round_is_no_worry(
    #[case] wish: ResetWish,
    #[case] reboot: RebootPolicy,
    #[case] worry: Option<Effect>,
) {
    let facts = card("10de:2b85", "7.1.8");
    let found = quirks_of(bdf(GPU), &facts);
    let found = found.iter().find(|found| found.quirk.name == "rtx-5090-flr").unwrap();
    assert_eq!(found.worry(&facts.devices[&bdf(GPU)], wish, reboot, &facts), worry);
}

/// A whole entry, to be changed.
const ENTRY: &str = "[[quirk]]\nname = \"rtx-5090-flr\"\nvendor = \"10de\"\ndevices = [\"2b85\"]\nbehaviour = \"it is fine here\"\n\
                     effects = []\nadvice = \"go on\"\nsource = \"us\"\nconfidence = \"one-report\"\n";

#[test]
fn an_entry_of_the_hosts_own_replaces_the_one_of_its_name() {
    let mut facts = card("10de:2b85", "7.1.8");
    let count = table(&facts).count();
    facts.quirks.add("/etc/gpuvm/quirks.d/a.toml", ENTRY);
    facts.quirks.add("/etc/gpuvm/quirks.d/b.toml", &ENTRY.replace("fine here", "fine since May"));
    assert_eq!(facts.quirks.problems, []);
    assert_eq!(table(&facts).count(), count);
    let found = quirks_of(bdf(GPU), &facts);
    let found: Vec<_> = found.iter().filter(|found| found.quirk.name == "rtx-5090-flr").collect();
    assert_eq!(found[0].quirk.behaviour, "it is fine since May");
    assert_eq!(found[0].quirk.file.as_deref(), Some("/etc/gpuvm/quirks.d/b.toml"));
    assert_eq!(found.len(), 1);
    // What a user writes down as read in the kernel's source is heeded as that.
    let marked = ENTRY
        .replace("rtx-5090-flr", "mine")
        .replace("[]", "[\"no-bus-reset\"]")
        .replace("one-report", "kernel-source");
    assert!(steps(&facts, GPU, ResetWish::default()).0.contains(&Method::Hot));
    facts.quirks.add("/etc/gpuvm/quirks.d/c.toml", &marked);
    assert!(!steps(&facts, GPU, ResetWish::default()).0.contains(&Method::Hot));
}

#[test]
fn an_entry_of_nothing_but_its_name_and_no_effects_silences_the_one_of_its_name() {
    let mut facts = card("10de:2b85", "7.1.8");
    let names = |facts: &HostFacts| -> Vec<String> { table(facts).map(|quirk| quirk.name.clone()).collect() };
    let mut before = names(&facts);
    facts.quirks.add("/etc/gpuvm/quirks.d/a.toml", "[[quirk]]\nname = \"rtx-5090-flr\"\neffects = []\n");
    assert_eq!(facts.quirks.problems, []);
    before.retain(|name| name != "rtx-5090-flr");
    assert_eq!(names(&facts), before);
    assert!(quirks_of(bdf(GPU), &facts).iter().all(|found| found.quirk.name != "rtx-5090-flr"));
    // It goes with a report, and a file that comes later has the last word.
    let text = serde_json::to_string(&facts.quirks).unwrap();
    assert_eq!(serde_json::from_str::<LocalQuirks>(&text).unwrap(), facts.quirks);
    facts.quirks.add("/etc/gpuvm/quirks.d/b.toml", ENTRY);
    assert_eq!(names(&facts).len(), before.len() + 1);
}

#[test]
fn the_table_of_the_program_silences_nothing() {
    assert!(embedded().iter().all(|quirk| !quirk.behaviour.is_empty()));
}

/// What README shows can be copied.
#[test]
fn the_entry_in_the_readme_parses() {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("### Known quirks").unwrap();
    let (example, _) = section.split_once("```toml\n").unwrap().1.split_once("```").unwrap();
    let mut quirks = LocalQuirks::default();
    quirks.add("README.md", example);
    assert_eq!((quirks.entries.len(), quirks.problems), (1, Vec::new()));
}

/// The head of the table says what each key means, and each word that `effects` takes.
#[test]
fn the_head_of_the_table_names_every_key_and_every_effect() {
    let (head, _) = EMBEDDED.split_once("# --- kernels").unwrap();
    for key in keys(gpuvm_core::reset::quirks::KEYS) {
        assert!(head.contains(&format!("#   {key} ")) || head.contains(&format!("{key} =")), "{key}");
    }
    let mut wrong = LocalQuirks::default();
    wrong.add("x.toml", &ENTRY.replace("effects = []", "effects = [\"?\"]"));
    for word in wrong.problems[0].message.split('`').skip(5).step_by(2) {
        assert!(head.contains(word), "{word}");
    }
}

/// Lists the keys of tables, and of the tables below them.
fn keys(table: &[gpuvm_core::profile::language::Key]) -> Vec<&'static str> {
    use gpuvm_core::profile::language::Kind;
    let below = |key: &gpuvm_core::profile::language::Key| match key.kind {
        Kind::Tables(tables) if key.name == "quirk" => keys(tables),
        Kind::Tables(tables) => [vec![key.name], keys(tables)].concat(),
        _ => vec![key.name],
    };
    table.iter().flat_map(below).collect()
}

/// A mistake: what is changed in [`ENTRY`], the line and key that are named, and what is said.
#[rstest]
#[case::no_toml("= []", "=", 6, "", "")]
#[case::unknown_key("advice", "advise", 7, "quirk.0.advise", "unknown key")]
#[case::unknown_table("[[quirk]]", "[[quirks]]", 1, "quirks", "unknown key")]
#[case::no_name("name = \"rtx-5090-flr\"", "", 1, "quirk.0.name", "is missing")]
#[case::capitals("rtx-5090-flr", "RTX", 2, "quirk.0.name", "no name")]
#[case::vendor("10de", "nvidia", 3, "quirk.0.vendor", "no vendor id")]
#[case::ids("2b85", "0x2b85", 4, "quirk.0.devices.0", "no device ids")]
#[case::no_ids("[\"2b85\"]", "[]", 1, "quirk.0.devices", "names no device")]
#[case::ids_of_nobody("vendor = \"10de\"", "", 1, "quirk.0.devices", "needs `vendor`")]
#[case::effect("effects = []", "effects = [\"explodes\"]", 6, "quirk.0.effects.0", "none of `no-bus-reset`")]
#[case::confidence("one-report", "sure", 9, "quirk.0.confidence", "expected one of `kernel-source`")]
#[case::two_lines("it is fine here", "it\\nis", 5, "quirk.0.behaviour", "one line")]
#[case::meets("effects", "meets = \"all\"\neffects", 6, "quirk.0.meets", "has no effect")]
#[case::revision("effects", "revision = 256\neffects", 6, "quirk.0.revision", "expected 0 to 255")]
#[case::kernel(
    "effects",
    "kernels = [{ from = \"six\" }]\neffects",
    6,
    "quirk.0.kernels.0.from",
    "no release of Linux"
)]
#[case::backwards(
    "effects",
    "kernels = [{ from = \"6.12\", to = \"6.1\" }]\neffects",
    6,
    "quirk.0.kernels.0.from",
    "later than `to`"
)]
#[case::no_ends(
    "effects",
    "kernels = [{}]\neffects",
    6,
    "quirk.0.kernels.0.from",
    "has a `from`, a `to`, or both"
)]
#[case::fixed_nowhere(
    "effects",
    "kernels = [{ from = \"6.1\", fixed = \"6.2\" }]\neffects",
    6,
    "quirk.0.kernels.0.fixed",
    "needs `to`"
)]
fn a_mistake_is_told_with_file_line_and_key(
    #[case] was: &str,
    #[case] now: &str,
    #[case] line: usize,
    #[case] key: &str,
    #[case] says: &str,
) {
    assert!(ENTRY.contains(was));
    let mut quirks = LocalQuirks::default();
    quirks.add("x.toml", &ENTRY.replacen(was, now, 1));
    assert_eq!(quirks.entries, []);
    let found = |problem: &&gpuvm_core::reset::quirks::FileProblem| {
        problem.key == key && problem.line == line && problem.message.contains(says)
    };
    assert!(quirks.problems.iter().any(|problem| found(&problem)), "{:#?}", quirks.problems);
    assert!(quirks.problems[0].to_string().starts_with("x.toml, line "));
}

#[test]
fn all_mistakes_are_told_at_once_and_a_slip_of_the_finger_is_guessed() {
    let mut quirks = LocalQuirks::default();
    let twice = format!("{ENTRY}\n{}", ENTRY.replace("vendor", "vendr").replace("one-report", "sure"));
    quirks.add("x.toml", &twice);
    let keys: Vec<&str> = quirks.problems.iter().map(|problem| problem.key.as_str()).collect();
    for key in ["quirk.1.name", "quirk.1.vendr", "quirk.1.devices", "quirk.1.confidence"] {
        assert!(keys.contains(&key), "{key} isn't among {keys:?}");
    }
    let vendr = quirks.problems.iter().find(|problem| problem.key.ends_with("vendr")).unwrap();
    assert_eq!(vendr.hint.as_deref(), Some("did you mean `vendor`?"));
}

proptest! {
    #[test]
    fn parse_never_panics_and_points_into_the_text(
        at in any::<proptest::sample::Index>(), with in "[\\[\\]{}=\",.a-z0-9\\n]{0,6}", cut in 0usize..40
    ) {
        let at = at.index(EMBEDDED.len());
        prop_assume!(EMBEDDED.is_char_boundary(at));
        let end = (at + cut..=EMBEDDED.len()).find(|end| EMBEDDED.is_char_boundary(*end)).unwrap_or(EMBEDDED.len());
        let text = format!("{}{with}{}", &EMBEDDED[..at], &EMBEDDED[end..]);
        let sources = Sources::new("x.toml", text.as_str());
        if let Err(problems) = parse(&sources) {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                prop_assert!(text.get(problem.place.span()).is_some(), "{problem:?} is outside the text");
            }
        }
    }

    #[test]
    fn parse_of_anything_never_panics(text in ".*") {
        let _ = parse(&Sources::new("x.toml", text));
    }

    /// Entries go with reports, and come back as they were.
    #[test]
    fn entries_survive_a_report(at in 0usize..embedded().len()) {
        let quirk = &embedded()[at];
        let text = serde_json::to_string(quirk).unwrap();
        prop_assert_eq!(&serde_json::from_str::<gpuvm_core::reset::Quirk>(&text).unwrap(), quirk);
    }
}
