//! Which resets a device truly has, on hosts made for the purpose and on hosts made at random.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;

use gpuvm_core::config_space::Capabilities;
use gpuvm_core::facts::{ConfigFacts, DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::{Bdf, ClassCode, DriverName, GroupId};
use gpuvm_core::reset::plan::{Asked, Asker, affected, in_hand, planned_resets};
use gpuvm_core::reset::{
    Method, PlannedReset, ResetPlan, ResetPolicy, ResetWish, Standing, methods, reset_plan,
};
use proptest::prelude::*;
use rstest::rstest;

/// A function: where, below which bridges, on which driver, in which group, with which methods.
type Function = (&'static str, &'static [&'static str], Option<&'static str>, u32, &'static str);

const VFIO: Option<&str> = Some("vfio-pci");
const NONE: &[&str] = &[];

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn device(driver: Option<&str>, group: u32, list: &str) -> DeviceFacts {
    let mut device = DeviceFacts::new("10de:2330".parse().unwrap(), ClassCode::new(0x03_0200).unwrap());
    device.driver = driver.and_then(DriverName::new);
    device.group = Some(GroupId(group));
    device.reset_methods = list.split_whitespace().map(str::to_owned).collect();
    device.reset_method_file = Presence::Present;
    device
}

fn host(functions: &[Function]) -> HostFacts {
    let mut facts = HostFacts::default();
    for (at, upstream, driver, group, list) in functions {
        let mut device = device(*driver, *group, list);
        device.upstream = upstream.iter().map(|bridge| bdf(bridge)).collect();
        facts.devices.insert(bdf(at), device);
    }
    facts
}

/// All functions on a VFIO driver are in hand, in whichever group.
fn ours(facts: &HostFacts) -> BTreeSet<Bdf> {
    in_hand(&facts.devices.values().filter_map(|device| device.group).collect(), facts)
}

fn planned(at: &str, wish: ResetWish, facts: &HostFacts) -> ResetPlan {
    reset_plan(bdf(at), wish, &ours(facts), facts)
}

fn only(policy: ResetPolicy) -> ResetWish {
    ResetWish { policy, avoid_flr: false }
}

const AUTO: ResetWish = ResetWish { policy: ResetPolicy::Auto, avoid_flr: false };
const AVOID: ResetWish = ResetWish { policy: ResetPolicy::Auto, avoid_flr: true };

fn order(plan: &ResetPlan) -> Vec<&'static str> {
    plan.steps.iter().map(|step| step.method.name()).collect()
}

fn why_not(plan: &ResetPlan, method: &str) -> String {
    let found = plan.rejected.iter().find(|rejected| rejected.method == method);
    found.map(|rejected| rejected.reason.clone()).unwrap_or_default()
}

const PORT: &[&str] = &["00:01.0"];
const CARD: &str = "41:00.0";

/// A card of two functions below a port; the methods of its first one, and the driver of its second.
fn card(list: &'static str, audio: Option<&'static str>) -> HostFacts {
    host(&[(CARD, PORT, VFIO, 7, list), ("41:00.1", PORT, audio, 8, "pm bus")])
}

fn alone(list: &'static str) -> HostFacts {
    host(&[(CARD, PORT, VFIO, 7, list)])
}

#[rstest]
#[case::nvme_with_flr(alone("flr bus"), AUTO, &["flr", "bus", "hot"])]
#[case::edu_that_only_its_bus_resets(alone("bus"), AUTO, &["bus", "hot"])]
#[case::everything_in_the_kernels_order(
    alone("device_specific acpi flr af_flr pm bus cxl_bus"), AUTO,
    &["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus", "hot"]
)]
#[case::an_order_of_somebodys(alone("bus flr"), AUTO, &["bus", "flr", "hot"])]
#[case::gpu_with_a_bus_that_never_was(card("bus", VFIO), AUTO, &["hot"])]
#[case::gpu_with_both_in_hand(card("flr bus", VFIO), AUTO, &["flr", "hot"])]
#[case::hot_comes_before_pm_on_a_card(card("flr pm bus", VFIO), AUTO, &["flr", "hot", "pm"])]
#[case::pm_stays_where_hot_can_not_be(card("pm bus", Some("snd_hda_intel")), AUTO, &["pm"])]
#[case::gpu_without_its_audio(card("bus", Some("snd_hda_intel")), AUTO, &[])]
#[case::flr_kept_from_it(card("flr pm bus", VFIO), AVOID, &["hot", "pm"])]
#[case::both_kinds_of_flr_kept_from_it(alone("flr af_flr bus"), AVOID, &["bus", "hot"])]
#[case::nothing_but_flr_and_that_kept_from_it(card("flr bus", Some("snd_hda_intel")), AVOID, &[])]
#[case::only_flr(alone("flr pm bus"), only(ResetPolicy::Flr), &["flr"])]
#[case::only_flr_of_conventional_pci(alone("af_flr bus"), only(ResetPolicy::Flr), &["af_flr"])]
#[case::only_pm(alone("flr pm bus"), only(ResetPolicy::Pm), &["pm"])]
#[case::only_bus(alone("flr pm bus"), only(ResetPolicy::Bus), &["bus"])]
#[case::only_bus_of_a_card(card("flr pm bus", VFIO), only(ResetPolicy::Bus), &[])]
#[case::only_hot(alone("flr pm bus"), only(ResetPolicy::Hot), &["hot"])]
#[case::none(alone("flr pm bus"), only(ResetPolicy::None), &[])]
#[case::a_list_that_was_emptied(alone(""), AUTO, &["hot"])]
#[case::a_method_of_a_later_kernel(alone("flr warp"), AUTO, &["flr", "hot"])]
#[case::on_a_root_bus(host(&[(CARD, NONE, VFIO, 7, "flr bus")]), AUTO, &["flr"])]
#[case::on_a_root_bus_without_methods(host(&[(CARD, NONE, VFIO, 7, "")]), AUTO, &[])]
#[case::behind_a_switch(
    host(&[
        ("42:00.0", PORT, Some("pcieport"), 1, ""),
        ("43:00.0", &["00:01.0", "42:00.0"], Some("pcieport"), 2, ""),
        ("43:01.0", &["00:01.0", "42:00.0"], Some("pcieport"), 3, ""),
        (CARD, &["00:01.0", "42:00.0", "43:00.0"], VFIO, 7, "pm bus"),
        ("45:00.0", &["00:01.0", "42:00.0", "43:01.0"], Some("nvme"), 8, "flr bus"),
    ]),
    AUTO, &["pm", "bus", "hot"]
)]
#[case::beside_a_bridge_with_others_below(
    host(&[
        (CARD, PORT, VFIO, 7, "pm bus"),
        ("41:01.0", PORT, VFIO, 7, ""),
        ("46:00.0", &["00:01.0", "41:01.0"], Some("e1000"), 9, ""),
    ]),
    AUTO, &["pm"]
)]
fn a_device_is_reset_by_what_it_truly_has_in_order(
    #[case] facts: HostFacts,
    #[case] wish: ResetWish,
    #[case] expected: &[&str],
) {
    assert_eq!(order(&planned(CARD, wish, &facts)), expected);
}

#[rstest]
#[case::stale(card("bus", VFIO), AUTO, "bus", "0000:41:00.1 is on its bus too")]
#[case::on_another_driver(
    card("bus", Some("snd_hda_intel")),
    AUTO,
    "hot",
    "0000:41:00.1 is on snd_hda_intel, not on a vfio driver"
)]
#[case::unbound(card("bus", None), AUTO, "hot", "0000:41:00.1 has no driver")]
#[case::a_stub_is_no_vfio_driver(
    card("bus", Some("pci-stub")),
    AUTO,
    "hot",
    "0000:41:00.1 is on pci-stub, not on a vfio driver"
)]
#[case::on_a_root_bus(host(&[(CARD, NONE, VFIO, 7, "bus")]), AUTO, "hot", "bus 0000:41 is a root bus")]
#[case::avoided(alone("flr bus"), AVOID, "flr", "avoid-flr")]
#[case::not_asked_for(alone("flr bus"), only(ResetPolicy::Bus), "flr", "only bus is asked for")]
#[case::unknown(alone("warp"), AUTO, "warp", "doesn't know")]
fn what_is_rejected_says_who_is_in_the_way(
    #[case] facts: HostFacts,
    #[case] wish: ResetWish,
    #[case] method: &str,
    #[case] reason: &str,
) {
    let plan = planned(CARD, wish, &facts);
    assert!(why_not(&plan, method).contains(reason), "{plan:?}");
}

#[test]
fn a_function_on_vfio_in_a_group_of_somebody_elses_is_not_in_hand() {
    let facts = card("bus", VFIO);
    let in_hand = in_hand(&BTreeSet::from([GroupId(7)]), &facts);
    assert_eq!(in_hand, BTreeSet::from([bdf(CARD)]));
    let plan = reset_plan(bdf(CARD), AUTO, &in_hand, &facts);
    assert_eq!(order(&plan), [""; 0]);
    assert_eq!(
        why_not(&plan, "hot"),
        "it resets all of bus 0000:41, and 0000:41:00.1 is on vfio-pci, in IOMMU group 8, and not in hand"
    );
}

#[test]
fn hot_reset_names_all_functions_and_all_their_groups() {
    let plan = planned(CARD, AUTO, &card("bus", VFIO));
    assert_eq!(plan.steps[0].functions, [bdf(CARD), bdf("41:00.1")]);
    assert_eq!(plan.steps[0].groups, [GroupId(7), GroupId(8)]);
}

#[test]
fn a_virtual_function_has_neither_bus_nor_hot() {
    let mut facts = alone("flr bus");
    facts.devices.get_mut(&bdf(CARD)).unwrap().virtual_function = Presence::Present;
    let plan = planned(CARD, AUTO, &facts);
    assert_eq!(order(&plan), ["flr"]);
    assert!(why_not(&plan, "hot").contains("virtual function"), "{plan:?}");
    assert!(why_not(&plan, "bus").contains("virtual function"), "{plan:?}");
}

#[test]
fn pm_that_keeps_the_state_is_no_reset() {
    let mut facts = alone("pm");
    let capabilities = Capabilities { no_soft_reset: Some(true), ..Capabilities::default() };
    let config = ConfigFacts { capabilities, complete: Presence::Present, ..ConfigFacts::default() };
    facts.devices.get_mut(&bdf(CARD)).unwrap().config = Some(config);
    let plan = planned(CARD, AUTO, &facts);
    assert_eq!(order(&plan), ["hot"]);
    assert!(why_not(&plan, "pm").contains("keeps its state"), "{plan:?}");
}

#[rstest]
#[case::switched_off(Presence::Present, "somebody has switched them off")]
#[case::never_had_any(Presence::Absent, "the kernel lists no reset method")]
fn a_device_without_any_reset_says_so(#[case] file: Presence, #[case] words: &str) {
    let mut facts = host(&[(CARD, NONE, VFIO, 7, "")]);
    facts.devices.get_mut(&bdf(CARD)).unwrap().reset_method_file = file;
    let plan = planned(CARD, AUTO, &facts);
    assert_eq!(plan.steps, []);
    assert!(plan.reason.contains(words), "{}", plan.reason);
    assert!(plan.objections().contains("no hot: bus 0000:41 is a root bus"), "{}", plan.objections());
}

/// What is done about one device by itself.
fn done(facts: &HostFacts, wish: ResetWish) -> PlannedReset {
    let asked = [Asked { bdf: bdf(CARD), wish, by: Asker::Profile }];
    planned_resets(&asked, &ours(facts), facts).unwrap().remove(0)
}

#[rstest]
#[case::as_it_is(
    alone("flr pm bus"),
    AUTO,
    None,
    "by flr when QEMU opens it, when the guest reboots and when QEMU ends"
)]
#[case::flr(alone("flr pm bus"), only(ResetPolicy::Flr), Some(&[Method::Flr][..]), "cut down to flr")]
#[case::nothing_to_cut(alone("flr"), only(ResetPolicy::Flr), None, "by flr")]
#[case::nothing_to_cut_but_what_never_was(card("flr bus", VFIO), only(ResetPolicy::Flr), None, "by flr")]
#[case::pm_of_a_device_with_flr(card("flr pm", VFIO), only(ResetPolicy::Pm), Some(&[Method::Pm][..]), "by pm when QEMU opens it, when the guest reboots")]
#[case::pm_which_qemu_has_no_taste_for(
    card("pm bus", VFIO),
    only(ResetPolicy::Pm),
    None,
    "QEMU resets the bus"
)]
#[case::bus(alone("flr bus"), only(ResetPolicy::Bus), Some(&[Method::Bus][..]), "by bus")]
#[case::flr_avoided_on_a_card(card("flr bus", VFIO), AVOID, Some(&[][..]), "QEMU resets the bus")]
#[case::flr_avoided_with_pm_left(card("flr pm bus", VFIO), AVOID, Some(&[Method::Pm][..]), "cut down to pm")]
#[case::no_flr_to_avoid(alone("bus"), AVOID, None, "by bus")]
#[case::hot(alone("flr bus"), only(ResetPolicy::Hot), Some(&[][..]), "once more when QEMU has ended")]
#[case::none(alone("flr bus"), only(ResetPolicy::None), Some(&[][..]), "nobody can turn that off")]
#[case::none_of_what_has_none(host(&[(CARD, NONE, VFIO, 7, "")]), only(ResetPolicy::None), None, "nothing resets it")]
fn up_cuts_the_kernels_list_down_to_what_is_asked_for_and_only_where_that_changes_something(
    #[case] facts: HostFacts,
    #[case] wish: ResetWish,
    #[case] left: Option<&[Method]>,
    #[case] words: &str,
) {
    let reset = done(&facts, wish);
    assert_eq!(reset.methods.as_deref(), left);
    assert_eq!(reset.after_run.is_some(), wish.policy == ResetPolicy::Hot);
    assert!(reset.reason.contains(words), "{}", reset.reason);
}

#[rstest]
#[case::pm_of_what_has_none(alone("flr bus"), ResetPolicy::Pm, "no pm: the kernel lists only flr, bus")]
#[case::bus_of_a_card(card("flr bus", VFIO), ResetPolicy::Bus, "no bus: listed, but the kernel refuses it")]
#[case::hot_with_one_of_two(
    card("flr bus", Some("snd_hda_intel")),
    ResetPolicy::Hot,
    "0000:41:00.1 is on snd_hda_intel"
)]
#[case::flr_switched_off(alone(""), ResetPolicy::Flr, "no flr: its list of reset methods is empty")]
fn up_refuses_what_the_device_can_not_have(
    #[case] facts: HostFacts,
    #[case] policy: ResetPolicy,
    #[case] reason: &str,
) {
    let asked = [Asked { bdf: bdf(CARD), wish: only(policy), by: Asker::Profile }];
    let refused = planned_resets(&asked, &ours(&facts), &facts).unwrap_err();
    assert!(refused[0].reason.contains(reason), "{refused:?}");
}

#[test]
fn a_card_is_reset_once_after_the_run() {
    let facts = card("flr bus", VFIO);
    let wish = only(ResetPolicy::Hot);
    let card_of = Asker::CardOf(bdf(CARD));
    let asked = [
        Asked { bdf: bdf(CARD), wish, by: Asker::Profile },
        Asked { bdf: bdf("41:00.1"), wish, by: card_of },
    ];
    let planned = planned_resets(&asked, &ours(&facts), &facts).unwrap();
    assert_eq!(planned.iter().map(|reset| reset.after_run.is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!(planned[1].methods.as_deref(), Some(&[][..]), "the card's other function is cut down too");
}

#[test]
fn a_card_in_two_minds_is_refused() {
    let facts = card("flr bus", VFIO);
    let ask = |at: &str, policy| Asked { bdf: bdf(at), wish: only(policy), by: Asker::Profile };
    let asked = [ask(CARD, ResetPolicy::Hot), ask("41:00.1", ResetPolicy::None)];
    let refused = planned_resets(&asked, &ours(&facts), &facts).unwrap_err();
    assert_eq!(refused[0].reason, "it resets 0000:41:00.1 too, whose reset is to be none");
}

#[test]
fn a_function_that_came_along_gets_what_it_can_have() {
    let facts = card("flr bus", VFIO);
    let asked = [Asked { bdf: bdf("41:00.1"), wish: only(ResetPolicy::Flr), by: Asker::CardOf(bdf(CARD)) }];
    let planned = planned_resets(&asked, &ours(&facts), &facts).unwrap();
    assert_eq!(planned[0].wish.policy, ResetPolicy::Auto);
    assert!(planned[0].reason.starts_with("it can't be by flr, as 0000:41:00.0 is"), "{}", planned[0].reason);
}

fn some_wish() -> impl Strategy<Value = ResetWish> {
    use ResetPolicy::{Auto, Bus, Flr, Hot, None, Pm};
    (prop::sample::select(vec![Auto, Flr, Pm, Bus, Hot, None]), any::<bool>())
        .prop_map(|(policy, avoid_flr)| ResetWish { policy, avoid_flr })
}

/// Hosts of a few functions on a few buses, some of them behind bridges on others.
fn some_host() -> impl Strategy<Value = HostFacts> {
    const NAMES: &[&str] = &["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus", "warp"];
    let drivers = prop::sample::select(vec![VFIO, Some("nvidia"), Some("pcieport"), Some("pci-stub"), None]);
    let function = (
        (1u8..4, 0u8..2, 0u8..3),
        prop::collection::vec(prop::sample::select(NAMES), 0..4),
        drivers,
        (prop::option::of(1u32..4), prop::option::of(any::<bool>()), any::<bool>()),
        prop::collection::vec(0u8..4, 0..3),
    );
    prop::collection::vec(function, 1..8).prop_map(|functions| {
        let mut facts = HostFacts::default();
        for ((bus, slot, function), list, driver, (group, keeps, virtual_one), upstream) in functions {
            let mut device = device(driver, 0, &list.join(" "));
            device.group = group.map(GroupId);
            device.virtual_function = if virtual_one { Presence::Present } else { Presence::Absent };
            device.upstream = upstream.iter().filter_map(|bus| Bdf::new(0, *bus, 1, 0)).collect();
            let capabilities = Capabilities { no_soft_reset: keeps, ..Capabilities::default() };
            device.config = Some(ConfigFacts { capabilities, ..ConfigFacts::default() });
            facts.devices.insert(Bdf::new(0, bus, slot, function).unwrap(), device);
        }
        facts
    })
}

proptest! {
    #[test]
    fn every_step_is_one_that_can_be(facts in some_host(), wish in some_wish()) {
        let in_hand = ours(&facts);
        for (bdf, device) in &facts.devices {
            let plan = reset_plan(*bdf, wish, &in_hand, &facts);
            for step in &plan.steps {
                let listed = methods(*bdf, &facts).into_iter().find(|listed| listed.name == step.method.name());
                prop_assert!(step.method == Method::Hot || listed.is_some(), "{:?} isn't listed", step);
                prop_assert!(listed.is_none_or(|listed| listed.standing == Standing::Usable), "{:?} is stale", step);
                prop_assert!(step.functions.contains(bdf));
                prop_assert!(!(wish.avoid_flr && step.method.is_flr()));
                if step.method == Method::Hot {
                    prop_assert_eq!(&step.functions, &affected(*bdf, &facts));
                    prop_assert!(step.functions.iter().all(|function| in_hand.contains(function)));
                    prop_assert!(!device.upstream.is_empty() && device.virtual_function == Presence::Absent);
                    let groups: BTreeSet<_> = step.functions.iter().map(|f| facts.devices[f].group.unwrap()).collect();
                    prop_assert_eq!(step.groups.iter().copied().collect::<BTreeSet<_>>(), groups);
                }
            }
            let named: Vec<String> = plan.steps.iter().map(|step| step.method.to_string())
                .chain(plan.rejected.iter().map(|rejected| rejected.method.clone())).collect();
            for name in device.reset_methods.iter().map(String::as_str).chain(["hot"]) {
                prop_assert!(named.iter().any(|named| named == name), "nothing is said of {}", name);
            }
            prop_assert!(!plan.reason.is_empty() && plan.rejected.iter().all(|rejected| !rejected.reason.is_empty()));
        }
    }

    #[test]
    fn a_list_is_only_ever_cut_down_to_a_part_of_what_works(facts in some_host(), wish in some_wish()) {
        let in_hand = ours(&facts);
        for bdf in facts.devices.keys() {
            let asked = [Asked { bdf: *bdf, wish, by: Asker::Profile }];
            let Ok(planned) = planned_resets(&asked, &in_hand, &facts) else { continue };
            let Some(left) = &planned[0].methods else { continue };
            let works: Vec<Method> = methods(*bdf, &facts).iter()
                .filter(|listed| listed.standing == Standing::Usable)
                .filter_map(|listed| Method::of_kernel(&listed.name)).collect();
            prop_assert!(left.len() < works.len() && left.iter().all(|method| works.contains(method)));
        }
    }
}
