//! Where VMs stand by their records, with live processes and dead ones.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs;
use std::path::Path;

use gpuvm_core::profile::VmName;
use gpuvm_core::standing::Standing;
use gpuvm_host::HostError;
use gpuvm_host::places::Places;
use gpuvm_host::process::ProcessId;
use gpuvm_host::reservation::{self, Guest};
use gpuvm_host::standing;
use rstest::rstest;
use serde_json::{Value, json};

const BOOT: &str = "b00t";

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn alive() -> Value {
    json!(ProcessId::own())
}

/// A number that may be somebody's, with a start time that is nobody's.
fn dead() -> Value {
    json!(ProcessId { start_time: u64::MAX, ..ProcessId::own() })
}

fn record(boot: &str, supervisor: Value, qemu: Value) -> String {
    let (groups, devices, in_flight): ([u32; 1], _, [u32; 0]) = ([7], ["0000:81:00.0"], []);
    let vm = "vm1";
    json!({
        "vm": vm, "boot_id": boot, "groups": groups, "devices": devices, "supervisor": supervisor, "qemu": qemu,
        "in_flight": in_flight,
    })
    .to_string()
}

const JOURNAL: &str = "{\"entry\":\"begin\",\"version\":3,\"boot_id\":\"b00t\"}\n\
                       {\"entry\":\"intent\",\"seq\":0,\"op\":{\"op\":\"adopt\",\"bdf\":\"0000:81:00.0\"},\"saved\":null}\n";

#[rstest]
#[case::running(record(BOOT, alive(), alive()), Standing::Running)]
#[case::starting(record(BOOT, alive(), Value::Null), Standing::Starting)]
#[case::stopping(record(BOOT, alive(), dead()), Standing::Stopping)]
#[case::unsupervised(detached(dead(), alive()), Standing::Unsupervised)]
#[case::just_ending(record(BOOT, dead(), alive()), Standing::Stale)]
#[case::stale(record(BOOT, dead(), dead()), Standing::Stale)]
#[case::before_a_reboot(record("other", alive(), alive()), Standing::Stale)]
#[case::garbage("{".to_owned(), Standing::Unknown)]
fn a_reservation_says_where_its_vm_stands(#[case] text: String, #[case] expected: Standing) {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    let vm = VmName::new("vm1").unwrap();
    write(&places.reservations().join("vm1.json"), &text);
    write(&places.journal(&vm), JOURNAL);
    write(&places.begun(&vm), "{\"at\":1800000000,\"log\":{}}");
    assert_eq!(standing::names(&places).unwrap(), std::slice::from_ref(&vm));
    let known = standing::of(&places, BOOT, &vm);
    assert_eq!(known.standing, expected);
    assert_eq!(known.begun, Some(1_800_000_000));
    assert_eq!(known.not_undone, 1);
    assert_eq!(known.unread.is_empty(), expected != Standing::Unknown, "{:?}", known.unread);
}

#[test]
fn a_vm_that_nothing_is_written_of_stands_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    assert_eq!(standing::names(&places).unwrap(), []);
    let known = standing::of(&places, BOOT, &VmName::new("vm1").unwrap());
    assert_eq!(known.standing, Standing::None);
    assert!(known.supervisor.is_none() && known.plan.is_none() && known.unread.is_empty());
}

#[test]
fn overlays_and_a_journal_that_makes_no_sense_are_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    let (vm1, vm2) = (VmName::new("vm1").unwrap(), VmName::new("vm2").unwrap());
    write(&places.overlays(&vm1).join("disk0.qcow2"), "half");
    write(&places.journal(&vm2), "senseless\n");
    assert_eq!(standing::names(&places).unwrap(), [vm1.clone(), vm2.clone()]);
    assert_eq!(standing::of(&places, BOOT, &vm1).standing, Standing::Stale);
    let known = standing::of(&places, BOOT, &vm2);
    assert_eq!(known.standing, Standing::Stale);
    assert!(matches!(known.unread.as_slice(), [HostError::Content { .. }]), "{:?}", known.unread);
}

fn detached(supervisor: Value, qemu: Value) -> String {
    let mut record: Value = serde_json::from_str(&record(BOOT, supervisor, qemu)).unwrap();
    record["detached"] = json!(true);
    record.to_string()
}

#[rstest]
#[case::a_guest_that_goes_on(detached(dead(), alive()), Ok(true))]
#[case::a_foreground_guest_that_is_just_ending(record(BOOT, dead(), alive()), Ok(false))]
#[case::nothing_but_remains(detached(dead(), dead()), Ok(false))]
#[case::before_a_reboot(record("other", dead(), alive()), Ok(false))]
#[case::another_supervisor(detached(json!(ProcessId::of(1).unwrap()), alive()), Err(()))]
fn only_a_guest_that_goes_on_alone_is_adopted(#[case] text: String, #[case] expected: Result<bool, ()>) {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    let vm = VmName::new("vm1").unwrap();
    let path = places.reservations().join("vm1.json");
    write(&path, &text);
    let adopted = reservation::adopt(&places, BOOT, &vm);
    let ours = |record: &reservation::Reservation| record.supervisor == ProcessId::own();
    assert_eq!(adopted.as_ref().map(Option::is_some).map_err(drop), expected, "{adopted:?}");
    assert!(adopted.iter().flatten().all(ours));
    // One that isn't adopted is left as it was.
    assert_eq!(fs::read_to_string(&path).unwrap() == text, expected != Ok(true));
}

#[test]
fn a_qemu_that_only_it_itself_has_recorded_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::below(folder.path());
    let vm = VmName::new("vm1").unwrap();
    write(&places.reservations().join("vm1.json"), &detached(dead(), Value::Null));
    assert_eq!(standing::of(&places, BOOT, &vm).standing, Standing::Stale);
    // Whoever was killed between the making of the file and QEMU's line in it has started none.
    write(&places.qemu(&vm), "");
    assert_eq!(standing::of(&places, BOOT, &vm).standing, Standing::Stale);
    write(&places.qemu(&vm), &fs::read_to_string("/proc/self/stat").unwrap());
    let known = standing::of(&places, BOOT, &vm);
    assert_eq!((known.standing, known.qemu.unwrap().pid), (Standing::Unsupervised, ProcessId::own().pid));
    let spared = reservation::take_over(&places, BOOT, &vm, Guest::Spared).unwrap_err();
    assert!(matches!(spared, HostError::Unsupervised { .. }), "{spared}");
    let taken = reservation::take_over(&places, BOOT, &vm, Guest::Ended).unwrap();
    assert_eq!(taken.qemu, Some(ProcessId::own()));
}
