//! Whether the devices asked for are there.

use crate::doctor::device::path;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Subject, Verdict};
use crate::facts::{DeviceFacts, Presence};

pub(super) const CHECK: Definition = Definition {
    name: "device-present",
    layer: Layer::Topology,
    why: "addresses move when cards are added or the firmware is updated, and a profile that names one then means another card",
    judge,
};

fn is_silent(device: &DeviceFacts) -> bool {
    device.config.as_ref().is_some_and(|config| config.silent == Presence::Present)
}

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let mut judgements = Vec::new();
    for bdf in case.targets {
        let subject = Subject::Device { bdf: *bdf };
        let judgement = match case.facts.devices.get(bdf) {
            Some(device) if is_silent(device) => Judgement::of(
                subject,
                Verdict::Failed,
                "the kernel lists it, and it doesn't answer: its config space is all ones",
            )
            .read(path(*bdf, "config"))
            .remedy(Remedy::new(
                "it has fallen off the bus: only a reset of its slot, or taking the host's power away and giving it back, brings it back",
            )),
            Some(device) => {
                let found = format!("{} {}", device.class.name(), device.id);
                Judgement::of(subject, Verdict::Ok, found)
            }
            None => Judgement::of(subject, Verdict::Failed, "there is no such PCI device on this host")
                .remedy(Remedy::new("list the devices of this host").command("gpuvm devices --all")),
        };
        judgements.push(judgement.read(format!("/sys/bus/pci/devices/{bdf}")));
    }
    if judgements.is_empty() && case.profile.is_some() {
        judgements.push(Judgement::of_host(Verdict::NotApplicable, "the profile passes no device"));
    }
    judgements
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::examine;
    use crate::facts::{DeviceFacts, HostFacts};
    use crate::pci::{Bdf, ClassCode};

    #[test]
    fn a_device_that_is_there_is_ok_and_another_fails() {
        let there: Bdf = "0000:81:00.0".parse().unwrap();
        let gone: Bdf = "0000:82:00.0".parse().unwrap();
        let mut facts = HostFacts::default();
        let (id, class) = ("10de:2330".parse().unwrap(), ClassCode::new(0x03_0200).unwrap());
        facts.devices.insert(there, DeviceFacts::new(id, class));
        let checks = examine(&facts, None, &[there, gone]).checks;
        let verdicts: Vec<_> =
            checks.iter().filter(|check| check.name == CHECK.name).map(|check| check.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Failed]);
    }
}
