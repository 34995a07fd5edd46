//! Whether the kernel drives an IOMMU.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::CpuVendor;

pub(super) const CHECK: Definition = Definition {
    name: "iommu-active",
    layer: Layer::Firmware,
    why: "without an IOMMU a guest's device could read and write all of the host's memory, so VFIO gives none out",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let facts = case.facts;
    let units = facts.iommus.join(" ");
    let judgement = if facts.iommus.is_empty() {
        Judgement::of_host(Verdict::Failed, "the kernel drives no IOMMU").remedy(remedy(case))
    } else {
        Judgement::of_host(Verdict::Ok, format!("the kernel drives {}", facts.iommus.join(", ")))
    };
    vec![
        judgement
            .read(format!("/sys/class/iommu: {}", if units.is_empty() { "empty" } else { &units }))
            .read(format!("/proc/cmdline: {}", facts.kernel.cmdline)),
    ]
}

/// AMD's is on by itself where the firmware has it on; Intel's often isn't (CONFIG_INTEL_IOMMU_DEFAULT_ON).
fn remedy(case: &Case<'_>) -> Remedy {
    match case.facts.cpus.vendor {
        CpuVendor::Amd => Remedy::new("switch on AMD-Vi (\"IOMMU\", \"SVM\") in the firmware's setup"),
        CpuVendor::Other => {
            Remedy::new("switch on VT-d (\"Intel VT for Directed I/O\") in the firmware's setup, and boot with intel_iommu=on")
                .commands(case.distribution().kernel_option("intel_iommu=on"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::examine;
    use crate::facts::HostFacts;

    #[test]
    fn a_host_without_an_iommu_fails_and_one_with_is_ok() {
        let verdict = |facts: &HostFacts| {
            let checks = examine(facts, None, &[]).checks;
            checks.into_iter().find(|check| check.name == "iommu-active").unwrap()
        };
        let mut facts = HostFacts::default();
        let failed = verdict(&facts);
        assert_eq!(failed.verdict, Verdict::Failed);
        assert!(failed.remedy.unwrap().what.contains("intel_iommu=on"));
        facts.iommus = vec!["dmar0".to_owned()];
        assert_eq!(verdict(&facts).verdict, Verdict::Ok);
    }
}
