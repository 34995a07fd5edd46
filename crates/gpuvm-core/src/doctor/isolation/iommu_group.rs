//! Whether each device is behind the IOMMU.

use crate::doctor::device::{each, of, path, unread};
use crate::doctor::{Case, Definition, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "iommu-group",
    layer: Layer::Isolation,
    why: "VFIO gives out IOMMU groups, and a device without one is out of its reach",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<super::super::Judgement> {
    each(case, |bdf, device| {
        let judgement = match (device.group, unread(case, bdf, "iommu_group")) {
            (Some(group), _) => of(bdf, Verdict::Ok, format!("it is in group {group}")),
            (None, Some(why)) => of(bdf, Verdict::Unknown, why),
            (None, None) if case.facts.iommus.is_empty() => {
                of(bdf, Verdict::Failed, "it is in no group, since the kernel drives no IOMMU")
                    .remedy(Remedy::new("switch the IOMMU on first (check `iommu-active`)"))
            }
            (None, None) => of(bdf, Verdict::Failed, "it is in no group: no IOMMU that the kernel drives is in charge of it").remedy(
                Remedy::new("see what the kernel says of the IOMMU's units; a firmware update is what helps where its table leaves the device out")
                    .command("dmesg | grep -i -e DMAR -e AMD-Vi"),
            ),
        };
        judgement.read(path(bdf, "iommu_group"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, change, host, judge, told, worst};

    #[test]
    fn a_device_in_a_group_is_ok_and_one_without_fails() {
        let mut facts = host();
        assert_eq!(told(&CHECK, &facts).0, Verdict::Ok);
        change(&mut facts, AUDIO, |audio| audio.group = None);
        assert_eq!(worst(&judge(&CHECK, &facts)), Verdict::Failed);
        facts.iommus.clear();
        assert!(told(&CHECK, &facts).1.contains("drives no IOMMU"));
    }

    #[test]
    fn a_group_that_could_not_be_read_is_unknown() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.group = None);
        facts.unread.push(format!("read the link /sys/bus/pci/devices/{GPU}/iommu_group: Permission denied"));
        assert_eq!(told(&CHECK, &facts).0, Verdict::Unknown);
    }
}
