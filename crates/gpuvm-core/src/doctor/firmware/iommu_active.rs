//! Whether the kernel drives an IOMMU.

use super::NO_DEVICES;
use super::iommu_options::switched_off_by;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::CpuVendor;

pub(super) const CHECK: Definition = Definition {
    name: "iommu-active",
    layer: Layer::Firmware,
    why: "without an IOMMU a guest's device could read and write all of the host's memory, so VFIO gives none out",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable(NO_DEVICES);
    }
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
            .read(format!("/proc/cmdline: {}", facts.kernel.cmdline.trim())),
    ]
}

/// AMD's is on by itself where the firmware has it on; Intel's often isn't (CONFIG_INTEL_IOMMU_DEFAULT_ON).
fn remedy(case: &Case<'_>) -> Remedy {
    if let Some(option) = switched_off_by(case) {
        return Remedy::new(format!("take {option} off the kernel's command line (see iommu-options)"));
    }
    let tables = case.facts.platform.acpi_tables.iter().flatten();
    let described = tables.map(String::as_str).find(|table| matches!(*table, "DMAR" | "IVRS"));
    let intel = || case.distribution().kernel_option("intel_iommu=on");
    match (described, case.facts.cpus.vendor) {
        (Some("DMAR"), _) => {
            Remedy::new("the firmware has it on: boot with intel_iommu=on").commands(intel())
        }
        (Some(_), _) => Remedy::new(
            "the firmware has it on, and it needs no option of the kernel: see what the kernel says of it",
        )
        .command("dmesg | grep -i -e AMD-Vi -e iommu"),
        (None, CpuVendor::Amd) => {
            Remedy::new("switch on AMD-Vi (\"IOMMU\") in the firmware's setup; it needs no option of the kernel")
        }
        (None, CpuVendor::Other) => {
            Remedy::new("switch on VT-d (\"Intel VT for Directed I/O\") in the firmware's setup, and boot with intel_iommu=on")
                .commands(intel())
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, verdict};
    use crate::facts::HostFacts;

    #[test]
    fn a_host_with_an_iommu_is_ok() {
        let facts = HostFacts { iommus: vec!["dmar0".to_owned()], ..HostFacts::default() };
        assert_eq!(verdict(CHECK.name, &facts, None), Verdict::Ok);
    }

    #[test]
    fn an_option_that_switches_it_off_is_not_outdone_by_another() {
        let mut facts = HostFacts::default();
        facts.kernel.cmdline = "intel_iommu=off".to_owned();
        let remedy = check(CHECK.name, &facts, None).remedy.unwrap();
        assert!(remedy.what.contains("take intel_iommu=off off") && remedy.commands.is_empty(), "{remedy:?}");
    }

    #[rstest]
    #[case::intel_with_a_table(Some("DMAR"), CpuVendor::Other, "boot with intel_iommu=on")]
    #[case::amd_with_a_table(Some("IVRS"), CpuVendor::Amd, "needs no option of the kernel")]
    #[case::intel(None, CpuVendor::Other, "firmware's setup, and boot with intel_iommu=on")]
    #[case::amd(None, CpuVendor::Amd, "needs no option of the kernel")]
    fn a_host_without_one_fails_and_is_told_what_is_missing(
        #[case] table: Option<&str>,
        #[case] vendor: CpuVendor,
        #[case] says: &str,
    ) {
        let mut facts = HostFacts::default();
        facts.cpus.vendor = vendor;
        facts.platform.acpi_tables = Some(table.into_iter().map(str::to_owned).collect());
        let failed = check(CHECK.name, &facts, None);
        let what = failed.remedy.unwrap().what;
        assert_eq!(failed.verdict, Verdict::Failed);
        assert!(what.contains(says), "{what}");
    }
}
