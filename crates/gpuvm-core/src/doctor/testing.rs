//! What the tests of checks share.

use std::path::Path;

use super::{Check, Verdict, examine};
use crate::facts::HostFacts;
use crate::plan::targets;
use crate::profile::{Profile, Sources, parse};

/// Parses a profile of 4 GiB, 2 vCPUs, SeaBIOS and no network, with more lines.
pub(crate) fn profile(lines: &str) -> Profile {
    let text = format!("version = 1\nname = \"x\"\nfirmware = \"bios\"\n{lines}\n");
    let text = if lines.contains("[memory]") { text } else { format!("{text}[memory]\nsize = \"4G\"\n") };
    let text =
        if lines.contains("[cpu]") { text } else { format!("{text}[cpu]\ncount = 2\npin = \"off\"\n") };
    parse(&Sources::new("x.toml", text), Path::new("/")).unwrap()
}

/// Parses a profile that passes 0000:81:00.0.
pub(crate) fn with_device(lines: &str) -> Profile {
    profile(&format!("{lines}\n[[device]]\nbdf = \"0000:81:00.0\""))
}

/// Returns the findings of one check.
pub(crate) fn checks(name: &str, facts: &HostFacts, profile: Option<&Profile>) -> Vec<Check> {
    let targets = profile.map(|profile| targets(profile, facts)).unwrap_or_default();
    let checks = examine(facts, profile, &targets).checks;
    checks.into_iter().filter(|check| check.name == name).collect()
}

/// Returns the only finding of a check.
pub(crate) fn check(name: &str, facts: &HostFacts, profile: Option<&Profile>) -> Check {
    let mut checks = checks(name, facts, profile);
    assert_eq!(checks.len(), 1, "{checks:?}");
    checks.remove(0)
}

/// Returns the only verdict of a check.
pub(crate) fn verdict(name: &str, facts: &HostFacts, profile: Option<&Profile>) -> Verdict {
    check(name, facts, profile).verdict
}
