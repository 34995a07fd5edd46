//! Plans and command lines: of what a profile can ask for, and of each shipped profile on each recorded host.

use std::collections::BTreeSet;

use crate::gpuvm_on;
use crate::shared::golden::compare;
use crate::shared::{Case, features, made_up, matrix};

fn run(case: &Case, verb: &str) -> (String, String) {
    (case.name.clone(), gpuvm_on(&case.host.root(), verb, &case.profile, &case.set))
}

fn runs(case: &Case, verb: &str) -> (String, String) {
    let (name, transcript) = run(case, verb);
    assert!(transcript.starts_with("exit 0\n"), "{name}: {transcript}");
    (name, transcript)
}

#[test]
fn plans_are_as_they_were() {
    compare("plan", features::all().iter().map(|case| runs(case, "plan")));
}

#[test]
fn command_lines_are_as_they_were() {
    compare("argv", features::all().iter().map(|case| runs(case, "argv")));
}

/// A host that is too small for a profile refuses it, and that is kept in its file; but every profile runs somewhere.
#[test]
fn each_shipped_profile_is_planned_on_each_recorded_host_as_it_was() {
    let cases: Vec<(String, String)> = matrix::all().iter().map(|case| run(case, "plan")).collect();
    let planned: BTreeSet<&str> = cases
        .iter()
        .filter(|(_, transcript)| transcript.starts_with("exit 0\n"))
        .filter_map(|(name, _)| Some(name.split_once("-on-")?.0))
        .collect();
    let all = matrix::profiles();
    assert_eq!(planned, all.iter().map(String::as_str).collect(), "some shipped profile is planned nowhere");
    compare("plan-matrix", cases);
}

#[test]
fn each_shipped_profile_has_the_command_line_that_it_had_on_each_recorded_host() {
    compare("argv-matrix", matrix::all().iter().map(|case| run(case, "argv")));
}

/// Hosts that nobody here owns: what is planned on them, and what is refused and why.
#[test]
fn each_made_up_host_is_planned_on_or_refuses_as_it_did() {
    compare("plan-made-up", made_up::all().iter().map(|case| run(case, "plan")));
}
