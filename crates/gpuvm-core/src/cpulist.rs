//! Sets of CPUs and NUMA nodes in the kernel's list syntax (`0-3,8`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

use crate::pci::serde_as_text;

/// The largest CPU number taken: well above CONFIG_NR_CPUS (8192), so that a damaged file can't ask for memory without end.
pub const MAX_ID: u32 = 65_535;

/// A set of numbers in the kernel's list syntax.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct CpuSet(BTreeSet<u32>);

/// A set of NUMA nodes; the same syntax.
pub type NodeSet = CpuSet;

impl CpuSet {
    /// Tells whether the number is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the numbers in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Returns the numbers that are in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Why a text is no list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no list like 0-3,8 (numbers up to {MAX_ID})")]
pub struct CpuSetError {
    text: String,
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        parse(text.trim()).map(Self).ok_or_else(|| CpuSetError { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    if text.is_empty() {
        return Some(ids);
    }
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return None;
        }
        ids.extend(first..=last);
    }
    Some(ids)
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|id| *id <= MAX_ID)
}

serde_as_text!(CpuSet);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", "")]
    #[case("\n", "")]
    #[case("0\n", "0")]
    #[case("0-3,8", "0-3,8")]
    #[case("3,1,2", "1-3")]
    #[case("0-0", "0")]
    fn parse_gives_the_kernels_spelling(#[case] text: &str, #[case] spelt: &str) {
        assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), spelt);
    }

    #[rstest]
    #[case("a")]
    #[case("0-")]
    #[case("3-1")]
    #[case("0,,1")]
    #[case("0-4294967295")]
    #[case("+1")]
    fn parse_refuses(#[case] text: &str) {
        assert!(text.parse::<CpuSet>().unwrap_err().to_string().contains(text));
    }

    proptest! {
        #[test]
        fn parse_undoes_display(ids in proptest::collection::btree_set(0u32..5000, 0..64)) {
            let set: CpuSet = ids.into_iter().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }

        #[test]
        fn parse_never_panics(text in "[-0-9,a ]*") {
            let _ = text.parse::<CpuSet>();
        }
    }
}
