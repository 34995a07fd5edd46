//! Whether a card or the ports above it have reported errors since boot.

use crate::doctor::device::{each, of, path, unread};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{DeviceFacts, ErrorCounters, Presence};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "error-counters",
    layer: Layer::Topology,
    why: "an uncorrectable PCIe error stops the guest at once (QEMU ends it with `Unrecoverable error detected`)",
    judge,
};

const FILES: [&str; 3] = ["aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal"];

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| {
        let mut way = vec![(bdf, device)];
        way.extend(device.upstream.iter().filter_map(|port| Some((*port, case.facts.devices.get(port)?))));
        let counted = way.iter().filter_map(|(at, device)| Some((*at, device.errors?)));
        let judgement = judge_one(case, bdf, device, &counted.collect::<Vec<_>>());
        FILES.iter().fold(judgement, |judgement, file| judgement.read(path(bdf, file)))
    })
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts, counted: &[(Bdf, ErrorCounters)]) -> Judgement {
    let bad: Vec<String> = counted
        .iter()
        .filter(|(_, errors)| errors.nonfatal + errors.fatal > 0)
        .map(|(at, errors)| {
            format!("{at} has counted {} fatal and {} non-fatal errors", errors.fatal, errors.nonfatal)
        })
        .collect();
    if !bad.is_empty() {
        return of(bdf, Verdict::Warning, bad.join(", ")).remedy(
            Remedy::new(
                "see what they were, and whether they go on; a bad riser, cable or slot is the usual cause",
            )
            .commands([
                "dmesg | grep -i -e aer: -e 'PCIe Bus Error'".to_owned(),
                format!("grep -H . {}", path(bdf, "aer_dev_*")),
            ]),
        );
    }
    if let Some(why) = FILES.iter().find_map(|file| unread(case, bdf, file)) {
        return of(bdf, Verdict::Unknown, why);
    }
    match (device.errors, &device.config) {
        (Some(errors), _) if errors.correctable > 0 => of(
            bdf,
            Verdict::Ok,
            format!("{} errors since boot, all repaired by the hardware", errors.correctable),
        ),
        (Some(_), _) => of(bdf, Verdict::Ok, "no errors since boot"),
        (None, Some(config)) if config.capabilities.aer => of(
            bdf,
            Verdict::Unknown,
            "it can report errors, and the kernel doesn't count them: the firmware keeps them to itself",
        ),
        (None, Some(config)) if config.complete == Presence::Present => {
            of(bdf, Verdict::NotApplicable, "it doesn't report errors (no AER)")
        }
        (None, _) => of(bdf, Verdict::Unknown, "neither counters nor its config space were read"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, PORT, change, host, judge_for};

    fn errors(correctable: u64, nonfatal: u64, fatal: u64) -> Option<ErrorCounters> {
        Some(ErrorCounters { correctable, nonfatal, fatal })
    }

    #[rstest]
    #[case::none(GPU, errors(0, 0, 0), Verdict::Ok)]
    #[case::repaired(GPU, errors(9, 0, 0), Verdict::Ok)]
    #[case::nonfatal(GPU, errors(0, 1, 0), Verdict::Warning)]
    #[case::fatal(GPU, errors(0, 0, 1), Verdict::Warning)]
    #[case::of_the_port(PORT, errors(0, 0, 2), Verdict::Warning)]
    #[case::no_counters(GPU, None, Verdict::NotApplicable)]
    fn counters_are_judged(
        #[case] address: &str,
        #[case] errors: Option<ErrorCounters>,
        #[case] verdict: Verdict,
    ) {
        let mut facts = host();
        change(&mut facts, address, |device| device.errors = errors);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, verdict);
    }

    #[test]
    fn counters_that_the_kernel_lacks_or_nobody_read_are_unknown() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.config.as_mut().unwrap().capabilities.aer = true);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
        change(&mut facts, GPU, |gpu| gpu.config = None);
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }
}
