//! Whether CPUs are kept from the scheduler, and who may still use them.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::profile::Pin;

pub(super) const CHECK: Definition = Definition {
    name: "cpus-isolated",
    layer: Layer::Resources,
    why: "the scheduler leaves isolated CPUs alone: vCPUs that are pinned there run undisturbed, and others never get there",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let isolated = &case.facts.platform.isolated_cpus;
    let words = if isolated.is_empty() { "none".to_owned() } else { isolated.to_string() };
    let pinned = case.profile.map(|profile| profile.cpu.pin != Pin::Off);
    let judgement = match (isolated.is_empty(), pinned) {
        (true, _) => Judgement::of_host(Verdict::Ok, "no CPU is isolated"),
        (false, Some(false)) => Judgement::of_host(
            Verdict::Warning,
            format!("CPUs {isolated} are isolated, and vCPUs that aren't pinned never run there"),
        )
        .remedy(Remedy::new("write [cpu] pin = \"auto\", or list them")),
        (false, _) => Judgement::of_host(
            Verdict::Ok,
            format!("CPUs {isolated} are isolated: vCPUs can be pinned there"),
        ),
    };
    vec![judgement.read(format!("/sys/devices/system/cpu/isolated: {words}"))]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict};
    use crate::facts::HostFacts;
    use crate::profile::Profile;

    #[rstest]
    #[case::none("", Some(profile("")), Verdict::Ok)]
    #[case::out_of_reach("4-7", Some(profile("")), Verdict::Warning)]
    #[case::pinned("4-7", Some(profile("[cpu]\ncount = 2\npin = \"auto\"\n")), Verdict::Ok)]
    #[case::no_profile("4-7", None, Verdict::Ok)]
    fn isolated_cpus_are_for_pinned_vcpus(
        #[case] isolated: &str,
        #[case] profile: Option<Profile>,
        #[case] expected: Verdict,
    ) {
        let mut facts = HostFacts::default();
        facts.platform.isolated_cpus = isolated.parse().unwrap();
        assert_eq!(verdict(CHECK.name, &facts, profile.as_ref()), expected);
    }
}
