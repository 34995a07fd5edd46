//! Whether rules by id catch more cards than they should.

use std::collections::BTreeSet;

use crate::doctor::device::list;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{InitramfsFacts, Rule};
use crate::modprobe::IdRule;
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "id-rules",
    layer: Layer::Ownership,
    why: "`ids=` gives every card of a kind to vfio-pci, the host's own among them; an address names one",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let boot = &case.facts.boot;
    let in_initramfs: &[Rule] = match &boot.initramfs {
        Some(InitramfsFacts::Read { rules, .. }) => rules,
        _ => &[],
    };
    let mut seen = BTreeSet::new();
    let mut judgements = Vec::new();
    for rule in boot.rules.iter().chain(in_initramfs) {
        for id in rule.directive.ids() {
            // The initramfs has a copy of what is in /etc.
            if seen.insert((rule.source.clone(), id.text.clone())) {
                judgements.push(judge_rule(case, rule, &id));
            }
        }
    }
    if judgements.is_empty() {
        let judgement = match case.facts.unread.iter().find(|said| said.contains("modprobe.d")) {
            Some(why) => Judgement::of_host(Verdict::Unknown, why.clone()),
            None => Judgement::of_host(Verdict::Ok, "no rule gives devices to vfio-pci by their id"),
        };
        judgements.push(judgement.read("modprobe.d, /proc/cmdline"));
    }
    judgements
}

fn judge_rule(case: &Case<'_>, rule: &Rule, id: &IdRule) -> Judgement {
    let text = &id.text;
    let Some(caught) = case.facts.boot.caught_by(text) else {
        let found = format!("which devices {text} catches wasn't looked up");
        return Judgement::of_host(Verdict::Unknown, found)
            .read(format!("{}: {}", rule.source, rule.directive));
    };
    let strangers: Vec<Bdf> = caught.iter().filter(|bdf| !case.takes(**bdf)).copied().collect();
    let judgement = match (caught.len(), strangers.len()) {
        (0, _) => Judgement::of_host(Verdict::Ok, format!("{text} catches no device of this host")),
        (_, 0) => {
            Judgement::of_host(Verdict::Ok, format!("{text} catches {}, all to be passed", list(caught)))
        }
        // Whoever passes nothing of what it catches may mean it for another guest.
        (1, 1) => Judgement::of_host(
            Verdict::Ok,
            format!("{text} catches {}, which this isn't about", list(caught)),
        ),
        _ => Judgement::of_host(
            Verdict::Warning,
            format!(
                "{text} catches {} devices, {} of which aren't to be passed: {}",
                caught.len(),
                strangers.len(),
                list(&strangers)
            ),
        )
        .remedy(remedy(case, rule)),
    };
    judgement.read(format!("{}: {}", rule.source, rule.directive))
}

fn remedy(case: &Case<'_>, rule: &Rule) -> Remedy {
    let what = "take the rule away: gpuvm gives devices to vfio-pci by their address, when a guest starts";
    let commands = match rule.source.strip_prefix('/') {
        None => {
            let words = case.facts.kernel.cmdline.split_ascii_whitespace();
            let word = words
                .into_iter()
                .find(|word| word.starts_with("vfio-pci.ids=") || word.starts_with("vfio_pci.ids="));
            word.map(|word| case.distribution().without_kernel_option(word)).unwrap_or_default()
        }
        Some(_) => {
            let file = rule.source.split_once(": ").map_or(rule.source.as_str(), |(_, inside)| inside);
            let edit =
                format!("sed -i '/^options *vfio[-_]pci .*ids=/s/^/# /' /{}", file.trim_start_matches('/'));
            std::iter::once(edit).chain(case.distribution().rebuild_initramfs()).collect()
        }
    };
    Remedy::new(what).commands(commands)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, bdf, host, judge};
    use crate::facts::{HostFacts, IdMatches};
    use crate::modprobe::parse;

    const OTHER: &str = "0000:82:00.0";

    fn with_rule(source: &str, caught: Option<&[&str]>) -> HostFacts {
        let mut facts = host();
        let directive = parse("options vfio-pci ids=10de:2684").remove(0);
        facts.boot.rules.push(Rule { source: source.to_owned(), directive });
        facts.boot.matches.extend(caught.map(|devices| IdMatches {
            id: "10de:2684".to_owned(),
            devices: devices.iter().map(|text| bdf(text)).collect(),
        }));
        facts
    }

    #[rstest]
    #[case::ours(Some(&[GPU, AUDIO][..]), Verdict::Ok)]
    #[case::none(Some(&[][..]), Verdict::Ok)]
    #[case::another_guests(Some(&[OTHER][..]), Verdict::Ok)]
    #[case::an_identical_card(Some(&[GPU, OTHER][..]), Verdict::Warning)]
    #[case::not_looked_up(None, Verdict::Unknown)]
    fn a_rule_is_judged_by_what_it_catches(#[case] caught: Option<&[&str]>, #[case] verdict: Verdict) {
        let facts = with_rule("/etc/modprobe.d/vfio.conf", caught);
        assert_eq!(judge(&CHECK, &facts)[0].verdict, verdict);
    }

    #[test]
    fn a_rule_inside_the_initramfs_counts_too() {
        let mut facts = with_rule("/boot/initrd.img-6.12: etc/modprobe.d/vfio.conf", Some(&[GPU, OTHER]));
        let rules = std::mem::take(&mut facts.boot.rules);
        let matches = std::mem::take(&mut facts.boot.matches);
        let path = "/boot/initrd.img-6.12".to_owned();
        let (modules, at_boot) = Default::default();
        facts.boot.initramfs = Some(InitramfsFacts::Read { path, rules, modules, at_boot, matches });
        let judgement = judge(&CHECK, &facts).remove(0);
        assert_eq!(judgement.verdict, Verdict::Warning);
        assert!(judgement.remedy.unwrap().commands[0].ends_with(" /etc/modprobe.d/vfio.conf"));
    }

    #[test]
    fn no_rule_is_ok_and_rules_that_could_not_be_read_are_unknown() {
        let mut facts = host();
        assert_eq!(judge(&CHECK, &facts)[0].verdict, Verdict::Ok);
        facts.unread.push("list /etc/modprobe.d: Permission denied".to_owned());
        assert_eq!(judge(&CHECK, &facts)[0].verdict, Verdict::Unknown);
    }
}
