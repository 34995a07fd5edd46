//! Whether the nodes have the memory that a guest takes.

use super::mib;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Subject, Verdict};
use crate::facts::{HostFacts, NodeFacts};
use crate::plan::MemoryCell;
use crate::profile::Policy;
use crate::units::ByteSize;

pub(super) const CHECK: Definition = Definition {
    name: "node-memory",
    layer: Layer::Resources,
    why: "a guest's memory belongs on the node of its devices, and all of it is taken at its start",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let nodes = &case.facts.nodes;
    if nodes.is_empty() {
        return vec![Judgement::of_host(
            Verdict::Unknown,
            "the kernel shows no nodes, and so not what memory is free",
        )];
    }
    let Some((profile, outline)) = case.profile.zip(case.outline) else {
        let of_node = |(node, known): (&u32, &NodeFacts)| {
            let found = format!("{} of {} can be had", mib(known.memory_free), mib(known.memory));
            let judgement = Judgement::of(Subject::Node { node: *node }, Verdict::Ok, found);
            judgement.read(format!("/sys/devices/system/node/node{node}/meminfo"))
        };
        return nodes.iter().map(of_node).collect();
    };
    let of_cell = |cell: &MemoryCell| {
        let ordinary = cell.hugepages.is_none();
        ordinary.then(|| judge_cell(case.facts, profile.memory.node_policy, cell))
    };
    let judgements: Vec<_> = outline.memory.iter().filter_map(of_cell).collect();
    if judgements.is_empty() {
        return Judgement::not_applicable("the guest's memory comes from hugepages (see hugepages)");
    }
    judgements
}

fn judge_cell(facts: &HostFacts, policy: Policy, cell: &MemoryCell) -> Judgement {
    let node = cell.host_node.and_then(|node| Some((node, facts.nodes.get(&node)?)));
    let (subject, have, file, policy) = match node {
        Some((node, known)) => (Subject::Node { node }, known.memory_free, format!("node{node}"), policy),
        None => {
            let all = facts.nodes.values().map(|node| node.memory_free.as_bytes());
            let all = all.fold(0, u64::saturating_add);
            (Subject::Host, ByteSize::bytes(all), "node*".to_owned(), Policy::Strict)
        }
    };
    let verdict = match (cell.size <= have, policy) {
        (true, _) => Verdict::Ok,
        (false, Policy::Strict) => Verdict::Failed,
        (false, Policy::Prefer) => Verdict::Warning,
    };
    let have = mib(have);
    let judgement =
        Judgement::of(subject, verdict, format!("{} is needed, and {have} can be had", cell.size))
            .read(format!("/sys/devices/system/node/{file}/meminfo: {have} available"));
    match verdict {
        Verdict::Ok => judgement,
        _ => judgement.remedy(Remedy::new(
            "free memory there, write a smaller [memory] size, or node-policy = \"prefer\", which takes the rest from other nodes",
        )),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{checks, profile, verdict};

    fn host(free_mib: u32) -> HostFacts {
        let memory_free = ByteSize::mib(free_mib);
        let node = NodeFacts {
            memory: ByteSize::bytes(8 << 30),
            memory_free,
            cpus: "0-3".parse().unwrap(),
            ..NodeFacts::default()
        };
        let mut facts = HostFacts { nodes: [(0, node)].into(), ..HostFacts::default() };
        facts.cpus.online = "0-3".parse().unwrap();
        facts
    }

    #[rstest]
    #[case::enough(5000, "", Verdict::Ok)]
    #[case::too_little(3000, "", Verdict::Failed)]
    #[case::hugepages(3000, "hugepages = \"2M\"", Verdict::NotApplicable)]
    fn memory_must_be_there(#[case] free: u32, #[case] line: &str, #[case] expected: Verdict) {
        let mut facts = host(free);
        facts.nodes.get_mut(&0).unwrap().hugepages.insert(crate::units::PageSize::M2, Default::default());
        let profile = profile(&format!("[memory]\nsize = \"4G\"\n{line}\n"));
        assert_eq!(verdict(CHECK.name, &facts, Some(&profile)), expected);
    }

    #[rstest]
    #[case("strict", Verdict::Failed)]
    #[case("prefer", Verdict::Warning)]
    fn a_node_that_is_only_preferred_may_lack_some(#[case] policy: &str, #[case] expected: Verdict) {
        let profile = profile(&format!(
            "[memory]\nsize = \"4G\"\nnode-policy = \"{policy}\"\n[cpu]\ncount = 2\npin = \"auto\"\n"
        ));
        let found = checks(CHECK.name, &host(3000), Some(&profile));
        assert_eq!(found[0].subject, Subject::Node { node: 0 });
        assert_eq!(found[0].verdict, expected);
    }

    #[test]
    fn without_a_profile_it_is_told_what_there_is() {
        assert_eq!(verdict(CHECK.name, &host(3000), None), Verdict::Ok);
        assert_eq!(verdict(CHECK.name, &HostFacts::default(), None), Verdict::Unknown);
    }
}
