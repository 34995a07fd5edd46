//! What to do about what the plan refuses.

use gpuvm_core::facts::Holder;
use gpuvm_core::plan::{FileRole, MemoryMeasure, Refusal};
use gpuvm_core::profile::GUEST_MEMORY_MIN;
use gpuvm_core::units::{ByteSize, PageSize};

use super::{damaged_ledger, quarantined};

const BOOT_DISPLAY: &str =
    "make another display the boot display in the firmware's setup (often \"primary video device\")";

/// What to do about a refusal of the plan.
pub(crate) fn refusal(refusal: &Refusal) -> Option<String> {
    of_device(refusal)
        .or_else(|| of_choice(refusal))
        .or_else(|| of_size(refusal))
        .or_else(|| of_host(refusal))
}

/// What to do about a refusal to bind what was named by its address: there is no profile to write in.
pub(crate) fn of_bind(refusal: &Refusal) -> Option<String> {
    match refusal {
        Refusal::BootDisplay { .. } => Some(format!(
            "{BOOT_DISPLAY}, or take it all the same with --force: the host's console is dark from then on"
        )),
        refusal => self::refusal(refusal),
    }
}

/// What to do about a reason why a device can't be reset.
pub(crate) fn of_reset(refusal: &Refusal) -> Option<String> {
    Some(match refusal {
        Refusal::BootDisplay { .. } => {
            "reset it by a profile that has allow-boot-display = true beside its bdf: the host's console is dark meanwhile".to_owned()
        }
        Refusal::UnknownDevice { .. } => {
            "list the devices: gpuvm devices --all; for one that has vanished the kernel looks again with: echo 1 > /sys/bus/pci/rescan"
                .to_owned()
        }
        Refusal::NoReset { bdf, .. } => format!("see its resets, and what is beside it: gpuvm devices {bdf}"),
        Refusal::ForeignMember { wanted, .. } if !wanted.is_empty() => {
            let all: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            format!("name all of it, if nobody needs the others: gpuvm reset {}", all.join(" "))
        }
        refusal => return self::refusal(refusal),
    })
}

/// What to do about a device that can't be taken.
fn of_device(refusal: &Refusal) -> Option<String> {
    Some(match refusal {
        Refusal::UnknownDevice { .. } => "list the devices: gpuvm devices --all".to_owned(),
        Refusal::Bridge { .. } => "list what is behind it instead: lspci -tv".to_owned(),
        Refusal::ExpanderThere { .. } => {
            "write another guest-address: expander bridges have the last device numbers, from 1e down"
                .to_owned()
        }
        Refusal::NoIommu { .. } => {
            "switch on VT-d or AMD-Vi in the firmware's setup; on Intel also boot with intel_iommu=on. \
             Then look: ls /sys/class/iommu"
                .to_owned()
        }
        Refusal::NoGroup { bdf } => {
            format!("see what the kernel said: dmesg | grep -e DMAR -e AMD-Vi -e {bdf}")
        }
        Refusal::ForeignMember { holder: Some(_), .. } => {
            "put the card in another slot, whose port has ACS, so that it gets a group of its own".to_owned()
        }
        Refusal::Unread { .. } => "see what the doctor couldn't read, and why: gpuvm doctor".to_owned(),
        Refusal::UnreadMember { member, .. } => {
            format!("see what the kernel says of it: ls /sys/bus/pci/devices/{member}; dmesg | grep {member}")
        }
        Refusal::HasVirtualFunctions { bdf, .. } => {
            format!(
                "pass one of its virtual functions, or switch them off: echo 0 > /sys/bus/pci/devices/{bdf}/sriov_numvfs"
            )
        }
        Refusal::EmptySlot { .. } => "list the devices: lspci -D".to_owned(),
        Refusal::ForeignMember { wanted, .. } if !wanted.is_empty() => {
            let all: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            format!(
                "take the whole group, if nobody needs the others: gpuvm bind {}; or put the card in another slot, whose port has ACS",
                all.join(" ")
            )
        }
        Refusal::ForeignMember { bdf, member, .. } => format!(
            "if the guest may have {member}, list it as a [[device]] as well; if nobody needs it meanwhile, write \
             hold = [\"{member}\"] beside bdf = \"{bdf}\"; or put the card in another slot, whose port has ACS"
        ),
        Refusal::HeldElsewhere { bdf, held, .. } => {
            format!(
                "leave {held} out of hold, or list it beside a device of its own group; see gpuvm plan, which lists the group of {bdf}"
            )
        }
        Refusal::Critical { .. } => {
            "give the guest another device, or move what the host needs off this one".to_owned()
        }
        Refusal::InUse { holder, .. } => return in_use(holder),
        Refusal::BootDisplay { .. } => format!(
            "{BOOT_DISPLAY}, or write allow-boot-display = true beside its bdf: the host's console is dark from then on"
        ),
        Refusal::Quarantined { bdf, reset_since, .. } => return Some(quarantined(*bdf, *reset_since)),
        Refusal::LedgerUnread { .. } => damaged_ledger(),
        Refusal::Kept { .. } => "go on with what has begun: gpuvm cleanup".to_owned(),
        Refusal::Overridden { bdf, .. } => {
            format!("if that is no longer wanted: echo > /sys/bus/pci/devices/{bdf}/driver_override")
        }
        _ => return None,
    })
}

/// What to do about somebody who uses a device.
fn in_use(holder: &Holder) -> Option<String> {
    Some(match holder {
        Holder::Vfio { vm: Some(vm), .. } => format!("VM {vm} gives it back when it ends; try again then"),
        Holder::Vfio { process, .. } => {
            format!("end that virtual machine: ps -fp {}; or try later", process.pid)
        }
        Holder::Process { process, .. } if process.command.starts_with("nvidia-persiste") => {
            "stop the persistence daemon: systemctl stop nvidia-persistenced".to_owned()
        }
        Holder::Process { process, .. } => format!(
            "end that process: see what it is with ps -fp {pid}, then stop its service, or kill {pid}",
            pid = process.pid
        ),
        _ => return None,
    })
}

/// What to do about a device that is described and not named.
fn of_choice(refusal: &Refusal) -> Option<String> {
    Some(match refusal {
        Refusal::NoneFits { .. } => "list the devices with their ids and classes: gpuvm devices --all".to_owned(),
        Refusal::SeveralFit { .. } => {
            "say more of the one that is meant (node, slot, serial), or which of these it is: nth = 0 is the first".to_owned()
        }
        Refusal::TooFewFit { fit, .. } => format!("write nth = {} or less", fit.len().saturating_sub(1)),
        Refusal::ChosenTwice { .. } => "say more of the one that is meant, or take one of the two out".to_owned(),
        Refusal::ChosenForOnePlace { .. } => {
            "write one guest-address for all functions of a card, and one card at each".to_owned()
        }
        _ => return None,
    })
}

/// What to do about a guest that doesn't fit.
fn of_size(refusal: &Refusal) -> Option<String> {
    Some(match refusal {
        Refusal::UnevenCpus { count, nodes } => {
            let nodes = u32::try_from(nodes.len()).unwrap_or(1);
            format!("write [cpu] count = {}, or give the guest the devices of one node", count.div_ceil(nodes) * nodes)
        }
        Refusal::UnevenMemory { size, nodes, unit } => {
            let part = nodes.len() as u64 * unit.as_bytes();
            let whole = ByteSize::bytes(size.as_bytes().div_ceil(part) * part);
            format!("write [memory] size = \"{whole}\"")
        }
        Refusal::NoNodeOfPages { .. } => "write [memory] hugepages = \"off\"".to_owned(),
        Refusal::NoNode => "write [cpu] pin = \"off\"".to_owned(),
        Refusal::MixedNodes { .. } | Refusal::OfflineCpus { .. } => {
            "see which CPU is on which node: lscpu -e".to_owned()
        }
        Refusal::TakenCpus { .. } => {
            "try later, or write [cpu] pin = \"auto\", which takes free ones".to_owned()
        }
        Refusal::TooLittleMemory { have, .. } => {
            format!("write [memory] size = \"{}M\" or less", have.as_bytes() >> 20)
        }
        Refusal::TooFewCpus { need, count, cpus, .. } => {
            let fits = usize::try_from(count / need).map_or(cpus.len(), |nodes| cpus.len() * nodes);
            let count = format!("write [cpu] count = {fits}");
            let count = if fits == 0 { String::new() } else { format!("{count}, or ") };
            format!("{count}write pin = \"off\" to use the CPUs of all nodes, or pin-policy = \"prefer\"")
        }
        Refusal::TooFewCpusOnHost { have, .. } => format!("write [cpu] count = {have}"),
        Refusal::NodeTooSmall { size, need, have, measure, .. } => {
            let nodes = size.as_bytes() / need.as_bytes().max(1);
            let most = ByteSize::bytes(have.as_bytes().saturating_mul(nodes) >> 20 << 20);
            let less = format!("write [memory] size = \"{most}\" or less");
            let prefer = "write node-policy = \"prefer\", which takes the rest from other nodes";
            match measure {
                MemoryMeasure::Total if most < GUEST_MEMORY_MIN => {
                    format!("choose a device on another node, or write hugepages = \"off\" and {prefer}")
                }
                MemoryMeasure::Total => less,
                MemoryMeasure::Available if most < GUEST_MEMORY_MIN => format!("free memory there, or {prefer}"),
                MemoryMeasure::Available => format!("{less}, or {prefer}"),
            }
        }
        Refusal::AddressSpace { .. } => {
            "pass fewer devices or give less memory; on a host that has the choice, raise the CPU's physical address bits in \
             the firmware's setup"
                .to_owned()
        }
        _ => return None,
    })
}

/// What to do about what the host lacks.
fn of_host(refusal: &Refusal) -> Option<String> {
    Some(match refusal {
        Refusal::VariantNotLoaded { module, .. } => format!("load it: modprobe {module}"),
        Refusal::NoVfioDriver => "load it: modprobe vfio-pci".to_owned(),
        Refusal::NoVfio => "load it: modprobe vfio_iommu_type1 && modprobe vfio-pci".to_owned(),
        Refusal::IommufdOnly => "load the group API: modprobe vfio_iommu_type1".to_owned(),
        Refusal::Denied { path } | Refusal::FileDenied { path, .. } => {
            format!("run gpuvm as root, or see who may: ls -l {}", path.display())
        }
        Refusal::NoKvm => {
            "switch on VT-x or AMD-V in the firmware's setup and load kvm_intel or kvm_amd; accel = \"tcg\" \
             runs anywhere, slowly"
                .to_owned()
        }
        Refusal::NoQemu => "install it: apt-get install qemu-system-x86".to_owned(),
        Refusal::NoUefi { .. } => "install it: apt-get install ovmf; or write firmware = \"bios\"".to_owned(),
        Refusal::DiskFormat { found, .. } => format!("write format = \"{}\" beside its path", found.as_str()),
        Refusal::NoQemuImg => "install it: apt-get install qemu-utils".to_owned(),
        Refusal::NoPool { page: PageSize::G1, .. } => {
            "boot with hugepagesz=1G, or write [memory] hugepages = \"2M\"".to_owned()
        }
        Refusal::NoPool { .. } => {
            "the kernel needs CONFIG_HUGETLBFS; or write [memory] hugepages = \"off\"".to_owned()
        }
        Refusal::File { role: FileRole::Firmware, .. } => {
            "reinstall it: apt-get install --reinstall ovmf".to_owned()
        }
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use super::*;

    #[test]
    fn a_boot_display_without_a_profile_is_taken_by_force() {
        let refusal = Refusal::BootDisplay { bdf: "0000:81:00.0".parse().unwrap(), driver: None };
        let (bind, plan) = (of_bind(&refusal).unwrap(), super::refusal(&refusal).unwrap());
        assert!(bind.contains("--force") && !bind.contains("allow-boot-display"), "{bind}");
        assert!(plan.contains("allow-boot-display") && !plan.contains("--force"), "{plan}");
    }
}
