//! Whether all CPUs can be scheduled on.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "cpus-online",
    layer: Layer::Resources,
    why: "a CPU that is offline is one that no vCPU can be pinned to",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let (online, platform) = (&case.facts.cpus.online, &case.facts.platform);
    let offline = &platform.offline_cpus;
    let smt_off = platform.smt.as_deref().is_some_and(|smt| smt.contains("off"));
    let read = format!(
        "/sys/devices/system/cpu: online {online}, offline {}",
        if offline.is_empty() { "none".to_owned() } else { offline.to_string() }
    );
    let judgement = if online.is_empty() {
        Judgement::of_host(Verdict::Unknown, "the kernel doesn't tell which CPUs are online")
    } else if offline.is_empty() {
        Judgement::of_host(Verdict::Ok, format!("all {} CPUs are online", online.len()))
    } else if smt_off {
        Judgement::of_host(
            Verdict::Ok,
            format!("{} CPUs are online; {offline} are off, being second threads (SMT is off)", online.len()),
        )
    } else {
        let each = offline.iter().map(|cpu| format!("echo 1 > /sys/devices/system/cpu/cpu{cpu}/online"));
        // Possible CPUs that aren't there can't be switched on; a list of hundreds helps nobody.
        let remedy = Remedy::new("switch them on, if they are there").commands(each.take(8));
        Judgement::of_host(Verdict::Warning, format!("CPUs {offline} are offline")).remedy(remedy)
    };
    vec![judgement.read(read)]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::verdict;
    use crate::facts::HostFacts;

    #[rstest]
    #[case::all("0-7", "", None, Verdict::Ok)]
    #[case::some("0-5", "6-7", Some("on"), Verdict::Warning)]
    #[case::threads("0-3", "4-7", Some("forceoff"), Verdict::Ok)]
    #[case::not_told("", "", None, Verdict::Unknown)]
    fn offline_cpus_are_told(
        #[case] online: &str,
        #[case] offline: &str,
        #[case] smt: Option<&str>,
        #[case] expected: Verdict,
    ) {
        let mut facts = HostFacts::default();
        facts.cpus.online = online.parse().unwrap();
        facts.platform.offline_cpus = offline.parse().unwrap();
        facts.platform.smt = smt.map(str::to_owned);
        assert_eq!(verdict(CHECK.name, &facts, None), expected);
    }
}
