//! Whether the running kernel has bugs that passthrough meets.

use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::BarKind;
use crate::reset::ResetWish;
use crate::reset::quirks::{Bearing, Confidence, KernelRange, Known, Meets, Quirk, table};

pub(super) const CHECK: Definition = Definition {
    name: "kernel-bugs",
    layer: Layer::Isolation,
    why: "some kernels report a reset that failed as done, or refuse resets that would work",
    judge,
};

const LARGE: u64 = 32 << 30;

/// Methods that leave the bus alone.
const OF_ITS_OWN: [&str; 5] = ["device_specific", "acpi", "flr", "af_flr", "pm"];

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    if !case.passes_devices() {
        return Judgement::not_applicable("the profile passes no device");
    }
    let kernel = &case.facts.kernel;
    let read = |judgement: Judgement| {
        judgement
            .read(format!("/proc/sys/kernel/osrelease: {}", kernel.release))
            .read(format!("/proc/version: {}", kernel.build))
    };
    let known = Known::of(kernel);
    if known == Known::Nothing {
        return vec![read(Judgement::of_host(Verdict::Unknown, "which version it is couldn't be told"))];
    }
    let bugs = || table(case.facts).filter(|quirk| quirk.vendor.is_none());
    let met = bugs().filter(|bug| meets(case, bug));
    let mut found: Vec<Judgement> = met.filter_map(|bug| judge_bug(bug, known)).collect();
    if found.is_empty() {
        found.push(Judgement::of_host(
            Verdict::Ok,
            format!("Linux {known} has none of the {} bugs that gpuvm knows of", bugs().count()),
        ));
    }
    found.into_iter().map(read).collect()
}

/// Judges a bug on a kernel; nothing where it doesn't have it.
fn judge_bug(bug: &Quirk, known: Known) -> Option<Judgement> {
    let (does, instead) = (&bug.behaviour, &bug.advice);
    let remedy = |range: Option<&KernelRange>| match range.and_then(|range| range.fixed.as_ref()) {
        Some(fixed) => format!("run {fixed}; until then, {instead}"),
        None => instead.clone(),
    };
    let (verdict, found, remedy) = match known.bearing(&bug.kernels) {
        Bearing::Has(range) => {
            let open = range.is_some_and(|range| range.to.is_some() && range.fixed.is_none());
            let and = if open { "; where that ends isn't known" } else { "" };
            (Verdict::Warning, format!("this kernel {does}{and}"), remedy(range))
        }
        Bearing::Perhaps(range) => {
            let found = format!(
                "it follows {known}, of which some releases have a bug (this kernel {does}), and its name doesn't say which it is"
            );
            (Verdict::Unknown, found, remedy(Some(range)))
        }
        Bearing::Newer(range) => {
            let last = range.to.map(|to| format!("Linux {to} {does}; ")).unwrap_or_default();
            let found = format!("it is newer than what gpuvm knows: {last}where that ends isn't known");
            (Verdict::Unknown, found, instead.clone())
        }
        Bearing::Unknown | Bearing::Not => return None,
    };
    let judgement = Judgement::of_host(verdict, found).remedy(Remedy::new(remedy));
    // Whoever wrote an entry of the host's own knows what stands behind it; of those of the table, the kernel's source does.
    Some(match bug.confidence {
        Confidence::KernelSource => judgement,
        confidence => judgement.read(format!("{}: {} ({})", bug.name, bug.source, confidence.whose())),
    })
}

fn meets(case: &Case<'_>, bug: &Quirk) -> bool {
    let devices = || case.targets.iter().filter_map(|bdf| case.facts.devices.get(bdf));
    match bug.meets {
        Meets::All => true,
        Meets::LargeRegisters => devices()
            .flat_map(|device| &device.bars)
            .any(|bar| bar.kind == BarKind::High && bar.size.as_bytes() >= LARGE),
        // A profile that takes a device's own resets away leaves it with the bus, too.
        Meets::BusResetOnly => {
            let own = |method: &String| OF_ITS_OWN.contains(&method.as_str());
            let asked = case.profile.iter().flat_map(|profile| &profile.devices);
            devices().any(|device| !device.reset_methods.iter().any(own))
                || asked.into_iter().any(|device| device.reset != ResetWish::default())
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, change, host, told};
    use crate::facts::BarFacts;
    use crate::units::ByteSize;

    #[rstest]
    #[case::before("6.11.9", Verdict::Ok)]
    #[case::begins("6.12.0", Verdict::Warning)]
    #[case::last_of_it("6.12.114-amd64", Verdict::Warning)]
    #[case::fixed_in_part("6.12.116-amd64", Verdict::Warning)]
    #[case::fixed("6.12.117-amd64", Verdict::Ok)]
    #[case::not_in_the_next("6.18.3", Verdict::Warning)]
    #[case::still("7.1.8", Verdict::Warning)]
    #[case::nobody_has_looked("7.2.0", Verdict::Unknown)]
    #[case::refuses("6.1.134", Verdict::Warning)]
    #[case::refuses_no_more("6.1.135", Verdict::Ok)]
    #[case::which_of_them("6.1.0-37-amd64", Verdict::Unknown)]
    #[case::all_of_them("6.14.0-37-generic", Verdict::Warning)]
    #[case::none("garbage", Verdict::Unknown)]
    fn a_kernel_in_a_range_is_warned_of(#[case] release: &str, #[case] verdict: Verdict) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        let judged: Vec<Verdict> = crate::doctor::device::testing::judge(&CHECK, &facts)
            .iter()
            .map(|judgement| judgement.verdict)
            .collect();
        assert!(judged.contains(&verdict), "{judged:?}");
    }

    #[rstest]
    #[case::in_its_own_series("6.12.40", Some("run 6.12."))]
    #[case::in_a_series_with_its_own_fix("6.14.3", Some("run 6.14.4"))]
    #[case::newer_than_the_fix("6.18.3", None)]
    #[case::newer_than_what_is_known("7.2.0", None)]
    fn nobody_is_told_to_run_an_older_kernel(#[case] release: &str, #[case] run: Option<&str>) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        let judged = crate::doctor::device::testing::judge(&CHECK, &facts);
        let told: Vec<&str> =
            judged.iter().filter_map(|judgement| Some(judgement.remedy.as_ref()?.what.as_str())).collect();
        let versions: Vec<&&str> = told.iter().filter(|what| what.starts_with("run ")).collect();
        assert_eq!(versions.is_empty(), run.is_none(), "{told:?}");
        assert!(run.is_none_or(|run| versions.iter().all(|what| what.starts_with(run))), "{told:?}");
        let ends = judged.iter().any(|judgement| judgement.found.contains("where that ends isn't known"));
        assert_eq!(ends, !release.starts_with("6.12"), "{judged:?}");
    }

    #[rstest]
    #[case::a_reset_of_its_own("flr bus", false)]
    #[case::its_bus_alone("bus", true)]
    #[case::nothing_listed("", true)]
    fn who_has_resets_of_its_own_does_not_meet_a_refusal_of_bus_resets(
        #[case] methods: &str,
        #[case] meets: bool,
    ) {
        let mut facts = host();
        facts.kernel.release = "6.1.134".to_owned();
        let own = "[[quirk]]\nname = \"ours\"\nmeets = \"bus-reset-only\"\nkernels = [{ from = \"6.1.134\", to = \"6.1.134\", fixed = \"6.1.135\" }]\n\
                   behaviour = \"does so to us\"\neffects = []\nadvice = \"wait\"\nsource = \"us\"\nconfidence = \"one-report\"\n";
        facts.quirks.add("/etc/gpuvm/quirks.d/a.toml", own);
        let methods: Vec<String> = methods.split_ascii_whitespace().map(str::to_owned).collect();
        for function in [GPU, AUDIO] {
            change(&mut facts, function, |device| device.reset_methods.clone_from(&methods));
        }
        assert_eq!(told(&CHECK, &facts).1.contains("this kernel does so to us"), meets);
    }

    #[rstest]
    #[case("6.8.12", true)]
    #[case("7.2.0", false)]
    fn registers_of_32_gib_are_slow_before_6_15(#[case] release: &str, #[case] slow: bool) {
        let mut facts = host();
        facts.kernel.release = release.to_owned();
        let before = told(&CHECK, &facts).1;
        let size = ByteSize::bytes(LARGE);
        change(&mut facts, GPU, |gpu| {
            gpu.bars = vec![BarFacts { index: 1, size, address: Some(1 << 40), kind: BarKind::High }];
        });
        assert_eq!(told(&CHECK, &facts).1 != before, slow);
    }
}
