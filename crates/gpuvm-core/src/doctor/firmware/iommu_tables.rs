//! Whether the firmware describes an IOMMU.

use super::NO_DEVICES;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "iommu-tables",
    layer: Layer::Firmware,
    why: "the kernel finds an IOMMU by the table in which the firmware describes it: DMAR for VT-d, IVRS for AMD-Vi",
    judge,
};

/// The tables, by the IOMMU that they describe.
const TABLES: [(&str, &str); 2] = [("DMAR", "VT-d"), ("IVRS", "AMD-Vi")];

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable(NO_DEVICES);
    }
    let active = !case.facts.iommus.is_empty();
    let tables = &case.facts.platform.acpi_tables;
    let Some(tables) = tables else {
        return match active {
            true => Judgement::not_applicable("the kernel shows no tables, and drives an IOMMU"),
            false => {
                let read = "/sys/firmware/acpi/tables: there is no such folder";
                vec![Judgement::of_host(Verdict::Unknown, "the kernel shows no ACPI tables").read(read)]
            }
        };
    };
    let found = TABLES.iter().find(|(table, _)| tables.contains(*table));
    let judgement = match found {
        Some((table, kind)) => {
            Judgement::of_host(Verdict::Ok, format!("the firmware describes {kind} ({table})"))
        }
        None if active => return Judgement::not_applicable("an IOMMU is active that ACPI doesn't describe"),
        None => Judgement::of_host(Verdict::Failed, "the firmware describes no IOMMU").remedy(Remedy::new(
            "switch on VT-d (\"Intel VT for Directed I/O\") or AMD-Vi (\"IOMMU\") in the firmware's setup",
        )),
    };
    let names: Vec<&str> = tables.iter().map(String::as_str).collect();
    vec![judgement.read(format!("/sys/firmware/acpi/tables: {}", names.join(" ")))]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict};
    use crate::facts::HostFacts;

    fn host(tables: Option<&[&str]>, iommu: bool) -> HostFacts {
        let mut facts = HostFacts::default();
        let tables = tables.map(|tables| tables.iter().map(|table| (*table).to_owned()).collect());
        facts.platform.acpi_tables = tables;
        facts.iommus = if iommu { vec!["dmar0".to_owned()] } else { Vec::new() };
        facts
    }

    #[rstest]
    #[case::intel(Some(&["DMAR", "FACP"][..]), true, Verdict::Ok)]
    #[case::amd_switched_off_later(Some(&["IVRS"][..]), false, Verdict::Ok)]
    #[case::none(Some(&["FACP"][..]), false, Verdict::Failed)]
    #[case::another_kind(Some(&["FACP"][..]), true, Verdict::NotApplicable)]
    #[case::not_shown(None, false, Verdict::Unknown)]
    #[case::not_shown_and_active(None, true, Verdict::NotApplicable)]
    fn tables_tell_whether_there_is_an_iommu(
        #[case] tables: Option<&[&str]>,
        #[case] iommu: bool,
        #[case] expected: Verdict,
    ) {
        assert_eq!(verdict(CHECK.name, &host(tables, iommu), None), expected);
    }

    #[test]
    fn a_guest_without_devices_needs_none() {
        let profile = profile("");
        assert_eq!(verdict(CHECK.name, &host(Some(&[]), false), Some(&profile)), Verdict::NotApplicable);
    }
}
