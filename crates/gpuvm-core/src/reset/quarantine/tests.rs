use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::lifecycle::{Exit, Outcome, Stage};
use crate::reset::repair::{Climbed, Rung};
use crate::reset::{Check, Finding, Grounds, Method};

const FINDING: &str = "config 0x00 of 0000:41:00.0: 0xffffffff: it reads all ones";

fn device() -> Identity {
    Identity {
        id: "10de:2330".parse().unwrap(),
        subsystem: None,
        serial: Some(7),
        bdf: "41:00.0".parse().unwrap(),
    }
}

fn judgement(verdict: Verdict) -> Judgement {
    let finding = Finding {
        check: Check::AllOnes,
        weight: Some(verdict),
        bdf: device().bdf,
        register: "config 0x00".to_owned(),
        before: None,
        after: "0xffffffff".to_owned(),
        meaning: "it reads all ones".to_owned(),
    };
    Judgement { verdict, findings: if verdict == Verdict::Healthy { Vec::new() } else { vec![finding] } }
}

fn run_ended(verdict: Verdict, outcome: Option<Outcome>) -> Deed {
    let vm = crate::profile::VmName::new("win").unwrap();
    Deed::Run { vm, qemu: None, outcome, ms: 5, judgement: judgement(verdict) }
}

fn run(verdict: Verdict) -> Deed {
    run_ended(verdict, Some(Outcome::PoweredOff))
}

fn reset(verdict: Verdict) -> Deed {
    Deed::Reset { method: Method::Flr, ms: 102, failure: None, judgement: judgement(verdict) }
}

fn failed_reset(verdict: Verdict) -> Deed {
    let failure = Some("Inappropriate ioctl for device".to_owned());
    Deed::Reset { method: Method::Bus, ms: 1002, failure, judgement: judgement(verdict) }
}

fn repair(before: Before, verdict: Verdict, failure: Option<&str>) -> Deed {
    let failure = failure.map(str::to_owned);
    Deed::Repair {
        before,
        climbed: Climbed { rung: Rung::Hot, ms: 118, failure, judgement: judgement(verdict) },
    }
}

/// A rung frees what was sick and has come back well, and nothing that it has merely reached.
#[rstest]
#[case::helped(Before::Sick, Verdict::Healthy, None, false)]
#[case::helped_somewhat(Before::Sick, Verdict::Degraded, None, false)]
#[case::failed(Before::Sick, Verdict::Healthy, Some("no"), true)]
#[case::unread(Before::Sick, Verdict::Unknown, None, true)]
#[case::still_sick(Before::Sick, Verdict::Unreachable, None, true)]
#[case::only_reached(Before::Well, Verdict::Healthy, None, true)]
fn a_rung_frees_what_was_sick(
    #[case] before: Before,
    #[case] verdict: Verdict,
    #[case] failure: Option<&str>,
    #[case] held: bool,
) {
    let deeds = [run(Verdict::Unreachable), repair(before, verdict, failure)];
    assert_eq!(quarantine(&entries(deeds)).is_some(), held);
    let words = serde_json::to_value(repair(before, verdict, failure)).unwrap();
    assert_eq!(words.get("before").is_some(), before == Before::Well, "older entries are of what was sick");
    assert_eq!(serde_json::from_value::<Deed>(words).unwrap(), repair(before, verdict, failure));
}

fn cleared(grounds: Grounds) -> Deed {
    Deed::Cleared { grounds }
}

fn newer(fields: Value) -> Deed {
    Deed::Newer(fields.as_object().unwrap().clone())
}

/// Puts deeds on one line after another, the clock going on by a second each time.
fn entries(deeds: impl IntoIterator<Item = Deed>) -> Vec<Entry> {
    let entry = |(at, deed): (u64, Deed)| Entry {
        at: 100 + at,
        boot_id: "b".to_owned(),
        kernel: "6.1".to_owned(),
        device: device(),
        driver: None,
        deed,
    };
    (0u64..).zip(deeds).map(entry).collect()
}

#[rstest]
#[case::nothing(vec![], None)]
#[case::well(vec![run(Verdict::Healthy)], None)]
#[case::degraded(vec![run(Verdict::Degraded)], None)]
#[case::unknown(vec![run(Verdict::Unknown)], None)]
#[case::bad_run(vec![run(Verdict::Healthy), run(Verdict::Unreachable)], Some((101, false)))]
#[case::bad_reset(vec![reset(Verdict::Impaired)], Some((100, false)))]
#[case::failed_reset_of_a_well_device(vec![failed_reset(Verdict::Healthy)], None)]
#[case::good_run_lifts_nothing(vec![run(Verdict::Faulted), run(Verdict::Healthy)], Some((100, false)))]
#[case::good_reset(vec![run(Verdict::Faulted), reset(Verdict::Healthy)], Some((100, true)))]
#[case::reset_to_degraded(vec![run(Verdict::Faulted), reset(Verdict::Degraded)], Some((100, true)))]
#[case::reset_to_unknown(vec![run(Verdict::Faulted), reset(Verdict::Unknown)], Some((100, false)))]
#[case::failed_reset(vec![run(Verdict::Faulted), failed_reset(Verdict::Healthy)], Some((100, false)))]
#[case::failed_after_a_good_one(
    vec![run(Verdict::Faulted), reset(Verdict::Healthy), failed_reset(Verdict::Healthy)],
    Some((100, true))
)]
#[case::bad_after_a_good_reset(
    vec![run(Verdict::Faulted), reset(Verdict::Healthy), run(Verdict::Unreachable)],
    Some((102, false))
)]
#[case::cleared(vec![run(Verdict::Faulted), cleared(Grounds::Accepted)], None)]
#[case::bad_after_a_clear(
    vec![run(Verdict::Faulted), reset(Verdict::Healthy), cleared(Grounds::GoodReset), run(Verdict::Impaired)],
    Some((103, false))
)]
#[case::good_reset_before_the_bad_run(vec![reset(Verdict::Healthy), run(Verdict::Faulted)], Some((101, false)))]
#[case::guest_killed(
    vec![run_ended(Verdict::Healthy, Some(Outcome::Stopped { stage: Stage::Kill }))], None
)]
#[case::qemu_crashed(
    vec![run_ended(Verdict::Healthy, Some(Outcome::QemuDied { exit: Exit::Signal(11) }))], None
)]
#[case::launcher_died(vec![run_ended(Verdict::Unreachable, None)], Some((100, false)))]
fn entries_come_to_a_quarantine(#[case] deeds: Vec<Deed>, #[case] expected: Option<(u64, bool)>) {
    let found = quarantine(&entries(deeds));
    assert_eq!(found.as_ref().map(|found| (found.since, found.reset_since)), expected);
    if let Some(found) = found {
        assert_eq!(found.finding, FINDING);
        assert!(found.verdict.is_some_and(Verdict::is_bad));
    }
}

#[rstest]
#[case::cleared_on_new_grounds(json!({"deed": "cleared", "grounds": "replaced"}), Effect::Cleared)]
#[case::something_else(json!({"deed": "moved", "to": "rack 4"}), Effect::Nothing)]
#[case::well_in_a_new_way(json!({"deed": "soak", "judgement": {"verdict": "healthy"}}), Effect::Nothing)]
#[case::good_reset_by_a_new_method(
    json!({"deed": "reset", "method": "teleport", "judgement": {"verdict": "healthy", "findings": []}}), Effect::Nothing
)]
#[case::bad_with_a_new_check(
    json!({"deed": "run", "judgement": {"verdict": "faulted", "findings": [
        {"check": "thermal", "register": "t", "bdf": "0000:41:00.0", "after": "120", "meaning": "it glows"}
    ]}}),
    Effect::Bad { verdict: Some(Verdict::Faulted), finding: "t of 0000:41:00.0: 120: it glows".to_owned() }
)]
#[case::a_new_verdict(
    json!({"deed": "run", "judgement": {"verdict": "burnt"}}),
    Effect::Bad { verdict: None, finding: "a newer gpuvm found it `burnt`".to_owned() }
)]
#[case::no_verdict(
    json!({"deed": "run", "judgement": 4}),
    Effect::Bad { verdict: None, finding: "a newer gpuvm found it `?`".to_owned() }
)]
fn what_a_newer_gpuvm_wrote_is_kept_and_harmless_only_where_that_is_known(
    #[case] fields: Value,
    #[case] expected: Effect,
) {
    let head = json!({"at": 1, "device": device(), "new": {"field": [1]}});
    let mut line = head.as_object().unwrap().clone();
    line.extend(fields.as_object().unwrap().clone());
    let entry: Entry = serde_json::from_value(Value::Object(line.clone())).unwrap();
    assert!(matches!(entry.deed, Deed::Newer(_)), "{entry:?}");
    assert_eq!(effect(&entry.deed), expected);
    let again = serde_json::to_value(&entry).unwrap();
    for (key, value) in line {
        assert_eq!(again[&key], value, "{key}");
    }
}

#[test]
fn a_bad_verdict_without_a_finding_is_one_all_the_same() {
    let bare = Judgement { verdict: Verdict::Impaired, findings: Vec::new() };
    let deed = Deed::Reset { method: Method::Flr, ms: 1, failure: None, judgement: bare };
    assert!(quarantine(&entries([deed])).unwrap().finding.contains("impaired"));
}

#[test]
fn a_field_that_a_newer_gpuvm_added_is_no_trouble() {
    let entry = &entries([run(Verdict::Unreachable)])[0];
    let mut line = serde_json::to_value(entry).unwrap();
    line["temperature"] = json!(91);
    assert_eq!(&serde_json::from_value::<Entry>(line).unwrap(), entry);
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    proptest::sample::select(vec![
        Verdict::Healthy,
        Verdict::Degraded,
        Verdict::Unknown,
        Verdict::Impaired,
        Verdict::Faulted,
        Verdict::Unreachable,
    ])
}

fn any_deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        any_verdict().prop_map(run),
        any_verdict().prop_map(reset),
        any_verdict().prop_map(failed_reset),
        Just(cleared(Grounds::Accepted)),
        Just(newer(json!({"deed": "cleared", "grounds": "replaced"}))),
        Just(newer(json!({"deed": "run", "judgement": {"verdict": "burnt"}}))),
        Just(newer(json!({"deed": "moved"}))),
    ]
}

/// What a device's quarantine is without when it was written.
fn standing(entries: &[Entry]) -> Option<(String, bool)> {
    quarantine(entries).map(|found| (found.finding, found.reset_since))
}

proptest! {
    #[test]
    fn entries_survive_being_written(deeds in proptest::collection::vec(any_deed(), 0..6)) {
        for entry in entries(deeds) {
            let text = serde_json::to_string(&entry).unwrap();
            prop_assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
        }
    }

    #[test]
    fn a_clear_lifts_and_a_bad_verdict_quarantines_whatever_was_before(
        deeds in proptest::collection::vec(any_deed(), 0..20),
        verdict in any_verdict(),
    ) {
        let with = |last| quarantine(&entries(deeds.iter().cloned().chain([last])));
        prop_assert_eq!(with(cleared(Grounds::GoodReset)), None);
        prop_assert_eq!(with(cleared(Grounds::Accepted)), None);
        if verdict.is_bad() {
            prop_assert!(with(run(verdict)).is_some_and(|found| !found.reset_since));
            prop_assert!(with(failed_reset(verdict)).is_some_and(|found| !found.reset_since));
        } else {
            prop_assert_eq!(with(run(verdict)), quarantine(&entries(deeds.clone())), "a run changes nothing");
        }
    }

    #[test]
    fn what_was_before_the_last_clear_counts_for_nothing(
        before in proptest::collection::vec(any_deed(), 0..20),
        after in proptest::collection::vec(any_deed(), 0..20),
    ) {
        let all = before.into_iter().chain([cleared(Grounds::Accepted)]).chain(after.clone());
        prop_assert_eq!(standing(&entries(all)), standing(&entries(after)));
    }

    #[test]
    fn the_clock_decides_nothing(
        deeds in proptest::collection::vec(any_deed(), 0..20),
        clock in proptest::collection::vec(any::<u64>(), 20),
    ) {
        let straight = entries(deeds);
        let mut jumping = straight.clone();
        jumping.iter_mut().zip(clock).for_each(|(entry, at)| entry.at = at);
        prop_assert_eq!(standing(&straight), standing(&jumping));
    }

    #[test]
    fn leaving_the_oldest_out_changes_no_quarantine(
        deeds in proptest::collection::vec(any_deed(), 0..40),
        limit in 0usize..40,
    ) {
        let all = entries(deeds);
        let keep = kept(&all, limit);
        prop_assert_eq!(keep.len(), all.len());
        let left: Vec<Entry> = all.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(entry, _)| entry.clone()).collect();
        prop_assert_eq!(quarantine(&left), quarantine(&all));
        prop_assert!(left.len() <= limit + 2);
        prop_assert!(keep.iter().rev().take(limit).all(|keep| *keep), "the newest stay");
    }
}
