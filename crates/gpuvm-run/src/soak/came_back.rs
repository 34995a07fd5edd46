//! How a cycle's devices came back, as the record tells it.

use std::collections::BTreeMap;

use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::repair::{Climbed, Rung};
use gpuvm_core::reset::{Heard, Method, Snapshot};
use gpuvm_core::soak::{DeviceCycle, Fault, ResetTime, ResetWay, drift};
use gpuvm_host::HostError;

use crate::error::UpError;
use crate::report::{DeviceReport, Report, ResetReport};

/// What is known of the host once a cycle's run is over.
pub(super) struct Came {
    pub(super) devices: Vec<DeviceCycle>,
    pub(super) left: Vec<Fault>,
    pub(super) error: Option<UpError>,
}

/// Tells of the host's devices and of the rest of it, held against what the devices were before the first cycle.
pub(super) fn came_back(result: Result<Report, UpError>, first: &BTreeMap<Bdf, Snapshot>) -> Came {
    // A device that stays as it is because it is sick is told by its verdict.
    let told = |error: &&HostError| !matches!(error, HostError::Sick { .. });
    let fault = |error: &HostError| Fault::NotGivenBack { message: error.to_string() };
    let left = |left: &[HostError]| left.iter().filter(told).map(fault).collect();
    let device = |one: &DeviceReport, resets: &[u64]| device_cycle(one, resets, first.get(&one.bdf));
    match result {
        Ok(report) => {
            let resets = |bdf: Bdf| report.kernel_resets.get(&bdf).map_or(&[][..], Vec::as_slice);
            let whole = |one: &DeviceReport| {
                let last = device(one, resets(one.bdf));
                match report.between_boots.get(&one.bdf) {
                    Some(before) => with_boots_before(last, device(before, &[])),
                    None => last,
                }
            };
            let devices = report.devices.iter().map(whole).collect();
            Came { devices, left: left(&report.left), error: None }
        }
        Err(error) => {
            let devices = error.devices.iter().map(|one| device(one, &[])).collect();
            Came { devices, left: left(&error.left), error: Some(error) }
        }
    }
}

/// Makes one of how a device came back from the last boot and how from those before: what was wrong with it then was wrong in this cycle.
fn with_boots_before(last: DeviceCycle, before: DeviceCycle) -> DeviceCycle {
    let judgement = match before.judgement.verdict > last.judgement.verdict {
        true => before.judgement,
        false => last.judgement,
    };
    DeviceCycle {
        judgement,
        resets: before.resets.into_iter().chain(last.resets).collect(),
        repair: before.repair.into_iter().chain(last.repair).collect(),
        before_repair: last.before_repair.or(before.before_repair),
        kernel: if last.kernel.is_empty() { before.kernel } else { last.kernel },
        ..last
    }
}

/// The most lines of the kernel's that a cycle keeps of a device: as many of the first as of the last.
const KERNEL_LINES: usize = 40;

fn device_cycle(device: &DeviceReport, kernel_resets: &[u64], first: Option<&Snapshot>) -> DeviceCycle {
    let DeviceReport { bdf, judgement, reset, repair, before_repair, evidence } = device;
    let evidence = evidence.as_deref();
    let after = evidence.map(|evidence| &evidence.after);
    let link = after.and_then(Snapshot::link);
    let drift = first.zip(after).map(|(first, after)| drift(first, after, judgement)).unwrap_or_default();
    let healthy = judgement.reason().is_none() && drift.is_empty() && before_repair.is_none();
    let said = evidence.and_then(|evidence| evidence.heard.as_ref()).map_or(&[][..], Heard::lines);
    DeviceCycle {
        bdf: *bdf,
        judgement: judgement.clone(),
        drift,
        speed: link.map(|(speed, _)| speed),
        width: link.map(|(_, width)| width),
        errors: evidence.map(|of| of.after.errors_since(&of.before)).unwrap_or_default(),
        resets: resets(reset.as_ref(), repair, kernel_resets),
        repair: repair.clone(),
        before_repair: before_repair.clone(),
        kernel: if healthy { Vec::new() } else { ends(said) },
    }
}

/// Lists the resets of a device: QEMU's come first, as they did. What a scan of the bus does is no reset.
fn resets(planned: Option<&ResetReport>, repair: &[Climbed], kernel: &[u64]) -> Vec<ResetTime> {
    let of_kernel = kernel.iter().map(|ms| {
        let (by, method, failure) = (ResetWay::Kernel, None, None);
        ResetTime { by, method, ms: *ms, failure }
    });
    let own = |method: Option<Method>, ms: u64, failure: &Option<String>| {
        let failure = failure.clone();
        ResetTime { by: ResetWay::Gpuvm, method, ms, failure }
    };
    let planned = planned.map(|reset| own(Some(reset.method), reset.ms, &reset.failure));
    let repair = repair
        .iter()
        .filter(|climbed| climbed.rung != Rung::Rescan)
        .map(|climbed| own((climbed.rung == Rung::Hot).then_some(Method::Hot), climbed.ms, &climbed.failure));
    of_kernel.chain(planned).chain(repair).collect()
}

fn ends(lines: &[String]) -> Vec<String> {
    if lines.len() <= KERNEL_LINES {
        return lines.to_vec();
    }
    let (first, rest) = lines.split_at(KERNEL_LINES / 2);
    let (left_out, last) = rest.split_at(rest.len() - KERNEL_LINES / 2);
    let left_out = format!("({} lines left out)", left_out.len());
    first.iter().cloned().chain([left_out]).chain(last.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use gpuvm_core::reset::{Check, Finding, Judgement, Verdict};
    use gpuvm_core::soak::{Cycle, CycleKind, CycleVerdict, OwnUse};
    use rstest::rstest;

    use super::*;
    use crate::report::Evidence;

    #[test]
    fn resets_are_qemus_then_the_planned_one_then_those_of_the_repair() {
        let planned = ResetReport { method: Method::Flr, ms: 100, failure: None };
        let climbed = |rung, ms, failure: Option<&str>| {
            let (failure, judgement) = (failure.map(str::to_owned), Judgement::new(Vec::new()));
            Climbed { rung, ms, failure, judgement }
        };
        let repair = [
            climbed(Rung::Hot, 300, Some("no")),
            climbed(Rung::Subordinate, 400, None),
            climbed(Rung::Rescan, 500, None),
        ];
        let told: Vec<_> = resets(Some(&planned), &repair, &[103, 104])
            .into_iter()
            .map(|reset| (reset.by, reset.method, reset.ms, reset.failure.is_some()))
            .collect();
        let expected = [
            (ResetWay::Kernel, None, 103, false),
            (ResetWay::Kernel, None, 104, false),
            (ResetWay::Gpuvm, Some(Method::Flr), 100, false),
            (ResetWay::Gpuvm, Some(Method::Hot), 300, true),
            (ResetWay::Gpuvm, None, 400, false),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_repaired_device_is_told_with_its_verdicts_its_rungs_and_what_the_kernel_said() {
        let bdf: Bdf = "0000:81:00.0".parse().unwrap();
        let snapshot = Snapshot::of(bdf, "10de:2330".parse().unwrap(), &[0; 64]);
        let finding = Finding {
            check: Check::Bars,
            weight: Some(Verdict::Impaired),
            bdf,
            register: "BAR 0".to_owned(),
            before: None,
            after: "0".to_owned(),
            meaning: "it is lost".to_owned(),
        };
        let (sick, well) = (Judgement::new(vec![finding]), Judgement::new(Vec::new()));
        let climbed = Climbed { rung: Rung::Hot, ms: 7, failure: None, judgement: well.clone() };
        let heard = Some(Heard::Said(vec!["vfio-pci 0000:81:00.0: resetting".to_owned()]));
        let evidence = Evidence { before: snapshot.clone(), after: snapshot, heard: heard.clone() };
        let report = DeviceReport {
            bdf,
            judgement: well.clone(),
            reset: None,
            repair: vec![climbed.clone()],
            before_repair: Some(sick.clone()),
            evidence: Some(Box::new(evidence)),
        };
        let told = device_cycle(&report, &[], None);
        assert_eq!(
            (told.judgement, told.before_repair, told.repair),
            (well.clone(), Some(sick), vec![climbed])
        );
        assert_eq!(told.kernel, heard.as_ref().unwrap().lines());
        let healthy = DeviceReport { before_repair: None, repair: Vec::new(), ..report };
        assert_eq!(device_cycle(&healthy, &[], None).kernel, [""; 0]);
    }

    fn finding(weight: Verdict) -> Finding {
        Finding {
            check: Check::Bars,
            weight: Some(weight),
            bdf: "0000:81:00.0".parse().unwrap(),
            register: "BAR 0".to_owned(),
            before: None,
            after: "0".to_owned(),
            meaning: "it is lost".to_owned(),
        }
    }

    #[rstest]
    #[case::well_each_time(None, None, Verdict::Healthy, CycleVerdict::Healthy)]
    #[case::degraded_before(Some(Verdict::Degraded), None, Verdict::Degraded, CycleVerdict::Degraded)]
    #[case::repaired_before(None, Some(Verdict::Impaired), Verdict::Healthy, CycleVerdict::Repaired)]
    fn what_was_wrong_between_two_boots_was_wrong_in_the_cycle(
        #[case] before: Option<Verdict>,
        #[case] before_repair: Option<Verdict>,
        #[case] judged: Verdict,
        #[case] expected: CycleVerdict,
    ) {
        let judgement = |verdict: Option<Verdict>| Judgement::new(verdict.map(finding).into_iter().collect());
        let report = |verdict, before_repair: Option<Verdict>| DeviceReport {
            bdf: "0000:81:00.0".parse().unwrap(),
            judgement: judgement(verdict),
            reset: None,
            repair: Vec::new(),
            before_repair: before_repair.map(|verdict| judgement(Some(verdict))),
            evidence: None,
        };
        let (last, before) = (report(None, None), report(before, before_repair));
        let whole = with_boots_before(device_cycle(&last, &[], None), device_cycle(&before, &[], None));
        assert_eq!(whole.judgement.verdict, judged);
        let cycle = Cycle {
            number: 1,
            kind: CycleKind::Reboot,
            at: 0,
            ms: 0,
            phases: Vec::new(),
            waited_ms: 0,
            outcome: None,
            faults: Vec::new(),
            devices: vec![whole],
            job: None,
            polled: None,
            own: OwnUse::default(),
        };
        assert_eq!(cycle.verdict(), expected);
    }

    #[rstest]
    #[case::all(40, 40, None)]
    #[case::a_flood(1000, 41, Some("(960 lines left out)"))]
    fn of_a_flood_both_ends_are_kept(
        #[case] said: usize,
        #[case] kept: usize,
        #[case] between: Option<&str>,
    ) {
        let lines: Vec<String> = (0..said).map(|number| number.to_string()).collect();
        let ends = ends(&lines);
        assert_eq!((ends.len(), ends.first(), ends.last()), (kept, lines.first(), lines.last()));
        assert_eq!(ends.iter().find(|line| line.starts_with('(')).map(String::as_str), between);
    }
}
