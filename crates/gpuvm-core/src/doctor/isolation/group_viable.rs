//! Whether the kernel lets a group be used, by its own word.

use super::groups;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Subject, Verdict};
use crate::facts::Viability;
use crate::pci::{Bdf, GroupId};
use crate::plan::{is_vfio_driver, may_stay};

pub(super) const CHECK: Definition = Definition {
    name: "group-viable",
    layer: Layer::Isolation,
    why: "the kernel refuses a group of which a driver of the host has a member (VFIO_GROUP_SET_CONTAINER: EPERM), or that somebody else has open",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    groups(case).into_iter().map(|group| judge_one(case, group)).collect()
}

fn judge_one(case: &Case<'_>, group: GroupId) -> Judgement {
    let of = |verdict, found: String| Judgement::of(Subject::Group { group }, verdict, found);
    let node = format!("/dev/vfio/{group}");
    let members = case.facts.groups.get(&group).map(Vec::as_slice).unwrap_or_default();
    let on_vfio = |bdf: &&Bdf| {
        let device = case.facts.devices.get(bdf);
        device.and_then(|device| device.driver.as_ref()).is_some_and(is_vfio_driver)
    };
    let judgement = match case.facts.viability.get(&group) {
        Some(Viability::Viable) => of(Verdict::Ok, "the kernel says that it can be used".to_owned()),
        Some(Viability::NotViable) => {
            let others = owned_by_host(case, members);
            of(Verdict::Failed, format!("the kernel says that it can't be used: {}", others.join(", ")))
                .remedy(
                    // Whole groups are bound, bridges aside, whichever member is named.
                    Remedy::new("give all members of the group to VFIO, or leave them without a driver")
                        .commands(
                            members
                                .iter()
                                .find(|bdf| !on_vfio(bdf) && !is_bridge(case, bdf))
                                .map(|bdf| format!("gpuvm bind {bdf}")),
                        ),
                )
        }
        Some(Viability::InUse) => of(Verdict::Failed, "some process has it open".to_owned()).remedy(
            Remedy::new("see who has it; a guest that has just ended may still be giving it back")
                .command(format!("fuser -v {node}")),
        ),
        Some(Viability::Reserved { vm }) => {
            of(Verdict::Failed, format!("VM {vm} has it, or its last run wasn't given back")).remedy(
                Remedy::new("see whether the VM runs; if it doesn't, give its devices back")
                    .command(format!("gpuvm cleanup {vm}")),
            )
        }
        Some(Viability::Denied) => of(Verdict::Unknown, "this user may not ask the kernel".to_owned())
            .remedy(Remedy::new("ask as root").command("sudo gpuvm doctor")),
        Some(Viability::Failed { errno }) => {
            of(Verdict::Unknown, format!("the question failed (errno {errno})"))
        }
        None if members.is_empty() => of(Verdict::Unknown, "its members couldn't be listed".to_owned()),
        None if members.iter().any(|bdf| on_vfio(&bdf)) => {
            of(Verdict::Unknown, "the kernel wasn't asked".to_owned())
        }
        None => of(
            Verdict::NotApplicable,
            "none of it is on a VFIO driver yet, and only then the kernel can be asked".to_owned(),
        ),
    };
    judgement.read(format!("VFIO_GROUP_GET_STATUS of {node}"))
}

fn is_bridge(case: &Case<'_>, bdf: &Bdf) -> bool {
    case.facts.devices.get(bdf).is_some_and(may_stay)
}

/// Lists the members that a driver of the host has; pcieport and bridges without a driver don't count.
fn owned_by_host(case: &Case<'_>, members: &[Bdf]) -> Vec<String> {
    let owned = |bdf: &Bdf| {
        let device = case.facts.devices.get(bdf)?;
        let driver = device.driver.as_ref().filter(|driver| !is_vfio_driver(driver))?;
        (!may_stay(device)).then(|| format!("{bdf} is on {driver}"))
    };
    let found: Vec<String> = members.iter().filter_map(owned).collect();
    match found.is_empty() {
        true => vec!["which member keeps it from that isn't seen from here".to_owned()],
        false => found,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, PORT, change, host, judge, told};
    use crate::facts::HostFacts;
    use crate::pci::DriverName;

    fn half_bound() -> HostFacts {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.driver = Some(DriverName::vfio_pci()));
        change(&mut facts, AUDIO, |audio| audio.driver = DriverName::new("snd_hda_intel"));
        facts
    }

    #[rstest]
    #[case::viable(Some(Viability::Viable), Verdict::Ok, "can be used")]
    #[case::not_viable(Some(Viability::NotViable), Verdict::Failed, "0000:81:00.1 is on snd_hda_intel")]
    #[case::in_use(Some(Viability::InUse), Verdict::Failed, "has it open")]
    #[case::reserved(Some(Viability::Reserved { vm: "a".to_owned() }), Verdict::Failed, "VM a has it")]
    #[case::denied(Some(Viability::Denied), Verdict::Unknown, "may not ask")]
    #[case::failed(Some(Viability::Failed { errno: 5 }), Verdict::Unknown, "errno 5")]
    #[case::not_asked(None, Verdict::Unknown, "wasn't asked")]
    fn the_kernels_word_is_told(
        #[case] said: Option<Viability>,
        #[case] verdict: Verdict,
        #[case] says: &str,
    ) {
        let mut facts = half_bound();
        facts.viability.extend(said.map(|said| (GroupId(7), said)));
        let (found, text) = told(&CHECK, &facts);
        assert_eq!(found, verdict, "{text}");
        assert!(text.contains(says), "{text}");
    }

    #[test]
    fn what_is_to_be_bound_is_no_bridge() {
        let mut facts = half_bound();
        facts.groups.get_mut(&GroupId(7)).unwrap().insert(0, PORT.parse().unwrap());
        facts.viability.insert(GroupId(7), Viability::NotViable);
        let judged = judge(&CHECK, &facts);
        assert_eq!(judged[0].remedy.as_ref().unwrap().commands, [format!("gpuvm bind {AUDIO}")]);
    }

    #[test]
    fn a_group_that_is_all_the_hosts_is_not_applicable() {
        assert_eq!(told(&CHECK, &host()).0, Verdict::NotApplicable);
    }
}
