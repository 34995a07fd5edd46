//! Whether VFIO's modules are there, now and after the next boot.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{InitramfsFacts, Presence};
use crate::modprobe::Directive;

pub(super) const CHECK: Definition = Definition {
    name: "vfio-modules",
    layer: Layer::Ownership,
    why: "without the driver vfio-pci there is nothing that a device could be given to",
    judge,
};

const MODULE: &str = "vfio_pci";

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let boot = &case.facts.boot;
    let loaded = case.facts.vfio.pci_driver == Presence::Present;
    let mut sources: Vec<&str> =
        boot.at_boot.iter().filter(|at| at.module == MODULE).map(|at| at.source.as_str()).collect();
    if let Some(InitramfsFacts::Read { path, at_boot, .. }) = &boot.initramfs
        && at_boot.iter().any(|at| at.module == MODULE)
    {
        sources.push(path);
    }
    let remedy =
        || Remedy::new("load it now and at each boot").commands(case.distribution().load_at_boot("vfio-pci"));
    let unread = case
        .facts
        .unread
        .iter()
        .find(|said| said.contains("modules-load.d") || said.contains("/etc/modules:"));
    let judgement = match (loaded, boot.builtin.contains(MODULE), sources.first()) {
        (_, true, _) => Judgement::of_host(Verdict::Ok, "vfio-pci is built into this kernel"),
        (true, false, Some(source)) => {
            Judgement::of_host(Verdict::Ok, format!("vfio-pci is loaded, and at boot by {source}"))
        }
        (false, false, Some(source)) => {
            Judgement::of_host(Verdict::Failed, format!("vfio-pci isn't loaded, though {source} names it"))
                .remedy(remedy())
        }
        (false, false, None) => Judgement::of_host(Verdict::Failed, "vfio-pci isn't loaded").remedy(remedy()),
        (true, false, None) => match unread {
            Some(why) => Judgement::of_host(
                Verdict::Unknown,
                format!("vfio-pci is loaded; whether it will be after the next boot isn't known: {why}"),
            ),
            None => Judgement::of_host(
                Verdict::Warning,
                "vfio-pci is loaded, and nothing loads it at the next boot",
            )
            .remedy(remedy()),
        },
    };
    let judgement = instead(case)
        .into_iter()
        .fold(judgement, |judgement, (source, directive)| judgement.read(format!("{source}: {directive}")));
    vec![
        judgement
            .read("/sys/bus/pci/drivers/vfio-pci")
            .read("/etc/modules, modules-load.d, modules.builtin, /proc/cmdline"),
    ]
}

/// What keeps modprobe from loading it by itself.
fn instead<'a>(case: &Case<'a>) -> Vec<(&'a str, &'a Directive)> {
    let about = |directive: &Directive| match directive {
        Directive::Blacklist { module } | Directive::Install { module, .. } => module == MODULE,
        _ => false,
    };
    let rules = case.facts.boot.rules.iter().filter(|rule| about(&rule.directive));
    rules.map(|rule| (rule.source.as_str(), &rule.directive)).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{host, judge};
    use crate::facts::BootModule;

    #[rstest]
    #[case::loaded_and_at_boot(Presence::Present, true, false, Verdict::Ok)]
    #[case::built_in(Presence::Present, false, true, Verdict::Ok)]
    #[case::this_time_only(Presence::Present, false, false, Verdict::Warning)]
    #[case::not_loaded(Presence::Absent, false, false, Verdict::Failed)]
    #[case::named_and_not_loaded(Presence::Absent, true, false, Verdict::Failed)]
    fn the_driver_is_judged_now_and_at_boot(
        #[case] now: Presence,
        #[case] at_boot: bool,
        #[case] builtin: bool,
        #[case] verdict: Verdict,
    ) {
        let mut facts = host();
        facts.vfio.pci_driver = now;
        if at_boot {
            let source = "/etc/modules-load.d/vfio.conf".to_owned();
            facts.boot.at_boot.push(BootModule { module: MODULE.to_owned(), source });
        }
        if builtin {
            facts.boot.builtin.insert(MODULE.to_owned());
        }
        assert_eq!(judge(&CHECK, &facts)[0].verdict, verdict);
    }

    #[test]
    fn lists_that_could_not_be_read_leave_the_next_boot_unknown() {
        let mut facts = host();
        facts.vfio.pci_driver = Presence::Present;
        facts.unread.push("list /etc/modules-load.d: Permission denied".to_owned());
        assert_eq!(judge(&CHECK, &facts)[0].verdict, Verdict::Unknown);
    }
}
