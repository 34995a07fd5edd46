//! Whether a screen that the firmware has set up lies in a card's memory.

use crate::doctor::device::{each, of};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, Framebuffer};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "firmware-framebuffer",
    layer: Layer::Ownership,
    why: "while a driver of the firmware's screen holds a part of a register, VFIO can't map that register (`can't reserve`), and the guest \
          sees a card without memory",
    judge,
};

/// The class of what vfio-pci itself takes the firmware's screen from (drivers/vfio/pci/vfio_pci_core.c, vfio_pci_vga_init).
const VGA: u16 = 0x0300;

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| judge_one(case, bdf, device).read("/proc/iomem"))
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    let Some(screens) = &case.facts.boot.framebuffers else {
        return of(bdf, Verdict::Unknown, "/proc/iomem shows no addresses: they are for root alone");
    };
    if device.bars.is_empty() {
        return of(bdf, Verdict::NotApplicable, "it has no registers");
    }
    let inside = |screen: &&Framebuffer| {
        device.bars.iter().any(|bar| {
            let end = |begin: u64| begin.saturating_add(bar.size.as_bytes().saturating_sub(1));
            bar.address.is_some_and(|begin| screen.begin <= end(begin) && begin <= screen.end)
        })
    };
    let Some(screen) = screens.iter().find(inside) else {
        return of(bdf, Verdict::Ok, "no driver of the firmware's screen holds any of its registers");
    };
    let found = format!(
        "{} holds {:#x}-{:#x}, which lies in one of its registers",
        screen.name, screen.begin, screen.end
    );
    let remedy = Remedy::new(
        "take the screen from its driver; for good, choose another boot display in the firmware's setup",
    )
    .commands(release());
    // Since 6.0 vfio-pci takes the screen from its driver itself, of VGA cards.
    let removed_by_vfio = device.class.class() == VGA && case.facts.kernel.at_least(6, 0);
    if removed_by_vfio {
        return of(
            bdf,
            Verdict::Warning,
            format!("{found}; vfio-pci of this kernel takes it away, and the host's console is dark then"),
        )
        .remedy(remedy);
    }
    of(bdf, Verdict::Failed, found).remedy(remedy)
}

/// The platform drivers of firmware screens (drivers/gpu/drm/sysfb, drivers/video/fbdev); one of them has it.
fn release() -> Vec<String> {
    ["simple-framebuffer", "efi-framebuffer", "vesa-framebuffer"]
        .iter()
        .map(|driver| {
            format!("cd /sys/bus/platform/drivers/{driver} 2>/dev/null && for d in {driver}.*; do echo \"$d\" > unbind; done")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, judge_for};
    use crate::facts::{BarFacts, BarKind};
    use crate::pci::ClassCode;
    use crate::units::ByteSize;

    #[rstest]
    #[case::elsewhere(0x10_0000_0000, 0x03_0000, "6.12.1", Verdict::Ok)]
    #[case::just_behind(0xe000_0000 + (256 << 20), 0x03_0000, "6.12.1", Verdict::Ok)]
    #[case::inside(0xe000_0000, 0x03_0000, "6.12.1", Verdict::Warning)]
    #[case::of_an_old_kernel(0xe000_0000, 0x03_0000, "5.15.0", Verdict::Failed)]
    #[case::of_no_vga_card(0xe000_0000, 0x03_0200, "6.12.1", Verdict::Failed)]
    fn a_screen_is_judged_by_where_it_lies(
        #[case] begin: u64,
        #[case] class: u32,
        #[case] release: &str,
        #[case] verdict: Verdict,
    ) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        facts.boot.framebuffers =
            Some(vec![Framebuffer { name: "BOOTFB".to_owned(), begin, end: begin + 0x2f_ffff }]);
        change(&mut facts, GPU, |gpu| {
            let size = ByteSize::bytes(256 << 20);
            gpu.bars = vec![BarFacts { index: 1, size, address: Some(0xe000_0000), kind: BarKind::High }];
            gpu.class = ClassCode::new(class).unwrap();
        });
        let judgement = judge_for(&CHECK, &facts, &[GPU]).remove(0);
        assert_eq!(judgement.verdict, verdict, "{}", judgement.found);
    }

    #[test]
    fn addresses_that_are_not_shown_leave_it_unknown() {
        assert_eq!(judge_for(&CHECK, &host(), &[GPU])[0].verdict, Verdict::Unknown);
    }
}
