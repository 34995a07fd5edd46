//! Whether this user may lock the guest's memory.

use super::mib;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{Presence, UserFacts};
use crate::units::ByteSize;

pub(super) const CHECK: Definition = Definition {
    name: "memory-lock",
    layer: Layer::Resources,
    why: "VFIO locks all of a guest's memory, hugepages included, since a device may reach any of it at any time",
    judge,
};

/// What is asked for beside the guest's memory, as libvirt does.
const BESIDE: ByteSize = ByteSize::mib(1024);

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let Some(user) = &case.facts.platform.user else {
        return vec![Judgement::of_host(
            Verdict::Unknown,
            "what this user may lock isn't known of this host",
        )];
    };
    let need = case.profile.map(|profile| profile.memory.size.as_bytes().saturating_add(BESIDE.as_bytes()));
    let need = need.map(ByteSize::bytes);
    let judgement = match (user.ipc_lock, user.memlock, need) {
        (Presence::Present, _, _) => Judgement::of_host(
            Verdict::Ok,
            format!("{} may lock memory without limit (CAP_IPC_LOCK)", user.name),
        ),
        (_, None, _) => {
            Judgement::of_host(Verdict::Ok, format!("{} has no limit on locked memory", user.name))
        }
        (_, Some(limit), Some(need)) if limit >= need => Judgement::of_host(
            Verdict::Ok,
            format!("{} may lock {}, and the guest needs {}", user.name, mib(limit), mib(need)),
        ),
        (_, Some(limit), need) => {
            let (verdict, needs) = match need {
                Some(need) => (Verdict::Failed, format!("the guest needs {}", mib(need))),
                None => (Verdict::Warning, "a guest needs its memory and 1 GiB".to_owned()),
            };
            let found = format!("{} may lock {}, and {needs}", user.name, mib(limit));
            Judgement::of_host(verdict, found).remedy(remedy(user, need))
        }
    };
    let limit =
        user.memlock.map_or_else(|| "unlimited".to_owned(), |limit| format!("{} bytes", limit.as_bytes()));
    vec![judgement.read(format!("/proc/self/limits: max locked memory {limit}"))]
}

fn remedy(user: &UserFacts, need: Option<ByteSize>) -> Remedy {
    let kib = need.map_or_else(|| "unlimited".to_owned(), |need| (need.as_bytes() >> 10).to_string());
    Remedy::new("raise the limit, and log in anew; in a systemd unit: LimitMEMLOCK=infinity")
        .command(format!("echo '{} - memlock {kib}' > /etc/security/limits.d/gpuvm.conf", user.name))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, profile, verdict, with_device};
    use crate::facts::HostFacts;

    fn host(ipc_lock: Presence, memlock: Option<u64>) -> HostFacts {
        let mut facts = HostFacts::default();
        let memlock = memlock.map(|gib| ByteSize::bytes(gib << 30));
        facts.platform.user = Some(UserFacts { uid: 1000, name: "kim".to_owned(), ipc_lock, memlock });
        facts
    }

    #[rstest]
    #[case::root(Presence::Present, Some(0), Verdict::Ok)]
    #[case::no_limit(Presence::Absent, None, Verdict::Ok)]
    #[case::enough(Presence::Absent, Some(5), Verdict::Ok)]
    #[case::without_the_rest(Presence::Absent, Some(4), Verdict::Failed)]
    fn a_guest_of_4_gib_needs_5(
        #[case] ipc_lock: Presence,
        #[case] memlock: Option<u64>,
        #[case] expected: Verdict,
    ) {
        assert_eq!(verdict(CHECK.name, &host(ipc_lock, memlock), Some(&with_device(""))), expected);
    }

    #[test]
    fn the_remedy_names_user_and_figure() {
        let found = check(CHECK.name, &host(Presence::Absent, Some(1)), Some(&with_device("")));
        let commands = found.remedy.unwrap().commands;
        assert!(commands[0].contains("kim - memlock 5242880"), "{commands:?}");
    }

    #[test]
    fn a_low_limit_is_warned_about_without_a_profile_and_no_matter_without_devices() {
        let facts = host(Presence::Absent, Some(1));
        assert_eq!(verdict(CHECK.name, &facts, None), Verdict::Warning);
        assert_eq!(verdict(CHECK.name, &facts, Some(&profile(""))), Verdict::NotApplicable);
        assert_eq!(verdict(CHECK.name, &HostFacts::default(), None), Verdict::Unknown);
    }
}
