//! Whether the ports above a device send all that their devices say up to the IOMMU.

use super::foreign;
use crate::config_space::{Acs, PortType};
use crate::doctor::device::{each_card, list, of, path};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, Presence};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "acs-path",
    layer: Layer::Isolation,
    why: "a port without Access Control Services lets the devices below it reach each other's memory past the IOMMU",
    judge,
};

/// What a bridge does with what its devices say to each other.
enum Port {
    /// It sends it up; or it has nothing to decide, as a switch's port towards the root.
    Isolates,
    /// It may pass it on by itself.
    PassesOn(Option<Acs>),
    Unread,
}

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each_card(case, |bdf, device| {
        let judgement = judge_one(case, bdf, device);
        device
            .upstream
            .iter()
            .fold(judgement, |judgement, port| judgement.read(format!("{} (ACS)", path(*port, "config"))))
    })
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if device.upstream.is_empty() {
        return of(bdf, Verdict::NotApplicable, "it sits in the root complex, with no port above it");
    }
    let ports: Vec<(Bdf, Port)> = device.upstream.iter().map(|port| (*port, port_of(case, *port))).collect();
    let open = ports.iter().find_map(|(at, port)| match port {
        Port::PassesOn(acs) => Some((*at, *acs)),
        _ => None,
    });
    if let Some((port, acs)) = open {
        return passes_on(case, bdf, device, port, acs);
    }
    match ports.iter().find(|(_, port)| matches!(port, Port::Unread)) {
        Some((port, _)) => {
            of(bdf, Verdict::Unknown, format!("the config space of {port} above it wasn't read"))
        }
        None => of(bdf, Verdict::Ok, format!("every port above it isolates: {}", list(&device.upstream))),
    }
}

fn port_of(case: &Case<'_>, bridge: Bdf) -> Port {
    let Some(config) = case.facts.devices.get(&bridge).and_then(|bridge| bridge.config.as_ref()) else {
        return Port::Unread;
    };
    // Extended capabilities begin behind the first 256 bytes, which only root is shown.
    if config.complete == Presence::Absent {
        return Port::Unread;
    }
    match (config.capabilities.express, config.capabilities.acs) {
        (Some(PortType::UpstreamPort), _) => Port::Isolates,
        (Some(PortType::RootPort | PortType::DownstreamPort), Some(acs)) if acs.isolates() => Port::Isolates,
        (_, acs) => Port::PassesOn(acs),
    }
}

fn passes_on(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts, port: Bdf, acs: Option<Acs>) -> Judgement {
    let state = match acs {
        None => format!("{port} above it has no ACS"),
        Some(acs) => format!(
            "{port} above it has ACS ({:#06x}), and not all that isolation needs is on ({:#06x})",
            acs.capability, acs.control
        ),
    };
    let mut others = device.group.map(|group| foreign(case, group)).unwrap_or_default();
    let below = |(other, facts): &(&Bdf, &DeviceFacts)| {
        facts.upstream.contains(&port) && !facts.class.is_bridge() && !case.takes(**other)
    };
    others.extend(case.facts.devices.iter().filter(below).map(|(other, _)| *other));
    others.sort();
    others.dedup();
    if others.is_empty() {
        return of(
            bdf,
            Verdict::Ok,
            format!("{state}, and nothing that isn't to be passed is known to sit below it"),
        );
    }
    let remedy = match acs {
        None => Remedy::new("move one of them below another root port, or pass them all to one guest"),
        Some(_) => {
            Remedy::new("switch ACS on in the firmware's setup; Linux 6.11 and later can do it at boot")
                .commands(case.distribution().kernel_option(&format!("pci=config_acs=xxx11101@{port}")))
        }
    };
    of(bdf, Verdict::Warning, format!("{state}, and {} can be reached past the IOMMU", list(&others)))
        .remedy(remedy)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, PORT, change, host, judge_for};

    const ON: Option<Acs> = Some(Acs { capability: 0x1d, control: 0x1d });
    const OFF: Option<Acs> = Some(Acs { capability: 0x1d, control: 0 });

    #[rstest]
    #[case::isolated(PortType::RootPort, ON, &[GPU], Verdict::Ok)]
    #[case::off_with_a_neighbour(PortType::RootPort, OFF, &[GPU], Verdict::Warning)]
    #[case::off_and_all_ours(PortType::RootPort, OFF, &[GPU, AUDIO], Verdict::Ok)]
    #[case::none_with_a_neighbour(PortType::DownstreamPort, None, &[GPU], Verdict::Warning)]
    #[case::a_switch_towards_the_root(PortType::UpstreamPort, None, &[GPU], Verdict::Ok)]
    #[case::conventional(PortType::PcieToPci, None, &[GPU], Verdict::Warning)]
    fn a_port_is_judged_by_what_is_on(
        #[case] kind: PortType,
        #[case] acs: Option<Acs>,
        #[case] targets: &[&str],
        #[case] verdict: Verdict,
    ) {
        let mut facts = host();
        change(&mut facts, PORT, |port| {
            let capabilities = &mut port.config.as_mut().unwrap().capabilities;
            (capabilities.express, capabilities.acs) = (Some(kind), acs);
        });
        let judgement = judge_for(&CHECK, &facts, targets).remove(0);
        assert_eq!(judgement.verdict, verdict, "{}", judgement.found);
    }

    #[test]
    fn a_port_that_was_not_read_or_only_in_part_is_unknown() {
        let mut facts = host();
        change(&mut facts, PORT, |port| port.config.as_mut().unwrap().complete = Presence::Absent);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
        change(&mut facts, PORT, |port| port.config = None);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }

    #[test]
    fn a_device_of_the_root_complex_is_not_applicable() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.upstream.clear());
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::NotApplicable);
    }
}
