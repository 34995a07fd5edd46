//! Whether the IOMMU's addresses reach as far as the guest's.

use super::NO_DEVICES;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "iommu-width",
    layer: Layer::Firmware,
    why: "a device reaches the guest's memory by the guest's addresses, and can't where the IOMMU has fewer bits than they need",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable(NO_DEVICES);
    }
    if case.facts.iommus.is_empty() {
        return Judgement::not_applicable("the kernel drives no IOMMU (see iommu-active)");
    }
    let units = &case.facts.platform.iommu_units;
    let widths = units.iter().filter_map(|(name, unit)| Some((unit.address_bits()?, name)));
    let Some((bits, narrowest)) = widths.min() else {
        return vec![Judgement::of_host(Verdict::Unknown, "no IOMMU unit tells how wide its addresses are")];
    };
    let judgement = match case.outline.map(|outline| &outline.addresses) {
        None => Judgement::of_host(Verdict::Ok, format!("the IOMMU translates {bits} address bits")),
        Some(addresses) => {
            let top = addresses.memory_top();
            let reaches = |address: u64| bits >= 64 || address >> bits == 0;
            let guest = addresses.phys_bits.filter(|guest| *guest > bits);
            match guest {
                _ if !reaches(top) => Judgement::of_host(
                    Verdict::Failed,
                    format!("the guest's memory ends at {top:#x}, and the IOMMU translates {bits} address bits"),
                )
                .remedy(Remedy::new("give the guest less memory (memory.size)")),
                Some(guest) if addresses.high_need.as_bytes() > 0 && addresses.bars.len() > 1 => {
                    Judgement::of_host(
                        Verdict::Warning,
                        format!(
                            "the guest's CPUs have {guest} address bits and the IOMMU {bits}: where the guest's firmware puts large BARs \
                             beyond, its devices can't reach each other"
                        ),
                    )
                    .remedy(Remedy::new(
                        "none is needed unless the guest's devices copy to each other directly (peer-to-peer)",
                    ))
                }
                _ => Judgement::of_host(
                    Verdict::Ok,
                    format!("the IOMMU translates {bits} address bits, and the guest's memory ends at {top:#x}"),
                ),
            }
        }
    };
    let judgement = judgement.read(format!("/sys/class/iommu/{narrowest}: {bits} address bits"));
    // The narrowest may be one that says nothing.
    let silent = case.facts.iommus.iter().filter(|name| !units.contains_key(*name));
    vec![
        silent
            .fold(judgement, |judgement, name| judgement.read(format!("/sys/class/iommu/{name}: no width"))),
    ]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{verdict, with_device};
    use crate::facts::{BarFacts, BarKind, DeviceFacts, HostFacts, IommuUnit};
    use crate::pci::ClassCode;
    use crate::units::ByteSize;

    /// A host with an IOMMU of 39 bits, and a card with a large BAR.
    fn host(phys_bits: u8) -> HostFacts {
        let mut facts = HostFacts { iommus: vec!["dmar0".to_owned()], ..HostFacts::default() };
        facts.cpus.phys_bits = Some(phys_bits);
        let unit = IommuUnit::Intel { cap: 0x00d2_008c_2226_0206, ecap: 0 };
        facts.platform.iommu_units = [("dmar0".to_owned(), unit)].into();
        let mut card = DeviceFacts::new("10de:2330".parse().unwrap(), ClassCode::new(0x03_0200).unwrap());
        let bar =
            |index, gib: u64, kind| BarFacts { index, size: ByteSize::bytes(gib << 30), address: None, kind };
        card.bars = vec![bar(0, 1, BarKind::Low), bar(2, 64, BarKind::High)];
        facts.devices.insert("0000:81:00.0".parse().unwrap(), card);
        facts
    }

    #[rstest]
    #[case::fits(39, "4G", Verdict::Ok)]
    #[case::memory_beyond(46, "600G", Verdict::Failed)]
    #[case::bars_beyond(46, "4G", Verdict::Warning)]
    fn a_guest_must_lie_within_the_iommus_addresses(
        #[case] phys_bits: u8,
        #[case] memory: &str,
        #[case] expected: Verdict,
    ) {
        let profile = with_device(&format!("[memory]\nsize = \"{memory}\"\n"));
        assert_eq!(verdict(CHECK.name, &host(phys_bits), Some(&profile)), expected);
    }

    #[test]
    fn a_unit_that_tells_nothing_leaves_it_unknown() {
        let mut facts = host(46);
        facts.platform.iommu_units.clear();
        assert_eq!(verdict(CHECK.name, &facts, None), Verdict::Unknown);
    }
}
