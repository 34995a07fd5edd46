//! The ledger: files that are cut, damaged, written by two at once or grown too long, and cards that don't say who they are.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use gpuvm_core::facts::{ConfigFacts, DeviceFacts, HostFacts, Presence};
use gpuvm_core::pci::{Bdf, ClassCode};
use gpuvm_core::reset::{
    Check, Deed, Entry, Finding, Grounds, Identity, Judgement, Method, Snapshot, Verdict, quarantine,
};
use gpuvm_host::ledger::{self, Acceptance, Clearing, Ledger, Standing};
use gpuvm_host::places::Places;
use gpuvm_host::root::HostRoot;
use gpuvm_testkit::fake_host::{FakeHost, gpu};
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

const CARD: &str = "10de:2330";
const HERE: &str = "0000:41:00.0";
const THERE: &str = "0000:81:00.0";

fn places() -> (TempDir, Places) {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::below(dir.path());
    (dir, places)
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

fn device(serial: Option<u64>, at: &str) -> Identity {
    Identity { id: CARD.parse().unwrap(), subsystem: None, serial, bdf: bdf(at) }
}

fn entry(device: &Identity, verdict: Verdict, at: u64) -> Entry {
    let finding = Finding {
        check: Check::AllOnes,
        weight: Some(verdict),
        bdf: device.bdf,
        register: "config 0x00".to_owned(),
        before: None,
        after: "0xffffffff".to_owned(),
        meaning: "it reads all ones".to_owned(),
    };
    let findings = if verdict == Verdict::Healthy { Vec::new() } else { vec![finding] };
    let judgement = Judgement { verdict, findings };
    Entry {
        at,
        boot_id: "boot-1".to_owned(),
        kernel: "6.1.0".to_owned(),
        device: device.clone(),
        driver: None,
        deed: Deed::Reset { method: Method::Flr, ms: 102, failure: None, judgement },
    }
}

/// A host on which one such card is seen, its config space read.
fn seen(serial: Option<u64>, at: &str) -> HostFacts {
    let mut card = DeviceFacts::new(CARD.parse().unwrap(), ClassCode::new(0x03_0200).unwrap());
    let mut config = ConfigFacts { complete: Presence::Present, ..ConfigFacts::default() };
    config.capabilities.serial = serial;
    card.config = Some(config);
    let mut facts = HostFacts::default();
    facts.devices.insert(bdf(at), card);
    facts
}

fn standing(places: &Places, facts: &HostFacts) -> Standing {
    ledger::quarantined(places, &HostRoot::new("/nowhere"), facts).unwrap()
}

/// The only file.
fn file(places: &Places) -> PathBuf {
    let files: Vec<PathBuf> =
        fs::read_dir(places.ledger()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn only(places: &Places) -> Ledger {
    let all = ledger::all(places).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

#[test]
fn entries_are_read_in_the_order_in_which_they_were_written() {
    let (_dir, places) = places();
    let device = device(Some(7), HERE);
    // The clock jumps back in between.
    let written: Vec<Entry> =
        [500, 600, 3, 4].map(|at| entry(&device, Verdict::Healthy, at)).into_iter().collect();
    written.iter().for_each(|entry| ledger::record(&places, entry).unwrap());
    assert_eq!(ledger::history(&places, &device).unwrap(), written);
    let mode = fs::metadata(file(&places)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn without_a_ledger_nothing_is_known() {
    let (_dir, places) = places();
    assert_eq!(ledger::all(&places).unwrap(), []);
    assert_eq!(ledger::history(&places, &device(None, HERE)).unwrap(), []);
    assert_eq!(standing(&places, &seen(Some(7), HERE)), Standing::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A crash leaves the start of what was written, wherever it ends.
    #[test]
    fn a_ledger_that_is_cut_anywhere_reads_as_its_whole_lines(count in 1u64..5, cut in any::<prop::sample::Index>()) {
        let (_dir, places) = places();
        let device = device(Some(7), HERE);
        let written: Vec<Entry> = (0..count).map(|at| entry(&device, Verdict::Faulted, at)).collect();
        written.iter().for_each(|entry| ledger::record(&places, entry).unwrap());
        let path = file(&places);
        let bytes = fs::read(&path).unwrap();
        let end = cut.index(bytes.len() + 1);
        fs::write(&path, &bytes[..end]).unwrap();
        let whole = bytes[..end].iter().filter(|byte| **byte == b'\n').count();
        let read = only(&places);
        prop_assert_eq!(&read.damage, &None);
        prop_assert_eq!(&read.entries, &written[..whole.saturating_sub(1)]);
        prop_assert_eq!(read.torn, !(end == 0 || bytes[end - 1] == b'\n'));
        // The next entry stands on a line of its own, after those that are left.
        let next = entry(&device, Verdict::Healthy, 99);
        ledger::record(&places, &next).unwrap();
        let again = only(&places);
        prop_assert_eq!(&again.damage, &None);
        prop_assert!(!again.torn);
        prop_assert_eq!(again.entries.len(), read.entries.len() + 1);
        prop_assert_eq!(again.entries.last().unwrap(), &next);
    }

    #[test]
    fn whatever_is_in_a_file_of_the_ledger_is_read_or_told(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_dir, places) = places();
        let device = device(Some(7), HERE);
        ledger::record(&places, &entry(&device, Verdict::Healthy, 1)).unwrap();
        fs::write(file(&places), &content).unwrap();
        let read = only(&places);
        let lines = content.iter().filter(|byte| **byte == b'\n').count();
        prop_assert_eq!(read.damage.is_some(), lines > 0, "{:?}", read);
        prop_assert_eq!(read.device, Some(device), "its name still tells");
    }
}

#[test]
fn two_who_write_at_once_lose_nothing() {
    let (_dir, places) = places();
    const EACH: u64 = 25;
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let places = &places;
            scope.spawn(move || {
                for at in 0..EACH {
                    let device = device(Some(7), HERE);
                    ledger::record(places, &entry(&device, Verdict::Healthy, writer * 1000 + at)).unwrap();
                }
            });
        }
    });
    let read = only(&places);
    assert_eq!((read.damage, read.torn), (None, false));
    for writer in 0..4 {
        let own: Vec<u64> =
            read.entries.iter().map(|entry| entry.at).filter(|at| at / 1000 == writer).collect();
        assert_eq!(
            own,
            (writer * 1000..writer * 1000 + EACH).collect::<Vec<_>>(),
            "in order, and all of them"
        );
    }
}

/// Long files are made by hand: each entry is synced.
fn long(places: &Places, verdicts: impl Iterator<Item = Verdict>) -> Identity {
    let device = device(Some(7), HERE);
    ledger::record(places, &entry(&device, Verdict::Healthy, 0)).unwrap();
    let path = file(places);
    let mut text = fs::read_to_string(&path).unwrap().lines().next().unwrap().to_owned() + "\n";
    for (verdict, at) in verdicts.zip(1..) {
        text += &(serde_json::to_string(&entry(&device, verdict, at)).unwrap() + "\n");
    }
    fs::write(path, text).unwrap();
    device
}

#[test]
fn a_long_ledger_loses_its_oldest_entries_and_never_the_quarantine() {
    let (_dir, places) = places();
    let verdicts = [Verdict::Healthy, Verdict::Unreachable, Verdict::Healthy];
    let unknown = std::iter::repeat_n(Verdict::Unknown, 2250);
    let device = long(&places, verdicts.into_iter().chain(unknown));
    let before = quarantine(&only(&places).entries).unwrap();
    assert!(before.reset_since);
    let last = entry(&device, Verdict::Unknown, 9000);
    ledger::record(&places, &last).unwrap();
    let read = only(&places);
    assert_eq!(read.damage, None);
    assert_eq!(read.entries.len(), 2002, "2000, the verdict and the reset that the quarantine rests on");
    assert_eq!(quarantine(&read.entries), Some(before));
    assert_eq!(read.entries.last(), Some(&last));
    assert_eq!(read.entries.iter().map(|entry| entry.at).take(3).collect::<Vec<_>>(), [2, 3, 255]);
}

#[test]
fn what_a_newer_gpuvm_wrote_survives_a_shortening_as_it_was() {
    let (_dir, places) = places();
    let device = long(&places, std::iter::repeat_n(Verdict::Healthy, 2210));
    let path = file(&places);
    let head = serde_json::to_value(entry(&device, Verdict::Healthy, 1)).unwrap();
    let line = format!(
        "{{\"at\":5, \"device\": {}, \"deed\": \"soak\", \"hours\" : 1.50}}\n",
        serde_json::to_string(&head["device"]).unwrap()
    );
    let text = fs::read_to_string(&path).unwrap() + &line;
    fs::write(&path, text).unwrap();
    ledger::record(&places, &entry(&device, Verdict::Healthy, 2)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().count() < 2100 && text.contains(&line), "{}", text.lines().count());
    assert!(only(&places).entries.iter().any(|entry| matches!(&entry.deed, Deed::Newer(_))));
}

#[rstest]
#[case::in_its_place(Some(7), HERE, true)]
#[case::moved(Some(7), THERE, true)]
#[case::another_in_its_place(Some(8), HERE, false)]
#[case::dead_in_its_place(None, HERE, true)]
#[case::dead_elsewhere(None, THERE, false)]
#[case::another_elsewhere(Some(8), THERE, false)]
fn a_sick_card_is_known_again(#[case] serial: Option<u64>, #[case] at: &str, #[case] held: bool) {
    let (_dir, places) = places();
    ledger::record(&places, &entry(&device(Some(7), HERE), Verdict::Unreachable, 1)).unwrap();
    let found = standing(&places, &seen(serial, at));
    assert_eq!(found.quarantined.contains_key(&bdf(at)), held);
    assert_eq!(found.unreadable.len() + found.strays.len(), 0);
}

/// It was first seen when it was dead, so its file began without its serial number.
#[test]
fn a_card_that_comes_to_life_keeps_its_history_when_it_moves() {
    let (_dir, places) = places();
    ledger::record(&places, &entry(&device(None, HERE), Verdict::Unreachable, 1)).unwrap();
    ledger::record(&places, &entry(&device(Some(7), HERE), Verdict::Healthy, 2)).unwrap();
    assert_eq!(ledger::history(&places, &device(Some(7), THERE)).unwrap().len(), 2);
    let moved = standing(&places, &seen(Some(7), THERE));
    assert!(moved.quarantined[&bdf(THERE)].reset_since);
    // Another of its kind that now sits there begins anew.
    assert_eq!(standing(&places, &seen(Some(8), HERE)), Standing::default());
    ledger::record(&places, &entry(&device(Some(8), HERE), Verdict::Healthy, 3)).unwrap();
    assert_eq!(ledger::all(&places).unwrap().len(), 2);
}

/// The card moved, and a dead one of its kind sits where its file was begun: the names would be the same.
#[test]
fn two_cards_never_share_a_file() {
    let (_dir, places) = places();
    ledger::record(&places, &entry(&device(None, HERE), Verdict::Healthy, 1)).unwrap();
    ledger::record(&places, &entry(&device(Some(7), HERE), Verdict::Healthy, 2)).unwrap();
    ledger::record(&places, &entry(&device(Some(7), THERE), Verdict::Healthy, 3)).unwrap();
    ledger::record(&places, &entry(&device(None, HERE), Verdict::Unreachable, 4)).unwrap();
    let all = ledger::all(&places).unwrap();
    assert_eq!(all.iter().map(|ledger| ledger.entries.len()).collect::<Vec<_>>(), [1, 3]);
    assert!(all.iter().all(|ledger| ledger.damage.is_none()));
    assert!(standing(&places, &seen(Some(7), THERE)).quarantined.is_empty());
    assert!(standing(&places, &seen(None, HERE)).quarantined.contains_key(&bdf(HERE)));
}

#[test]
fn a_serial_number_is_read_from_the_device_only_where_it_decides() {
    let (_dir, places) = places();
    let host = FakeHost::new();
    host.device(&gpu(HERE, 1, 0));
    let mut config = vec![0; 4096];
    config[0x100..0x104].copy_from_slice(&[3, 0, 1, 0]);
    config[0x104..0x10c].copy_from_slice(&7u64.to_le_bytes());
    host.file(&format!("/sys/bus/pci/devices/{HERE}/config"), &config);
    let mut facts = seen(None, HERE);
    let card = facts.devices.get_mut(&bdf(HERE)).unwrap();
    card.config = None;
    let found = |serial| {
        let (_dir, places) = self::places();
        ledger::record(&places, &entry(&device(serial, HERE), Verdict::Faulted, 1)).unwrap();
        ledger::quarantined(&places, &host.root(), &facts).unwrap().quarantined.len()
    };
    assert_eq!([found(Some(7)), found(Some(8)), found(None)], [1, 0, 1]);
    ledger::record(&places, &entry(&device(Some(7), HERE), Verdict::Healthy, 1)).unwrap();
    assert_eq!(ledger::quarantined(&places, &host.root(), &facts).unwrap(), Standing::default());
}

fn spoil(path: &Path, how: &str) {
    let text = fs::read_to_string(path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match how {
        "line" => lines[1] = lines[1][..40].to_owned(),
        "format" => lines[0] = "{\"ledger\":2}".to_owned(),
        "head" => lines[0] = "hello".to_owned(),
        "other device" => lines.push(lines[1].replace(":7,", ":8,").replace("41:00.0", "42:00.0")),
        "link into nothing" => {
            fs::remove_file(path).unwrap();
            symlink(path, path).unwrap();
            return;
        }
        how => panic!("{how}"),
    }
    fs::write(path, lines.join("\n") + "\n").unwrap();
}

#[rstest]
#[case::a_line_that_is_none("line", "line 2: ")]
#[case::a_newer_format("format", "ledger format 2; this gpuvm reads 1")]
#[case::another_head("head", "it doesn't begin as a ledger does")]
#[case::another_device("other device", "line 4: it is about 0000:42:00.0")]
#[case::no_file("link into nothing", "it can't be read")]
fn a_damaged_file_is_in_the_way_of_its_own_device_alone(#[case] how: &str, #[case] says: &str) {
    let (_dir, places) = places();
    let own = device(Some(7), HERE);
    ledger::record(&places, &entry(&own, Verdict::Healthy, 1)).unwrap();
    ledger::record(&places, &entry(&own, Verdict::Healthy, 2)).unwrap();
    let path = file(&places);
    spoil(&path, how);
    ledger::record(&places, &entry(&device(Some(8), THERE), Verdict::Healthy, 3)).unwrap();
    let mut facts = seen(Some(7), HERE);
    facts.devices.extend(seen(Some(8), THERE).devices);
    let found = standing(&places, &facts);
    assert_eq!(found.unreadable.keys().collect::<Vec<_>>(), [&bdf(HERE)]);
    let problem = &found.unreadable[&bdf(HERE)];
    assert!(problem.starts_with(&path.display().to_string()) && problem.contains(says), "{problem}");
    // What comes next isn't lost: it goes into a file of its own, and counts.
    ledger::record(&places, &entry(&own, Verdict::Unreachable, 4)).unwrap();
    assert!(standing(&places, &facts).quarantined.contains_key(&bdf(HERE)));
    let (root, snapshot) = (HostRoot::new("/nowhere"), Snapshot::of(bdf(HERE), own.id, &[]));
    let cleared = ledger::clear(&places, &root, &snapshot, &own, Acceptance::AsItIs).unwrap();
    assert!(matches!(cleared, Clearing::Unreadable(told) if told == *problem));
}

#[test]
fn a_file_that_tells_of_no_device_is_told() {
    let (_dir, places) = places();
    fs::create_dir_all(places.ledger()).unwrap();
    fs::write(places.ledger().join("notes.jsonl"), "hello\n").unwrap();
    fs::write(places.ledger().join("x.jsonl.partial"), "what a crash left").unwrap();
    let found = standing(&places, &seen(Some(7), HERE));
    assert_eq!((found.quarantined.len(), found.unreadable.len()), (0, 0));
    assert!(found.strays[0].contains("notes.jsonl: it doesn't begin"), "{:?}", found.strays);
    assert_eq!(found.strays.len(), 1);
}

#[rstest]
#[case::never_bad(&[Verdict::Healthy], Acceptance::AfterReset, None)]
#[case::bad(&[Verdict::Faulted], Acceptance::AfterReset, Some(false))]
#[case::accepted(&[Verdict::Faulted], Acceptance::AsItIs, Some(true))]
#[case::well_again(&[Verdict::Faulted, Verdict::Degraded], Acceptance::AfterReset, Some(true))]
#[case::not_known(&[Verdict::Faulted, Verdict::Unknown], Acceptance::AfterReset, Some(false))]
fn a_device_is_cleared_after_a_good_reset_or_when_accepted(
    #[case] verdicts: &[Verdict],
    #[case] acceptance: Acceptance,
    #[case] cleared: Option<bool>,
) {
    let (_dir, places) = places();
    let device = device(Some(7), HERE);
    verdicts.iter().for_each(|verdict| ledger::record(&places, &entry(&device, *verdict, 1)).unwrap());
    let snapshot = Snapshot::of(device.bdf, device.id, &[]);
    let clear =
        || ledger::clear(&places, &HostRoot::new("/nowhere"), &snapshot, &device, acceptance).unwrap();
    match (clear(), cleared) {
        (Clearing::Free, None) => {}
        (Clearing::Held(_), Some(false)) => assert!(quarantine(&only(&places).entries).is_some()),
        (Clearing::Cleared { grounds, .. }, Some(true)) => {
            assert_eq!(
                grounds,
                if acceptance == Acceptance::AsItIs { Grounds::Accepted } else { Grounds::GoodReset }
            );
            assert_eq!(only(&places).entries.last().unwrap().deed, Deed::Cleared { grounds });
            assert_eq!(clear(), Clearing::Free);
        }
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_is_gone_is_found_by_where_it_sat() {
    let (_dir, places) = places();
    ledger::record(&places, &entry(&device(Some(7), HERE), Verdict::Faulted, 1)).unwrap();
    assert_eq!(ledger::at(&places, bdf(HERE), None).unwrap().len(), 1);
    assert_eq!(ledger::at(&places, bdf(THERE), None).unwrap(), []);
    // What sits there now is meant before what sat there.
    ledger::record(&places, &entry(&device(Some(8), HERE), Verdict::Faulted, 2)).unwrap();
    let present = ledger::at(&places, bdf(HERE), Some(&device(Some(8), HERE))).unwrap();
    assert_eq!(present.iter().map(|ledger| ledger.entries[0].at).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_ledger_that_cant_be_written_is_told() {
    let (dir, places) = places();
    fs::create_dir_all(dir.path().join("lib")).unwrap();
    fs::write(places.ledger(), "a file is in the way").unwrap();
    let error = ledger::record(&places, &entry(&device(None, HERE), Verdict::Healthy, 1)).unwrap_err();
    assert!(error.to_string().contains("lib/ledger"), "{error}");
}
