//! Whether the kernel has sorted devices into groups.

use super::NO_DEVICES;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::Presence;

pub(super) const CHECK: Definition = Definition {
    name: "iommu-groups",
    layer: Layer::Firmware,
    why: "VFIO gives out whole groups of devices that the IOMMU can tell from others; without groups there is nothing to give",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let facts = case.facts;
    if !case.passes_devices() {
        return Judgement::not_applicable(NO_DEVICES);
    }
    let judgement = match facts.platform.iommu_groups {
        Presence::Present => Judgement::of_host(Verdict::Ok, "devices are in IOMMU groups"),
        Presence::Absent if facts.iommus.is_empty() => {
            return Judgement::not_applicable("the kernel drives no IOMMU (see iommu-active)");
        }
        Presence::Absent => {
            Judgement::of_host(Verdict::Failed, "an IOMMU is driven, and no device is in a group").remedy(
                Remedy::new("see why the kernel's IOMMU driver gave up")
                    .command("dmesg | grep -i -e DMAR -e AMD-Vi -e iommu"),
            )
        }
    };
    let read = if facts.platform.iommu_groups == Presence::Present { "not empty" } else { "empty" };
    vec![judgement.read(format!("/sys/kernel/iommu_groups: {read}"))]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::verdict;
    use crate::facts::HostFacts;

    #[rstest]
    #[case(Presence::Present, &["dmar0"], Verdict::Ok)]
    #[case(Presence::Absent, &["dmar0"], Verdict::Failed)]
    #[case(Presence::Absent, &[], Verdict::NotApplicable)]
    fn groups_are_there_where_an_iommu_is(
        #[case] groups: Presence,
        #[case] iommus: &[&str],
        #[case] expected: Verdict,
    ) {
        let mut facts = HostFacts {
            iommus: iommus.iter().map(|name| (*name).to_owned()).collect(),
            ..HostFacts::default()
        };
        facts.platform.iommu_groups = groups;
        assert_eq!(verdict(CHECK.name, &facts, None), expected);
    }
}
