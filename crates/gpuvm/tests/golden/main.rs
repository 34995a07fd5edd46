//! What gpuvm prints for a plan, a refusal, a wrong profile, and its help, compared with the files below `tests/golden`.
//!
//! `GPUVM_BLESS=1 cargo test -p gpuvm --test golden` writes them anew; what it changed is for a reader to judge.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

mod bind;
mod calls;
mod doctor;
mod explain;
mod init;
mod inventory;
mod life;
mod lock;
mod peer;
mod plans;
mod profiles;
mod quarantine;
mod refusals;
mod report;
mod reset;
#[path = "../shared/mod.rs"]
mod shared;
mod soak;
mod soak_odd;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use shared::golden::repository;

/// Runs gpuvm in the repository.
fn gpuvm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .args(args)
        .current_dir(repository())
        .env("COLUMNS", "100")
        .env("PATH", "/usr/bin:/bin")
        .env_remove("GPUVM_PREFIX")
        .output()
        .unwrap()
}

/// Runs a verb for a profile on a host in files.
fn gpuvm_on(root: &Path, verb: &str, profile: &str, set: &[String]) -> String {
    let root = root.display().to_string();
    let root = root.trim_end_matches('/');
    let set = set.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = [verb, "--host-root", root, profile].into_iter().chain(set).collect();
    transcript(&gpuvm(&args), root)
}

/// Spells what a run printed and how it ended, with the temporary folder named by a word.
fn transcript(output: &Output, temporary: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(temporary, "HOST");
    let mut transcript = format!("exit {}\n", output.status.code().unwrap());
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !bytes.is_empty() {
            transcript.push_str(&format!("--- {name}\n{}", text(bytes)));
        }
    }
    transcript
}

/// Folders of golden files, `errors` being that of the unit tests of `failure`.
const FOLDERS: &[&str] = &[
    "argv",
    "argv-matrix",
    "bind",
    "calls",
    "devices",
    "doctor",
    "errors",
    "explain",
    "help",
    "init",
    "life",
    "lock",
    "lock-file",
    "plan",
    "plan-made-up",
    "plan-matrix",
    "profile-errors",
    "quarantine",
    "refusals",
    "reset",
    "schema",
    "soak-compare",
    "soak-report",
    "topology",
    "topology-svg",
];

#[test]
fn no_folder_of_golden_files_is_left_over() {
    for entry in fs::read_dir(repository().join("tests/golden")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(FOLDERS.contains(&name.as_str()), "tests/golden/{name} belongs to no test");
    }
}

#[test]
fn bad_input_has_a_golden_file_for_each_mistake() {
    let count = |folder: &str| fs::read_dir(repository().join("tests/golden").join(folder)).unwrap().count();
    let bad: usize = ["profile-errors", "refusals", "calls", "errors"].map(count).iter().sum();
    assert!(bad >= 250, "{bad} files are fewer than there were");
}
