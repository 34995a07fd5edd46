//! Whether the kernel was told to take ports for isolating that aren't.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};

pub(super) const CHECK: Definition = Definition {
    name: "acs-override",
    layer: Layer::Isolation,
    why: "with the ACS override patch groups promise an isolation that the hardware doesn't keep: devices of different guests may reach each other",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let cmdline = &case.facts.kernel.cmdline;
    let word = cmdline.split_ascii_whitespace().find(|word| word.starts_with("pcie_acs_override="));
    let judgement = match word {
        _ if cmdline.is_empty() => Judgement::of_host(Verdict::Unknown, "the kernel's command line wasn't read"),
        None => Judgement::of_host(Verdict::Ok, "it isn't in use"),
        Some(word) => Judgement::of_host(
            Verdict::Warning,
            format!("{word} is on the command line: a kernel with that patch makes groups smaller than the hardware does"),
        )
        .remedy(
            Remedy::new("boot without it, and see what groups there are; with it, trust all guests that have devices alike")
                .commands(case.distribution().without_kernel_option(word)),
        ),
    };
    vec![judgement.read(format!("/proc/cmdline: {cmdline}"))]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{host, told};

    #[rstest]
    #[case("ro intel_iommu=on", Verdict::Ok)]
    #[case("ro pcie_acs_override=downstream,multifunction", Verdict::Warning)]
    #[case("", Verdict::Unknown)]
    fn an_override_is_seen_on_the_command_line(#[case] cmdline: &str, #[case] verdict: Verdict) {
        let mut facts = host();
        facts.kernel.cmdline = cmdline.to_owned();
        assert_eq!(told(&CHECK, &facts).0, verdict);
    }
}
