//! Whether the kernel lets groups be used, asked of the kernel itself.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use gpuvm_core::facts::{HostFacts, Viability};
use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_core::plan::is_vfio_driver;
use gpuvm_sys::errno::{EACCES, EBUSY, EPERM};
use gpuvm_sys::vfio::{Container, Group, IommuInfo, IommuType};

use crate::HostError;
use crate::lock;
use crate::places::Places;
use crate::process::find_open;
use crate::root::{self, HostRoot};

/// Opens each group, asks for its status, attaches it to a container and lets go of all again.
///
/// No device fd is opened: that would reset the device, twice (drivers/vfio/pci/vfio_pci_core.c). A group can be open
/// only once, so QEMU must not have been started. `top` is the last guest address that must be mappable.
///
/// # Errors
/// Returns which group can't be used, and why.
pub fn check_groups(root: &HostRoot, groups: &[GroupId], top: u64) -> Result<(), HostError> {
    for group in groups {
        check_group(root, *group, top)?;
    }
    Ok(())
}

fn check_group(root: &HostRoot, id: GroupId, top: u64) -> Result<(), HostError> {
    let call =
        |call: &'static str| move |source| HostError::Vfio { group: id, call, source, said: Box::default() };
    let path = root.path(format!("/dev/vfio/{id}"));
    let group = match Group::open(&path) {
        Ok(group) => group,
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Err(HostError::GroupBusy { group: id, holder: holder(&path) });
        }
        Err(source) => return Err(HostError::File { doing: "open", path, source }),
    };
    if !group.status().map_err(call("VFIO_GROUP_GET_STATUS"))?.viable {
        return Err(HostError::NotViable { group: id, members: members(root, id)? });
    }
    let path = root.path("/dev/vfio/vfio");
    let container = Container::open(&path).map_err(HostError::file("open", &path))?;
    group.set_container(&container).map_err(call("VFIO_GROUP_SET_CONTAINER"))?;
    container.set_iommu(IommuType::Type1v2).map_err(|source| match source.kind() {
        // drivers/vfio/vfio_iommu_type1.c: "No interrupt remapping support" is the one EPERM of attaching.
        io::ErrorKind::PermissionDenied => HostError::NoInterruptRemapping { group: id, source },
        _ => call("VFIO_SET_IOMMU")(source),
    })?;
    let info = container.iommu_info().map_err(call("VFIO_IOMMU_GET_INFO"))?;
    let fits = maps_up_to(&info, top);
    group.unset_container().map_err(call("VFIO_GROUP_UNSET_CONTAINER"))?;
    container.close().map_err(call("close"))?;
    group.close().map_err(call("close"))?;
    match fits {
        true => Ok(()),
        false => Err(HostError::Aperture { group: id, top, ranges: ranges(&info) }),
    }
}

/// Tells whether the top of guest memory can be mapped. Kernels before 5.4 don't tell their ranges.
fn maps_up_to(info: &IommuInfo, top: u64) -> bool {
    info.iova_ranges.is_empty() || info.iova_ranges.iter().any(|range| range.contains(&top))
}

fn ranges(info: &IommuInfo) -> String {
    info.iova_ranges.iter().map(|r| format!("{:#x}-{:#x}", r.start(), r.end())).collect::<Vec<_>>().join(", ")
}

/// Asks the kernel about each group in the facts of which a VFIO driver has a member: only then there is something to open. That touches
/// no hardware.
///
/// A group can be open only once, so one that a VM of gpuvm has reserved isn't opened, and while others are none can be reserved.
pub fn viability(root: &HostRoot, places: &Places, facts: &HostFacts) -> BTreeMap<GroupId, Viability> {
    let on_vfio = |bdf: &Bdf| {
        let driver = facts.devices.get(bdf).and_then(|device| device.driver.as_ref());
        driver.is_some_and(is_vfio_driver)
    };
    let groups: Vec<GroupId> =
        facts.groups.iter().filter(|(_, members)| members.iter().any(on_vfio)).map(|(id, _)| *id).collect();
    let all = |said: Viability| groups.iter().map(|id| (*id, said.clone())).collect();
    if groups.is_empty() {
        return BTreeMap::new();
    }
    let locked = lock::tables(places)
        .and_then(|guard| Ok((guard, crate::reservation::all(places, &facts.kernel.boot_id)?)));
    let (_guard, reserved) = match locked {
        Ok(locked) => locked,
        Err(error) => return all(refused(error.errno())),
    };
    let ask = |id: &GroupId| match reserved.iter().find(|record| record.groups.contains(id)) {
        Some(record) => Viability::Reserved { vm: record.vm.to_string() },
        None => match Group::open(&root.path(format!("/dev/vfio/{id}"))).and_then(|group| group.status()) {
            Ok(status) if status.viable => Viability::Viable,
            Ok(_) => Viability::NotViable,
            Err(error) => refused(error.raw_os_error()),
        },
    };
    groups.iter().map(|id| (*id, ask(id))).collect()
}

fn refused(errno: Option<i32>) -> Viability {
    match errno {
        Some(EBUSY) => Viability::InUse,
        Some(EACCES | EPERM) => Viability::Denied,
        errno => Viability::Failed { errno: errno.unwrap_or(0) },
    }
}

/// Lists a group's members with their drivers: one of them is why the group isn't viable.
fn members(root: &HostRoot, group: GroupId) -> Result<String, HostError> {
    let folder = root.path(format!("/sys/kernel/iommu_groups/{group}/devices"));
    let mut words = Vec::new();
    for name in root::list(&folder)? {
        let Ok(bdf) = name.parse::<Bdf>() else { continue };
        let driver = root::driver_of(root, bdf)?;
        words.push(match driver {
            Some(driver) => format!("{bdf} is on {driver}"),
            None => format!("{bdf} has no driver"),
        });
    }
    Ok(words.join(", "))
}

/// Names the process that has a group open, if one of those that can be seen has.
///
/// # Errors
/// Returns that processes can't be listed.
pub fn group_holder(root: &HostRoot, group: GroupId) -> Result<Option<String>, HostError> {
    find_holder(&root.path(format!("/dev/vfio/{group}")))
}

fn holder(node: &Path) -> String {
    match find_holder(node) {
        Ok(Some(holder)) => holder,
        Ok(None) => "no process of it is visible from here".to_owned(),
        Err(error) => format!("which one can't be seen: {error}"),
    }
}

/// Finds the process that has a device node open.
fn find_holder(node: &Path) -> Result<Option<String>, HostError> {
    find_open(|opener, file| (file == node).then(|| format!("{} ({})", opener.pid, opener.name())))
}
