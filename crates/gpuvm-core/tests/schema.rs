//! The JSON Schema, the reader and the table of keys that both are made from: none says what another doesn't.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
#![allow(clippy::disallowed_methods, reason = "the sample profiles are files")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gpuvm_core::profile::language::{Key, Kind, Need, root};
use gpuvm_core::profile::schema::schema;
use gpuvm_core::profile::{ProblemKind, Profile, Sources, parse};
use jsonschema::Validator;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rstest::rstest;
use toml::{Table, Value};

/// Mistakes that a schema can't see, since it knows each key by itself, and a value by its type, range and pattern.
const UNSEEN: &[&str] = &[
    // Rules between keys.
    "cpu-emulator-without-pinning",
    "cpu-flags-twice",
    "cpu-hv-vendor-id-with-tcg",
    "cpu-hv-vendor-id-without-hyperv",
    "cpu-hyperv-with-tcg",
    "cpu-kvm-hidden-with-tcg",
    "cpu-pin-list-too-long",
    "cpu-pin-list-too-short",
    "cpu-pin-list-twice",
    "cpu-pin-policy-without-pinning",
    "device-avoid-flr-beside-reset-flr",
    "device-bdf-missing",
    "device-guest-address-tears-a-card-apart",
    "device-guest-address-twice",
    "device-hold-itself",
    "device-hold-of-a-listed-device",
    "device-hold-twice",
    "device-rom-file-hidden-by-rombar",
    "device-select-bdf-beside",
    "device-select-of-a-place-only",
    "device-select-of-nothing",
    "device-twice",
    "disk-boot-of-a-device",
    "disk-boot-twice",
    "disk-media-cdrom-overlay",
    "disk-media-cdrom-persistent",
    "disk-media-cdroms-too-many",
    "disk-twice",
    "display-listen-without-display",
    "forward-twice",
    "forward-without-network",
    "memory-hugepages-policy-without-hugepages",
    "memory-unaligned-1g",
    "memory-unaligned-2m",
    "ready-console-malformed",
    // What a text means: an address, a list, a size, a path.
    "cpu-emulator-empty",
    "cpu-emulator-malformed",
    "device-rom-file-empty",
    "disk-path-empty",
    "disk-path-nul",
    "display-listen-everywhere",
    "display-listen-malformed",
    "display-listen-port-too-low",
    "extra-args-nul",
    "forward-host-address-ipv6",
    "forward-host-address-name",
    "kernel-cmdline-nul",
    "kernel-initrd-empty",
    "kernel-path-empty",
    "kernel-path-nul",
    "memory-size-no-whole-mib",
    "memory-size-overflow",
    "memory-size-too-small",
];

/// Everything that has a default or stands in a table, so that each key can be put beside it.
const BASE: &str = r#"
version = 1
name = "base"
display = "virtual"
[memory]
size = "1G"
hugepages = "2M"
[cpu]
count = 1
[kernel]
path = "/k"
[[device]]
bdf = "81:00.0"
[[disk]]
path = "/d"
[[forward]]
host-port = 1
guest-port = 1
"#;

fn samples(kind: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/sample-profiles").join(kind);
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap().path())).collect()
}

fn validator() -> Validator {
    jsonschema::validator_for(&schema()).unwrap()
}

fn json(table: &Table) -> serde_json::Value {
    serde_json::to_value(table).unwrap()
}

fn read(table: &Table) -> Result<Profile, Vec<gpuvm_core::profile::Problem>> {
    parse(&Sources::new("x.toml", toml::to_string(table).unwrap()), Path::new("/"))
}

#[test]
fn each_valid_sample_fits_the_schema() {
    let validator = validator();
    for (name, text) in samples("valid") {
        let errors: Vec<String> =
            validator.iter_errors(&json(&text.parse().unwrap())).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn the_schema_sees_each_mistake_that_a_schema_can_see() {
    let validator = validator();
    // What isn't TOML isn't the schema's to judge, nor an integer that JSON's parser has no room for.
    let tables =
        samples("invalid").into_iter().filter_map(|(name, text)| Some((name, text.parse::<Table>().ok()?)));
    let unseen: BTreeSet<String> =
        tables.filter(|(_, table)| validator.is_valid(&json(table))).map(|(name, _)| name).collect();
    assert_eq!(unseen, UNSEEN.iter().map(|name| (*name).to_owned()).collect());
}

/// Lists each key with the tables that lead to it.
fn keys(keys: &'static [Key], above: &[&'static str], all: &mut Vec<(Vec<&'static str>, &'static Key)>) {
    for key in keys {
        let path = [above, &[key.name]].concat();
        if let Kind::Table(below) | Kind::Tables(below) = key.kind {
            self::keys(below, &path, all);
        }
        all.push((path, key));
    }
}

fn every_key() -> Vec<(Vec<&'static str>, &'static Key)> {
    let mut all = Vec::new();
    keys(root(), &[], &mut all);
    all
}

/// Sets a key of the base profile; returns the key's path as problems name it.
fn set(table: &mut Table, path: &[&str], value: Value) -> String {
    let (name, above) = path.split_last().unwrap();
    let (mut below, mut key) = (table, String::new());
    for parent in above {
        if *parent == "select" {
            // Beside the address it has no effect, and without a word about the device it chooses nothing.
            below.remove("bdf");
            below.entry("select").or_insert_with(|| "class = \"0302\"".parse::<Table>().unwrap().into());
        }
        (below, key) = match below.get_mut(*parent).unwrap() {
            Value::Table(below) => (below, format!("{key}{parent}.")),
            Value::Array(tables) => (tables[0].as_table_mut().unwrap(), format!("{key}{parent}.0.")),
            other => panic!("{parent} is {other}"),
        };
    }
    below.insert((*name).to_owned(), value);
    format!("{key}{name}")
}

/// A value that no key of this kind takes.
fn wrong(kind: &Kind) -> Value {
    match kind {
        Kind::Flag => Value::Integer(7),
        _ => Value::Boolean(true),
    }
}

#[test]
fn each_key_is_read_and_its_type_is_checked_by_reader_and_schema() {
    let validator = validator();
    for (path, key) in every_key() {
        let mut table: Table = BASE.parse().unwrap();
        let name = set(&mut table, &path, wrong(&key.kind));
        let problems = read(&table).unwrap_err();
        let told = |problem: &gpuvm_core::profile::Problem| {
            problem.key == name && matches!(problem.kind, ProblemKind::Type { .. })
        };
        assert!(problems.iter().any(told), "{name}: {problems:?}");
        assert!(!validator.is_valid(&json(&table)), "{name}: the schema takes {}", wrong(&key.kind));
    }
}

#[test]
fn each_key_that_must_be_there_is_missed_by_reader_and_schema() {
    let validator = validator();
    for (path, _) in every_key().into_iter().filter(|(_, key)| key.presence == Need::Required) {
        let mut table: Table = BASE.parse().unwrap();
        set(&mut table, &path, Value::Boolean(true));
        match path.as_slice() {
            [name] => table.remove(*name),
            [parent, name] => match table.get_mut(*parent).unwrap() {
                Value::Table(below) => below.remove(*name),
                other => other.as_array_mut().unwrap()[0].as_table_mut().unwrap().remove(*name),
            },
            _ => panic!("{path:?}"),
        };
        let problems = read(&table).unwrap_err();
        let missing = problems.iter().any(|problem| matches!(problem.kind, ProblemKind::Missing { .. }));
        assert!(missing && !validator.is_valid(&json(&table)), "{path:?}: {problems:?}");
    }
}

#[test]
fn each_default_is_what_the_reader_takes_where_nothing_is_written() {
    let plain = read(&BASE.parse().unwrap()).unwrap();
    for (path, key) in every_key() {
        let Need::Default(default) = key.presence else { continue };
        let mut table: Table = BASE.parse().unwrap();
        let value: Table = format!("v = {default}").parse().unwrap();
        // The base says otherwise, so that other keys have an effect.
        if ["display", "hugepages"].contains(&key.name) {
            continue;
        }
        let name = set(&mut table, &path, value["v"].clone());
        assert_eq!(read(&table).as_ref(), Ok(&plain), "{name} = {default}");
    }
}

#[test]
fn each_integer_ends_where_the_schema_says() {
    let validator = validator();
    for (path, key) in every_key() {
        let Kind::Integer { low, high } = key.kind else { continue };
        for (value, taken) in [
            (i64::from(low) - 1, false),
            (low.into(), true),
            (high.into(), true),
            (i64::from(high) + 1, false),
        ] {
            let mut table: Table = BASE.parse().unwrap();
            let name = set(&mut table, &path, Value::Integer(value));
            assert_eq!(validator.is_valid(&json(&table)), taken, "schema: {name} = {value}");
            let read = read(&table).map_err(|problems| problems[0].kind.to_string());
            assert_eq!(read.is_ok(), taken, "{name} = {value}: {read:?}");
        }
    }
}

#[rstest]
#[case::name(&["name"], "[A-Za-z0-9_.-]{1,42}")]
#[case::size(&["memory", "size"], "[1-9][0-9]{0,4}[KMGTkB]?")]
#[case::bdf(&["device", "bdf"], "([0-9a-fA-F]{3,5}:)?[0-9a-fA-F]{2}:[01][0-9a-f]\\.[0-8]")]
#[case::id(&["device", "select", "id"], "[0-9a-fA-F]{3,5}:[0-9a-fA-F]{4}")]
#[case::class(&["device", "select", "class"], "[0-9a-fA-F]{3,6}")]
#[case::slot(&["device", "select", "slot"], "([0-9a-fA-F]{3,5}:)?[0-9a-fA-F]{2}:[012][0-9a-f](\\.0)?")]
#[case::serial(&["device", "select", "serial"], "([0-9a-fA-F]{2}-){7}[0-9a-fA-F]{1,2}")]
#[case::guest_address(&["device", "guest-address"], "[0-9a-fA-F]{1,2}\\.[0-9a-f]")]
#[case::ready(&["ready"], "(running|console:)[a-z|()^$]{0,3}")]
#[case::vendor(&["cpu", "hv-vendor-id"], "[ -~]{1,13}")]
fn what_the_reader_takes_fits_the_pattern(#[case] path: &[&str], #[case] texts: &str) {
    let (validator, taken) = (validator(), Cell::new(0));
    let test = |text: String| {
        let mut table: Table = BASE.parse().unwrap();
        set(&mut table, &["cpu", "hyperv"], Value::Boolean(true));
        set(&mut table, path, Value::String(text.clone()));
        if read(&table).is_ok() {
            taken.set(taken.get() + 1);
            prop_assert!(validator.is_valid(&json(&table)), "the schema refuses {:?}", text);
        }
        Ok(())
    };
    TestRunner::default().run(&proptest::string::string_regex(texts).unwrap(), test).unwrap();
    assert!(taken.get() > 10, "the reader took {} texts only", taken.get());
}
