//! Sizes in bytes and page sizes, as QEMU and the kernel count them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

use crate::pci::serde_as_text;

/// A number of bytes.
///
/// Written as an integer with an optional K, M, G or T, powers of 1024, as QEMU means them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

const SUFFIXES: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl ByteSize {
    /// Makes a size of so many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Makes a size of so many MiB.
    pub const fn mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// Returns the number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// Returns the whole MiB in it, rounded up.
    pub const fn as_mib_ceil(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }

    /// Tells whether the size is a whole number of such pages.
    pub const fn is_multiple_of(self, page: PageSize) -> bool {
        self.0.is_multiple_of(page.as_bytes())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in SUFFIXES {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        self.0.fmt(f)
    }
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A fraction, such as 1.5G.
    #[error("`{text}` is no size: fractions aren't taken; write 1536M for 1.5G")]
    Fraction {
        /// What was written.
        text: String,
    },
    /// A suffix whose meaning people disagree about, such as GB.
    #[error("`{text}` is no size: write `{meant}` (K, M, G and T are powers of 1024)")]
    Suffix {
        /// What was written.
        text: String,
        /// What was probably meant.
        meant: String,
    },
    /// Not a number with a suffix.
    #[error("`{text}` is no size: expected an integer with K, M, G or T, like 64G")]
    Malformed {
        /// What was written.
        text: String,
    },
    /// More than 64 bits of bytes.
    #[error("`{text}` is too large a size")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let owned = || text.to_owned();
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(digits_end);
        if digits.is_empty() {
            return Err(SizeError::Malformed { text: owned() });
        }
        if suffix.starts_with('.') && suffix[1..].starts_with(|c: char| c.is_ascii_digit()) {
            return Err(SizeError::Fraction { text: owned() });
        }
        let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge { text: owned() })?;
        let shift = match suffix {
            "" => 0,
            _ => match SUFFIXES.iter().find(|(letter, _)| suffix.starts_with(*letter)) {
                Some((_, shift)) if suffix.len() == 1 => *shift,
                Some((letter, _)) if matches!(&suffix[1..], "B" | "iB" | "b" | "ib") => {
                    return Err(SizeError::Suffix { text: owned(), meant: format!("{digits}{letter}") });
                }
                _ => return Err(other_suffix(text, digits, suffix)),
            },
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| SizeError::TooLarge { text: owned() })
    }
}

/// Explains a suffix that isn't one of ours: a lower-case letter is a slip, the rest is no size at all.
fn other_suffix(text: &str, digits: &str, suffix: &str) -> SizeError {
    let upper = suffix.trim().trim_end_matches(['b', 'B', 'i']).to_ascii_uppercase();
    match SUFFIXES.iter().find(|(letter, _)| upper == letter.to_string()) {
        Some((letter, _)) => SizeError::Suffix { text: text.to_owned(), meant: format!("{digits}{letter}") },
        None => SizeError::Malformed { text: text.to_owned() },
    }
}

/// A hugepage size that x86-64 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PageSize {
    /// 2 MiB.
    #[serde(rename = "2M")]
    M2,
    /// 1 GiB.
    #[serde(rename = "1G")]
    G1,
}

impl PageSize {
    /// Both sizes, smallest first.
    pub const ALL: [Self; 2] = [Self::M2, Self::G1];

    /// Returns the size in bytes.
    pub const fn as_bytes(self) -> u64 {
        match self {
            Self::M2 => 2 << 20,
            Self::G1 => 1 << 30,
        }
    }

    /// Returns the size in KiB, which sysfs names the pools by (`hugepages-2048kB`).
    pub const fn as_kib(self) -> u64 {
        self.as_bytes() >> 10
    }

    /// Returns how many such pages hold that many bytes.
    pub const fn pages_for(self, size: ByteSize) -> u64 {
        size.as_bytes().div_ceil(self.as_bytes())
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::M2 => "2M",
            Self::G1 => "1G",
        })
    }
}

serde_as_text!(ByteSize);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", 0)]
    #[case("4096", 4096)]
    #[case("512K", 512 << 10)]
    #[case("3M", 3 << 20)]
    #[case("64G", 64 << 30)]
    #[case("2T", 2 << 40)]
    fn parse_takes_powers_of_1024(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(text.parse::<ByteSize>().unwrap().as_bytes(), bytes);
    }

    #[rstest]
    #[case("64GB", "write `64G`")]
    #[case("64GiB", "write `64G`")]
    #[case("64g", "write `64G`")]
    #[case("64 G", "write `64G`")]
    #[case("1.5G", "1536M")]
    #[case("", "expected an integer")]
    #[case("G", "expected an integer")]
    #[case("-1G", "expected an integer")]
    #[case("64X", "expected an integer")]
    #[case("64GG", "expected an integer")]
    #[case("99999999999999999999", "too large")]
    #[case("16777216T", "too large")]
    fn parse_refuses_with_a_remedy(#[case] text: &str, #[case] remedy: &str) {
        let error = text.parse::<ByteSize>().unwrap_err().to_string();
        assert!(error.contains(remedy) && error.contains(text), "{error}");
    }

    proptest! {
        #[test]
        fn parse_undoes_display(bytes: u64) {
            let size = ByteSize::bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn parse_never_panics(text in ".*") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
