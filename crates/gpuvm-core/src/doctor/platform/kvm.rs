//! Whether `/dev/kvm` is there, and for this user.

use std::path::Path;

use super::{group_of, who};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{Access, CpuVendor, Presence};
use crate::profile::Accel;

pub(super) const CHECK: Definition = Definition {
    name: "kvm",
    layer: Layer::Platform,
    why: "KVM runs the guest's instructions on the host's CPUs; QEMU's translator is tens of times slower",
    judge,
};

const NODE: &str = "/dev/kvm";

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if case.profile.is_some_and(|profile| profile.accel == Accel::Tcg) {
        return Judgement::not_applicable("the profile asks for QEMU's translator (accel = \"tcg\")");
    }
    let node = case.facts.platform.nodes.get(Path::new(NODE));
    let judgement = match case.facts.kvm {
        Access::Usable => {
            return vec![
                Judgement::of_host(Verdict::Ok, "/dev/kvm is usable").read(format!("{NODE}: usable")),
            ];
        }
        Access::Denied => {
            let judgement = Judgement::of_host(Verdict::Failed, "/dev/kvm is there, and not for this user");
            let judgement = judgement.remedy(permission(case));
            node.map_or(judgement.clone(), |node| judgement.read(format!("{NODE}: {}", who(node))))
        }
        Access::Missing => Judgement::of_host(Verdict::Failed, "/dev/kvm is missing")
            .read(format!("{NODE}: not there"))
            .remedy(missing(case)),
    };
    let flags = match case.facts.platform.virtualization {
        None => return vec![judgement],
        Some(Presence::Present) => "vmx or svm",
        Some(Presence::Absent) => "neither vmx nor svm",
    };
    vec![judgement.read(format!("/proc/cpuinfo: {flags}"))]
}

fn permission(case: &Case<'_>) -> Remedy {
    let platform = &case.facts.platform;
    let user = platform.user.as_ref().map_or("USER", |user| user.name.as_str());
    match platform.nodes.get(Path::new(NODE)).and_then(group_of) {
        Some(group) => Remedy::new(format!(
            "be a member of the group {group} from the next login on, or run gpuvm as root"
        ))
        .command(format!("usermod -aG {group} {user}")),
        None => {
            Remedy::new("run gpuvm as root, or give the node to a group that this user is in").commands([
                format!("usermod -aG kvm {user}"),
                "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' > /etc/udev/rules.d/65-kvm.rules"
                    .to_owned(),
                "udevadm control --reload && udevadm trigger /dev/kvm".to_owned(),
            ])
        }
    }
}

fn missing(case: &Case<'_>) -> Remedy {
    let module = match case.facts.cpus.vendor {
        CpuVendor::Amd => "kvm_amd",
        CpuVendor::Other => "kvm_intel",
    };
    let load =
        Remedy::new(format!("load {module}; if it refuses, virtualisation is off in the firmware's setup"))
            .commands(case.distribution().load_at_boot(module));
    match case.facts.platform.virtualization {
        Some(Presence::Absent) => Remedy::new(
            "switch on VT-x or AMD-V (\"SVM\") in the firmware's setup; inside a virtual machine, nested virtualisation in its host. \
             accel = \"tcg\" runs anywhere, slowly",
        ),
        _ => load,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, profile, verdict};
    use crate::facts::{DeviceNode, HostFacts, UserFacts};

    fn host(access: Access) -> HostFacts {
        let mut facts = HostFacts { kvm: access, ..HostFacts::default() };
        facts.platform.user = Some(UserFacts { uid: 1000, name: "kim".to_owned(), ..UserFacts::default() });
        facts
    }

    #[rstest]
    #[case(Access::Usable, "", Verdict::Ok)]
    #[case(Access::Denied, "", Verdict::Failed)]
    #[case(Access::Missing, "", Verdict::Failed)]
    #[case(Access::Missing, "accel = \"tcg\"", Verdict::NotApplicable)]
    fn kvm_must_be_usable_where_it_is_used(
        #[case] access: Access,
        #[case] lines: &str,
        #[case] expected: Verdict,
    ) {
        assert_eq!(verdict(CHECK.name, &host(access), Some(&profile(lines))), expected);
    }

    #[rstest]
    #[case::a_group("kvm", 0o660, "usermod -aG kvm kim")]
    #[case::roots_alone("root", 0o600, "usermod -aG kvm kim")]
    #[case::another_group("virt", 0o660, "usermod -aG virt kim")]
    fn who_may_not_is_told_how_to(#[case] group: &str, #[case] mode: u32, #[case] command: &str) {
        let mut facts = host(Access::Denied);
        let (owner, group) = ("root".to_owned(), group.to_owned());
        let node = DeviceNode { access: Access::Denied, mode, owner, group };
        facts.platform.nodes.insert(NODE.into(), node);
        let found = check(CHECK.name, &facts, None);
        assert_eq!(found.remedy.unwrap().commands[0], command);
        assert!(found.read[0].contains(&format!("mode {mode:04o}")), "{:?}", found.read);
    }

    #[rstest]
    #[case(Some(Presence::Present), CpuVendor::Amd, "kvm_amd")]
    #[case(None, CpuVendor::Other, "kvm_intel")]
    #[case(Some(Presence::Absent), CpuVendor::Amd, "firmware's setup")]
    fn a_missing_node_is_loaded_or_switched_on(
        #[case] flags: Option<Presence>,
        #[case] vendor: CpuVendor,
        #[case] says: &str,
    ) {
        let mut facts = host(Access::Missing);
        facts.cpus.vendor = vendor;
        facts.platform.virtualization = flags;
        let what = check(CHECK.name, &facts, None).remedy.unwrap().what;
        assert!(what.contains(says), "{what}");
    }
}
