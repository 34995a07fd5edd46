//! Sample profiles: one for each rule of the language that keeps it, and one that breaks it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gpuvm_core::profile::language::{Key, Kind, root};
use gpuvm_core::profile::{Problem, Sources, parse};

use crate::shared::golden::{compare, repository};
use crate::{gpuvm, transcript};

fn samples(kind: &str) -> Vec<String> {
    let folder = repository().join("tests/sample-profiles").join(kind);
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().strip_suffix(".toml").unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn text(kind: &str, name: &str) -> String {
    fs::read_to_string(repository().join(format!("tests/sample-profiles/{kind}/{name}.toml"))).unwrap()
}

#[test]
fn each_invalid_sample_is_refused_as_it_was() {
    let case = |name: String| {
        let output = gpuvm(&["check", &format!("tests/sample-profiles/invalid/{name}.toml")]);
        assert_eq!(output.status.code(), Some(78), "{name}");
        (name, transcript(&output, "\0"))
    };
    compare("profile-errors", samples("invalid").into_iter().map(case));
}

#[test]
fn each_valid_sample_and_each_shipped_profile_is_valid() {
    let mut profiles: Vec<String> =
        samples("valid").iter().map(|name| format!("tests/sample-profiles/valid/{name}.toml")).collect();
    for entry in fs::read_dir(repository().join("profiles")).unwrap() {
        profiles.push(format!("profiles/{}", entry.unwrap().file_name().display()));
    }
    for profile in profiles {
        let output = gpuvm(&["check", &profile]);
        assert!(output.status.success(), "{profile}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Lists the paths of all keys, with a dot between a table and its keys.
fn paths(keys: &[Key], before: &str, all: &mut BTreeSet<String>) {
    for key in keys {
        let path = format!("{before}{}", key.name);
        if let Kind::Table(keys) | Kind::Tables(keys) = key.kind {
            paths(keys, &format!("{path}."), all);
        }
        all.insert(path);
    }
}

/// Lists the keys that a text has, arrays of tables without their numbers.
fn written(value: &toml::Value, before: &str, all: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                all.insert(format!("{before}{key}"));
                written(value, &format!("{before}{key}."), all);
            }
        }
        toml::Value::Array(items) => items.iter().for_each(|item| written(item, before, all)),
        _ => {}
    }
}

/// Names the key that a problem is about, without the numbers of tables.
fn about(problem: &Problem) -> String {
    let word = |part: &&str| part.parse::<usize>().is_err();
    problem.key.split('.').filter(word).collect::<Vec<_>>().join(".")
}

#[test]
fn each_key_of_the_language_is_used_by_a_valid_sample_and_wrong_in_an_invalid_one() {
    let (mut all, mut used, mut wrong) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    paths(root(), "", &mut all);
    for name in samples("valid") {
        written(&toml::Value::Table(text("valid", &name).parse().unwrap()), "", &mut used);
    }
    for name in samples("invalid") {
        let problems = parse(&Sources::new(&*name, text("invalid", &name)), Path::new("/")).unwrap_err();
        wrong.extend(problems.iter().map(about));
    }
    let unused: Vec<_> = all.difference(&used).collect();
    assert!(unused.is_empty(), "no valid sample has {unused:?}");
    let never_wrong: Vec<_> = all.difference(&wrong).collect();
    assert!(never_wrong.is_empty(), "no invalid sample has a mistake in {never_wrong:?}");
}

#[test]
fn each_key_that_must_be_there_is_missing_in_an_invalid_sample() {
    let mut missing = BTreeSet::new();
    for name in samples("invalid") {
        let problems = parse(&Sources::new(&*name, text("invalid", &name)), Path::new("/")).unwrap_err();
        let told = problems.iter().filter(|problem| problem.kind.to_string().ends_with("is missing"));
        missing.extend(told.map(about));
    }
    // A table that is missing is told by the key in it that must be there.
    let expected = [
        "cpu.count",
        "device.bdf",
        "disk.path",
        "forward.guest-port",
        "forward.host-port",
        "kernel.path",
        "memory.size",
        "name",
        "version",
    ];
    assert_eq!(missing.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// What `--json` prints is one document, for good and for bad.
#[test]
fn json_is_one_document_with_the_exit_code_in_it() {
    let bad = gpuvm(&["check", "--json", "tests/sample-profiles/invalid/many-at-once.toml"]);
    let document: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(document["error"]["exit_code"], 78);
    assert!(document["error"]["problems"].as_array().unwrap().len() > 5);
    assert_eq!(document["error"]["problems"][0]["line"], 1);
    let good = gpuvm(&["check", "--json", "profiles/dev.toml"]);
    let document: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(document["profile"]["name"], "dev");
}
