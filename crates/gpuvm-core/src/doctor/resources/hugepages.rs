//! Whether the nodes have the hugepages that a guest's memory is to come from.

use super::mib;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Subject, Verdict};
use crate::facts::{HugepagePool, NodeFacts};
use crate::plan::MemoryCell;
use crate::profile::{Hugepages, Policy, Profile};
use crate::units::{ByteSize, PageSize};

pub(super) const CHECK: Definition = Definition {
    name: "hugepages",
    layer: Layer::Resources,
    why: "hugepages are a node's own: a guest starts faster and runs faster on them, and needs them on the node of its devices",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let Some((profile, outline)) = case.profile.zip(case.outline) else { return of_host(case) };
    let Hugepages::Size(page) = profile.memory.hugepages else {
        return Judgement::not_applicable("the profile asks for ordinary pages");
    };
    let of_cell = |cell: &MemoryCell| {
        let node = cell.host_node?;
        Some(judge_cell(case, profile, page, node, case.facts.nodes.get(&node)?, cell.size))
    };
    let judgements: Vec<_> = outline.memory.iter().filter_map(of_cell).collect();
    if judgements.is_empty() {
        let verdict = lacking(profile);
        return vec![
            Judgement::of_host(verdict, "there is no node that hugepages could come from")
                .remedy(Remedy::new("write [memory] hugepages = \"off\"")),
        ];
    }
    judgements
}

/// How bad it is to have none of them.
fn lacking(profile: &Profile) -> Verdict {
    match profile.memory.hugepages_policy {
        Policy::Strict => Verdict::Failed,
        Policy::Prefer => Verdict::Warning,
    }
}

fn judge_cell(
    case: &Case<'_>,
    profile: &Profile,
    page: PageSize,
    node: u32,
    known: &NodeFacts,
    size: ByteSize,
) -> Judgement {
    let need = page.pages_for(size);
    let of = |verdict, found: String| Judgement::of(Subject::Node { node }, verdict, found);
    let Some(pool) = known.hugepages.get(&page) else {
        let remedy = match page {
            PageSize::G1 => Remedy::new("boot with 1 GiB pages, or write [memory] hugepages = \"2M\"")
                .commands(case.distribution().kernel_option("hugepagesz=1G")),
            PageSize::M2 => {
                Remedy::new("the kernel needs CONFIG_HUGETLBFS; or write [memory] hugepages = \"off\"")
            }
        };
        return of(lacking(profile), format!("there is no pool of {page} pages")).remedy(remedy);
    };
    let more = need.saturating_sub(pool.free);
    let memory = ByteSize::bytes(more.saturating_mul(page.as_bytes()));
    let free = mib(known.memory_free);
    let judgement = match (more, memory <= known.memory_free, page) {
        (0, _, _) => of(Verdict::Ok, format!("{need} {page} pages are needed, and {} are free", pool.free)),
        (_, false, _) => of(
            lacking(profile),
            format!("{need} {page} pages are needed, {} are free, and {free} of memory can't become {more} more", pool.free),
        )
        .remedy(Remedy::new(format!("free memory on node {node}, or write a smaller [memory] size"))),
        (_, true, PageSize::M2) => of(
            Verdict::Ok,
            format!("{need} {page} pages are needed, {} are free, and `up` makes {more} of {free} and gives them back", pool.free),
        ),
        (_, true, PageSize::G1) => of(
            Verdict::Warning,
            format!("{need} {page} pages are needed, {} are free, and the kernel finds {more} more only while memory lies in one piece", pool.free),
        )
        .remedy(reserve_at_boot(case, need)),
    };
    judgement
        .read(pool_words(node, page, *pool))
        .read(format!("/sys/devices/system/node/node{node}/meminfo: {free} available"))
}

/// Pages of 1 GiB are best reserved while memory is still in one piece.
fn reserve_at_boot(case: &Case<'_>, pages: u64) -> Remedy {
    let nodes = case.facts.nodes.len() as u64;
    let all = pages.saturating_mul(nodes.max(1));
    let each =
        if nodes > 1 { format!(": the kernel spreads {all} over {nodes} nodes") } else { String::new() };
    Remedy::new(format!("reserve them at boot{each}"))
        .commands(case.distribution().kernel_option(&format!("hugepagesz=1G hugepages={all}")))
}

fn pool_words(node: u32, page: PageSize, pool: HugepagePool) -> String {
    format!(
        "/sys/devices/system/node/node{node}/hugepages/hugepages-{}kB: {} pages, {} free",
        page.as_kib(),
        pool.total,
        pool.free
    )
}

/// Without a profile there is no need to weigh against: it is told what there is.
fn of_host(case: &Case<'_>) -> Vec<Judgement> {
    let mut judgements = Vec::new();
    for (node, known) in &case.facts.nodes {
        let pools: Vec<String> = known
            .hugepages
            .iter()
            .map(|(page, pool)| format!("{} of {} {page} pages free", pool.free, pool.total))
            .collect();
        if pools.is_empty() {
            continue;
        }
        let judgement = Judgement::of(Subject::Node { node: *node }, Verdict::Ok, pools.join(", "));
        let read = known.hugepages.iter().map(|(page, pool)| pool_words(*node, *page, *pool));
        judgements.push(read.fold(judgement, Judgement::read));
    }
    if judgements.is_empty() {
        return vec![Judgement::of_host(Verdict::Warning, "the kernel has no hugepages").remedy(
            Remedy::new(
                "write [memory] hugepages = \"off\", or take a kernel with CONFIG_HUGETLBFS and CONFIG_NUMA",
            ),
        )];
    }
    judgements
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, profile, verdict};
    use crate::facts::HostFacts;

    /// A host of one node with 8 GiB, 6 of them available, and two pools.
    fn host(free_2m: u64, free_1g: u64) -> HostFacts {
        let pool = |free| HugepagePool { total: free, free };
        let node = NodeFacts {
            memory: ByteSize::bytes(8 << 30),
            memory_free: ByteSize::bytes(6 << 30),
            hugepages: [(PageSize::M2, pool(free_2m)), (PageSize::G1, pool(free_1g))].into(),
            ..NodeFacts::default()
        };
        HostFacts { nodes: [(0, node)].into(), ..HostFacts::default() }
    }

    fn asking(size: &str, page: &str, policy: &str) -> Profile {
        profile(&format!(
            "[memory]\nsize = \"{size}\"\nhugepages = \"{page}\"\nhugepages-policy = \"{policy}\"\n"
        ))
    }

    #[rstest]
    #[case::reserved(2048, 0, "4G", "2M", "strict", Verdict::Ok)]
    #[case::made_at_the_start(0, 0, "4G", "2M", "strict", Verdict::Ok)]
    #[case::too_little_memory(0, 0, "7G", "2M", "strict", Verdict::Failed)]
    #[case::preferred(0, 0, "7G", "2M", "prefer", Verdict::Warning)]
    #[case::large_ones_reserved(0, 4, "4G", "1G", "strict", Verdict::Ok)]
    #[case::large_ones_to_be_found(0, 1, "4G", "1G", "strict", Verdict::Warning)]
    fn a_pool_must_hold_what_is_asked_for_or_grow(
        #[case] free_2m: u64,
        #[case] free_1g: u64,
        #[case] size: &str,
        #[case] page: &str,
        #[case] policy: &str,
        #[case] expected: Verdict,
    ) {
        assert_eq!(verdict(CHECK.name, &host(free_2m, free_1g), Some(&asking(size, page, policy))), expected);
    }

    #[test]
    fn a_kernel_without_the_size_fails() {
        let mut facts = host(0, 0);
        facts.nodes.get_mut(&0).unwrap().hugepages.remove(&PageSize::G1);
        assert_eq!(verdict(CHECK.name, &facts, Some(&asking("4G", "1G", "strict"))), Verdict::Failed);
    }

    #[test]
    fn pages_of_a_host_without_nodes_fail() {
        assert_eq!(
            verdict(CHECK.name, &HostFacts::default(), Some(&asking("4G", "2M", "strict"))),
            Verdict::Failed
        );
    }

    #[test]
    fn without_a_profile_it_is_told_what_there_is() {
        let found = check(CHECK.name, &host(3, 1), None);
        assert_eq!((found.verdict, found.subject), (Verdict::Ok, Subject::Node { node: 0 }));
        assert_eq!(found.found, "3 of 3 2M pages free, 1 of 1 1G pages free");
        assert_eq!(verdict(CHECK.name, &HostFacts::default(), None), Verdict::Warning);
        assert_eq!(verdict(CHECK.name, &host(0, 0), Some(&profile(""))), Verdict::NotApplicable);
    }
}
