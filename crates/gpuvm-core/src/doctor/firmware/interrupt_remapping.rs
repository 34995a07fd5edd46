//! Whether the IOMMU remaps interrupts.

use super::NO_DEVICES;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "interrupt-remapping",
    layer: Layer::Firmware,
    why: "a device that may write any message can fake any interrupt of the host, so VFIO refuses to give one out that isn't kept from it",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let platform = &case.facts.platform;
    if !case.passes_devices() {
        return Judgement::not_applicable(NO_DEVICES);
    }
    if case.facts.iommus.is_empty() {
        return Judgement::not_applicable("the kernel drives no IOMMU (see iommu-active)");
    }
    let judgement = match (platform.remaps_interrupts(), platform.vfio.unsafe_interrupts) {
        (Some(true), _) => Judgement::of_host(Verdict::Ok, "the IOMMU remaps interrupts"),
        (Some(false), Some(true)) => {
            let found = "the IOMMU doesn't remap interrupts, and VFIO was told to do without: a guest that isn't trusted can disturb the host";
            Judgement::of_host(Verdict::Warning, found).remedy(remedy(case))
        }
        (Some(false), _) => Judgement::of_host(
            Verdict::Failed,
            "the IOMMU doesn't remap interrupts: attaching a group fails with EPERM",
        )
        .remedy(remedy(case)),
        (None, _) => Judgement::of_host(Verdict::Unknown, "nothing tells who handles interrupts"),
    };
    vec![with_reading(case, judgement)]
}

fn with_reading(case: &Case<'_>, judgement: Judgement) -> Judgement {
    let platform = &case.facts.platform;
    let chips = match &platform.interrupt_chips {
        None => "not there".to_owned(),
        Some(chips) => chips.iter().map(String::as_str).collect::<Vec<_>>().join(" "),
    };
    let can = |unit: bool| if unit { "can remap interrupts" } else { "can't remap interrupts" };
    let units = platform.iommu_units.iter();
    let judgement =
        units.fold(judgement.read(format!("/proc/interrupts: {chips}")), |judgement, (name, unit)| {
            judgement.read(format!("/sys/class/iommu/{name}: {}", can(unit.can_remap_interrupts())))
        });
    match platform.vfio.unsafe_interrupts {
        None => judgement,
        Some(allowed) => {
            let word = if allowed { "Y" } else { "N" };
            judgement.read(format!("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts: {word}"))
        }
    }
}

fn remedy(case: &Case<'_>) -> Remedy {
    let kernel = &case.facts.kernel;
    let off = ["intremap=off", "nointremap"].into_iter().find(|option| kernel.has_word(option));
    if let Some(option) = off {
        return Remedy::new(format!("take {option} off the kernel's command line"))
            .commands(case.distribution().without_kernel_option(option));
    }
    let units = &case.facts.platform.iommu_units;
    let trusted = "/etc/modprobe.d/gpuvm-unsafe-interrupts.conf";
    let unsafe_interrupts = [
        format!("echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' > {trusted}"),
        "echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts".to_owned(),
    ];
    match !units.is_empty() && units.values().all(|unit| unit.can_remap_interrupts()) {
        true => Remedy::new("the IOMMU can: switch on interrupt remapping or x2APIC in the firmware's setup, and see what the kernel says of it")
            .command("dmesg | grep -i -e remapping -e x2apic"),
        false => Remedy::new("switch on interrupt remapping in the firmware's setup; where this IOMMU has none, guests that are trusted can run without")
            .commands(unsafe_interrupts),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, profile, verdict};
    use crate::facts::{HostFacts, IommuUnit};

    fn host(chips: &[&str]) -> HostFacts {
        let mut facts = HostFacts { iommus: vec!["dmar0".to_owned()], ..HostFacts::default() };
        facts.platform.interrupt_chips = Some(chips.iter().map(|chip| (*chip).to_owned()).collect());
        facts
    }

    #[rstest]
    #[case::remapped(&["IR-IO-APIC", "DMAR-MSI"], None, Verdict::Ok)]
    #[case::its_own_faults_are_no_remapping(&["IO-APIC", "DMAR-MSI"], Some(false), Verdict::Failed)]
    #[case::done_without(&["IO-APIC", "PCI-MSI"], Some(true), Verdict::Warning)]
    #[case::no_line(&[], None, Verdict::Unknown)]
    fn the_chips_tell_whether_interrupts_are_remapped(
        #[case] chips: &[&str],
        #[case] unsafe_interrupts: Option<bool>,
        #[case] expected: Verdict,
    ) {
        let mut facts = host(chips);
        facts.platform.vfio.unsafe_interrupts = unsafe_interrupts;
        assert_eq!(verdict(CHECK.name, &facts, None), expected);
    }

    #[test]
    fn without_an_iommu_or_devices_it_is_not_asked() {
        let no_iommu = HostFacts { iommus: Vec::new(), ..host(&["IO-APIC"]) };
        assert_eq!(verdict(CHECK.name, &no_iommu, None), Verdict::NotApplicable);
        assert_eq!(verdict(CHECK.name, &host(&["IO-APIC"]), Some(&profile(""))), Verdict::NotApplicable);
    }

    #[rstest]
    #[case::switched_off("intremap=off", 0xf00f4e, "take intremap=off off")]
    #[case::the_unit_could("quiet", 0xf00f4e, "the IOMMU can")]
    #[case::the_unit_cannot("quiet", 0xf00f46, "trusted")]
    fn the_remedy_fits_what_the_unit_can(#[case] cmdline: &str, #[case] ecap: u64, #[case] says: &str) {
        let mut facts = host(&["IO-APIC"]);
        facts.kernel.cmdline = cmdline.to_owned();
        facts.platform.iommu_units = [("dmar0".to_owned(), IommuUnit::Intel { cap: 0, ecap })].into();
        let what = check(CHECK.name, &facts, None).remedy.unwrap().what;
        assert!(what.contains(says), "{what}");
    }
}
