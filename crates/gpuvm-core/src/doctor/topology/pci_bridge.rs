//! Whether a bridge to conventional PCI stands above a device.

use crate::config_space::PortType;
use crate::doctor::device::{each_card, of, path};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, Presence};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "pci-bridge",
    layer: Layer::Topology,
    why: "all that is behind a bridge to conventional PCI speaks to the IOMMU by the bridge's own address, so it shares one group",
    judge,
};

/// What a bridge above a device is.
enum Bridge {
    Express,
    Conventional,
    Unread,
}

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each_card(case, |bdf, device| {
        let mut unread = None;
        for bridge in &device.upstream {
            match kind(case, *bridge) {
                Bridge::Express => {}
                Bridge::Unread => unread = unread.or(Some(*bridge)),
                Bridge::Conventional => {
                    return behind(case, bdf, device, *bridge).read(path(*bridge, "config"));
                }
            }
        }
        match unread {
            Some(bridge) => {
                let found = format!("what the bridge {bridge} above it is wasn't read");
                of(bdf, Verdict::Unknown, found).read(path(bridge, "config"))
            }
            None if device.upstream.is_empty() => {
                of(bdf, Verdict::Ok, "nothing stands between it and the root complex")
            }
            None => of(bdf, Verdict::Ok, "only PCI Express stands between it and the root complex"),
        }
    })
}

fn kind(case: &Case<'_>, bridge: Bdf) -> Bridge {
    let config = case.facts.devices.get(&bridge).and_then(|bridge| bridge.config.as_ref());
    match config {
        None => Bridge::Unread,
        Some(config) => match config.capabilities.express {
            Some(PortType::PcieToPci | PortType::PciToPcie) => Bridge::Conventional,
            Some(_) => Bridge::Express,
            None if config.complete == Presence::Present => Bridge::Conventional,
            None => Bridge::Unread,
        },
    }
}

fn behind(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts, bridge: Bdf) -> Judgement {
    let foreign =
        device.group.and_then(|group| case.facts.groups.get(&group)).into_iter().flatten().filter(|member| {
            let is_bridge = case.facts.devices.get(member).is_some_and(|member| member.class.is_bridge());
            !is_bridge && !case.takes(**member)
        });
    match foreign.count() {
        0 => of(
            bdf,
            Verdict::Ok,
            format!("{bridge} is a bridge to conventional PCI, and nothing else is behind it"),
        ),
        count => of(
            bdf,
            Verdict::Warning,
            format!(
                "{bridge} is a bridge to conventional PCI: it shares a group with {count} other functions"
            ),
        )
        .remedy(Remedy::new("put the card into a PCI Express slot, or pass all that is behind the bridge")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, PORT, change, host, judge_for};

    #[rstest]
    #[case::express(Some(PortType::RootPort), &[GPU], Verdict::Ok)]
    #[case::pci_with_a_neighbour(Some(PortType::PcieToPci), &[GPU], Verdict::Warning)]
    #[case::pci_without(Some(PortType::PcieToPci), &[GPU, AUDIO], Verdict::Ok)]
    #[case::of_old(None, &[GPU], Verdict::Warning)]
    fn a_bridge_to_conventional_pci_is_told(
        #[case] express: Option<PortType>,
        #[case] targets: &[&str],
        #[case] verdict: Verdict,
    ) {
        let mut facts = host();
        change(&mut facts, PORT, |port| port.config.as_mut().unwrap().capabilities.express = express);
        assert_eq!(judge_for(&CHECK, &facts, targets)[0].verdict, verdict);
    }

    #[test]
    fn a_bridge_that_was_not_read_leaves_it_unknown() {
        let mut facts = host();
        change(&mut facts, PORT, |port| port.config = None);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
