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
        last.hint = Some(hints::sick(bdf));
    }
    items
}
