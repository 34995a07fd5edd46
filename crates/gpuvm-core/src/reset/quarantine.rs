//! Quarantine: whether anybody may have a device, as its entries in the ledger come to.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Before, Deed, Entry, Identity, Judgement, Verdict};

/// A device that nobody may have before it is cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The device.
    pub device: Identity,
    /// When it was last found bad, in seconds since 1970-01-01 UTC.
    pub since: u64,
    /// The verdict; nothing where a newer gpuvm gave one that this one doesn't know.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// What was found, in words.
    pub finding: String,
    /// Whether it was reset since and came back well: then it may be cleared.
    pub reset_since: bool,
}

/// What an entry does to a device's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Effect {
    /// It is put into quarantine, or stays there for a new reason.
    Bad { verdict: Option<Verdict>, finding: String },
    /// It was reset and came back well.
    GoodReset,
    /// It is given free.
    Cleared,
    /// Nothing.
    Nothing,
}

/// Reads from a device's entries, oldest first, whether it is in quarantine.
///
/// A bad verdict puts it there, of a run and of a reset alike, and nothing but a `Cleared` lifts it, or a rung of the ladder that has
/// helped: not even a run that went well.
/// A reset is good that didn't fail and whose verdict is healthy or degraded: a narrower link is a card that works. One after which
/// something couldn't be read isn't: then nobody knows, and a person has to accept the device. A verdict after a clear counts
/// anew, and so does one after a good reset.
pub fn quarantine(entries: &[Entry]) -> Option<Quarantine> {
    let mut found: Option<Quarantine> = None;
    for entry in entries {
        match (effect(&entry.deed), &mut found) {
            (Effect::Cleared, _) => found = None,
            (Effect::Bad { verdict, finding }, _) => {
                let (device, since) = (entry.device.clone(), entry.at);
                found = Some(Quarantine { device, since, verdict, finding, reset_since: false });
            }
            (Effect::GoodReset, Some(quarantine)) => quarantine.reset_since = true,
            (Effect::GoodReset | Effect::Nothing, _) => {}
        }
    }
    found
}

/// Says which of a device's entries, oldest first, are kept when there are too many: the newest, and whatever the present
/// quarantine rests on.
pub fn kept(entries: &[Entry], limit: usize) -> Vec<bool> {
    let newest = entries.len().saturating_sub(limit);
    let mut keep: Vec<bool> = (0..entries.len()).map(|at| at >= newest).collect();
    let effects: Vec<Effect> = entries.iter().map(|entry| effect(&entry.deed)).collect();
    let cleared = effects.iter().rposition(|effect| *effect == Effect::Cleared).map_or(0, |at| at + 1);
    let bad = effects.iter().rposition(|effect| matches!(effect, Effect::Bad { .. }));
    if let Some(bad) = bad.filter(|at| *at >= cleared) {
        keep[bad] = true;
        let reset = effects[bad..].iter().rposition(|effect| *effect == Effect::GoodReset);
        keep.get_mut(bad + reset.unwrap_or(0)).into_iter().for_each(|keep| *keep = true);
    }
    keep
}

fn effect(deed: &Deed) -> Effect {
    match deed {
        Deed::Cleared { .. } => Effect::Cleared,
        Deed::Run { judgement, .. } | Deed::Reset { judgement, .. } if judgement.verdict.is_bad() => {
            Effect::Bad { verdict: Some(judgement.verdict), finding: reason(judgement) }
        }
        Deed::Reset { judgement, failure: None, .. } if judgement.verdict <= Verdict::Degraded => {
            Effect::GoodReset
        }
        // Whoever lets gpuvm repair a device has said that it may be used again when that helps.
        // It has said so of what was sick, and not of a neighbour that was in quarantine and only reached.
        Deed::Repair { before: Before::Sick, climbed } if climbed.helped() => Effect::Cleared,
        Deed::Repair { climbed, .. } if climbed.judgement.verdict.is_bad() => {
            Effect::Bad { verdict: Some(climbed.judgement.verdict), finding: reason(&climbed.judgement) }
        }
        Deed::Run { .. } | Deed::Reset { .. } | Deed::Repair { .. } => Effect::Nothing,
        Deed::Newer(fields) => newer(fields),
    }
}

fn reason(judgement: &Judgement) -> String {
    let reason = judgement.reason().map(ToString::to_string);
    reason.unwrap_or_else(|| format!("it was found {}, and nobody wrote down why", judgement.verdict))
}

/// Weighs what a newer gpuvm wrote. What it cleared is clear. A verdict that isn't known to be harmless is bad, since nobody may
/// have a device by mistake; and no reset counts as good that this gpuvm doesn't understand.
fn newer(fields: &Map<String, Value>) -> Effect {
    if fields.get("deed").and_then(Value::as_str) == Some("cleared") {
        return Effect::Cleared;
    }
    let Some(judgement) = fields.get("judgement") else { return Effect::Nothing };
    let word = judgement.get("verdict").and_then(Value::as_str);
    let verdict = word.and_then(|word| serde_json::from_value(Value::from(word)).ok());
    if verdict.is_some_and(|verdict: Verdict| !verdict.is_bad()) {
        return Effect::Nothing;
    }
    let text = |key: &str| judgement.pointer(&format!("/findings/0/{key}")).and_then(Value::as_str);
    let finding = match (text("register"), text("bdf"), text("after"), text("meaning")) {
        (Some(register), Some(bdf), Some(after), Some(meaning)) => {
            format!("{register} of {bdf}: {after}: {meaning}")
        }
        _ => format!("a newer gpuvm found it `{}`", word.unwrap_or("?")),
    };
    Effect::Bad { verdict, finding }
}

#[cfg(test)]
mod tests;
