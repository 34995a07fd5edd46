//! The checks: a function after a run or a reset against what it was before.

use super::{Check, ConfigSpace, Finding, Heard, Judgement, Reading, Snapshot, Verdict};
use crate::facts::Presence;

/// Judges a function by its snapshots before and after, and by what the kernel has said between.
pub fn judge(before: &Snapshot, after: &Snapshot, _heard: &Heard) -> Judgement {
    Judgement::new(presence(before, after))
}

/// Judges a function by one snapshot, held against what the kernel believes of it: before a run there is nothing else.
pub fn inspect(now: &Snapshot) -> Judgement {
    Judgement::new(presence(now, now))
}

#[expect(clippy::too_many_lines, reason = "split by check in the next step")]
fn presence(before: &Snapshot, after: &Snapshot) -> Vec<Finding> {
    let finding = |check, weight, register: &str, after_text: String, meaning: &str| Finding {
        check,
        weight: Some(weight),
        bdf: after.bdf,
        register: register.to_owned(),
        before: None,
        after: after_text,
        meaning: meaning.to_owned(),
    };
    let config = match &after.config {
        Reading::Read(config) if config.bytes().len() >= ConfigSpace::HEADER => config,
        Reading::Read(config) => {
            let read = format!("{} bytes", config.bytes().len());
            return vec![finding(
                Check::Config,
                Verdict::Unreachable,
                "config",
                read,
                "it is too short for a header",
            )];
        }
        Reading::Absent => {
            return vec![finding(
                Check::Config,
                Verdict::Unreachable,
                "config",
                "not there".to_owned(),
                "the kernel has lost the device",
            )];
        }
        Reading::Unread(why) => {
            return vec![finding(
                Check::Config,
                Verdict::Unknown,
                "config",
                why.clone(),
                "its config space couldn't be read",
            )];
        }
    };
    let (id, command) = (config.dword(0).unwrap_or(u32::MAX), config.word(4).unwrap_or(u16::MAX));
    // A VF's ids always read ffff (PCI Express Base Specification 9.3.4.1), so its command register tells whether it is there.
    let virtual_function = after.virtual_function == Presence::Present;
    if command == u16::MAX && (virtual_function || id == u32::MAX) {
        return vec![finding(
            Check::AllOnes,
            Verdict::Unreachable,
            "config 0x00",
            format!("{id:#010x}"),
            "it reads all ones: it has fallen off the bus",
        )];
    }
    // No vendor has this id (PCI Express Base Specification 2.3.2).
    if id & 0xffff == 0x0001 {
        return vec![finding(
            Check::Retrying,
            Verdict::Unreachable,
            "config 0x00",
            format!("{id:#010x}"),
            "it is still in reset (Request Retry Status)",
        )];
    }
    let known = before.id.read().map_or(id, |id| u32::from(id.vendor) | u32::from(id.device) << 16);
    if id != known && !virtual_function {
        let mut found = finding(
            Check::Identity,
            Verdict::Impaired,
            "config 0x00",
            format!("{id:#010x}"),
            "it answers as another device",
        );
        found.before = Some(format!("{known:#010x}"));
        return vec![found];
    }
    Vec::new()
}
