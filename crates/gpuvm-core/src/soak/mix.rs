//! Which kinds of cycles a soak runs, and in which order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How the guest of a cycle ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CycleKind {
    /// It powers off, by itself or by its power button.
    Clean,
    /// QEMU is killed under it.
    Kill,
    /// It is reset once, comes up again, and powers off.
    Reboot,
}

impl CycleKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Clean, Self::Kill, Self::Reboot];

    /// Returns its name in a mix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Kill => "kill",
            Self::Reboot => "reboot",
        }
    }
}

impl std::fmt::Display for CycleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How many of each kind there are in a round of cycles: `clean:8,kill:1,reboot:1`.
///
/// Rounds follow each other; within one, each kind is spread evenly. Which kind a cycle is depends on its number alone, so that a soak
/// that goes on after a crash runs what it would have run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mix(BTreeMap<CycleKind, u32>);

/// The longest round.
const ROUND_MAX: u32 = 1000;

impl Default for Mix {
    fn default() -> Self {
        Self(BTreeMap::from([(CycleKind::Clean, 1)]))
    }
}

impl Mix {
    /// Returns the kind of a cycle; the first one is number 1.
    pub fn kind_of(&self, cycle: u32) -> CycleKind {
        let round = self.0.values().sum::<u32>().max(1);
        let place = cycle.saturating_sub(1) % round;
        // Smooth weighted round-robin: whoever has waited longest for its share is next.
        let mut waited: BTreeMap<CycleKind, i64> = self.0.keys().map(|kind| (*kind, 0)).collect();
        let mut next = CycleKind::Clean;
        for _ in 0..=place {
            for (kind, share) in &self.0 {
                *waited.entry(*kind).or_default() += i64::from(*share);
            }
            // Of those that have waited equally long, the first: a soak begins with a clean cycle where it has any.
            let first = waited.iter().max_by_key(|(kind, waited)| (**waited, std::cmp::Reverse(**kind)));
            next = first.map_or(next, |(kind, _)| *kind);
            *waited.entry(next).or_default() -= i64::from(round);
        }
        next
    }
}

impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut shares = BTreeMap::new();
        for part in text.split(',') {
            let (name, share) = part.split_once(':').unwrap_or((part, "1"));
            let kind = CycleKind::ALL.into_iter().find(|kind| kind.name() == name.trim());
            let kind = kind.ok_or_else(|| format!("`{}` is none of clean, kill and reboot", name.trim()))?;
            let share: u32 = share.trim().parse().map_err(|_| {
                format!(
                    "`{}` is no share of {kind} cycles: expected a number, as in clean:8,kill:1",
                    share.trim()
                )
            })?;
            if shares.insert(kind, share).is_some() {
                return Err(format!("{kind} is there twice"));
            }
        }
        shares.retain(|_, share| *share > 0);
        match shares.values().try_fold(0u32, |sum, share| sum.checked_add(*share)) {
            Some(0) => Err("all shares are 0".to_owned()),
            Some(1..=ROUND_MAX) => Ok(Self(shares)),
            _ => Err(format!("a round has at most {ROUND_MAX} cycles")),
        }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shares: Vec<String> = self.0.iter().map(|(kind, share)| format!("{kind}:{share}")).collect();
        f.write_str(&shares.join(","))
    }
}

impl TryFrom<String> for Mix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mix> for String {
    fn from(mix: Mix) -> Self {
        mix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::default("clean", "cccccccccc")]
    #[case::spread("clean:8,kill:1,reboot:1", "ccckccrccc")]
    #[case::in_any_order("reboot:1,kill:1,clean:1", "ckrckrckrc")]
    #[case::of_one_kind("kill:3,clean:0", "kkkkkkkkkk")]
    #[case::half("clean:1,kill:1", "ckckckckck")]
    fn kinds_are_spread_over_a_round(#[case] mix: &str, #[case] expected: &str) {
        let mix: Mix = mix.parse().unwrap();
        let kinds: String = (1..=10).map(|cycle| mix.kind_of(cycle).name().chars().next().unwrap()).collect();
        assert_eq!(kinds, expected);
    }

    #[rstest]
    #[case::share("clean:8,kill:1,reboot:1")]
    #[case::large("clean:900,kill:99,reboot:1")]
    fn a_round_has_each_kind_as_often_as_asked_and_the_next_is_the_same(#[case] text: &str) {
        let mix: Mix = text.parse().unwrap();
        let round = mix.0.values().sum::<u32>();
        for (kind, share) in &mix.0 {
            let times = (1..=round).filter(|cycle| mix.kind_of(*cycle) == *kind).count();
            assert_eq!(times, usize::try_from(*share).unwrap(), "{kind}");
        }
        for cycle in 1..=round {
            assert_eq!(mix.kind_of(cycle), mix.kind_of(cycle + round));
        }
        assert_eq!(mix.to_string().parse(), Ok(mix));
    }

    #[rstest]
    #[case::empty("", "`` is none of")]
    #[case::unknown("cleen:1", "`cleen` is none of")]
    #[case::no_number("clean:many", "`many` is no share")]
    #[case::negative("clean:-1", "`-1` is no share")]
    #[case::twice("clean:1,clean:2", "twice")]
    #[case::nothing("clean:0", "all shares are 0")]
    #[case::too_many("clean:1001", "at most 1000")]
    #[case::far_too_many("clean:4294967295,kill:1", "at most 1000")]
    fn what_is_no_mix_is_told(#[case] text: &str, #[case] expected: &str) {
        let error = text.parse::<Mix>().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
