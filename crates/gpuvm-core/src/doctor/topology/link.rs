//! What the link of a card came to, against what both of its ends can do.

use crate::config_space::PortType;
use crate::doctor::device::{each_card, of, path};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, LinkFacts, Presence};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "pcie-link",
    layer: Layer::Topology,
    why: "a link that came up narrower than it could costs the guest that part of its bandwidth, and is how a card that sits badly or was \
          reset badly shows",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each_card(case, |bdf, device| judge_one(case, bdf, device))
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if device.virtual_function == Presence::Present {
        return of(bdf, Verdict::NotApplicable, "a virtual function's link is its parent's");
    }
    let own = match (device.link, &device.config) {
        (Some(link), _) => link,
        (None, None) => return of(bdf, Verdict::Unknown, "its link and its config space weren't read"),
        (None, Some(config)) => {
            return match config.capabilities.express {
                Some(PortType::RootComplexEndpoint | PortType::EventCollector) => {
                    of(bdf, Verdict::NotApplicable, "it is part of the root complex and has no link")
                }
                Some(_) => of(bdf, Verdict::Unknown, "the kernel tells nothing of its link"),
                None if config.complete == Presence::Present => {
                    of(bdf, Verdict::NotApplicable, "it is a conventional PCI function and has no link")
                }
                None => of(bdf, Verdict::Unknown, "its link and its config space weren't read"),
            };
        }
    };
    let Some(port) = device.upstream.last() else {
        return of(bdf, Verdict::NotApplicable, "it sits in the root complex, with no port above it");
    };
    let judgement = match case.facts.devices.get(port).and_then(|port| port.link) {
        Some(above) => compare(bdf, own, *port, above),
        None => of(bdf, Verdict::Unknown, format!("{}; what its port {port} can do wasn't read", now(own))),
    };
    let read = |judgement: Judgement, name| judgement.read(path(bdf, name)).read(path(*port, name));
    read(read(judgement.read(path(bdf, "current_link_width")), "max_link_width"), "max_link_speed")
}

fn compare(bdf: Bdf, own: LinkFacts, port: Bdf, above: LinkFacts) -> Judgement {
    let (Some(width), Some(widest)) = (own.width, own.max_width.zip(above.max_width).map(|(a, b)| a.min(b)))
    else {
        return of(
            bdf,
            Verdict::Unknown,
            format!("{}; the kernel doesn't know how many lanes it could have", now(own)),
        );
    };
    if width == 0 {
        return of(bdf, Verdict::Failed, format!("its link to {port} is down")).remedy(
            Remedy::new("the card doesn't answer: take its power away and give it back, and see that it sits well in its slot"),
        );
    }
    if width < widest {
        let found = format!("x{width}, and both it and its port {port} can do x{widest}");
        return of(bdf, Verdict::Warning, found).remedy(Remedy::new(
            "see that the card sits well, that no riser and no firmware setting (\"bifurcation\") splits the slot, and that it wasn't a reset \
             that narrowed it: a cold start makes the link anew",
        ));
    }
    let fastest = own.max_speed.zip(above.max_speed).map(|(a, b)| a.min(b));
    let narrow = match own.max_width.zip(above.max_width) {
        Some((mine, theirs)) if theirs < mine => {
            format!("; the card could do x{mine}, its port {port} can't")
        }
        _ => String::new(),
    };
    match (own.speed, fastest) {
        (Some(speed), Some(fastest)) if speed < fastest => {
            let found = format!(
                "x{width} at {speed}, which can be {fastest}: cards lower it while they idle{narrow}"
            );
            of(bdf, Verdict::Ok, found)
        }
        (Some(speed), Some(_)) => {
            of(bdf, Verdict::Ok, format!("x{width} at {speed}, the most that both ends can do{narrow}"))
        }
        _ => of(bdf, Verdict::Unknown, format!("{}; the kernel doesn't know how fast it could be", now(own))),
    }
}

fn now(link: LinkFacts) -> String {
    let width = link.width.map_or_else(|| "its width isn't known".to_owned(), |width| format!("x{width}"));
    match link.speed {
        Some(speed) => format!("{width} at {speed}"),
        None => width,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, PORT, change, host, judge, told};
    use crate::facts::LinkSpeed;

    fn link(speed: u16, width: u8, max_speed: u16, max_width: u8) -> Option<LinkFacts> {
        let (speed, max_speed) = (Some(LinkSpeed(speed)), Some(LinkSpeed(max_speed)));
        Some(LinkFacts { speed, width: Some(width), max_speed, max_width: Some(max_width) })
    }

    #[rstest]
    #[case::as_it_can(
        link(320, 16, 320, 16),
        link(320, 16, 320, 16),
        Verdict::Ok,
        "x16 at 32 GT/s, the most"
    )]
    #[case::idle(
        link(25, 16, 320, 16),
        link(320, 16, 320, 16),
        Verdict::Ok,
        "x16 at 2.5 GT/s, which can be 32 GT/s"
    )]
    #[case::a_slower_port(
        link(160, 16, 320, 16),
        link(160, 16, 160, 16),
        Verdict::Ok,
        "x16 at 16 GT/s, the most"
    )]
    #[case::a_narrower_port(
        link(160, 8, 160, 16),
        link(160, 8, 160, 8),
        Verdict::Ok,
        "the card could do x16"
    )]
    #[case::narrowed(
        link(160, 8, 160, 16),
        link(160, 8, 160, 16),
        Verdict::Warning,
        "x8, and both it and its port"
    )]
    #[case::down(link(25, 0, 160, 16), link(25, 0, 160, 16), Verdict::Failed, "is down")]
    #[case::port_unread(link(25, 16, 160, 16), None, Verdict::Unknown, "wasn't read")]
    #[case::conventional(None, None, Verdict::NotApplicable, "conventional")]
    fn a_link_is_judged_by_both_of_its_ends(
        #[case] own: Option<LinkFacts>,
        #[case] port: Option<LinkFacts>,
        #[case] verdict: Verdict,
        #[case] says: &str,
    ) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.link = own);
        change(&mut facts, PORT, |device| device.link = port);
        let (found, text) = told(&CHECK, &facts);
        assert_eq!(found, verdict, "{text}");
        assert!(text.contains(says), "{text}");
    }

    #[test]
    fn a_card_is_judged_once_and_one_that_was_not_read_is_unknown() {
        let mut facts = host();
        for address in [GPU, AUDIO] {
            change(&mut facts, address, |function| function.config = None);
        }
        let judgements = judge(&CHECK, &facts);
        assert_eq!((judgements.len(), judgements[0].verdict), (1, Verdict::Unknown));
    }
}
