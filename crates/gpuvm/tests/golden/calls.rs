//! Help, and calls that make no sense.

use std::fs;

use crate::shared::golden::compare;
use crate::{gpuvm, transcript};

const VERBS: [&str; 10] =
    ["", "check", "plan", "argv", "doctor", "schema", "up", "cleanup", "devices", "topology"];

#[test]
fn help_is_as_it_was() {
    let case = |verb: &str| {
        let args: Vec<&str> = [verb, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let name = if verb.is_empty() { "gpuvm" } else { verb };
        (name.to_owned(), transcript(&gpuvm(&args), "\0"))
    };
    compare("help", VERBS.into_iter().map(case));
}

#[test]
fn the_schema_is_as_it_was() {
    compare("schema", [("profile".to_owned(), transcript(&gpuvm(&["schema"]), "\0"))]);
}

/// Wrong command lines, and files that are no profiles.
#[test]
fn each_wrong_call_is_refused_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (missing, latin1, denied, host) =
        (path("none.toml"), path("latin1.toml"), path("denied.toml"), path(""));
    fs::write(&latin1, b"name = \"\xe9\"\n").unwrap();
    std::os::unix::fs::symlink(crate::shared::hosts::NOT_READABLE, &denied).unwrap();
    let dev = "profiles/dev.toml";
    let cases: [(&str, i32, &[&str]); 20] = [
        ("no-verb", 64, &[]),
        ("unknown-verb", 64, &["upp"]),
        ("unknown-option", 64, &["plan", "--strict", dev]),
        ("no-profile", 64, &["plan"]),
        ("two-profiles", 64, &["check", dev, dev]),
        ("set-without-value", 64, &["plan", "x.toml", "--set", "name"]),
        ("set-without-key", 64, &["plan", "x.toml", "--set", "=1"]),
        ("set-unknown-key", 78, &["check", dev, "--set", "memory.sice=1G"]),
        ("set-wrong-value", 78, &["check", dev, "--set", "cpu.count=many"]),
        ("set-a-table-to-a-word", 78, &["check", dev, "--set", "memory=1G"]),
        ("profile-missing", 78, &["check", &missing]),
        ("profile-is-a-folder", 78, &["check", "profiles"]),
        ("profile-not-utf8", 78, &["check", &latin1]),
        ("profile-unreadable", 77, &["check", &denied]),
        ("shutdown-timeout-of-a-word", 64, &["up", dev, "--shutdown-timeout", "soon"]),
        ("cleanup-of-no-name", 64, &["cleanup", "../x"]),
        ("doctor-of-a-profile-and-a-device", 64, &["doctor", dev, "0000:81:00.0"]),
        ("doctor-of-a-wrong-profile", 78, &["doctor", dev, "--set", "memory.sice=1G"]),
        ("devices-all-of-one", 64, &["devices", "--all", "81:00.0"]),
        ("up-on-a-recorded-host", 64, &["up", "--host-root", &host, dev]),
    ];
    let case = |(name, code, args): &(&str, i32, &[&str])| {
        let output = gpuvm(args);
        assert_eq!(output.status.code(), Some(*code), "{name}: {output:?}");
        ((*name).to_owned(), transcript(&output, &folder.path().display().to_string()))
    };
    compare("calls", cases.iter().map(case));
}
