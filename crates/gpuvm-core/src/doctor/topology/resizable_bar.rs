//! How large registers are against how large they could be.

use crate::doctor::device::{each, of, path};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{BarKind, DeviceFacts, Presence, ResizableBar};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "resizable-bar",
    layer: Layer::Topology,
    why: "the guest gets the register at the size that the host has given it, and a driver that sees all of its memory at once is faster",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, judge_one)
}

fn judge_one(bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if !device.resizable.is_empty() {
        return sizes(bdf, device);
    }
    match &device.config {
        Some(config) if config.capabilities.resizable_bar => of(
            bdf,
            Verdict::Unknown,
            "it has registers that can be resized, and this kernel doesn't say to which sizes (Linux 5.19 does)",
        ),
        Some(config) if config.complete == Presence::Present => {
            of(bdf, Verdict::NotApplicable, "it has no register that can be resized")
        }
        _ => of(bdf, Verdict::Unknown, "its config space wasn't read").read(path(bdf, "config")),
    }
}

fn sizes(bdf: Bdf, device: &DeviceFacts) -> Judgement {
    let mut smaller = None;
    let mut words = Vec::new();
    for bar in &device.resizable {
        let now = device.bars.iter().find(|found| found.index == bar.index);
        let (Some(now), Some(largest)) = (now, bar.sizes.last()) else { continue };
        words.push(format!("BAR {} has {} of at most {largest}", bar.index, now.size));
        if now.size < *largest {
            smaller = smaller.or(Some((bar, now)));
        }
    }
    if words.is_empty() {
        return of(
            bdf,
            Verdict::Unknown,
            "the registers that can be resized aren't among those that were read",
        );
    }
    let found = of(bdf, Verdict::Ok, words.join("; "));
    let found = device.resizable.iter().fold(found, |found, bar| found.read(attribute(bdf, bar)));
    let Some((bar, now)) = smaller else { return found };
    let remedy = match now.kind {
        BarKind::High => Remedy::new(
            "if the guest's driver wants it larger: switch on \"Resizable BAR\" and \"Above 4G decoding\" in the firmware's setup, or \
             resize it while no driver has the device",
        )
        .commands(resize(bdf, bar)),
        _ => Remedy::new("if the guest's driver wants it larger: switch on \"Resizable BAR\" in the firmware's setup"),
    };
    found.remedy(remedy)
}

fn attribute(bdf: Bdf, bar: &ResizableBar) -> String {
    path(bdf, &format!("resource{}_resize", bar.index))
}

/// The kernel takes N for 2^N MiB (Documentation/ABI/testing/sysfs-bus-pci).
fn resize(bdf: Bdf, bar: &ResizableBar) -> Option<String> {
    let mib = bar.sizes.last()?.as_bytes() >> 20;
    Some(format!("echo {} > {}", mib.checked_ilog2()?, attribute(bdf, bar)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, judge_for, told};
    use crate::facts::{BarFacts, HostFacts};
    use crate::units::ByteSize;

    fn with_bar(mib: u64) -> HostFacts {
        let mut facts = host();
        let size = |mib: u64| ByteSize::bytes(mib << 20);
        change(&mut facts, GPU, |gpu| {
            gpu.bars =
                vec![BarFacts { index: 1, size: size(mib), address: Some(1 << 36), kind: BarKind::High }];
            gpu.resizable = vec![ResizableBar { index: 1, sizes: vec![size(256), size(16 << 10)] }];
        });
        facts
    }

    #[test]
    fn a_small_register_is_told_with_the_way_to_resize_it_and_is_no_fault() {
        let judgement = judge_for(&CHECK, &with_bar(256), &[GPU]).remove(0);
        assert_eq!(judgement.verdict, Verdict::Ok);
        assert_eq!(judgement.found, "BAR 1 has 256M of at most 16G");
        let command = "echo 14 > /sys/bus/pci/devices/0000:81:00.0/resource1_resize";
        assert_eq!(judgement.remedy.unwrap().commands, [command]);
    }

    #[test]
    fn a_register_at_its_largest_has_nothing_to_be_done() {
        assert_eq!(judge_for(&CHECK, &with_bar(16 << 10), &[GPU])[0].remedy, None);
    }

    #[test]
    fn a_device_without_is_not_applicable_and_one_that_was_not_read_is_unknown() {
        let mut facts = host();
        assert_eq!(told(&CHECK, &facts).0, Verdict::NotApplicable);
        change(&mut facts, GPU, |gpu| gpu.config.as_mut().unwrap().complete = Presence::Absent);
        assert_eq!(told(&CHECK, &facts).0, Verdict::Unknown);
    }

    #[test]
    fn a_kernel_that_does_not_tell_sizes_leaves_it_unknown() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.config.as_mut().unwrap().capabilities.resizable_bar = true);
        assert_eq!(told(&CHECK, &facts).0, Verdict::Unknown);
    }
}
