//! Tells a person how devices came back.

use gpuvm_host::HostError;
use gpuvm_run::DeviceReport;

use crate::failure::{self, Item};
use crate::{hints, out};

/// Tells of each device how it came back: what is wrong with a sick one is an error with its way out.
pub(crate) fn tell(devices: &[DeviceReport]) {
    for device in devices {
        if let Some(reset) = &device.reset {
            let (bdf, method, ms) = (device.bdf, reset.method, reset.ms);
            let result =
                reset.failure.as_ref().map_or_else(|| "done".to_owned(), |why| format!("failed: {why}"));
            out::note(&format!("gpuvm: {bdf}: reset by {method} after the run, {ms} ms: {result}"));
        }
        repair(device);
        let (bdf, judgement) = (device.bdf, &device.judgement);
        match judgement.reason() {
            None => out::note(&format!("gpuvm: {bdf} is healthy: it answers as before")),
            Some(_) if judgement.verdict.is_bad() => {
                sick(device).iter().for_each(|item| failure::print_item("error", item));
            }
            Some(_) => {
                for finding in judgement.findings.iter().filter(|finding| finding.weight.is_some()) {
                    out::note(&format!("warning: {bdf} is {}: {finding}", judgement.verdict));
                }
            }
        }
    }
}

/// Tells what a device came back as, and what has become of its repair; each rung is told when it is tried.
fn repair(device: &DeviceReport) {
    let Some(before) = &device.before_repair else { return };
    let (bdf, verdict) = (device.bdf, before.verdict);
    let reason = before.reason().map(|finding| format!(": {finding}")).unwrap_or_default();
    let result = match device.repaired_by() {
        Some(climbed) => format!("it was repaired by {}", climbed.rung),
        None if device.repair.is_empty() => {
            "no rung of the ladder could be tried (why not: gpuvm plan)".to_owned()
        }
        None => "no rung of the ladder has helped".to_owned(),
    };
    out::note(&format!("warning: {bdf} came back {verdict}{reason}; {result}"));
}

/// Tells whether what is left of a run is told with the device already.
pub(crate) fn is_told(error: &HostError) -> bool {
    matches!(error, HostError::Sick { .. })
}

/// Describes what is wrong with a sick device, the worst first, and the way out behind the last.
fn sick(device: &DeviceReport) -> Vec<Item> {
    let (bdf, judgement) = (device.bdf, &device.judgement);
    let findings = judgement.findings.iter().filter(|finding| finding.weight.is_some());
    let mut items: Vec<Item> = findings
        .map(|finding| {
            let message = format!("{bdf} is sick ({}): {finding}", judgement.verdict);
            Item { kind: failure::kind(&finding.check), message, hint: None }
        })
        .collect();
    if let Some(last) = items.last_mut() {
        last.hint = Some(match device.before_repair {
            Some(_) => hints::not_repaired(bdf),
            None => hints::sick(bdf),
        });
    }
    items
}
