//! Whether VFIO maps as many ranges as a guest has.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "dma-entries",
    layer: Layer::Resources,
    why: "VFIO maps a guest's memory and BARs range by range, and so many ranges at most",
    judge,
};

/// What QEMU maps beside the guest's memory and BARs: firmware, ROMs, and pieces of memory below 1 MiB and 4 GiB.
const BESIDE: usize = 32;

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let Some(limit) = case.facts.platform.vfio.dma_entry_limit else {
        return Judgement::not_applicable("vfio_iommu_type1 isn't loaded, or tells no limit");
    };
    let need =
        case.outline.map_or(BESIDE, |outline| BESIDE + outline.memory.len() + outline.addresses.bars.len());
    let judgement = if limit < need as u64 {
        let parameter = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
        Judgement::of_host(
            Verdict::Failed,
            format!("{limit} ranges can be mapped, and some {need} are needed"),
        )
        .remedy(
            Remedy::new("give VFIO its usual limit back, and look below /etc/modprobe.d for who lowered it")
                .commands([
                    format!("echo 65535 > {parameter}"),
                    "grep -r dma_entry_limit /etc/modprobe.d".to_owned(),
                ]),
        )
    } else {
        Judgement::of_host(Verdict::Ok, format!("{limit} ranges can be mapped, and some {need} are needed"))
    };
    vec![judgement.read(format!("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit: {limit}"))]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict, with_device};
    use crate::facts::HostFacts;

    #[rstest]
    #[case::usual(Some(65535), Verdict::Ok)]
    #[case::lowered(Some(16), Verdict::Failed)]
    #[case::not_told(None, Verdict::NotApplicable)]
    fn the_limit_must_hold_the_guest(#[case] limit: Option<u64>, #[case] expected: Verdict) {
        let mut facts = HostFacts::default();
        facts.platform.vfio.dma_entry_limit = limit;
        assert_eq!(verdict(CHECK.name, &facts, Some(&with_device(""))), expected);
        assert_eq!(verdict(CHECK.name, &facts, Some(&profile(""))), Verdict::NotApplicable);
    }
}
