//! What has changed in the course of a soak: a slow decay isn't found where each cycle is held against the one before.

use crate::reset::{Check, Finding, Heard, Judgement, Snapshot, judge};

/// What tells of events and not of a state: the cycle in which they happened has told of them.
const EVENTS: [Check; 8] = [
    Check::Status,
    Check::CorrectableErrors,
    Check::NonfatalErrors,
    Check::FatalErrors,
    Check::RootPortErrors,
    Check::CountersBegunAnew,
    Check::ErrorStatus,
    Check::DeviceStatus,
];

/// Holds a device after a cycle against what it was before the first one; what the cycle's own verdict has found is left out, and so is
/// what is only worth knowing.
pub fn drift(first: &Snapshot, after: &Snapshot, judgement: &Judgement) -> Vec<Finding> {
    let known = |finding: &Finding| {
        let same = |own: &Finding| own.check == finding.check && own.bdf == finding.bdf;
        judgement.findings.iter().any(|own| own.weight.is_some() && same(own))
    };
    let found = judge(first, after, &Heard::Said(Vec::new())).findings;
    let drifted =
        |finding: &Finding| finding.weight.is_some() && !EVENTS.contains(&finding.check) && !known(finding);
    found.into_iter().filter(drifted).collect()
}
