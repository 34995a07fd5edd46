//! Whether somebody moves interrupts about.

use crate::cpulist::CpuSet;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::Presence;
use crate::profile::Pin;

pub(super) const CHECK: Definition = Definition {
    name: "irqbalance",
    layer: Layer::Resources,
    why: "irqbalance spreads the host's interrupts over all CPUs, those with pinned vCPUs included",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let pins = case.profile.is_some_and(|profile| profile.cpu.pin != Pin::Off);
    let judgement = match (case.facts.platform.irqbalance, pins) {
        (Presence::Absent, _) => Judgement::of_host(Verdict::Ok, "irqbalance doesn't run"),
        (Presence::Present, false) => {
            Judgement::of_host(Verdict::Ok, "irqbalance runs, and no vCPU is pinned")
        }
        (Presence::Present, true) => {
            Judgement::of_host(Verdict::Warning, "irqbalance runs, and disturbs pinned vCPUs now and then")
                .remedy(remedy(case))
        }
    };
    let read = match case.facts.platform.irqbalance {
        Presence::Present => "/proc/*/comm: irqbalance",
        Presence::Absent => "/proc/*/comm: no irqbalance",
    };
    vec![judgement.read(read)]
}

fn remedy(case: &Case<'_>) -> Remedy {
    let vcpus = case.outline.iter().flat_map(|outline| outline.placement.vcpus.iter().map(|pin| pin.cpu));
    let cpus: CpuSet = vcpus.collect();
    let file = case.distribution().irqbalance_settings();
    Remedy::new("keep it off the guest's CPUs, or stop it").commands([
        format!("echo IRQBALANCE_BANNED_CPULIST={cpus} >> {file}"),
        "systemctl restart irqbalance".to_owned(),
    ])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, profile, verdict};
    use crate::facts::{HostFacts, NodeFacts};

    const PINNED: &str = "[cpu]\ncount = 2\npin = [2, 3]\n";

    fn host(irqbalance: Presence) -> HostFacts {
        let mut facts = HostFacts::default();
        facts.platform.irqbalance = irqbalance;
        facts.cpus.online = "0-3".parse().unwrap();
        let node = NodeFacts { cpus: "0-3".parse().unwrap(), ..NodeFacts::default() };
        facts.nodes.insert(0, node);
        facts
    }

    #[rstest]
    #[case(Presence::Present, PINNED, Verdict::Warning)]
    #[case(Presence::Absent, PINNED, Verdict::Ok)]
    #[case(Presence::Present, "", Verdict::Ok)]
    fn it_disturbs_pinned_vcpus(#[case] runs: Presence, #[case] lines: &str, #[case] expected: Verdict) {
        assert_eq!(verdict(CHECK.name, &host(runs), Some(&profile(lines))), expected);
    }

    #[test]
    fn the_remedy_names_the_guests_cpus() {
        let remedy = check(CHECK.name, &host(Presence::Present), Some(&profile(PINNED))).remedy.unwrap();
        assert!(remedy.commands[0].contains("CPULIST=2-3"), "{remedy:?}");
    }
}
