//! Whether a QEMU is there that is new enough.

use crate::doctor::{Case, Definition, Judgement, Layer, Package, Remedy, Verdict};
use crate::facts::QemuProbe;
use crate::profile::Accel;
use crate::qemu::abilities::{OLDEST, has_kvm, is_recent};

pub(super) const CHECK: Definition = Definition {
    name: "qemu",
    layer: Layer::Platform,
    why: "gpuvm drives QEMU by its QMP, and its command line needs 7.2 or later",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let install = || {
        let remedy = Remedy::new("install QEMU for x86-64");
        remedy.commands(case.distribution().install(Package::Qemu))
    };
    let Some(binary) = &case.facts.qemu else {
        let judgement = Judgement::of_host(Verdict::Failed, "qemu-system-x86_64 was not found in PATH");
        return vec![judgement.read("PATH: no qemu-system-x86_64").remedy(install())];
    };
    let binary = binary.display();
    let judgement = match &case.facts.qemu_probe {
        QemuProbe::NotAsked => {
            Judgement::of_host(Verdict::Unknown, format!("{binary} is there, and wasn't asked what it is"))
        }
        QemuProbe::Late { seconds } => {
            let found = format!(
                "{binary} has not answered within {seconds} s: it hangs, or this host is very slow now"
            );
            Judgement::of_host(Verdict::Unknown, found).remedy(Remedy::new("try again"))
        }
        QemuProbe::Failed { why } => {
            Judgement::of_host(Verdict::Failed, format!("{binary} doesn't answer: {why}")).remedy(
                install().command(format!("{binary} -machine none -nodefaults -display none -monitor stdio")),
            )
        }
        QemuProbe::Answered(qemu) => {
            let (major, minor, micro) = qemu.version;
            let package = match qemu.package.trim() {
                "" => String::new(),
                package => format!(" ({package})"),
            };
            let version = format!("QEMU {major}.{minor}.{micro}{package}");
            let needs_kvm = case.profile.is_none_or(|profile| profile.accel == Accel::Kvm);
            match (is_recent(qemu), has_kvm(qemu) || !needs_kvm) {
                (true, true) => Judgement::of_host(Verdict::Ok, version),
                (true, false) => {
                    Judgement::of_host(Verdict::Failed, format!("{version} was built without KVM"))
                        .remedy(install())
                }
                (false, _) => Judgement::of_host(
                    Verdict::Failed,
                    format!("{version} is older than {}.{}", OLDEST.0, OLDEST.1),
                )
                .remedy(Remedy::new("install a newer one, from your distribution's backports")),
            }
        }
    };
    vec![judgement.read(format!("PATH: {binary}"))]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::verdict;
    use crate::facts::{HostFacts, Presence, QemuFacts};

    fn answered(version: (u32, u32, u32), kvm: Presence) -> QemuProbe {
        QemuProbe::Answered(QemuFacts { version, kvm, ..QemuFacts::default() })
    }

    #[rstest]
    #[case::new(answered((7, 2, 22), Presence::Present), Verdict::Ok)]
    #[case::newer(answered((10, 0, 0), Presence::Present), Verdict::Ok)]
    #[case::old(answered((7, 1, 0), Presence::Present), Verdict::Failed)]
    #[case::without_kvm(answered((9, 0, 0), Presence::Absent), Verdict::Failed)]
    #[case::dead(QemuProbe::Failed { why: "it died".to_owned() }, Verdict::Failed)]
    #[case::late(QemuProbe::Late { seconds: 5 }, Verdict::Unknown)]
    #[case::not_asked(QemuProbe::NotAsked, Verdict::Unknown)]
    fn qemu_is_judged_by_its_answer(#[case] qemu_probe: QemuProbe, #[case] expected: Verdict) {
        let qemu = Some("/usr/bin/qemu-system-x86_64".into());
        let facts = HostFacts { qemu, qemu_probe, ..HostFacts::default() };
        assert_eq!(verdict(CHECK.name, &facts, None), expected);
    }

    #[test]
    fn without_qemu_it_fails() {
        assert_eq!(verdict(CHECK.name, &HostFacts::default(), None), Verdict::Failed);
    }
}
