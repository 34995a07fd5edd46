//! Whether it is there at all.

use super::super::registers::{Presence, presence};
use super::super::{Check, ConfigSpace, Finding, Reading, Verdict};
use super::Comparison;

/// Finds a config space that couldn't be read, now or before.
pub(super) fn config(at: &Comparison<'_>) -> Vec<Finding> {
    let found = |weight, after: &str, meaning| at.found(Check::Config, weight, "config", after, meaning);
    let mut findings = Vec::new();
    match &at.after.config {
        Reading::Read(config) if presence(config, at.is_virtual()) == Presence::Short => {
            let read = format!("{} bytes", config.bytes().len());
            findings.push(found(Verdict::Unreachable, &read, "it is too short for a header"));
        }
        Reading::Read(_) => {}
        Reading::Absent => {
            findings.push(found(Verdict::Unreachable, "not there", "the kernel has lost the device"));
        }
        Reading::Unread(why) => {
            findings.push(found(Verdict::Unknown, why, "its config space couldn't be read"));
        }
    }
    let before = match &at.before.config {
        // Of an inspection both are the same snapshot.
        _ if at.heard.is_none() => None,
        _ if at.function.before.is_some() => None,
        Reading::Read(_) => Some("no answer".to_owned()),
        Reading::Absent => Some("not there".to_owned()),
        Reading::Unread(why) => Some(why.clone()),
    };
    let now = at.after.config.read().map_or(0, |config| config.bytes().len());
    findings.extend(before.filter(|_| at.function.after.is_some()).map(|before| {
        let meaning = "it answers, and there is nothing to hold its registers against";
        found(Verdict::Unknown, &format!("{now} bytes"), meaning).was(before)
    }));
    findings
}

/// Finds ones: what the root complex answers in place of a device that has fallen off the bus.
pub(super) fn all_ones(at: &Comparison<'_>) -> Vec<Finding> {
    answer(at, Presence::Ones, Check::AllOnes, "it reads all ones: it has fallen off the bus")
}

/// Finds a device that is still in reset.
pub(super) fn retrying(at: &Comparison<'_>) -> Vec<Finding> {
    answer(at, Presence::Retrying, Check::Retrying, "it is still in reset (Request Retry Status)")
}

fn answer(at: &Comparison<'_>, wanted: Presence, check: Check, meaning: &str) -> Vec<Finding> {
    let Some(config) = at.after.config.read() else { return Vec::new() };
    if presence(config, at.is_virtual()) != wanted {
        return Vec::new();
    }
    // The ids tell of a physical function; where they are well all the same, or read ffff of themselves, the command register does.
    let id = config.dword(0).unwrap_or(u32::MAX);
    let by_command = at.is_virtual() || (wanted == Presence::Ones && id != u32::MAX);
    let value = |config: &ConfigSpace| {
        if by_command {
            config.word(4).map(|command| format!("{command:#06x}"))
        } else {
            config.dword(0).map(|id| format!("{id:#010x}"))
        }
    };
    let register = if by_command { "config 0x04 COMMAND" } else { "config 0x00" };
    let after = value(config).unwrap_or_default();
    let mut finding = at.found(check, Verdict::Unreachable, register, &after, meaning);
    finding.before = at.before.config.read().and_then(value).filter(|before| *before != after);
    vec![finding]
}
