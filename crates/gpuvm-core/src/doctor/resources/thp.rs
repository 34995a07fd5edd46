//! What backs a guest's memory that isn't on hugepages.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::profile::Hugepages;
use crate::units::ByteSize;

pub(super) const CHECK: Definition = Definition {
    name: "transparent-hugepages",
    layer: Layer::Resources,
    why: "pages of 4 KiB take five times as long to map for a device as large ones, and each access is slower",
    judge,
};

/// From here on it takes seconds (4 KiB pages: some 18 ms per GiB to map, and 76 to 209 to pin).
const LARGE: ByteSize = ByteSize::mib(32 << 10);
const PATH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if case.profile.is_some_and(|profile| profile.memory.hugepages != Hugepages::Off) {
        return Judgement::not_applicable("the profile asks for hugepages");
    }
    let large = case.profile.filter(|profile| !profile.devices.is_empty() && profile.memory.size >= LARGE);
    let Some(word) = &case.facts.platform.thp else {
        return vec![Judgement::of_host(
            Verdict::Unknown,
            "the kernel doesn't tell whether it makes large pages by itself",
        )];
    };
    let judgement = match (word.as_str(), large) {
        ("never", _) => Judgement::of_host(Verdict::Warning, "the kernel makes no large pages by itself")
            .remedy(
                Remedy::new(
                    "write [memory] hugepages = \"2M\", or let the kernel make them where QEMU asks for them",
                )
                .command(format!("echo madvise > {PATH}")),
            ),
        (_, Some(profile)) => Judgement::of_host(
            Verdict::Warning,
            format!("{} of ordinary pages take long to prepare for a device", profile.memory.size),
        )
        .remedy(Remedy::new("write [memory] hugepages = \"1G\" or \"2M\"")),
        (word, None) => {
            Judgement::of_host(Verdict::Ok, format!("the kernel makes large pages by itself ({word})"))
        }
    };
    vec![judgement.read(format!("{PATH}: {word}"))]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict, with_device};
    use crate::facts::HostFacts;
    use crate::profile::Profile;

    #[rstest]
    #[case::asked_for(Some("madvise"), Some(with_device("")), Verdict::Ok)]
    #[case::never(Some("never"), Some(with_device("")), Verdict::Warning)]
    #[case::never_on_a_host(Some("never"), None, Verdict::Warning)]
    #[case::much_memory(Some("always"), Some(with_device("[memory]\nsize = \"64G\"\n")), Verdict::Warning)]
    #[case::hugepages(
        Some("never"),
        Some(profile("[memory]\nsize = \"4G\"\nhugepages = \"2M\"\n")),
        Verdict::NotApplicable
    )]
    #[case::not_told(None, None, Verdict::Unknown)]
    fn large_pages_matter_to_guests_of_ordinary_ones(
        #[case] thp: Option<&str>,
        #[case] profile: Option<Profile>,
        #[case] expected: Verdict,
    ) {
        let mut facts = HostFacts::default();
        facts.platform.thp = thp.map(str::to_owned);
        assert_eq!(verdict(CHECK.name, &facts, profile.as_ref()), expected);
    }
}
