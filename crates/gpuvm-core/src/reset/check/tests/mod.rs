//! The checks against recorded and made snapshots, each a file below `tests/snapshots`.
//!
//! `made/` is written by `GPUVM_BLESS=1 cargo test -p gpuvm-core reset`, from the cases below `made/`; what is to come of each is
//! written there by hand. `lab/` was recorded.

mod card;
mod made;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rstest::rstest;
use serde::{Deserialize, Serialize};

use super::super::{ConfigSpace, Reading};
use super::*;
use card::{Pair, pair};

/// A file: two snapshots, and what is to come of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recording {
    /// What has happened.
    about: String,
    /// Where it is from: `lab`, or a part of vfio-facts.md.
    source: String,
    before: Snapshot,
    after: Snapshot,
    heard: Heard,
    /// What is to come of it.
    verdict: Verdict,
    /// The checks that are to find something, in any order.
    checks: Vec<Check>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/snapshots")
}

/// Reads all files, by their path below the folder.
#[expect(clippy::disallowed_methods, reason = "tests read their files")]
fn recordings() -> BTreeMap<String, Recording> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let recording =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let name = path.strip_prefix(folder()).unwrap().with_extension("").display().to_string();
            assert!(found.insert(name, recording).is_none(), "{} is there twice", path.display());
        }
    }
    found
}

fn outcome(checks: &[Entry], recording: &Recording) -> (Verdict, Vec<Check>) {
    let Recording { before, after, heard, .. } = recording;
    let judgement = judge_by(checks, &Comparison::new(before, after, Some(heard)));
    let mut found: Vec<_> = judgement.findings.iter().map(|finding| finding.check).collect();
    found.sort_unstable();
    found.dedup();
    (judgement.verdict, found)
}

fn expected(recording: &Recording) -> (Verdict, Vec<Check>) {
    let mut checks = recording.checks.clone();
    checks.sort_unstable();
    (recording.verdict, checks)
}

#[test]
fn each_snapshot_gets_its_verdict_and_its_findings() {
    let recordings = recordings();
    let wrong: Vec<String> = recordings
        .iter()
        .filter(|(_, recording)| outcome(CHECKS, recording) != expected(recording))
        .map(|(name, recording)| {
            let found = judge(&recording.before, &recording.after, &recording.heard);
            let found: Vec<String> = found.findings.iter().map(ToString::to_string).collect();
            let (got, wanted) = (outcome(CHECKS, recording), expected(recording));
            format!("{name}:\n  wanted {wanted:?}\n  got    {got:?}\n  {}", found.join("\n  "))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), recordings.len(), wrong.join("\n"));
    let of_lab = recordings.values().filter(|recording| recording.source == "lab").count();
    assert!(recordings.len() >= 60 && of_lab >= 15, "{} files, {of_lab} of the lab", recordings.len());
}

#[test]
fn without_any_one_check_a_snapshot_is_judged_otherwise() {
    let recordings = recordings();
    for (check, _) in CHECKS {
        let without: Vec<_> = CHECKS.iter().filter(|(other, _)| other != check).copied().collect();
        let changed =
            recordings.values().any(|recording| outcome(&without, recording) != expected(recording));
        assert!(changed, "nobody misses {check:?}");
    }
}

#[test]
fn each_check_that_bears_on_the_verdict_decides_one_alone() {
    // What is only worth knowing.
    let light = [
        Check::Status,
        Check::PowerPolicy,
        Check::LinkSpeed,
        Check::CountersBegunAnew,
        Check::DeviceStatus,
        Check::ResetMethods,
    ];
    let recordings = recordings();
    for (check, _) in CHECKS.iter().filter(|(check, _)| !light.contains(check)) {
        let without: Vec<_> = CHECKS.iter().filter(|(other, _)| other != check).copied().collect();
        let worse = |recording: &Recording| outcome(&without, recording).0 != recording.verdict;
        assert!(recordings.values().any(worse), "without {check:?} no verdict changes");
    }
}

#[test]
fn each_check_finds_under_its_own_name_and_is_there_once() {
    let recordings = recordings();
    for (index, (check, find)) in CHECKS.iter().enumerate() {
        assert!(CHECKS[..index].iter().all(|(other, _)| other != check), "{check:?} is there twice");
        assert_eq!(serde_json::to_value(check).unwrap(), check.name());
        for (name, recording) in &recordings {
            let at = Comparison::new(&recording.before, &recording.after, Some(&recording.heard));
            let found = find(&at);
            assert!(found.iter().all(|finding| finding.check == *check), "{name}: {check:?} finds {found:?}");
        }
    }
}

/// Makes the file of a case.
fn recording(case: &made::Case) -> Recording {
    let made::Case(_, about, source, change, verdict, checks) = case;
    let mut pair = pair();
    change(&mut pair);
    let Pair { before, after, heard } = pair;
    let [about, source] = [about, source].map(|text| (*text).to_owned());
    Recording { about, source, before, after, heard, verdict: *verdict, checks: checks.to_vec() }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests write their files when they are told to")]
fn made_snapshots_are_those_of_the_cases() {
    let cases = [made::PRESENCE, made::REGISTERS, made::LINK, made::ERRORS, made::LOG, made::UNREAD].concat();
    if std::env::var_os("GPUVM_BLESS").is_some() {
        let folder = folder().join("made");
        fs::create_dir_all(&folder).unwrap();
        for case in &cases {
            let text = serde_json::to_string_pretty(&recording(case)).unwrap() + "\n";
            fs::write(folder.join(format!("{}.json", case.0)), text).unwrap();
        }
    }
    let files: BTreeMap<_, _> =
        recordings().into_iter().filter(|(name, _)| name.starts_with("made/")).collect();
    let made: BTreeMap<_, _> =
        cases.iter().map(|case| (format!("made/{}", case.0), recording(case))).collect();
    assert_eq!(made.len(), cases.len(), "a name is there twice");
    let orphans: Vec<_> = files.keys().filter(|name| !made.contains_key(*name)).collect();
    assert!(orphans.is_empty(), "no case makes {orphans:?}");
    for (name, case) in made {
        assert_eq!(files.get(&name), Some(&case), "{name} isn't what its case makes");
    }
}

#[rstest]
#[case::well(|_: &mut Snapshot| {}, Verdict::Healthy)]
#[case::asleep(|card: &mut Snapshot| card.sleeps(), Verdict::Healthy)]
#[case::ones(|card: &mut Snapshot| card.fill(0xff), Verdict::Unreachable)]
#[case::other_ids_than_the_kernel_knows(|card: &mut Snapshot| card.put(0, &[0x86, 0x80]), Verdict::Impaired)]
#[case::registers_lost(|card: &mut Snapshot| card.put(card::BAR_0, &[0; 4]), Verdict::Impaired)]
#[case::errors_of_old(|card: &mut Snapshot| card.counted(9, 9, 9), Verdict::Healthy)]
#[case::header_only(|card: &mut Snapshot| card.cut(64), Verdict::Unknown)]
#[case::gone(|card: &mut Snapshot| card.config = Reading::Absent, Verdict::Unreachable)]
#[case::unread(|card: &mut Snapshot| card.config = Reading::Unread("no".to_owned()), Verdict::Unknown)]
#[case::power_unread(|card: &mut Snapshot| card.power_state = Reading::Unread("no".to_owned()), Verdict::Unknown)]
fn one_snapshot_is_held_against_what_the_kernel_believes(
    #[case] change: fn(&mut Snapshot),
    #[case] verdict: Verdict,
) {
    let mut card = pair().after;
    change(&mut card);
    assert_eq!(inspect(&card).verdict, verdict, "{:?}", inspect(&card));
}

#[rstest]
#[case::not_a_second("ready 1000ms after FLR", Verdict::Healthy)]
#[case::a_second_and_more("ready 1001ms after FLR", Verdict::Degraded)]
fn a_reset_is_slow_above_a_second(#[case] said: &str, #[case] verdict: Verdict) {
    let mut pair = pair();
    pair.said(&[&format!("vfio-pci 0000:81:00.0: {said}")]);
    assert_eq!(judge(&pair.before, &pair.after, &pair.heard).verdict, verdict);
}

#[rstest]
#[case::of_64_bytes(64, Verdict::Unknown)]
#[case::of_255_bytes(255, Verdict::Unknown)]
#[case::of_256_bytes(256, Verdict::Healthy)]
#[case::too_short(63, Verdict::Unreachable)]
#[case::empty(0, Verdict::Unreachable)]
fn a_config_space_without_capabilities_is_no_healthy_one(#[case] length: usize, #[case] verdict: Verdict) {
    let mut card = pair().after;
    card.cut(length);
    assert_eq!(inspect(&card).verdict, verdict);
}

#[test]
fn a_finding_names_register_before_and_after() {
    let mut pair = pair();
    pair.after.put(card::BAR_0, &[0; 4]);
    let judgement = judge(&pair.before, &pair.after, &pair.heard);
    let text = "config 0x10 BAR 0 of 0000:81:00.0: 0x0, was 0xe0000000: it has lost its address, as in a reset after which nobody has restored it";
    assert_eq!(judgement.reason().unwrap().to_string(), text);
}

#[test]
fn many_lines_of_a_kind_are_one_finding() {
    let mut pair = pair();
    let line = |n: u32| format!("DMAR: [DMA Read NO_PASID] Request device [81:00.0] fault addr {n:#x}");
    pair.heard = Heard::Said((0..100).map(line).collect());
    let judgement = judge(&pair.before, &pair.after, &pair.heard);
    assert_eq!(judgement.findings.len(), 1);
    assert_eq!(judgement.findings[0].after, format!("{} (and 99 more like it)", line(99)));
}

#[test]
fn an_ide_controllers_ports_of_old_are_not_in_its_registers() {
    let mut card = pair().after;
    card.put(0x09, &[0x80, 0x01, 0x01]);
    card.put(card::BAR_0, &[0; 4]);
    assert_eq!(inspect(&card).verdict, Verdict::Healthy);
    card.put(0x09, &[0x81]);
    assert_eq!(inspect(&card).verdict, Verdict::Impaired);
}

/// Makes one thing of a snapshot unread.
fn spoil(card: &mut Snapshot, which: usize) {
    let why = || "no".to_owned();
    match which {
        0 => card.id = Reading::Unread(why()),
        1 => card.config = Reading::Unread(why()),
        2 => card.bars = Reading::Unread(why()),
        3 => card.power_state = Reading::Unread(why()),
        4 => card.power = Reading::Unread(why()),
        5 => card.errors = Reading::Unread(why()),
        6 => card.reset_methods = Reading::Unread(why()),
        7 => card.port.as_mut().unwrap().config = Reading::Unread(why()),
        _ => card.port.as_mut().unwrap().root_errors = Reading::Unread(why()),
    }
}

#[rstest]
fn what_is_unread_before_or_after_is_never_healthy(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] which: usize,
    #[values(false, true)] was_there: bool,
    #[values(false, true)] after: bool,
) {
    let mut pair = pair();
    if !was_there {
        // The other snapshot has no such thing, or hangs elsewhere.
        let other = if after { &mut pair.before } else { &mut pair.after };
        (other.errors, other.power, other.reset_methods) =
            (Reading::Absent, Reading::Absent, Reading::Absent);
        other.port = None;
    }
    spoil(if after { &mut pair.after } else { &mut pair.before }, which);
    let judgement = judge(&pair.before, &pair.after, &pair.heard);
    assert!(judgement.verdict >= Verdict::Unknown, "{judgement:?}");
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(
        before in prop::collection::vec(any::<u8>(), 0..600),
        after in prop::collection::vec(any::<u8>(), 0..600),
        port in prop::collection::vec(any::<u8>(), 0..600),
        list: bool,
    ) {
        let mut pair = pair();
        let config = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            if list && bytes.len() > 0x34 {
                (bytes[0x06], bytes[0x34]) = (0x10, bytes[0x34] | 0x40);
            }
            Reading::Read(ConfigSpace::new(&bytes))
        };
        (pair.before.config, pair.after.config) = (config(&before), config(&after));
        pair.after.port.as_mut().unwrap().config = config(&port);
        let judgement = judge(&pair.before, &pair.after, &pair.heard);
        let worst = judgement.findings.iter().filter_map(|finding| finding.weight).max();
        prop_assert_eq!(judgement.verdict, worst.unwrap_or(Verdict::Healthy));
        let _ = inspect(&pair.after);
    }

    #[test]
    fn ones_are_unreachable_whatever_else_is_well(length in 0usize..4097, is_virtual: bool) {
        let mut pair = pair();
        if is_virtual {
            pair.both(|card| card.is_virtual());
        }
        pair.after.config = Reading::Read(ConfigSpace::new(&vec![0xff; length]));
        prop_assert_eq!(judge(&pair.before, &pair.after, &pair.heard).verdict, Verdict::Unreachable);
        prop_assert_eq!(inspect(&pair.after).verdict, Verdict::Unreachable);
    }

    #[test]
    fn what_is_unread_is_not_healthy_however_much_is(which in prop::collection::vec((0usize..9, any::<bool>()), 1..6)) {
        let mut pair = pair();
        for (which, after) in which {
            spoil(if after { &mut pair.after } else { &mut pair.before }, which);
        }
        prop_assert!(judge(&pair.before, &pair.after, &pair.heard).verdict >= Verdict::Unknown);
    }
}
