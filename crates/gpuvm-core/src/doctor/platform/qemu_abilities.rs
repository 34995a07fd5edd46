//! Whether QEMU has the devices and the properties that gpuvm's command lines use.

use crate::doctor::{Case, Definition, Judgement, Layer, Package, Remedy, Verdict};
use crate::facts::QemuProbe;
use crate::qemu::abilities::{Needed, NeededType, TYPES, lacking};

pub(super) const CHECK: Definition = Definition {
    name: "qemu-abilities",
    layer: Layer::Platform,
    why: "distributions leave devices out of QEMU, or put them into packages of their own",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let QemuProbe::Answered(qemu) = &case.facts.qemu_probe else {
        return Judgement::not_applicable("no QEMU has answered (see qemu)");
    };
    let nodes = case.outline.map_or(0, |outline| outline.placement.nodes.len());
    let needed = |needed: &&NeededType| case.profile.is_none_or(|profile| needed.needed.by(profile, nodes));
    let needed: Vec<&NeededType> = TYPES.iter().filter(needed).collect();
    let lacks = |of: fn(Needed) -> bool| -> Vec<String> {
        needed.iter().filter(|needed| of(needed.needed)).flat_map(|needed| lacking(qemu, needed)).collect()
    };
    // Without a profile, some guests can do without a disk or a screen.
    let (vital, other) = match case.profile {
        Some(_) => (lacks(|_| true), Vec::new()),
        None => (
            lacks(|needed| matches!(needed, Needed::Always | Needed::Devices)),
            lacks(|needed| !matches!(needed, Needed::Always | Needed::Devices)),
        ),
    };
    let remedy = || {
        let remedy = Remedy::new("install what your distribution left out of QEMU, or another build of it");
        remedy.commands(case.distribution().install(Package::Qemu))
    };
    let judgement = match (vital.as_slice(), other.as_slice()) {
        ([], []) => {
            let names: Vec<&str> = needed.iter().map(|needed| needed.name).collect();
            Judgement::of_host(
                Verdict::Ok,
                format!("QEMU has all {} device types that are used", names.len()),
            )
            .read(format!("device-list-properties: {}", names.join(" ")))
        }
        ([], other) => {
            let found = format!("QEMU lacks {}, which some guests need", other.join(", "));
            Judgement::of_host(Verdict::Warning, found).remedy(remedy())
        }
        (vital, _) => {
            Judgement::of_host(Verdict::Failed, format!("QEMU lacks {}", vital.join(", "))).remedy(remedy())
        }
    };
    vec![judgement]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, profile, verdict, with_device};
    use crate::facts::{HostFacts, QemuFacts};

    /// A QEMU with all that is used, except for one type.
    fn host(without: &str) -> HostFacts {
        let types = TYPES.iter().filter(|needed| needed.name != without);
        let properties =
            |needed: &NeededType| needed.properties.iter().map(|name| (*name).to_owned()).collect();
        let types = types.map(|needed| (needed.name.to_owned(), properties(needed))).collect();
        let qemu_probe = QemuProbe::Answered(QemuFacts { types, ..QemuFacts::default() });
        HostFacts { qemu_probe, ..HostFacts::default() }
    }

    #[rstest]
    #[case::all("", Verdict::Ok, Verdict::Ok)]
    #[case::no_vfio("vfio-pci", Verdict::Failed, Verdict::Failed)]
    #[case::no_port("pcie-root-port", Verdict::Failed, Verdict::Failed)]
    #[case::no_screen("VGA", Verdict::Warning, Verdict::Ok)]
    fn what_is_lacking_fails_whom_it_concerns(
        #[case] without: &str,
        #[case] host_alone: Verdict,
        #[case] with_profile: Verdict,
    ) {
        let facts = host(without);
        assert_eq!(verdict(CHECK.name, &facts, None), host_alone);
        assert_eq!(verdict(CHECK.name, &facts, Some(&with_device(""))), with_profile);
    }

    #[test]
    fn a_guest_without_devices_needs_no_vfio() {
        assert_eq!(verdict(CHECK.name, &host("vfio-pci"), Some(&profile(""))), Verdict::Ok);
    }

    #[test]
    fn a_property_that_is_lacking_is_named() {
        let mut facts = host("");
        let QemuProbe::Answered(qemu) = &mut facts.qemu_probe else { panic!("it has answered") };
        qemu.types.get_mut("vfio-pci").unwrap().remove("rombar");
        let found = check(CHECK.name, &facts, None).found;
        assert!(found.contains("vfio-pci.rombar"), "{found}");
    }

    #[test]
    fn a_qemu_that_was_not_asked_is_judged_elsewhere() {
        assert_eq!(verdict(CHECK.name, &HostFacts::default(), None), Verdict::NotApplicable);
    }
}
