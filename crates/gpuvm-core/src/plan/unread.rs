//! A plan isn't made of half the facts: those of a survey may lack what would have stood in the way.

use std::collections::BTreeSet;

use super::Refusal;
use super::obstacle::Obstacles;
use crate::facts::HostFacts;
use crate::pci::Bdf;

/// What tells where vCPUs and memory can go.
const PLACES: [&str; 3] = ["/sys/devices/system/node", "/sys/devices/system/cpu/online", "/proc/cpuinfo"];

/// What tells which devices are together, and what the host needs of them.
const DEVICES: [&str; 7] = [
    "/sys/class/iommu",
    "/sys/kernel/iommu_groups",
    "/proc/self/mountinfo",
    "/proc/swaps",
    "/proc/net",
    "/sys/class/block",
    "/sys/class/net",
];

/// What of a device decides whether it may be taken, and what comes along.
const ATTRIBUTES: [&str; 10] = [
    "vendor",
    "device",
    "class",
    "driver",
    "driver_override",
    "iommu_group",
    "boot_vga",
    "sriov_numvfs",
    "physfn",
    "resource",
];

/// Refuses what rests on something unread.
pub(super) fn check(facts: &HostFacts, asked: &BTreeSet<Bdf>, obstacles: &mut Obstacles) {
    if facts.unread.is_empty() {
        return;
    }
    let mut paths: Vec<String> = PLACES.iter().map(|path| (*path).to_owned()).collect();
    if !asked.is_empty() {
        let groups: BTreeSet<_> = asked.iter().filter_map(|bdf| facts.devices.get(bdf)?.group).collect();
        let members = groups.iter().filter_map(|group| facts.groups.get(group)).flatten();
        paths.extend(DEVICES.iter().map(|path| (*path).to_owned()));
        for bdf in asked.iter().chain(members) {
            let attribute = |name: &&str| format!("/sys/bus/pci/devices/{bdf}/{name}");
            paths.extend(ATTRIBUTES.iter().map(attribute));
            paths.push(format!("/sys/bus/pci/devices/{bdf}"));
        }
    }
    for path in paths {
        if let Some(what) = facts.unread_about(&path) {
            obstacles.refuse(Refusal::Unread { what: what.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::facts::DeviceFacts;
    use crate::pci::{ClassCode, GroupId, PciId};

    #[rstest]
    #[case::what_is_mounted("read /x/proc/self/mountinfo: Too many levels of symbolic links", true)]
    #[case::a_disk_of_the_host("list /x/sys/class/block: no", true)]
    #[case::the_class_of_a_member("read /x/sys/bus/pci/devices/0000:02:00.0/class: no", true)]
    #[case::a_member(
        "/x/sys/bus/pci/devices/0000:02:00.0 holds ``: vendor, device or class is missing",
        true
    )]
    #[case::the_link_of_a_member("read /x/sys/bus/pci/devices/0000:02:00.0/max_link_speed: no", false)]
    #[case::another_device("read /x/sys/bus/pci/devices/0000:03:00.0/class: no", false)]
    #[case::the_name_of_the_machine("read /x/sys/class/dmi/id/sys_vendor: no", false)]
    fn a_plan_is_refused_for_what_it_rests_on(#[case] unread: &str, #[case] refused: bool) {
        let asked: Bdf = "0000:01:00.0".parse().unwrap();
        let mate: Bdf = "0000:02:00.0".parse().unwrap();
        let mut facts = HostFacts { unread: vec![unread.to_owned()], ..HostFacts::default() };
        let id = PciId { vendor: 0x10de, device: 0x2330 };
        let mut device = DeviceFacts::new(id, ClassCode::new(0x03_0200).unwrap());
        device.group = Some(GroupId(7));
        facts.devices.insert(asked, device);
        facts.groups.insert(GroupId(7), vec![asked, mate]);
        let mut obstacles = Obstacles::default();
        check(&facts, &[asked].into(), &mut obstacles);
        assert_eq!(!obstacles.refusals.is_empty(), refused);
    }
}
