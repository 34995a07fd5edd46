//! Who else is in the groups of the devices.

use super::{foreign, groups};
use crate::doctor::device::path;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Subject, Verdict};
use crate::facts::HostFacts;
use crate::pci::{Bdf, GroupId};

pub(super) const CHECK: Definition = Definition {
    name: "group-members",
    layer: Layer::Isolation,
    why: "the members of a group can reach each other past the IOMMU, so a guest gets all of them or none",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    groups(case).into_iter().map(|group| judge_one(case, group)).collect()
}

fn judge_one(case: &Case<'_>, group: GroupId) -> Judgement {
    let of = |verdict, found: String| Judgement::of(Subject::Group { group }, verdict, found);
    let folder = format!("/sys/kernel/iommu_groups/{group}/devices");
    let members = case.facts.groups.get(&group).map(Vec::as_slice).unwrap_or_default();
    // A device that is in the group is one of its members, so an empty list was not read.
    if members.is_empty() {
        return of(Verdict::Unknown, "its members couldn't be listed".to_owned()).read(folder);
    }
    let unread: Vec<String> =
        members.iter().filter(|bdf| !case.facts.devices.contains_key(bdf)).map(ToString::to_string).collect();
    let strangers: Vec<Bdf> =
        foreign(case, group).into_iter().filter(|bdf| case.facts.devices.contains_key(bdf)).collect();
    let judgement = if !strangers.is_empty() {
        let words: Vec<String> = strangers.iter().map(|bdf| describe(case.facts, *bdf)).collect();
        of(Verdict::Failed, format!("it holds others too: {}", words.join("; "))).remedy(remedy(&strangers))
    } else if !unread.is_empty() {
        of(Verdict::Unknown, format!("what {} in it is wasn't read", unread.join(", ")))
    } else {
        let bridges = members.iter().filter(|bdf| !case.takes(**bdf)).count();
        let with = match bridges {
            0 => String::new(),
            _ => " and the bridge above, which stays with the kernel".to_owned(),
        };
        let held = match members.iter().any(|bdf| case.takes(*bdf) && !case.targets.contains(bdf)) {
            true => " or held",
            false => "",
        };
        of(Verdict::Ok, format!("it holds what is to be passed{held}{with}, and nothing else"))
    };
    let names: Vec<String> = members.iter().map(ToString::to_string).collect();
    judgement.read(format!("{folder}: {}", names.join(" ")))
}

fn describe(facts: &HostFacts, bdf: Bdf) -> String {
    let Some(device) = facts.devices.get(&bdf) else { return bdf.to_string() };
    let driver = match &device.driver {
        Some(driver) => format!("on {driver}"),
        None => "without a driver".to_owned(),
    };
    let holder = device.holders.first().map(|holder| format!(", {holder}")).unwrap_or_default();
    format!("{bdf} {} {} {driver}{holder}", device.class.name(), device.id)
}

fn remedy(strangers: &[Bdf]) -> Remedy {
    Remedy::new(
        "pass them too, hold them with it in the profile (`hold`), or move the card to a slot below another root port; ACS in the firmware's \
         setup makes groups smaller where the hardware has it",
    )
    .commands(strangers.iter().map(|bdf| format!("ls -l {}", path(*bdf, "driver"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, PORT, bdf, change, host, judge_for, told};
    use crate::doctor::testing::{check, profile, with_device};
    use crate::facts::DeviceFacts;

    #[test]
    fn a_group_of_the_card_alone_is_ok_and_a_bridge_does_not_spoil_it() {
        let mut facts = host();
        assert_eq!(told(&CHECK, &facts).0, Verdict::Ok);
        facts.groups.get_mut(&GroupId(7)).unwrap().push(bdf(PORT));
        assert_eq!(told(&CHECK, &facts).0, Verdict::Ok);
    }

    #[test]
    fn a_member_that_is_not_passed_fails_with_its_driver() {
        let mut facts = host();
        change(&mut facts, AUDIO, |audio| audio.driver = crate::pci::DriverName::new("snd_hda_intel"));
        let judgement = judge_for(&CHECK, &facts, &[GPU]).remove(0);
        assert_eq!(judgement.verdict, Verdict::Failed);
        assert!(
            judgement.found.contains("0000:81:00.1 audio device 10de:22ba on snd_hda_intel"),
            "{}",
            judgement.found
        );
    }

    /// As the plan has it: what the profile holds is VFIO's, and a bridge with a driver of its own (lpc_ich) isn't the kernel's to keep.
    #[test]
    fn a_member_that_is_held_is_no_stranger_and_a_driven_isa_bridge_is_one() {
        let mut facts = host();
        facts.groups.get_mut(&GroupId(7)).unwrap().push(bdf("0000:82:00.0"));
        change(&mut facts, "0000:82:00.0", |other| other.group = Some(GroupId(7)));
        let found =
            |facts: &HostFacts, lines: &str| check(CHECK.name, facts, Some(&with_device(lines))).verdict;
        assert_eq!(found(&facts, ""), Verdict::Failed);
        let profile = profile("[[device]]\nbdf = \"0000:81:00.0\"\nhold = [\"0000:82:00.0\"]");
        let held = check(CHECK.name, &facts, Some(&profile));
        assert_eq!(held.verdict, Verdict::Ok, "{}", held.found);
        change(&mut facts, "0000:82:00.0", |other| {
            *other = DeviceFacts::new(other.id, crate::pci::ClassCode::new(0x06_0100).unwrap());
        });
        assert_eq!(found(&facts, ""), Verdict::Ok);
        change(&mut facts, "0000:82:00.0", |other| other.driver = crate::pci::DriverName::new("lpc_ich"));
        assert_eq!(found(&facts, ""), Verdict::Failed);
    }

    #[test]
    fn members_that_were_not_read_are_unknown() {
        let mut facts = host();
        facts.groups.get_mut(&GroupId(7)).unwrap().push(bdf("0000:99:00.0"));
        assert_eq!(told(&CHECK, &facts).0, Verdict::Unknown);
        facts.groups.get_mut(&GroupId(7)).unwrap().clear();
        assert_eq!(told(&CHECK, &facts).0, Verdict::Unknown);
    }
}
