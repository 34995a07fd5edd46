//! Whether the kernel's command line leaves the IOMMU on.

use super::NO_DEVICES;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "iommu-options",
    layer: Layer::Firmware,
    why: "an option of the kernel can switch the IOMMU off, whatever the firmware says",
    judge,
};

/// Options that switch it off, and the table of the IOMMU that they are about; both where there is none.
const OFF: [(&str, &str, Option<&str>); 4] = [
    ("intel_iommu", "off", Some("DMAR")),
    ("amd_iommu", "off", Some("IVRS")),
    ("iommu", "off", None),
    ("acpi", "off", None),
];

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable(NO_DEVICES);
    }
    let judgement = match switched_off_by(case) {
        Some(option) if case.facts.iommus.is_empty() => {
            let remedy = Remedy::new(format!("take {option} off the kernel's command line"))
                .commands(case.distribution().without_kernel_option(&option));
            let found = format!("the kernel was told to leave the IOMMU off ({option})");
            Judgement::of_host(Verdict::Failed, found).remedy(remedy)
        }
        _ => Judgement::of_host(Verdict::Ok, words(case)),
    };
    vec![judgement.read(format!("/proc/cmdline: {}", case.facts.kernel.cmdline.trim()))]
}

/// Finds the option that switches the IOMMU off.
pub(super) fn switched_off_by(case: &Case<'_>) -> Option<String> {
    let (kernel, tables) = (&case.facts.kernel, &case.facts.platform.acpi_tables);
    // Where the other vendor's table is, an option about this one's IOMMU means nothing.
    let concerns = |table: Option<&str>| {
        let Some((table, tables)) = table.zip(tables.as_ref()) else { return true };
        tables.contains(table) || !tables.iter().any(|table| table == "DMAR" || table == "IVRS")
    };
    let off = OFF.iter().find(|(name, value, table)| kernel.has_option(name, value) && concerns(*table));
    off.map(|(name, value, _)| format!("{name}={value}"))
}

fn words(case: &Case<'_>) -> String {
    let kernel = &case.facts.kernel;
    let amd = case.facts.platform.acpi_tables.iter().flatten().any(|table| table == "IVRS");
    let on = match kernel.has_option("intel_iommu", "on") {
        true => "intel_iommu=on",
        false if amd => "no option switches it off, and AMD-Vi needs none to be on",
        false => "no option switches it off",
    };
    if kernel.has_option("iommu", "pt") || kernel.has_option("iommu.passthrough", "1") {
        format!("{on}; iommu=pt: the host's own devices aren't translated, which guests don't need")
    } else {
        format!("{on}; iommu=pt would make the host's own devices faster, and guests don't need it")
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::Distribution;
    use crate::doctor::testing::{check, verdict};
    use crate::facts::HostFacts;

    fn host(cmdline: &str, table: &str) -> HostFacts {
        let mut facts = HostFacts::default();
        facts.kernel.cmdline = cmdline.to_owned();
        facts.platform.acpi_tables = Some([table.to_owned()].into());
        facts.platform.distribution = Distribution::Debian;
        facts
    }

    #[rstest]
    #[case("quiet intel_iommu=off", "DMAR", Verdict::Failed)]
    #[case("quiet intel_iommu=off", "IVRS", Verdict::Ok)]
    #[case("amd_iommu=off", "IVRS", Verdict::Failed)]
    #[case("iommu=off", "IVRS", Verdict::Failed)]
    #[case("amd_iommu=off", "FACP", Verdict::Failed)]
    #[case("intel_iommu=on,sm_on iommu=pt", "DMAR", Verdict::Ok)]
    #[case("quiet", "IVRS", Verdict::Ok)]
    fn options_that_switch_it_off_are_found(
        #[case] cmdline: &str,
        #[case] table: &str,
        #[case] expected: Verdict,
    ) {
        assert_eq!(verdict(CHECK.name, &host(cmdline, table), None), expected);
    }

    #[test]
    fn an_option_that_a_later_one_outdoes_is_no_failure() {
        let facts =
            HostFacts { iommus: vec!["dmar0".to_owned()], ..host("intel_iommu=off intel_iommu=on", "DMAR") };
        assert_eq!(verdict(CHECK.name, &facts, None), Verdict::Ok);
    }

    #[test]
    fn the_remedy_takes_the_option_away() {
        let remedy = check(CHECK.name, &host("amd_iommu=off", "IVRS"), None).remedy.unwrap();
        assert!(remedy.commands[0].contains("amd_iommu=off"), "{remedy:?}");
        assert_eq!(remedy.commands[1], "update-grub");
    }
}
