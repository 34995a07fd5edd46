//! Whether all of it comes to a plan: the last word, so that the doctor and `up` can't disagree.

use crate::doctor::{Case, Definition, Judgement, Layer, Verdict};
use crate::plan::plan;

pub(super) const CHECK: Definition = Definition {
    name: "plan",
    layer: Layer::Resources,
    why: "`up` does what the plan says, and refuses what can't be planned; the checks above say it earlier and in more words",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let Some(profile) = case.profile else {
        return Judgement::not_applicable("no profile was given");
    };
    match plan(profile, case.facts) {
        Ok(plan) if plan.warnings.is_empty() => {
            let (devices, changes) = (plan.devices.len(), plan.operations.len());
            let plural =
                |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
            let found = format!(
                "VM {} can be planned: {}, {} to the host",
                plan.name,
                plural(devices, "device function"),
                plural(changes, "change")
            );
            vec![Judgement::of_host(Verdict::Ok, found)]
        }
        Ok(plan) => {
            let warnings = plan.warnings.iter();
            let warnings = warnings.map(|warning| format!("{}: {}", warning.about, warning.message));
            warnings.map(|found| Judgement::of_host(Verdict::Warning, found)).collect()
        }
        Err(refusals) => {
            refusals.iter().map(|refusal| Judgement::of_host(Verdict::Failed, refusal.to_string())).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::{checks, profile, verdict};
    use crate::facts::HostFacts;

    #[test]
    fn a_profile_that_cannot_be_planned_fails_with_each_refusal() {
        let profile = profile("accel = \"tcg\"\n[cpu]\ncount = 3\npin = \"off\"\n");
        let found = checks(CHECK.name, &HostFacts::default(), Some(&profile));
        let texts: Vec<&str> = found.iter().map(|check| check.found.as_str()).collect();
        let expected = plan(&profile, &HostFacts::default()).unwrap_err();
        assert_eq!(texts, expected.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(found.iter().all(|check| check.verdict == Verdict::Failed), "{found:?}");
        assert!(texts.len() >= 2, "{texts:?}");
    }

    #[test]
    fn a_profile_that_can_is_ok_and_none_is_not_asked() {
        let mut facts = HostFacts { qemu: Some("/qemu".into()), ..HostFacts::default() };
        facts.cpus.online = "0-3".parse().unwrap();
        assert_eq!(verdict(CHECK.name, &facts, Some(&profile("accel = \"tcg\""))), Verdict::Ok);
        assert_eq!(verdict(CHECK.name, &facts, None), Verdict::NotApplicable);
    }
}
