//! Which driver has each device, and whether another one could get it.

use crate::doctor::device::{each, of, path, unread};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::DeviceFacts;
use crate::pci::Bdf;
use crate::plan::is_vfio_driver;

pub(super) const CHECK: Definition = Definition {
    name: "driver-owner",
    layer: Layer::Ownership,
    why: "a guest gets a device when vfio-pci has it, and the host gets it back when its own driver may take it again",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| {
        let judgement = judge_one(case, bdf, device);
        let name = |driver: Option<&crate::pci::DriverName>| {
            driver.map_or("none", |driver| driver.as_str()).to_owned()
        };
        judgement.read(format!("{}: {}", path(bdf, "driver"), name(device.driver.as_ref()))).read(format!(
            "{}: {}",
            path(bdf, "driver_override"),
            name(device.driver_override.as_ref())
        ))
    })
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if let Some(why) = ["driver", "driver_override"].iter().find_map(|name| unread(case, bdf, name)) {
        return of(bdf, Verdict::Unknown, why);
    }
    let set = device.driver_override.as_ref();
    match (&device.driver, set) {
        (Some(driver), _) if is_vfio_driver(driver) => match set {
            Some(set) if !is_vfio_driver(set) => overridden(bdf, driver.as_str(), set.as_str()),
            Some(_) => of(bdf, Verdict::Ok, format!("{driver} has it, by driver_override")),
            None => of(bdf, Verdict::Ok, format!("{driver} has it, by a rule by id")),
        },
        (None, Some(set)) if is_vfio_driver(set) => {
            of(bdf, Verdict::Ok, format!("no driver has it, and it is set aside for {set}"))
        }
        (None, None) => of(bdf, Verdict::Ok, "no driver has it"),
        (driver, Some(set)) => {
            overridden(bdf, driver.as_ref().map_or("no driver", |driver| driver.as_str()), set.as_str())
        }
        (Some(driver), None) => {
            of(bdf, Verdict::Ok, format!("{driver} has it, and gets it back when the guest is gone"))
        }
    }
}

fn overridden(bdf: Bdf, driver: &str, set: &str) -> Judgement {
    of(
        bdf,
        Verdict::Failed,
        format!("{driver} has it, and somebody has set it aside for {set}: no other driver can take it back"),
    )
    .remedy(
        Remedy::new("if nobody wants that any more (driverctl, a script), take it away")
            .command(format!("echo > {}", path(bdf, "driver_override"))),
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, judge_for};
    use crate::pci::DriverName;

    #[rstest]
    #[case::the_hosts(Some("nvidia"), None, Verdict::Ok)]
    #[case::nobody(None, None, Verdict::Ok)]
    #[case::set_aside(None, Some("vfio-pci"), Verdict::Ok)]
    #[case::vfio_by_id(Some("vfio-pci"), None, Verdict::Ok)]
    #[case::vfio_by_override(Some("vfio-pci"), Some("vfio-pci"), Verdict::Ok)]
    #[case::variant(Some("mlx5_vfio_pci"), None, Verdict::Ok)]
    #[case::for_another(Some("nvidia"), Some("pci-stub"), Verdict::Failed)]
    #[case::for_vfio_and_not_there(Some("nvidia"), Some("vfio-pci"), Verdict::Failed)]
    #[case::nobodys_for_another(None, Some("pci-stub"), Verdict::Failed)]
    #[case::vfio_for_another(Some("vfio-pci"), Some("nvidia"), Verdict::Failed)]
    fn an_owner_is_judged_with_its_override(
        #[case] driver: Option<&str>,
        #[case] set: Option<&str>,
        #[case] verdict: Verdict,
    ) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| {
            gpu.driver = driver.and_then(DriverName::new);
            gpu.driver_override = set.and_then(DriverName::new);
        });
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, verdict);
    }

    #[test]
    fn a_driver_that_could_not_be_read_is_unknown() {
        let mut facts = host();
        facts.unread.push(format!("read the link /sys/bus/pci/devices/{GPU}/driver: Permission denied"));
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
