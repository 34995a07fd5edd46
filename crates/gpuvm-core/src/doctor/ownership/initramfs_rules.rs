//! Whether the initramfs says the same as /etc.

use std::collections::BTreeSet;

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{InitramfsFacts, Rule};
use crate::modprobe::Directive;

pub(super) const CHECK: Definition = Definition {
    name: "initramfs-rules",
    layer: Layer::Ownership,
    why: "drivers in the initramfs take devices before /etc can be read, by the rules that were there when it was made",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let boot = &case.facts.boot;
    let (path, rules, modules) = match &boot.initramfs {
        None => return vec![Judgement::of_host(Verdict::Unknown, "the initramfs wasn't looked at")],
        Some(InitramfsFacts::NotFound { tried }) => {
            let found = "no initramfs of the running kernel was found in the usual places";
            return vec![Judgement::of_host(Verdict::Unknown, found).read(tried.join(", "))];
        }
        Some(InitramfsFacts::Unread { path, reason }) => {
            return vec![
                Judgement::of_host(Verdict::Unknown, format!("{path} wasn't read: {reason}"))
                    .read(path.clone()),
            ];
        }
        Some(InitramfsFacts::Read { path, rules, modules, .. }) => (path, rules, modules),
    };
    let inside = about_vfio(rules);
    let in_etc: Vec<Rule> = boot.rules.iter().filter(|rule| rule.source.starts_with('/')).cloned().collect();
    let outside = about_vfio(&in_etc);
    let gone: Vec<String> = inside.difference(&outside).map(|rule| format!("`{rule}`")).collect();
    let new: Vec<String> = outside.difference(&inside).map(|rule| format!("`{rule}`")).collect();
    let has_vfio = modules.iter().any(|module| module.starts_with("vfio"));
    let judgement = match case.facts.unread.iter().find(|said| said.contains("modprobe.d")) {
        Some(why) => Judgement::of_host(Verdict::Unknown, why.clone()),
        None if !gone.is_empty() => {
            stale(case, format!("it still says {}, which /etc doesn't", gone.join(", ")))
        }
        // What isn't in it by choice (dracut takes /etc/modprobe.d only for this host's own) matters only where its modules are.
        None if !new.is_empty() && (has_vfio || !inside.is_empty()) => {
            stale(case, format!("it holds VFIO's modules, and not {}", new.join(", ")))
        }
        None if !new.is_empty() => Judgement::of_host(
            Verdict::Ok,
            "it has no VFIO in it: the rules of /etc work once the root is mounted",
        ),
        None if inside.is_empty() => {
            Judgement::of_host(Verdict::Ok, "neither it nor /etc says anything about VFIO")
        }
        None => Judgement::of_host(Verdict::Ok, "it says the same about VFIO as /etc"),
    };
    vec![judgement.read(path.clone()).read("modprobe.d")]
}

fn about_vfio(rules: &[Rule]) -> BTreeSet<&Directive> {
    rules.iter().map(|rule| &rule.directive).filter(|directive| directive.is_about_vfio()).collect()
}

fn stale(case: &Case<'_>, found: String) -> Judgement {
    Judgement::of_host(Verdict::Warning, found)
        .remedy(Remedy::new("make it anew").commands(case.distribution().rebuild_initramfs()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::Distribution;
    use crate::doctor::device::testing::{host, judge};
    use crate::facts::HostFacts;
    use crate::modprobe::parse;

    const RULE: &str = "options vfio-pci ids=10de:2684";

    fn rules(source: &str, text: &str) -> Vec<Rule> {
        parse(text).into_iter().map(|directive| Rule { source: source.to_owned(), directive }).collect()
    }

    fn with(etc: &str, initramfs: &str, modules: &[&str]) -> HostFacts {
        let mut facts = host();
        facts.platform.distribution = Distribution::Debian;
        facts.boot.rules = rules("/etc/modprobe.d/vfio.conf", etc);
        facts.boot.initramfs = Some(InitramfsFacts::Read {
            path: "/boot/initrd.img-6.12".to_owned(),
            rules: rules("/boot/initrd.img-6.12: etc/modprobe.d/vfio.conf", initramfs),
            modules: modules.iter().map(|&module| module.to_owned()).collect(),
            at_boot: Vec::new(),
            matches: Vec::new(),
        });
        facts
    }

    #[rstest]
    #[case::nothing_anywhere("", "", &[], Verdict::Ok)]
    #[case::the_same(RULE, RULE, &["vfio_pci"], Verdict::Ok)]
    #[case::other_rules_do_not_matter("blacklist pcspkr", "", &["vfio_pci"], Verdict::Ok)]
    #[case::it_has_no_vfio(RULE, "", &["nvme"], Verdict::Ok)]
    #[case::made_before_the_rule(RULE, "", &["vfio_pci"], Verdict::Warning)]
    #[case::taken_away_since("", RULE, &[], Verdict::Warning)]
    #[case::changed_since(RULE, "options vfio-pci ids=10de:2330", &[], Verdict::Warning)]
    #[case::softdep("softdep nvidia pre: vfio-pci", "", &["vfio_pci"], Verdict::Warning)]
    fn an_initramfs_is_compared_with_etc(
        #[case] etc: &str,
        #[case] initramfs: &str,
        #[case] modules: &[&str],
        #[case] verdict: Verdict,
    ) {
        let judgement = judge(&CHECK, &with(etc, initramfs, modules)).remove(0);
        assert_eq!(judgement.verdict, verdict, "{}", judgement.found);
        let remedy = judgement.remedy.map(|remedy| remedy.commands).unwrap_or_default();
        assert_eq!(remedy.contains(&"update-initramfs -u -k all".to_owned()), verdict == Verdict::Warning);
    }

    #[test]
    fn an_initramfs_that_was_not_read_is_unknown() {
        let mut facts = with(RULE, "", &[]);
        for state in [
            None,
            Some(InitramfsFacts::NotFound { tried: vec!["/boot/initrd.img-6.12".to_owned()] }),
            Some(InitramfsFacts::Unread {
                path: "/boot/initrd.img-6.12".to_owned(),
                reason: "lzo".to_owned(),
            }),
        ] {
            facts.boot.initramfs = state;
            assert_eq!(judge(&CHECK, &facts)[0].verdict, Verdict::Unknown);
        }
    }
}
