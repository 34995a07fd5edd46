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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::facts::ErrorCounters;
    use crate::reset::{ConfigSpace, Reading, Verdict};

    /// A function with a link (Link Status 0x1105: 32 GT/s, x16) and counters.
    fn card() -> Snapshot {
        let mut config = vec![0; 256];
        config[..4].copy_from_slice(&[0xde, 0x10, 0x30, 0x23]);
        config[6] = 0x10;
        config[0x34] = 0x40;
        config[0x3d] = 1;
        config[0x40..0x44].copy_from_slice(&[0x10, 0, 0x02, 0]);
        config[0x52..0x54].copy_from_slice(&0x1105_u16.to_le_bytes());
        let bare = Snapshot::of("81:00.0".parse().unwrap(), "10de:2330".parse().unwrap(), &config);
        Snapshot { errors: Reading::Read(ErrorCounters::default()), ..bare }
    }

    fn put(snapshot: &mut Snapshot, at: usize, bytes: &[u8]) {
        let mut config = snapshot.config.read().unwrap().bytes().to_vec();
        config[at..at + bytes.len()].copy_from_slice(bytes);
        snapshot.config = Reading::Read(ConfigSpace::new(&config));
    }

    #[rstest]
    #[case::nothing(|_: &mut Snapshot| {}, &[])]
    #[case::revision(|card: &mut Snapshot| put(card, 0x08, &[0xa1]), &[Check::Class])]
    #[case::narrower(|card: &mut Snapshot| put(card, 0x52, &[0x85, 0x10]), &[Check::LinkWidth])]
    #[case::slower_while_it_idles(|card: &mut Snapshot| put(card, 0x52, &[0x01, 0x11]), &[])]
    #[case::errors_of_cycles_before(
        |card: &mut Snapshot| card.errors = Reading::Read(ErrorCounters { correctable: 9, nonfatal: 1, fatal: 1 }),
        &[]
    )]
    fn drift_is_a_state_that_no_cycle_alone_finds(
        #[case] change: impl Fn(&mut Snapshot),
        #[case] expected: &[Check],
    ) {
        let (first, mut after) = (card(), card());
        change(&mut after);
        let own = judge(&after, &after, &Heard::Said(Vec::new()));
        assert_eq!(own.verdict, Verdict::Healthy, "{own:?}");
        let checks: Vec<Check> = drift(&first, &after, &own).iter().map(|finding| finding.check).collect();
        assert_eq!(checks, expected);
        // The cycle in which it happens has found it.
        let found = judge(&first, &after, &Heard::Said(Vec::new()));
        assert_eq!(drift(&first, &after, &found), []);
    }
}
