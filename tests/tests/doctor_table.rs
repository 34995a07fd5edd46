//! The table of the doctor's checks in the README of the tests, against the checks and the scenarios that there are.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::collections::BTreeSet;
use std::path::Path;

use gpuvm_core::doctor;
use gpuvm_e2e::lab::scenarios;

/// The rows of the table, cell by cell.
fn rows() -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("| check | lab: passes / doesn't | FakeHost |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let row = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    table.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn each_check_has_its_row_and_each_row_a_check() {
    let rows: Vec<String> = rows().iter().flat_map(|row| quoted(&row[0]).map(str::to_owned)).collect();
    let listed: BTreeSet<&str> = rows.iter().map(String::as_str).collect();
    let checks: BTreeSet<&str> = doctor::names().map(|(_, name)| name).collect();
    assert_eq!(listed, checks);
    assert_eq!(rows.len(), listed.len(), "a check is listed twice");
}

#[test]
fn each_scenario_that_is_named_is_there_and_what_the_lab_lacks_has_its_reason() {
    let known: BTreeSet<&str> = scenarios::ALL.iter().map(|(name, _)| *name).collect();
    for row in rows() {
        let [check, lab, fake, reason] = row.as_slice() else { panic!("{row:?}") };
        for scenario in quoted(lab) {
            assert!(known.contains(scenario), "{check}: there is no scenario {scenario}");
        }
        let shown = quoted(lab).count() == 2;
        assert!(shown || !reason.is_empty(), "{check} isn't wholly in the lab, and why isn't said");
        assert!(!fake.is_empty(), "{check}");
    }
}
