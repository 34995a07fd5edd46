//! Whether a plan would take a device that no profile names.

use crate::doctor::device::{of, path};
use crate::doctor::{Case, Definition, Judgement, Layer, Verdict};
use crate::plan::passable;

pub(super) const CHECK: Definition = Definition {
    name: "passable",
    layer: Layer::Ownership,
    why: "a plan refuses what can't be taken whole and given back: `devices` and `bind` judge by the same rule",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if case.profile.is_some() {
        return Judgement::not_applicable("the profile's plan says it");
    }
    // What isn't there fails elsewhere.
    let present = case.targets.iter().filter(|bdf| case.facts.devices.contains_key(bdf));
    let judge = |bdf| {
        let refusals = passable(bdf, case.facts).refusals;
        let (verdict, found) = match refusals.is_empty() {
            true => (Verdict::Ok, "a plan would take it".to_owned()),
            false => {
                let refusals: Vec<String> = refusals.iter().map(ToString::to_string).collect();
                (Verdict::Failed, refusals.join("; "))
            }
        };
        ["driver", "driver_override", "class", "iommu_group", "sriov_numvfs"]
            .iter()
            .fold(of(bdf, verdict, found), |judgement, attribute| judgement.read(path(bdf, attribute)))
    };
    present.map(|bdf| judge(*bdf)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, PORT, change, host, judge_for};
    use crate::doctor::testing::{checks, with_device};

    #[test]
    fn a_card_is_taken_and_a_bridge_is_not() {
        let facts = host();
        let judged = judge_for(&CHECK, &facts, &[GPU, AUDIO, PORT]);
        let verdicts: Vec<Verdict> = judged.iter().map(|judgement| judgement.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Ok, Verdict::Failed]);
        assert!(judged[2].found.contains("PCI bridge"), "{}", judged[2].found);
    }

    #[test]
    fn with_a_profile_its_plan_says_it() {
        let found = checks(CHECK.name, &host(), Some(&with_device("")));
        assert_eq!(found[0].verdict, Verdict::NotApplicable);
    }

    #[test]
    fn what_was_not_read_is_unknown() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.virtual_functions = 0);
        facts.unread.push(format!("read /sys/bus/pci/devices/{GPU}/sriov_numvfs: Input/output error"));
        let found = crate::doctor::examine(&facts, None, &[GPU.parse().unwrap()]).checks;
        let check = found.iter().find(|check| check.name == CHECK.name).unwrap();
        assert_eq!(check.verdict, Verdict::Unknown);
    }
}
