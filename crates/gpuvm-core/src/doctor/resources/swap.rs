//! Whether the guest's memory could be swapped out.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::profile::Hugepages;

pub(super) const CHECK: Definition = Definition {
    name: "swap",
    layer: Layer::Resources,
    why: "a guest whose memory is swapped out stands still; VFIO and hugepages keep it where it is",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let swaps = &case.facts.platform.swaps;
    let read = format!("/proc/swaps: {}", if swaps.is_empty() { "none".to_owned() } else { swaps.join(" ") });
    let swappable = case
        .profile
        .is_some_and(|profile| profile.devices.is_empty() && profile.memory.hugepages == Hugepages::Off);
    let judgement = match (swaps.is_empty(), swappable) {
        (true, _) => Judgement::of_host(Verdict::Ok, "there is no swap space"),
        (false, false) => Judgement::of_host(
            Verdict::Ok,
            format!(
                "there is swap space ({}), and a guest with devices or hugepages stays in memory",
                swaps.join(", ")
            ),
        ),
        (false, true) => Judgement::of_host(
            Verdict::Warning,
            format!(
                "the guest's memory may go to swap space ({}): nothing keeps it in memory",
                swaps.join(", ")
            ),
        )
        .remedy(
            Remedy::new("write [memory] hugepages = \"2M\", or make the kernel swap less")
                .command("sysctl vm.swappiness=1"),
        ),
    };
    vec![judgement.read(read)]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict, with_device};
    use crate::facts::HostFacts;
    use crate::profile::Profile;

    #[rstest]
    #[case::none(&[], Some(profile("")), Verdict::Ok)]
    #[case::swappable(&["/dev/sda2"], Some(profile("")), Verdict::Warning)]
    #[case::pinned(&["/dev/sda2"], Some(with_device("")), Verdict::Ok)]
    #[case::hugepages(&["/dev/sda2"], Some(profile("[memory]\nsize = \"4G\"\nhugepages = \"2M\"\n")), Verdict::Ok)]
    #[case::no_profile(&["/dev/sda2"], None, Verdict::Ok)]
    fn only_a_guest_of_ordinary_pages_without_devices_is_swapped(
        #[case] swaps: &[&str],
        #[case] profile: Option<Profile>,
        #[case] expected: Verdict,
    ) {
        let mut facts = HostFacts::default();
        facts.platform.swaps = swaps.iter().map(|swap| (*swap).to_owned()).collect();
        assert_eq!(verdict(CHECK.name, &facts, profile.as_ref()), expected);
    }
}
