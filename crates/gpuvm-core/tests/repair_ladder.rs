//! Which rungs of the repair ladder a device has, on hosts made for the purpose and on hosts made at random.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;

use gpuvm_core::facts::{DeviceFacts, ErrorCounters, HostFacts, Presence};
use gpuvm_core::pci::{Bdf, ClassCode, DriverName, GroupId};
use gpuvm_core::reset::plan::in_hand;
use gpuvm_core::reset::repair::{Ladder, RepairPolicy, Rung, climbs, ladder};
use gpuvm_core::reset::{ConfigSpace, PortSnapshot, Reading, Snapshot};
use proptest::prelude::*;
use rstest::rstest;

/// A function: where, below which bridges, on which driver, in which group.
type Function = (&'static str, &'static [&'static str], Option<&'static str>, u32);

const VFIO: Option<&str> = Some("vfio-pci");
const PORT: &[&str] = &["00:01.0"];
const CARD: &str = "41:00.0";

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// Makes a host; what is on `pcieport` is a bridge, and every port knows `reset_subordinate`.
fn host(functions: &[Function]) -> HostFacts {
    let mut facts = HostFacts::default();
    for (at, upstream, driver, group) in functions {
        let class = if *driver == Some("pcieport") { 0x06_0400 } else { 0x03_0200 };
        let mut device = DeviceFacts::new("10de:2330".parse().unwrap(), ClassCode::new(class).unwrap());
        device.driver = driver.and_then(DriverName::new);
        device.group = Some(GroupId(*group));
        device.upstream = upstream.iter().map(|bridge| bdf(bridge)).collect();
        device.subordinate_reset = if upstream.is_empty() { Presence::Absent } else { Presence::Present };
        facts.devices.insert(bdf(at), device);
    }
    facts
}

fn card(audio: Option<&'static str>) -> HostFacts {
    host(&[(CARD, PORT, VFIO, 7), ("41:00.1", PORT, audio, 8)])
}

fn changed(mut facts: HostFacts, at: &str, change: impl FnOnce(&mut DeviceFacts)) -> HostFacts {
    change(facts.devices.get_mut(&bdf(at)).unwrap());
    facts
}

/// Everything on a VFIO driver is in hand.
fn ours(facts: &HostFacts) -> BTreeSet<Bdf> {
    in_hand(&facts.devices.values().filter_map(|device| device.group).collect(), facts)
}

fn climbed(at: &str, policy: RepairPolicy, facts: &HostFacts) -> Ladder {
    ladder(bdf(at), policy, &ours(facts), facts)
}

fn names(ladder: &Ladder) -> Vec<&'static str> {
    ladder.rungs.iter().map(|climb| climb.rung.name()).collect()
}

fn why_not(ladder: &Ladder, rung: Rung) -> &str {
    let found = ladder.left_out.iter().find(|rejected| rejected.method == rung.name());
    found.map_or("", |rejected| rejected.reason.as_str())
}

/// A card below a port that marks what is below it.
fn below_gb10() -> HostFacts {
    let mut facts = card(VFIO);
    facts.ports.insert(bdf(PORT[0]), "10de:22ce".parse().unwrap());
    facts.kernel.release = "6.12.117".to_owned();
    facts
}

/// A card on a bus with a bridge that has one more device below.
fn beside_a_bridge(below: Option<&'static str>) -> HostFacts {
    host(&[
        (CARD, PORT, VFIO, 7),
        ("41:01.0", PORT, Some("pcieport"), 7),
        ("42:00.0", &["00:01.0", "41:01.0"], below, 7),
    ])
}

#[rstest]
#[case::nothing_is_allowed(card(VFIO), RepairPolicy::Never, &[])]
#[case::up_to_hot(card(VFIO), RepairPolicy::Hot, &["hot"])]
#[case::up_to_subordinate(card(VFIO), RepairPolicy::Subordinate, &["hot", "subordinate"])]
#[case::all(card(VFIO), RepairPolicy::Rescan, &["hot", "subordinate", "rescan"])]
#[case::a_function_on_its_own_driver(card(Some("snd_hda_intel")), RepairPolicy::Rescan, &[])]
#[case::a_function_without_a_driver(card(None), RepairPolicy::Rescan, &[])]
#[case::a_bridge_whose_devices_are_in_hand(beside_a_bridge(VFIO), RepairPolicy::Rescan, &["subordinate", "rescan"])]
#[case::a_bridge_with_a_foreign_device(beside_a_bridge(Some("e1000")), RepairPolicy::Rescan, &["rescan"])]
#[case::on_a_root_bus(host(&[(CARD, &[], VFIO, 7)]), RepairPolicy::Rescan, &["rescan"])]
#[case::marked_by_the_kernel(
    changed(card(VFIO), "41:00.1", |device| device.id = "10de:2342".parse().unwrap()), RepairPolicy::Rescan, &["rescan"]
)]
#[case::below_a_marked_port(below_gb10(), RepairPolicy::Rescan, &["rescan"])]
#[case::in_a_slot_of_the_chipset(
    host(&[(CARD, &[], VFIO, 7), ("41:00.3", &[], Some("i801_smbus"), 7)]), RepairPolicy::Rescan, &[]
)]
#[case::a_kernel_without_reset_subordinate(
    changed(card(VFIO), CARD, |device| device.subordinate_reset = Presence::Absent),
    RepairPolicy::Rescan, &["hot", "rescan"]
)]
#[case::a_virtual_function(
    changed(card(VFIO), CARD, |device| device.virtual_function = Presence::Present), RepairPolicy::Rescan, &[]
)]
#[case::a_function_with_virtual_functions(
    changed(card(VFIO), "41:00.1", |device| device.virtual_functions = 2), RepairPolicy::Rescan, &["hot"]
)]
fn a_device_has_the_rungs_that_reach_nothing_but_what_is_in_hand(
    #[case] facts: HostFacts,
    #[case] policy: RepairPolicy,
    #[case] expected: &[&str],
) {
    assert_eq!(names(&climbed(CARD, policy, &facts)), expected);
}

#[rstest]
#[case::policy(card(VFIO), RepairPolicy::Hot, Rung::Rescan, "repair = \"hot\" doesn't allow it")]
#[case::driver_hot(
    card(Some("snd_hda_intel")),
    RepairPolicy::Rescan,
    Rung::Hot,
    "it resets all of bus 0000:41, and 0000:41:00.1 is on snd_hda_intel, not on a vfio driver"
)]
#[case::driver_subordinate(
    card(Some("snd_hda_intel")),
    RepairPolicy::Rescan,
    Rung::Subordinate,
    "it resets everything below 0000:00:01.0, and 0000:41:00.1 is on snd_hda_intel, not on a vfio driver"
)]
#[case::driver_rescan(
    card(Some("snd_hda_intel")),
    RepairPolicy::Rescan,
    Rung::Rescan,
    "the whole card is removed, and 0000:41:00.1 is on snd_hda_intel, not on a vfio driver"
)]
#[case::below_a_bridge(
    beside_a_bridge(Some("e1000")),
    RepairPolicy::Rescan,
    Rung::Subordinate,
    "it resets everything below 0000:00:01.0, and 0000:42:00.0 is on e1000, not on a vfio driver"
)]
#[case::marked_port_subordinate(
    below_gb10(),
    RepairPolicy::Rescan,
    Rung::Subordinate,
    "of 0000:00:01.0: what is below this root port of a GB10 is not to be reset by its bus, and the kernel makes no such reset (gb10-root-port, by the kernel's source)"
)]
#[case::bridge_hot(
    beside_a_bridge(VFIO),
    RepairPolicy::Rescan,
    Rung::Hot,
    "it resets all of bus 0000:41, and 0000:41:01.0 is a bridge, which stays with the kernel"
)]
#[case::root_bus_hot(
    host(&[(CARD, &[], VFIO, 7)]), RepairPolicy::Rescan, Rung::Hot, "bus 0000:41 is a root bus, which can't be reset"
)]
#[case::root_bus_subordinate(
    host(&[(CARD, &[], VFIO, 7)]), RepairPolicy::Rescan, Rung::Subordinate,
    "bus 0000:41 is a root bus, which can't be reset"
)]
#[case::virtual_subordinate(
    changed(card(VFIO), CARD, |device| device.virtual_function = Presence::Present),
    RepairPolicy::Rescan, Rung::Subordinate, "it is a virtual function: its bus is its physical function's"
)]
#[case::virtual_rescan(
    changed(card(VFIO), CARD, |device| device.virtual_function = Presence::Present),
    RepairPolicy::Rescan, Rung::Rescan, "it is a virtual function: the kernel finds none of them by a scan"
)]
#[case::with_one_virtual_function(
    changed(card(VFIO), CARD, |device| device.virtual_functions = 1), RepairPolicy::Rescan, Rung::Rescan,
    "the whole card is removed, and 0000:41:00.0 has 1 virtual function, which would be lost"
)]
#[case::kernel(
    changed(card(VFIO), CARD, |device| device.subordinate_reset = Presence::Absent),
    RepairPolicy::Rescan, Rung::Subordinate,
    "there is no reset_subordinate of 0000:00:01.0, which kernels have since Linux 6.12.5 and 6.13"
)]
#[case::nothing_there(HostFacts::default(), RepairPolicy::Rescan, Rung::Hot, "there is no such device")]
fn what_is_left_out_says_why(
    #[case] facts: HostFacts,
    #[case] policy: RepairPolicy,
    #[case] rung: Rung,
    #[case] reason: &str,
) {
    assert_eq!(why_not(&climbed(CARD, policy, &facts), rung), reason);
}

#[test]
fn a_function_on_vfio_in_somebody_elses_group_is_in_the_way() {
    let facts = card(VFIO);
    let ladder = ladder(bdf(CARD), RepairPolicy::Rescan, &BTreeSet::from([bdf(CARD)]), &facts);
    assert_eq!(names(&ladder), [""; 0]);
    assert!(why_not(&ladder, Rung::Rescan).contains("in IOMMU group 8, and not in hand"), "{ladder:?}");
}

#[test]
fn a_rung_names_all_that_it_reaches_and_what_it_needs() {
    let facts = beside_a_bridge(VFIO);
    let found = climbed("42:00.0", RepairPolicy::Rescan, &facts);
    let of = |rung| found.rungs.iter().find(|climb| climb.rung == rung).unwrap();
    let (hot, rescan) = (of(Rung::Hot), of(Rung::Rescan));
    assert_eq!((&hot.functions[..], &hot.groups[..]), (&[bdf("42:00.0")][..], &[GroupId(7)][..]));
    assert_eq!(of(Rung::Subordinate).port, Some(bdf("41:01.0")), "the nearest one");
    assert_eq!(rescan.reason, "0000:42:00.0 is removed by itself; bus 0000:42 is scanned anew, and no other");

    let found = climbed(CARD, RepairPolicy::Rescan, &facts);
    let subordinate = found.rungs.iter().find(|climb| climb.rung == Rung::Subordinate).unwrap();
    assert_eq!(subordinate.functions, [bdf(CARD), bdf("41:01.0"), bdf("42:00.0")]);
    assert_eq!(subordinate.port, Some(bdf("00:01.0")));
    let rescan = found.rungs.iter().find(|climb| climb.rung == Rung::Rescan).unwrap();
    assert_eq!(rescan.functions, [bdf(CARD)], "another slot is another card");
}

#[test]
fn what_is_sick_on_one_card_is_climbed_for_once_and_what_is_well_not_at_all() {
    let mut facts = card(VFIO);
    facts.devices.extend(host(&[("51:00.0", &["00:02.0"], VFIO, 9), ("61:00.0", &[], VFIO, 10)]).devices);
    let all = [CARD, "41:00.1", "51:00.0", "61:00.0"];
    let ladders = all.map(|at| climbed(at, RepairPolicy::Rescan, &facts));
    let of = |rung, sick: &[&str]| -> Vec<Bdf> {
        let sick = sick.iter().map(|at| bdf(at)).collect();
        climbs(rung, &ladders, &sick).into_iter().map(|(bdf, _)| bdf).collect()
    };
    assert_eq!(of(Rung::Rescan, &all), [bdf(CARD), bdf("51:00.0"), bdf("61:00.0")]);
    assert_eq!(of(Rung::Hot, &all), [bdf(CARD), bdf("51:00.0")], "one on a root bus has no such rung");
    assert_eq!(of(Rung::Rescan, &["41:00.1"]), [bdf("41:00.1")]);
    assert_eq!(of(Rung::Rescan, &[]), []);
}

fn counted(correctable: u64) -> Reading<ErrorCounters> {
    Reading::Read(ErrorCounters { correctable, ..ErrorCounters::default() })
}

fn snapshot(own: Reading<ErrorCounters>, root: Reading<ErrorCounters>) -> Snapshot {
    let config = Reading::Read(ConfigSpace::new(&[1; 64]));
    let port = PortSnapshot { bdf: bdf("00:01.0"), config, root_port: bdf("00:01.0"), root_errors: root };
    Snapshot {
        errors: own,
        port: Some(port),
        ..Snapshot::of(bdf(CARD), "10de:2330".parse().unwrap(), &[1; 64])
    }
}

#[rstest]
#[case::counted_since(Rung::Hot, counted(5), counted(6), counted(5), counted(6))]
#[case::not_readable_while_sick(Rung::Hot, Reading::Absent, Reading::Absent, counted(1), counted(2))]
#[case::begun_anew(Rung::Rescan, counted(5), counted(6), counted(0), counted(6))]
fn a_repair_is_judged_by_the_baseline_and_by_what_was_counted_before_it(
    #[case] rung: Rung,
    #[case] own: Reading<ErrorCounters>,
    #[case] root: Reading<ErrorCounters>,
    #[case] expected: Reading<ErrorCounters>,
    #[case] expected_of_root: Reading<ErrorCounters>,
) {
    let baseline = snapshot(counted(1), counted(2));
    let mut sick = snapshot(own, root);
    sick.config = Reading::Absent;
    let found = rung.yardstick(&baseline, Some(&sick));
    assert_eq!(found, snapshot(expected, expected_of_root));
}

proptest! {
    #[test]
    fn nothing_that_is_not_in_hand_is_ever_reached(
        functions in prop::collection::btree_map(
            (0u8..3, 0u8..2, 0u8..2),
            (prop::sample::select(vec![None, VFIO, Some("nvme"), Some("pcieport")]), any::<bool>()),
            1..8,
        ),
    ) {
        let mut facts = HostFacts::default();
        for ((bus, device, function), (driver, virtual_function)) in functions {
            let at = Bdf::new(0, 0x40 + bus, device, function).unwrap();
            let upstream: Vec<Bdf> = (0..=bus).map(|above| Bdf::new(0, 0x3f + above, 1, 0).unwrap()).collect();
            let class = if driver == Some("pcieport") { 0x06_0400 } else { 0x01_0802 };
            let mut device = DeviceFacts::new("8086:1000".parse().unwrap(), ClassCode::new(class).unwrap());
            device.driver = driver.and_then(DriverName::new);
            device.group = Some(GroupId(u32::from(bus)));
            device.upstream = upstream;
            device.subordinate_reset = Presence::Present;
            if virtual_function {
                device.virtual_function = Presence::Present;
            }
            facts.devices.insert(at, device);
        }
        let ours = ours(&facts);
        for at in facts.devices.keys() {
            let found = ladder(*at, RepairPolicy::Rescan, &ours, &facts);
            prop_assert_eq!(found.rungs.len() + found.left_out.len(), Rung::ALL.len());
            prop_assert!(found.rungs.is_sorted_by_key(|climb| climb.rung));
            for climb in &found.rungs {
                let is_bridge = |bdf: &Bdf| facts.devices[bdf].class.is_pci_bridge();
                let passes = |bdf: &Bdf| {
                    ours.contains(bdf) || (climb.rung == Rung::Subordinate && is_bridge(bdf))
                };
                prop_assert!(climb.functions.iter().all(passes), "{:?}", climb);
                prop_assert!(climb.functions.contains(at), "{:?}", climb);
            }
        }
    }
}
