//! What a reset of the bus reaches besides the card.

use crate::doctor::device::{each_card, list, of, reset_mates};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, Presence};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "reset-domain",
    layer: Layer::Topology,
    why: "a bus reset, the last resort for a card that hangs, reaches all functions of the bus, and VFIO only does it for who has them all",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each_card(case, |bdf, device| judge_one(case, bdf, device))
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if device.virtual_function == Presence::Present {
        return of(bdf, Verdict::NotApplicable, "a virtual function is reset by itself alone");
    }
    let Some(mates) = reset_mates(case, bdf, device) else {
        return of(bdf, Verdict::NotApplicable, "it sits on a root bus, which can't be reset");
    };
    if let Some(why) = case.facts.unread.iter().find(|said| said.contains("/sys/bus/pci/devices:")) {
        return of(bdf, Verdict::Unknown, format!("the devices of the host couldn't be listed: {why}"));
    }
    let (ours, foreign): (Vec<Bdf>, Vec<Bdf>) = mates.iter().partition(|mate| case.takes(**mate));
    let bus = bdf.bus();
    if foreign.is_empty() {
        let with = if ours.is_empty() { String::new() } else { format!(" and {}", list(&ours)) };
        return of(bdf, Verdict::Ok, format!("a reset of bus {bus} reaches it{with}, and no others"));
    }
    let found = format!(
        "a reset of bus {bus} reaches {} too, which isn't to be passed: VFIO will refuse it",
        list(&foreign)
    );
    if device.reset_methods.iter().any(|method| method == "flr") {
        return of(bdf, Verdict::Ok, format!("{found}; it has a reset of its own (flr)"));
    }
    let commands = foreign.iter().map(|mate| format!("gpuvm devices {mate}"));
    of(bdf, Verdict::Warning, found).remedy(
        Remedy::new("pass the others too, or hold them with it in the profile (`hold`)").commands(commands),
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, change, host, judge_for};

    #[rstest]
    #[case::whole_card(&[GPU, AUDIO], "", Verdict::Ok)]
    #[case::half_of_it(&[GPU], "bus", Verdict::Warning)]
    #[case::half_of_it_with_a_reset_of_its_own(&[GPU], "flr", Verdict::Ok)]
    #[case::alone_on_its_bus(&["0000:82:00.0"], "", Verdict::Ok)]
    fn a_bus_is_ours_or_shared(#[case] targets: &[&str], #[case] method: &str, #[case] verdict: Verdict) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.reset_methods = vec![method.to_owned()]);
        assert_eq!(judge_for(&CHECK, &facts, targets)[0].verdict, verdict);
    }

    #[test]
    fn a_root_bus_and_a_virtual_function_have_none() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.upstream.clear());
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::NotApplicable);
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.virtual_function = Presence::Present);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::NotApplicable);
    }

    #[test]
    fn devices_that_could_not_be_listed_leave_it_unknown() {
        let mut facts = host();
        facts.unread.push("list /sys/bus/pci/devices: Permission denied".to_owned());
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
