//! Plans and command lines of what a profile can ask for.

use crate::gpuvm_on;
use crate::shared::golden::compare;
use crate::shared::{Case, features};

fn run(case: &Case, verb: &str) -> (String, String) {
    let transcript = gpuvm_on(&case.host.root(), verb, &case.profile, &case.set);
    assert!(transcript.starts_with("exit 0\n"), "{}: {transcript}", case.name);
    (case.name.clone(), transcript)
}

#[test]
fn plans_are_as_they_were() {
    compare("plan", features::all().iter().map(|case| run(case, "plan")));
}

#[test]
fn command_lines_are_as_they_were() {
    compare("argv", features::all().iter().map(|case| run(case, "argv")));
}
