//! Whether the ledger holds something against a device.

use crate::date;
use crate::doctor::device::of;
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::Presence;
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "quarantine",
    layer: Layer::Ownership,
    why: "a card that came back sick from one guest takes the next one down, or the host: `up` and `bind` refuse it until it is cleared",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    // What is held is refused as well.
    let wanted = case.facts.devices.keys().filter(|bdf| case.takes(**bdf));
    wanted.map(|bdf| of_device(*bdf, case)).collect()
}

fn of_device(bdf: Bdf, case: &Case<'_>) -> Judgement {
    if let Some(problem) = case.facts.ledgers_unread.get(&bdf) {
        let found = format!("it may be in quarantine, which can't be known: {problem}");
        let remedy = "look at the file, and put it right or move it away once the device was reset";
        return of(bdf, Verdict::Failed, found).remedy(Remedy::new(remedy));
    }
    let Some(quarantine) = case.facts.quarantined.get(&bdf) else {
        return match case.facts.ledger {
            Presence::Present => of(bdf, Verdict::Ok, "nothing is held against it"),
            Presence::Absent => of(
                bdf,
                Verdict::Unknown,
                "whether anything is held against it isn't known: the ledger wasn't read",
            ),
        };
    };
    let found = format!("it is in quarantine since {}: {}", date::day(quarantine.since), quarantine.finding);
    let clear = format!("gpuvm quarantine clear {bdf}");
    let remedy = match quarantine.reset_since {
        true => Remedy::new("it was reset since and came back well, so it can be cleared").command(clear),
        false => Remedy::new("reset it, and clear it if it comes back well")
            .commands([format!("gpuvm reset {bdf}"), clear]),
    };
    of(bdf, Verdict::Failed, found).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{AUDIO, GPU, judge_for};
    use crate::facts::HostFacts;
    use crate::reset::{Identity, Quarantine};

    /// A host with a ledger.
    fn host() -> HostFacts {
        HostFacts { ledger: Presence::Present, ..crate::doctor::device::testing::host() }
    }

    fn quarantine(reset_since: bool) -> Quarantine {
        let bdf = GPU.parse().unwrap();
        let device = Identity { id: "10de:2330".parse().unwrap(), subsystem: None, serial: None, bdf };
        let finding = "config 0x00 of 0000:81:00.0: 0xffffffff: it reads all ones".to_owned();
        Quarantine { device, since: 1_800_000_000, verdict: None, finding, reset_since }
    }

    #[test]
    fn a_device_with_nothing_against_it_passes() {
        assert_eq!(judge_for(&CHECK, &host(), &[GPU])[0].verdict, Verdict::Ok);
    }

    #[test]
    fn where_the_ledger_was_not_read_nobody_knows() {
        let facts = HostFacts { ledger: Presence::Absent, ..host() };
        assert_eq!(judge_for(&CHECK, &facts, &[GPU])[0].verdict, Verdict::Unknown);
    }

    #[rstest]
    #[case::to_be_reset(false, 2)]
    #[case::reset_since(true, 1)]
    fn a_quarantined_device_fails_with_the_way_out(#[case] reset_since: bool, #[case] commands: usize) {
        let mut facts = host();
        facts.quarantined.insert(GPU.parse().unwrap(), quarantine(reset_since));
        let judged = judge_for(&CHECK, &facts, &[GPU, AUDIO]);
        assert_eq!([judged[0].verdict, judged[1].verdict], [Verdict::Failed, Verdict::Ok]);
        assert!(judged[0].found.contains("2027-01-15: config 0x00"), "{}", judged[0].found);
        let remedy = judged[0].remedy.as_ref().unwrap();
        assert_eq!(remedy.commands.len(), commands);
        assert_eq!(remedy.commands.last().unwrap(), &format!("gpuvm quarantine clear {GPU}"));
    }

    #[test]
    fn a_device_whose_ledger_cant_be_read_fails() {
        let mut facts = host();
        facts.ledgers_unread.insert(GPU.parse().unwrap(), "/x.jsonl: line 3: no".to_owned());
        let judged = judge_for(&CHECK, &facts, &[GPU]);
        assert_eq!(judged[0].verdict, Verdict::Failed);
        assert!(judged[0].found.contains("/x.jsonl: line 3"), "{}", judged[0].found);
    }
}
