//! What checks of devices have in common.

use std::collections::BTreeSet;

use super::{Case, Judgement, Subject, Verdict};
use crate::facts::{DeviceFacts, Presence};
use crate::pci::{Bdf, Slot};

/// Judges each function that is to be passed and is there; what isn't there fails elsewhere, once.
pub(super) fn each(case: &Case<'_>, judge: impl Fn(Bdf, &DeviceFacts) -> Judgement) -> Vec<Judgement> {
    present(case).map(|(bdf, device)| judge(bdf, device)).collect()
}

/// Judges each card by its first function that is to be passed: what its functions share is said once.
pub(super) fn each_card(case: &Case<'_>, judge: impl Fn(Bdf, &DeviceFacts) -> Judgement) -> Vec<Judgement> {
    let mut seen: BTreeSet<Slot> = BTreeSet::new();
    let mut cards: Vec<_> = present(case).collect();
    cards.sort_by_key(|(bdf, _)| *bdf);
    // A virtual function's slot is shared with strangers: it stands for itself.
    let first = |(bdf, device): &(Bdf, &DeviceFacts)| {
        device.virtual_function == Presence::Present || seen.insert(bdf.slot())
    };
    cards.into_iter().filter(first).map(|(bdf, device)| judge(bdf, device)).collect()
}

fn present<'a>(case: &Case<'a>) -> impl Iterator<Item = (Bdf, &'a DeviceFacts)> {
    let facts = case.facts;
    case.targets.iter().filter_map(move |bdf| Some((*bdf, facts.devices.get(bdf)?)))
}

/// Makes a judgement of a function.
pub(super) fn of(bdf: Bdf, verdict: Verdict, found: impl Into<String>) -> Judgement {
    Judgement::of(Subject::Device { bdf }, verdict, found)
}

/// Finds what was said when an attribute of a function couldn't be read.
pub(super) fn unread<'a>(case: &Case<'a>, bdf: Bdf, attribute: &str) -> Option<&'a str> {
    let path = format!("/{bdf}/{attribute}");
    case.facts.unread.iter().find(|said| said.contains(&path)).map(String::as_str)
}

/// Spells the path of an attribute.
pub(super) fn path(bdf: Bdf, attribute: &str) -> String {
    format!("/sys/bus/pci/devices/{bdf}/{attribute}")
}

/// Lists functions in words.
pub(super) fn list<'a>(bdfs: impl IntoIterator<Item = &'a Bdf>) -> String {
    bdfs.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Lists the functions that a reset of a function's bus reaches besides itself, as far as they are known; nothing where its bus
/// can't be reset: a root bus has no port above it, and a virtual function goes with its parent.
pub(super) fn reset_mates(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Option<Vec<Bdf>> {
    let own = crate::reset::ResetDomain::of(bdf, device)?;
    let reaches = |(other, facts): &(&Bdf, &DeviceFacts)| {
        **other != bdf
            && facts.virtual_function == Presence::Absent
            && (other.bus() == own.bus || facts.upstream.iter().skip(1).any(|bridge| bridge.bus() == own.bus))
    };
    Some(case.facts.devices.iter().filter(reaches).map(|(other, _)| *other).collect())
}

#[cfg(test)]
pub(super) mod testing {
    //! Hosts to judge.

    use super::*;
    use crate::doctor::Definition;
    use crate::facts::{ConfigFacts, HostFacts};
    use crate::pci::{ClassCode, GroupId};

    pub(crate) fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    pub(crate) const GPU: &str = "0000:81:00.0";
    pub(crate) const AUDIO: &str = "0000:81:00.1";
    pub(crate) const PORT: &str = "0000:80:01.0";

    /// A card of two functions below a root port, and another card beside it.
    pub(crate) fn host() -> HostFacts {
        let mut facts = HostFacts { iommus: vec!["dmar0".to_owned()], ..HostFacts::default() };
        let mut add = |address: &str, id: &str, class: u32, group: u32| {
            let mut device = DeviceFacts::new(id.parse().unwrap(), ClassCode::new(class).unwrap());
            device.group = Some(GroupId(group));
            device.config = Some(ConfigFacts { complete: Presence::Present, ..ConfigFacts::default() });
            if !device.class.is_bridge() {
                device.upstream = vec![bdf(if address.contains(":81:") { PORT } else { "0000:80:02.0" })];
            }
            facts.groups.entry(GroupId(group)).or_default().push(bdf(address));
            facts.devices.insert(bdf(address), device);
        };
        add(PORT, "8086:352a", 0x06_0400, 1);
        add(GPU, "10de:2684", 0x03_0000, 7);
        add(AUDIO, "10de:22ba", 0x04_0300, 7);
        add("0000:80:02.0", "8086:352a", 0x06_0400, 2);
        add("0000:82:00.0", "10de:2684", 0x03_0000, 8);
        facts
    }

    /// Changes a device of a host.
    pub(crate) fn change(facts: &mut HostFacts, address: &str, change: impl FnOnce(&mut DeviceFacts)) {
        change(facts.devices.get_mut(&bdf(address)).unwrap());
    }

    /// Judges the card of [`host`].
    pub(crate) fn judge(check: &Definition, facts: &HostFacts) -> Vec<Judgement> {
        judge_for(check, facts, &[GPU, AUDIO])
    }

    pub(crate) fn judge_for(check: &Definition, facts: &HostFacts, targets: &[&str]) -> Vec<Judgement> {
        let targets: Vec<Bdf> = targets.iter().map(|text| bdf(text)).collect();
        (check.judge)(&Case { facts, profile: None, targets: &targets, outline: None })
    }

    /// Returns the worst verdict, which is what a user sees of a check.
    pub(crate) fn worst(judgements: &[Judgement]) -> Verdict {
        judgements.iter().map(|judgement| judgement.verdict).max().unwrap()
    }

    /// Judges and returns the worst verdict and all that was found, in one text.
    pub(crate) fn told(check: &Definition, facts: &HostFacts) -> (Verdict, String) {
        let judgements = judge(check, facts);
        let found: Vec<_> = judgements.iter().map(|judgement| judgement.found.as_str()).collect();
        (worst(&judgements), found.join("\n"))
    }
}
