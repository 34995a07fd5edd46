//! Devices that are described: which ones are meant.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::path::Path;

use gpuvm_core::lock::{Lock, Serial};
use gpuvm_core::pci::{Bdf, SerialNumber};
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_core::select::{FunctionIndex, Hold, IndexedFunction, needs_index, resolve};
use proptest::prelude::*;
use rstest::rstest;

/// Address, ids, class, node, and serial number as far as it was read.
type Function = (&'static str, &'static str, &'static str, Option<u32>, Option<Serial>);

/// Two GPUs of two functions on node 0 and one on node 1, an accelerator with a serial number and one whose number can't be read, an NVMe
/// disk with a second function, and a bridge.
const HOST: &[Function] = &[
    ("0000:00:04.0", "1b36:000c", "060400", None, Some(Serial::None)),
    ("0000:41:00.0", "10de:2330", "030200", Some(0), Some(Serial::None)),
    ("0000:41:00.1", "10de:22ba", "040300", Some(0), Some(Serial::None)),
    ("0000:42:00.0", "10de:2330", "030200", Some(0), Some(Serial::None)),
    ("0000:42:00.1", "10de:22ba", "040300", Some(0), Some(Serial::None)),
    ("0000:81:00.0", "10de:2330", "030200", Some(1), Some(Serial::None)),
    ("0000:81:00.1", "10de:22ba", "040300", Some(1), Some(Serial::None)),
    ("0000:82:00.0", "1234:11e8", "120000", Some(1), Some(Serial::Number(SerialNumber(7)))),
    ("0000:83:00.0", "1234:11e9", "120000", None, None),
    ("0000:84:00.0", "144d:a80a", "010802", Some(1), Some(Serial::None)),
    ("0000:84:00.1", "144d:a80a", "010802", Some(1), Some(Serial::None)),
];

fn index() -> FunctionIndex {
    let mut index = FunctionIndex::default();
    for (bdf, id, class, node, serial) in HOST {
        let (id, class) = (id.parse().unwrap(), class.parse().unwrap());
        index.insert(bdf.parse().unwrap(), IndexedFunction { id, class, node: *node, serial: *serial });
    }
    index
}

fn profile(devices: &str) -> Profile {
    let text = format!(
        "version = 1\nname = \"x\"\ndevice = [{devices}]\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 1\n"
    );
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

fn found(profile: &Profile) -> Vec<String> {
    profile.devices.iter().map(|device| device.bdf.to_string()).collect()
}

fn resolved(devices: &str) -> Result<Vec<String>, Vec<String>> {
    match resolve(profile(devices), None, Hold::Always, &index()) {
        Ok(profile) => Ok(found(&profile)),
        Err(refusals) => Err(refusals.iter().map(ToString::to_string).collect()),
    }
}

#[rstest]
#[case::the_only_one_by_id(r#"{select={id="1234:11e8"}}"#, &["0000:82:00.0"])]
#[case::by_id_and_node(r#"{select={id="10de:2330", node=1}}"#, &["0000:81:00.0"])]
#[case::nth_in_the_order_of_addresses(r#"{select={id="10de:2330", nth=2}}"#, &["0000:81:00.0"])]
#[case::nth_among_those_that_fit_the_rest(r#"{select={id="10de:2330", node=0, nth=1}}"#, &["0000:42:00.0"])]
#[case::by_slot(r#"{select={slot="0000:42:00"}}"#, &["0000:42:00.0"])]
#[case::by_slot_without_domain(r#"{select={slot="42:00"}}"#, &["0000:42:00.0"])]
#[case::by_serial_number(r#"{select={serial="00-00-00-00-00-00-00-07"}}"#, &["0000:82:00.0"])]
#[case::by_class(r#"{select={class="1200", node=1}}"#, &["0000:82:00.0"])]
#[case::the_audio_function_if_it_is_asked_for(r#"{select={id="10de:22ba", function=1, node=1}}"#, &["0000:81:00.1"])]
#[case::a_function_of_a_card_that_is_no_display(r#"{select={id="144d:a80a", nth=1}}"#, &["0000:84:00.1"])]
#[case::by_function(r#"{select={id="144d:a80a", function=1}}"#, &["0000:84:00.1"])]
#[case::in_the_places_of_the_file(
    r#"{select={id="10de:2330", nth=2}}, {bdf="84:00.0"}, {select={id="1234:11e8"}}"#,
    &["0000:81:00.0", "0000:84:00.0", "0000:82:00.0"]
)]
#[case::what_another_entry_names_is_left_out(
    r#"{bdf="41:00.0"}, {select={id="10de:2330", node=0}}"#,
    &["0000:41:00.0", "0000:42:00.0"]
)]
#[case::what_another_entry_counts_out_is_left_out(
    r#"{select={id="10de:2330", node=0}}, {select={id="10de:2330", nth=0}}"#,
    &["0000:42:00.0", "0000:41:00.0"]
)]
#[case::what_another_entry_holds_is_left_out(
    r#"{bdf="84:00.0", hold=["84:00.1"]}, {select={id="10de:2330", node=1}}"#,
    &["0000:84:00.0", "0000:81:00.0"]
)]
#[case::none_described(r#"{bdf="99:00.0"}"#, &["0000:99:00.0"])]
fn a_description_that_fits_one_device_means_it(#[case] devices: &str, #[case] expected: &[&str]) {
    assert_eq!(resolved(devices), Ok(expected.iter().map(|bdf| (*bdf).to_owned()).collect()));
}

#[rstest]
#[case::none(
    r#"{select={id="10de:2331"}}"#,
    &[r#"device.select { id = "10de:2331" } fits no device of this host"#]
)]
#[case::an_audio_function_that_comes_along(
    r#"{select={id="10de:22ba", node=1}}"#,
    &[r#"device.select { id = "10de:22ba", node = 1 } fits no device of this host"#]
)]
#[case::a_bridge(
    r#"{select={id="1b36:000c"}}"#,
    &[r#"device.select { id = "1b36:000c" } fits no device of this host"#]
)]
#[case::a_node_that_is_not_told(
    r#"{select={id="1234:11e9", node=1}}"#,
    &[r#"device.select { id = "1234:11e9", node = 1 } fits no device of this host"#]
)]
#[case::several(
    r#"{select={id="10de:2330", node=0}}"#,
    &[r#"device.select { id = "10de:2330", node = 0 } fits 2 devices: 0000:41:00.0 (10de:2330 3D controller), 0000:42:00.0 (10de:2330 3D controller)"#]
)]
#[case::fewer(
    r#"{select={id="144d:a80a", nth=2}}"#,
    &[r#"device.select { id = "144d:a80a", nth = 2 } counts from 0, and 2 fit: 0000:84:00.0 (144d:a80a NVMe controller), 0000:84:00.1 (144d:a80a NVMe controller)"#]
)]
#[case::named_already(
    r#"{bdf="82:00.0"}, {select={id="1234:11e8"}}"#,
    &[r#"device.select { id = "1234:11e8" } fits 0000:82:00.0, which the profile has already"#]
)]
#[case::counted_out_and_named_already(
    r#"{bdf="41:00.0"}, {select={id="10de:2330", nth=0}}"#,
    &[r#"device.select { id = "10de:2330", nth = 0 } fits 0000:41:00.0, which the profile has already"#]
)]
#[case::held_already(
    r#"{bdf="84:00.0", hold=["84:00.1"]}, {select={id="144d:a80a", function=1}}"#,
    &[r#"device.select { id = "144d:a80a", function = 1 } fits 0000:84:00.1, which the profile has already"#]
)]
#[case::a_serial_number_that_cannot_be_read(
    r#"{select={serial="00-00-00-00-00-00-00-09", class="1200"}}"#,
    &[r#"device.select { class = "1200", serial = "00-00-00-00-00-00-00-09" } fits no device of this host; the serial numbers of 0000:83:00.0 can't be read"#]
)]
#[case::each_is_told(
    r#"{select={id="10de:2331"}}, {select={slot="99:00"}}"#,
    &[
        r#"device.select { id = "10de:2331" } fits no device of this host"#,
        r#"device.select { slot = "0000:99:00" } fits no device of this host"#,
    ]
)]
#[case::two_cards_at_one_place(
    r#"{bdf="82:00.0", guest-address="1c.0"}, {select={slot="83:00"}, guest-address="1c.0"}"#,
    &["0000:83:00.0 can't be at guest-address 1c.0 beside 0000:82:00.0: a card has one place, and a place one card"]
)]
#[case::a_card_at_two_places(
    r#"{bdf="84:00.0", guest-address="1c.0"}, {select={slot="84:00", function=1}, guest-address="1d.0"}"#,
    &["0000:84:00.1 can't be at guest-address 1d.0 beside 0000:84:00.0: a card has one place, and a place one card"]
)]
fn a_description_that_fits_none_or_several_is_refused(#[case] devices: &str, #[case] expected: &[&str]) {
    assert_eq!(resolved(devices), Err(expected.iter().map(|text| (*text).to_owned()).collect()));
}

/// A lock that chose a device by a description.
fn lock(bdf: &str, id: &str, chosen_by: &str) -> Lock {
    let device = format!(
        "[[device]]\nbdf = \"{bdf}\"\nid = \"{id}\"\nclass = \"030200\"\nchosen-by = '{chosen_by}'\n"
    );
    Lock::parse(&format!("version = 1\n[host]\n{device}")).unwrap()
}

#[rstest]
#[case::whatever_nth_says("0000:81:00.0", r#"id = "10de:2330", nth = 0"#, Hold::Always, "0000:81:00.0")]
#[case::even_if_it_is_gone("0000:99:00.0", r#"id = "10de:2330", nth = 0"#, Hold::Always, "0000:99:00.0")]
#[case::anew_if_it_still_fits(
    "0000:81:00.0",
    r#"id = "10de:2330", nth = 0"#,
    Hold::WhileItFits,
    "0000:81:00.0"
)]
#[case::anew_if_it_is_gone("0000:99:00.0", r#"id = "10de:2330", nth = 0"#, Hold::WhileItFits, "0000:41:00.0")]
#[case::anew_if_another_is_there(
    "0000:82:00.0",
    r#"id = "10de:2330", nth = 0"#,
    Hold::WhileItFits,
    "0000:41:00.0"
)]
#[case::chosen_by_something_else(
    "0000:81:00.0",
    r#"id = "10de:2330", nth = 1"#,
    Hold::Always,
    "0000:41:00.0"
)]
fn a_lock_holds_a_device_fast(
    #[case] at: &str,
    #[case] chosen_by: &str,
    #[case] hold: Hold,
    #[case] expected: &str,
) {
    let (lock, profile) = (lock(at, "10de:2330", chosen_by), profile(r#"{select={id="10de:2330", nth=0}}"#));
    let needed = needs_index(&profile, Some(&lock), hold);
    assert_eq!(needed, hold == Hold::WhileItFits || !chosen_by.ends_with('0'));
    let resolved = resolve(profile, Some(&lock), hold, &index()).unwrap();
    assert_eq!(found(&resolved), [expected]);
}

/// What was chosen is in the lock under the words that chose it.
#[test]
fn a_choice_is_locked_under_its_description() {
    let chosen =
        resolve(profile(r#"{select={nth=1, id="10DE:2330"}}"#), None, Hold::Always, &index()).unwrap();
    let mut facts = gpuvm_core::facts::HostFacts::default();
    let (id, class) = ("10de:2330".parse().unwrap(), "030200".parse().unwrap());
    facts.devices.insert("0000:42:00.0".parse().unwrap(), gpuvm_core::facts::DeviceFacts::new(id, class));
    let lock = Lock::of(&chosen, &facts).unwrap();
    assert_eq!(lock.devices[0].chosen_by.as_deref(), Some(r#"id = "10de:2330", nth = 1"#));
}

proptest! {
    #[test]
    fn no_two_entries_get_one_device(entries in prop::collection::vec((0usize..4, 0u32..4), 1..5)) {
        let ids = ["10de:2330", "1234:11e8", "144d:a80a", "10de:22ba"];
        let device = |(id, nth): &(usize, u32)| match nth {
            3 => format!("{{select={{id=\"{}\"}}}}", ids[*id]),
            nth => format!("{{select={{id=\"{}\", nth={nth}}}}}", ids[*id]),
        };
        let devices: Vec<String> = entries.iter().map(device).collect();
        if let Ok(profile) = resolve(profile(&devices.join(",")), None, Hold::Always, &index()) {
            let mut bdfs: Vec<Bdf> = profile.devices.iter().map(|device| device.bdf).collect();
            prop_assert_eq!(bdfs.len(), entries.len());
            prop_assert!(profile.choices.is_empty());
            bdfs.sort();
            bdfs.dedup();
            prop_assert_eq!(bdfs.len(), entries.len());
        }
    }
}
