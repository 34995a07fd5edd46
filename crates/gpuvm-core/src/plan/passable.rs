//! Whether a device could be passed, by the rules of the plan, before there is a profile.

use std::collections::BTreeSet;

use super::obstacle::Obstacles;
use super::{Refusal, Warning, group, vfio};
use crate::facts::HostFacts;
use crate::pci::Bdf;
use crate::profile::DeviceRequest;

/// Whether a function could be passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passability {
    /// What has to be taken with it: the other functions of its card, and the members of the groups touched. A profile lists
    /// them or holds them.
    pub with: Vec<Bdf>,
    /// Why it can't be; none if it can.
    pub refusals: Vec<Refusal>,
    /// What is to be known of it.
    pub warnings: Vec<Warning>,
}

impl Passability {
    /// Tells whether nothing is in the way.
    pub fn is_passable(&self) -> bool {
        self.refusals.is_empty()
    }
}

/// Judges one function as a plan would that asks for it and for whatever its groups hold beside it.
pub fn passable(bdf: Bdf, facts: &HostFacts) -> Passability {
    let mut asked = BTreeSet::from([bdf]);
    loop {
        let mut obstacles = Obstacles::default();
        // The function itself comes first, so that what comes along with it is said of it.
        let others = asked.iter().filter(|other| **other != bdf);
        let requests: Vec<_> =
            std::iter::once(&bdf).chain(others).map(|bdf| DeviceRequest::new(*bdf)).collect();
        let groups = group::resolve(&requests, group::Origin::Profile, facts, &mut obstacles);
        let before = asked.len();
        asked.extend(obstacles.refusals.iter().filter_map(|refusal| match refusal {
            Refusal::ForeignMember { member, .. } => Some(*member),
            _ => None,
        }));
        if asked.len() > before {
            continue;
        }
        let Obstacles { mut refusals, warnings } = obstacles;
        let kept = asked.iter().filter_map(|bdf| Some((*bdf, facts.kept.get(bdf)?.clone())));
        refusals.extend(kept.map(|(bdf, why)| Refusal::Kept { bdf, why }));
        refusals.sort();
        refusals.dedup();
        let with = groups.taken.iter().map(|taken| taken.bdf).filter(|other| *other != bdf).collect();
        return Passability { with, refusals, warnings };
    }
}

/// Returns what keeps any device of this host from being passed, beyond the IOMMU: the kernel's VFIO.
pub fn host_refusals(facts: &HostFacts) -> Vec<Refusal> {
    let mut obstacles = Obstacles::default();
    vfio::check(facts, &mut obstacles);
    obstacles.refusals
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::facts::{DeviceFacts, Holder, Presence};
    use crate::pci::{ClassCode, GroupId};
    use crate::plan::{InUse, RefusalKind, Target, bind, unbind};
    use crate::reset::{Identity, Quarantine};

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn what_the_kernel_has_in_hand_cant_be_passed() {
        let mut facts = host();
        let free =
            |facts: &HostFacts| facts.devices.keys().copied().find(|bdf| passable(*bdf, facts).is_passable());
        let bdf = free(&facts).unwrap();
        facts.kept.insert(bdf, "process 7 hangs".to_owned());
        let refusals = passable(bdf, &facts).refusals;
        assert_eq!(refusals, [Refusal::Kept { bdf, why: "process 7 hangs".to_owned() }]);
    }

    /// A card of two functions in groups of their own, a bridge with two functions in one group, a disk that is mounted and its
    /// neighbour, a boot display.
    fn host() -> HostFacts {
        let mut facts = HostFacts { iommus: vec!["dmar0".into()], ..HostFacts::default() };
        let mut add = |address: &str, class, group| {
            let id = "10de:2330".parse().unwrap();
            let device = DeviceFacts {
                group: Some(GroupId(group)),
                ..DeviceFacts::new(id, ClassCode::new(class).unwrap())
            };
            facts.groups.entry(GroupId(group)).or_default().push(bdf(address));
            facts.devices.insert(bdf(address), device);
        };
        add("41:00.0", 0x03_0200, 1);
        add("41:00.1", 0x04_0300, 2);
        add("03:00.0", 0x06_0400, 3);
        add("04:01.0", 0x02_0000, 3);
        add("04:02.0", 0x00_ff00, 3);
        add("05:00.0", 0x01_0802, 4);
        add("06:00.0", 0x02_0000, 4);
        add("07:00.0", 0x03_0000, 5);
        let holder = Holder::Mount {
            device: "/dev/nvme0n1".into(),
            target: "/".into(),
            users: crate::facts::Users::default(),
        };
        facts.devices.get_mut(&bdf("05:00.0")).unwrap().holders.push(holder);
        facts.devices.get_mut(&bdf("07:00.0")).unwrap().boot_display = Presence::Present;
        facts
    }

    #[rstest]
    #[case::card_with_its_audio("41:00.0", &["41:00.1"], &[])]
    #[case::audio_alone("41:00.1", &[], &[])]
    #[case::group_behind_a_bridge("04:01.0", &["04:02.0"], &[])]
    #[case::bridge("03:00.0", &[], &["PCI bridge"])]
    #[case::mounted("05:00.0", &["06:00.0"], &["/dev/nvme0n1 is mounted on /"])]
    #[case::mounted_neighbour("06:00.0", &["05:00.0"], &["/dev/nvme0n1 is mounted on /"])]
    #[case::boot_display("07:00.0", &[], &["boot display"])]
    #[case::not_there("08:00.0", &[], &["no such PCI device"])]
    fn a_function_is_judged_as_its_plan_would_be(
        #[case] function: &str,
        #[case] with: &[&str],
        #[case] refusals: &[&str],
    ) {
        let found = passable(bdf(function), &host());
        assert_eq!(found.with, with.iter().map(|with| bdf(with)).collect::<Vec<_>>());
        assert_eq!(found.refusals.len(), refusals.len(), "{:?}", found.refusals);
        for (refusal, words) in found.refusals.iter().zip(refusals) {
            assert!(refusal.to_string().contains(words), "{refusal}");
        }
        assert_eq!(found.is_passable(), refusals.is_empty());
    }

    /// The function asked for, another of its card, and one that is only held; force is for what is in use, and sickness isn't.
    #[rstest]
    #[case::itself("41:00.0", "41:00.0", &[])]
    #[case::of_its_card("41:00.0", "41:00.1", &[])]
    #[case::held("04:01.0", "04:02.0", &["04:02.0"])]
    fn nothing_is_bound_that_the_ledger_speaks_against(
        #[case] asked: &str,
        #[case] sick: &str,
        #[case] hold: &[&str],
    ) {
        let request = DeviceRequest {
            hold: hold.iter().map(|held| bdf(held)).collect(),
            ..DeviceRequest::new(bdf(asked))
        };
        let targets = [Target::Profile(vec![request])];
        let (sick, mut facts) = (bdf(sick), host());
        facts.vfio.pci_driver = Presence::Present;
        assert_eq!(bind(&targets, InUse::Refused, &facts).map(|plan| plan.overruled), Ok(Vec::new()));
        let device = Identity { id: facts.devices[&sick].id, subsystem: None, serial: None, bdf: sick };
        let (since, finding) = (1_800_000_000, "it reads all ones".to_owned());
        let held = Quarantine { device, since, verdict: None, finding: finding.clone(), reset_since: true };
        let mut quarantined = facts.clone();
        quarantined.quarantined.insert(sick, held);
        let refusal = Refusal::Quarantined { bdf: sick, finding, since, reset_since: true };
        assert_eq!(refusal.kind(), RefusalKind::Unfit);
        let mut unread = facts;
        unread.ledgers_unread.insert(sick, "x".to_owned());
        let unknown = Refusal::LedgerUnread { bdf: sick, problem: "x".to_owned() };
        for (facts, refusal) in [(quarantined, refusal), (unread, unknown)] {
            for in_use in [InUse::Refused, InUse::Overruled] {
                assert_eq!(bind(&targets, in_use, &facts), Err(vec![refusal.clone()]));
            }
            assert!(passable(bdf(asked), &facts).refusals.contains(&refusal));
            assert!(unbind(&targets, InUse::Refused, &facts).is_ok(), "it may always be given back");
        }
    }

    #[test]
    fn without_an_iommu_nothing_is_passable() {
        let host = HostFacts { iommus: Vec::new(), ..host() };
        assert!(matches!(passable(bdf("41:00.0"), &host).refusals[..], [Refusal::NoIommu { .. }]));
    }
}
