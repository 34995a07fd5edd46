//! Whether a device may go to sleep, and whether it woke up.

use crate::doctor::device::{each, of, path, unread};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::DeviceFacts;
use crate::host_ops::{D3cold, PowerControl};
use crate::modprobe::Directive;
use crate::pci::Bdf;
use crate::plan::is_vfio_driver;

pub(super) const CHECK: Definition = Definition {
    name: "power-policy",
    layer: Layer::Topology,
    why: "vfio-pci lets an idle device sleep, and a card that loses its power (D3cold) below a port that sleeps doesn't always wake up",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| judge_one(case, bdf, device).read(read(bdf, device)))
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    let said =
        ["power/control", "d3cold_allowed", "power_state"].iter().find_map(|name| unread(case, bdf, name));
    if let Some(why) = said {
        return of(bdf, Verdict::Unknown, why);
    }
    let runtime = device.power.runtime.as_deref();
    match (device.power.state.as_deref(), runtime) {
        // The kernel notes a device that it can't read as D3cold (drivers/pci/pci.c, pci_update_current_state).
        (Some("D3cold"), runtime) if runtime != Some("suspended") => {
            return of(bdf, Verdict::Failed, "the kernel takes it for switched off (D3cold) while it should be awake: it may have fallen off the bus")
                .remedy(Remedy::new("read its config space; all ones mean that only a reset of its slot or of the host brings it back").command(
                    format!("od -An -tx4 -N4 {}", path(bdf, "config")),
                ));
        }
        (_, Some("error")) => {
            return of(
                bdf,
                Verdict::Warning,
                "it failed to wake up or to go to sleep, and the kernel has given up on its power",
            )
            .remedy(
                Remedy::new("keep it awake and try again")
                    .command(format!("echo on > {}", path(bdf, "power/control"))),
            );
        }
        _ => {}
    }
    policy(case, bdf, device)
}

fn policy(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    let mine = device.power.policy;
    if mine.control.is_none() {
        return of(bdf, Verdict::Unknown, "the kernel tells nothing of its power");
    }
    if mine.control == Some(PowerControl::On) {
        return of(bdf, Verdict::Ok, "it is kept awake");
    }
    let on_vfio = device.driver.as_ref().is_some_and(is_vfio_driver);
    let unread = device
        .upstream
        .iter()
        .find(|port| case.facts.devices.get(port).is_none_or(|port| port.power.policy.control.is_none()));
    let cold = mine.d3cold == Some(D3cold::Allowed)
        && device.upstream.iter().all(|port| {
            let policy = case.facts.devices.get(port).map(|port| port.power.policy).unwrap_or_default();
            policy.control != Some(PowerControl::On)
        });
    match (on_vfio, cold, unread) {
        (false, ..) => of(
            bdf,
            Verdict::Ok,
            "it may sleep while the host has it; gpuvm keeps it and the ports above awake while a guest does",
        ),
        (true, ..) if idle_d3_is_off(case) => {
            of(bdf, Verdict::Ok, "vfio-pci was told not to let devices sleep (disable_idle_d3)")
        }
        (true, true, Some(port)) => of(
            bdf,
            Verdict::Unknown,
            format!("it may lose its power; the policy of {port} above it wasn't read"),
        ),
        (true, true, None) => of(
            bdf,
            Verdict::Warning,
            "vfio-pci lets it sleep, and nothing keeps it from losing its power (D3cold)",
        )
        .remedy(Remedy::new("keep it awake; gpuvm does so by itself while a guest has it").commands([
            format!("echo on > {}", path(bdf, "power/control")),
            format!("echo 0 > {}", path(bdf, "d3cold_allowed")),
        ])),
        (true, false, _) => of(bdf, Verdict::Ok, "vfio-pci lets it sleep, and it keeps its power meanwhile"),
    }
}

/// The driver's own word counts; what a file says may have come after it was loaded.
fn idle_d3_is_off(case: &Case<'_>) -> bool {
    if let Some(off) = case.facts.platform.vfio.disable_idle_d3 {
        return off;
    }
    let on = |option: &String| {
        ["disable_idle_d3=1", "disable_idle_d3=Y", "disable_idle_d3=y"].contains(&option.as_str())
    };
    case.facts.boot.rules.iter().any(|rule| match &rule.directive {
        Directive::Options { module, options } => module == "vfio_pci" && options.iter().any(on),
        _ => false,
    })
}

fn read(bdf: Bdf, device: &DeviceFacts) -> String {
    let word = |value: Option<&str>| value.unwrap_or("-").to_owned();
    let control = device.power.policy.control.map(|control| match control {
        PowerControl::On => "on",
        PowerControl::Auto => "auto",
    });
    let d3cold = device.power.policy.d3cold.map(|d3cold| match d3cold {
        D3cold::Allowed => "1",
        D3cold::Forbidden => "0",
    });
    format!(
        "/sys/bus/pci/devices/{bdf}: power/control {}, d3cold_allowed {}, power_state {}, power/runtime_status {}",
        word(control),
        word(d3cold),
        word(device.power.state.as_deref()),
        word(device.power.runtime.as_deref())
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, PORT, change, host, judge_for, worst};
    use crate::facts::{HostFacts, Rule};
    use crate::host_ops::PowerPolicy;
    use crate::pci::DriverName;

    fn sleeping(driver: &str, control: PowerControl, port: PowerControl) -> HostFacts {
        let mut facts = host();
        let policy = |control| PowerPolicy { control: Some(control), d3cold: Some(D3cold::Allowed) };
        change(&mut facts, GPU, |gpu| {
            gpu.driver = DriverName::new(driver);
            gpu.power.policy = policy(control);
        });
        change(&mut facts, PORT, |device| device.power.policy = policy(port));
        facts
    }

    #[rstest]
    #[case::awake("vfio-pci", PowerControl::On, PowerControl::Auto, Verdict::Ok)]
    #[case::the_hosts("nvidia", PowerControl::Auto, PowerControl::Auto, Verdict::Ok)]
    #[case::below_a_port_that_is_awake("vfio-pci", PowerControl::Auto, PowerControl::On, Verdict::Ok)]
    #[case::all_may_sleep("vfio-pci", PowerControl::Auto, PowerControl::Auto, Verdict::Warning)]
    fn a_device_on_vfio_that_may_lose_its_power_is_told(
        #[case] driver: &str,
        #[case] control: PowerControl,
        #[case] port: PowerControl,
        #[case] verdict: Verdict,
    ) {
        assert_eq!(worst(&judge_for(&CHECK, &sleeping(driver, control, port), &[GPU])), verdict);
    }

    #[test]
    fn an_option_that_keeps_devices_awake_counts() {
        let mut facts = sleeping("vfio-pci", PowerControl::Auto, PowerControl::Auto);
        let directive = crate::modprobe::parse("options vfio-pci disable_idle_d3=1").remove(0);
        facts.boot.rules.push(Rule { source: "/etc/modprobe.d/vfio.conf".to_owned(), directive });
        assert_eq!(worst(&judge_for(&CHECK, &facts, &[GPU])), Verdict::Ok);
        // The driver was loaded before the file was written.
        facts.platform.vfio.disable_idle_d3 = Some(false);
        assert_eq!(worst(&judge_for(&CHECK, &facts, &[GPU])), Verdict::Warning);
    }

    #[rstest]
    #[case::lost("D3cold", "active", Verdict::Failed)]
    #[case::asleep("D3cold", "suspended", Verdict::Ok)]
    #[case::given_up("D0", "error", Verdict::Warning)]
    fn a_state_that_does_not_fit_is_told(
        #[case] state: &str,
        #[case] runtime: &str,
        #[case] verdict: Verdict,
    ) {
        let mut facts = sleeping("nvidia", PowerControl::Auto, PowerControl::Auto);
        change(&mut facts, GPU, |gpu| {
            gpu.power.state = Some(state.to_owned());
            gpu.power.runtime = Some(runtime.to_owned());
        });
        assert_eq!(worst(&judge_for(&CHECK, &facts, &[GPU])), verdict);
    }

    #[test]
    fn what_was_not_read_is_unknown() {
        assert_eq!(worst(&judge_for(&CHECK, &host(), &[GPU])), Verdict::Unknown);
        let mut facts = sleeping("vfio-pci", PowerControl::Auto, PowerControl::Auto);
        facts.devices.remove(&PORT.parse().unwrap());
        assert_eq!(worst(&judge_for(&CHECK, &facts, &[GPU])), Verdict::Unknown);
    }
}
