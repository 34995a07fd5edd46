//! Whether this user may use the device nodes of VFIO.

use std::path::Path;

use super::{group_of, who};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Subject, Verdict};
use crate::facts::{Access, DeviceNode};
use crate::pci::GroupId;

pub(super) const CHECK: Definition = Definition {
    name: "vfio-access",
    layer: Layer::Platform,
    why: "QEMU opens a device by the node of its group, with the rights of whoever starts it",
    judge,
};

const CONTAINER: &str = "/dev/vfio/vfio";

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let platform = &case.facts.platform;
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    if case.facts.vfio.container == Access::Missing {
        return Judgement::not_applicable(format!("{CONTAINER} isn't there"));
    }
    let mut judgements = Vec::new();
    if case.facts.vfio.container == Access::Denied {
        let judgement = Judgement::of_host(Verdict::Failed, format!("{CONTAINER} is not for this user"))
            .remedy(permission(CONTAINER, platform.nodes.get(Path::new(CONTAINER)), case));
        judgements.push(described(judgement, CONTAINER, platform.nodes.get(Path::new(CONTAINER))));
    }
    let denied = platform.group_nodes.iter().filter(|(_, node)| node.access == Access::Denied);
    for (group, node) in denied.filter(|(group, _)| concerns(case, **group)) {
        let path = format!("/dev/vfio/{group}");
        let subject = Subject::Group { group: *group };
        let judgement = Judgement::of(subject, Verdict::Failed, format!("{path} is not for this user"))
            .remedy(permission(&path, Some(node), case));
        judgements.push(described(judgement, &path, Some(node)));
    }
    let user = platform.user.as_ref().filter(|user| user.uid != 0);
    if let Some(user) = user.filter(|_| judgements.is_empty() && any_unbound(case)) {
        let found = format!("{} may not bind devices to vfio-pci", user.name);
        let remedy = Remedy::new("run gpuvm as root");
        judgements.push(Judgement::of_host(Verdict::Warning, found).remedy(remedy));
    }
    if judgements.is_empty() {
        let found = "the nodes of VFIO are usable";
        judgements.push(Judgement::of_host(Verdict::Ok, found).read(format!("{CONTAINER}: usable")));
    }
    judgements
}

fn concerns(case: &Case<'_>, group: GroupId) -> bool {
    let group_of = |bdf| case.facts.devices.get(bdf)?.group;
    case.targets.iter().any(|bdf| group_of(bdf) == Some(group))
}

/// Tells whether a function that is to be passed is on another driver than VFIO's.
fn any_unbound(case: &Case<'_>) -> bool {
    let devices = case.targets.iter().filter_map(|bdf| case.facts.devices.get(bdf));
    let on_vfio = |driver| crate::plan::is_vfio_driver(driver);
    devices.into_iter().any(|device| !device.driver.as_ref().is_some_and(on_vfio))
}

fn described(judgement: Judgement, path: &str, node: Option<&DeviceNode>) -> Judgement {
    match node {
        Some(node) => judgement.read(format!("{path}: {}", who(node))),
        None => judgement,
    }
}

fn permission(path: &str, node: Option<&DeviceNode>, case: &Case<'_>) -> Remedy {
    let user = case.facts.platform.user.as_ref().map_or("USER", |user| user.name.as_str());
    if let Some(group) = node.and_then(group_of) {
        return Remedy::new(format!(
            "be a member of the group {group} from the next login on, or run gpuvm as root"
        ))
        .command(format!("usermod -aG {group} {user}"));
    }
    let rule = "SUBSYSTEM==\"vfio\", GROUP=\"kvm\", MODE=\"0660\"";
    let remedy = Remedy::new("run gpuvm as root, or give the nodes of VFIO to a group that this user is in");
    remedy.commands([
        format!("usermod -aG kvm {user}"),
        format!("echo '{rule}' > /etc/udev/rules.d/60-vfio.rules"),
        "udevadm control --reload".to_owned(),
        format!("udevadm trigger {path}"),
    ])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{check, verdict, with_device};
    use crate::facts::{DeviceFacts, HostFacts, UserFacts};
    use crate::pci::{ClassCode, DriverName};

    fn node(access: Access) -> DeviceNode {
        DeviceNode { access, mode: 0o600, owner: "root".to_owned(), group: "root".to_owned() }
    }

    fn host(uid: u32, container: Access, group: Access, driver: &str) -> HostFacts {
        let mut facts = HostFacts::default();
        facts.vfio.container = container;
        let mut device = DeviceFacts::new("10de:2330".parse().unwrap(), ClassCode::new(0x03_0200).unwrap());
        device.group = Some(GroupId(7));
        device.driver = DriverName::new(driver);
        facts.devices.insert("0000:81:00.0".parse().unwrap(), device);
        facts.platform.user = Some(UserFacts { uid, name: "kim".to_owned(), ..UserFacts::default() });
        facts.platform.nodes.insert(CONTAINER.into(), node(container));
        facts.platform.group_nodes = [(GroupId(7), node(group)), (GroupId(8), node(Access::Denied))].into();
        facts
    }

    #[rstest]
    #[case::root(0, Access::Usable, Access::Usable, "nvidia", Verdict::Ok)]
    #[case::bound_for_the_user(1000, Access::Usable, Access::Usable, "vfio-pci", Verdict::Ok)]
    #[case::bound_for_root(1000, Access::Usable, Access::Denied, "vfio-pci", Verdict::Failed)]
    #[case::no_container(1000, Access::Denied, Access::Usable, "vfio-pci", Verdict::Failed)]
    #[case::not_bound(1000, Access::Usable, Access::Usable, "nvidia", Verdict::Warning)]
    #[case::not_loaded(0, Access::Missing, Access::Usable, "nvidia", Verdict::NotApplicable)]
    fn the_nodes_must_be_for_this_user(
        #[case] uid: u32,
        #[case] container: Access,
        #[case] group: Access,
        #[case] driver: &str,
        #[case] expected: Verdict,
    ) {
        let facts = host(uid, container, group, driver);
        assert_eq!(verdict(CHECK.name, &facts, Some(&with_device(""))), expected);
    }

    #[test]
    fn the_remedy_names_the_node() {
        let facts = host(1000, Access::Usable, Access::Denied, "vfio-pci");
        let found = check(CHECK.name, &facts, Some(&with_device("")));
        assert_eq!(found.subject, Subject::Group { group: GroupId(7) });
        assert!(found.remedy.unwrap().commands.contains(&"udevadm trigger /dev/vfio/7".to_owned()));
    }
}
