//! Which releases of the kernel have something, and which of them runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, de};

use crate::facts::KernelFacts;
use crate::pci::serde_as_text;

/// A release of the kernel as a table names it: `6.12.114`, or `6.12` for a whole series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third; nothing for the whole series.
    pub patch: Option<u32>,
}

/// A release: major, minor, patch.
pub type Release = (u32, u32, u32);

/// The last patch of a series, whatever it will be.
const ANY: u32 = u32::MAX;

impl Version {
    /// Returns the first release that is meant.
    pub fn first(self) -> Release {
        (self.major, self.minor, self.patch.unwrap_or(0))
    }

    /// Returns the last.
    pub fn last(self) -> Release {
        (self.major, self.minor, self.patch.unwrap_or(ANY))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<u32>> = text.split('.').map(number).collect();
        match numbers.as_deref() {
            Some([major, minor]) => Ok(Self { major: *major, minor: *minor, patch: None }),
            Some([major, minor, patch]) => Ok(Self { major: *major, minor: *minor, patch: Some(*patch) }),
            _ => Err(format!("`{text}` is no release of Linux: expected numbers like 6.12.114, or 6.12")),
        }
    }
}

serde_as_text!(Version);

/// Reads plain digits; `parse` alone would take a sign. The greatest number stands for any patch, and is none.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|number| *number < ANY)
}

/// A stretch of releases.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KernelRange {
    /// The first; nothing where it was always so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Version>,
    /// The last that is known to be so; nothing where all later ones are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Version>,
    /// What is no longer so, as in "6.12.115 or a later 6.12"; nothing where nobody has looked any further than the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<String>,
}

impl KernelRange {
    fn first(&self) -> Release {
        self.from.map_or((0, 0, 0), Version::first)
    }

    fn last(&self) -> Release {
        self.to.map_or((ANY, ANY, ANY), Version::last)
    }
}

/// How stretches of releases bear on a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bearing<'a> {
    /// It is in one; nothing where all kernels are meant.
    Has(Option<&'a KernelRange>),
    /// Some releases of its series are in one, and its name doesn't say which it is.
    Perhaps(&'a KernelRange),
    /// It is newer than one of which nobody knows where it ends.
    Newer(&'a KernelRange),
    /// Which kernel it is isn't known.
    Unknown,
    /// It is in none.
    Not,
}

/// What is known of the running kernel's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// The release of the stable series that it follows.
    Version(Release),
    /// Only the series.
    Series(Release),
    /// Not even that.
    Nothing,
}

impl Known {
    /// Finds the version that a kernel follows: a distribution's release may carry its own counter (Debian's `6.1.0-37-amd64`,
    /// Ubuntu's `6.8.0-45-generic`), and then its build tells: `Debian 6.1.140-1`, `Ubuntu 6.8.0-45.45-generic 6.8.12`.
    pub fn of(kernel: &KernelFacts) -> Self {
        let Some((version, rest)) = parse(&kernel.release) else { return Self::Nothing };
        let same_series = |found: &Release| (found.0, found.1) == (version.0, version.1);
        let words: Vec<&str> = kernel.build.split_ascii_whitespace().collect();
        let after = |name: &str| words.iter().position(|word| *word == name);
        let debian = after("Debian").and_then(|at| words.get(at + 1)).and_then(|word| parse(word));
        let ubuntu = after("Ubuntu").and_then(|at| words.get(at + 2)).and_then(|word| parse(word));
        if let Some((built, _)) = debian.or(ubuntu).filter(|(built, _)| same_series(built)) {
            return Self::Version(built);
        }
        // Enterprise kernels (el9, .sles) keep a version of years ago and take fixes from everywhere.
        let counted =
            rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let enterprise = rest.contains(".el") || rest.contains("-default");
        match version.2 == 0 && counted || enterprise {
            true => Self::Series(version),
            false => Self::Version(version),
        }
    }

    /// Returns the first and the last release that it may be.
    fn span(self) -> Option<(Release, Release)> {
        match self {
            Self::Version(version) => Some((version, version)),
            // A series is in a range for certain only where that covers all of it.
            Self::Series((major, minor, _)) => Some(((major, minor, 0), (major, minor, ANY))),
            Self::Nothing => None,
        }
    }

    /// Tells how stretches of releases bear on it; where there are none, all kernels are meant.
    pub fn bearing(self, ranges: &[KernelRange]) -> Bearing<'_> {
        if ranges.is_empty() {
            return Bearing::Has(None);
        }
        let Some((first, last)) = self.span() else { return Bearing::Unknown };
        let touched = ranges.iter().find(|range| range.first() <= last && first <= range.last());
        if let Some(range) = touched {
            return match range.first() <= first && last <= range.last() {
                true => Bearing::Has(Some(range)),
                false => Bearing::Perhaps(range),
            };
        }
        let open = ranges.iter().find(|range| range.last() < first && range.fixed.is_none());
        open.map_or(Bearing::Not, Bearing::Newer)
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version((major, minor, patch)) => write!(f, "{major}.{minor}.{patch}"),
            Self::Series((major, minor, _)) => write!(f, "{major}.{minor}"),
            Self::Nothing => f.write_str("an unknown version"),
        }
    }
}

/// Reads `6.12.117-amd64`; the third number may be missing.
fn parse(text: &str) -> Option<(Release, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut numbers = numbers.split('.').filter(|number| !number.is_empty()).map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let patch = numbers.next().map_or(Ok(0), |patch| patch).ok()?;
    Some(((major, minor, patch), rest))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("6.12.117-amd64", "", Known::Version((6, 12, 117)))]
    #[case("6.12.48+deb13-amd64", "", Known::Version((6, 12, 48)))]
    #[case("6.1.0-37-amd64", "Linux version 6.1.0-37-amd64 (d@x) #1 SMP Debian 6.1.140-1 (2025-05-22)", Known::Version((6, 1, 140)))]
    #[case("6.1.0-37-amd64", "", Known::Series((6, 1, 0)))]
    #[case("6.8.0-45-generic", "Ubuntu 6.8.0-45.45-generic 6.8.12", Known::Version((6, 8, 12)))]
    #[case("5.14.0-503.el9.x86_64", "", Known::Series((5, 14, 0)))]
    #[case("6.13.0", "", Known::Version((6, 13, 0)))]
    #[case("6.13-rc1", "", Known::Version((6, 13, 0)))]
    #[case("unknown", "", Known::Nothing)]
    #[case("", "", Known::Nothing)]
    fn a_version_is_known_by_release_and_build(
        #[case] release: &str,
        #[case] build: &str,
        #[case] expected: Known,
    ) {
        let kernel =
            KernelFacts { release: release.to_owned(), build: build.to_owned(), ..KernelFacts::default() };
        assert_eq!(Known::of(&kernel), expected);
    }

    #[rstest]
    #[case("6.12", Some(((6, 12, 0), (6, 12, ANY))))]
    #[case("6.12.114", Some(((6, 12, 114), (6, 12, 114))))]
    #[case("6", None)]
    #[case("6.12.1.2", None)]
    #[case("6.+12", None)]
    #[case("6.12-rc1", None)]
    #[case("6.12.4294967295", None)]
    #[case("", None)]
    fn a_release_is_two_or_three_numbers(#[case] text: &str, #[case] spans: Option<(Release, Release)>) {
        let version = text.parse::<Version>();
        assert_eq!(version.as_ref().ok().map(|version| (version.first(), version.last())), spans);
        assert!(version.is_err() || version.unwrap().to_string() == text);
    }

    fn range(from: Option<&str>, to: Option<&str>, fixed: Option<&str>) -> KernelRange {
        let parse = |text: &str| text.parse().unwrap();
        KernelRange { from: from.map(parse), to: to.map(parse), fixed: fixed.map(str::to_owned) }
    }

    #[rstest]
    #[case::before(Known::Version((6, 11, 99)), "not")]
    #[case::first(Known::Version((6, 12, 0)), "has")]
    #[case::last(Known::Version((6, 12, 114)), "has")]
    #[case::after_the_fix(Known::Version((6, 12, 115)), "not")]
    #[case::second_range(Known::Version((6, 13, 0)), "has")]
    #[case::end_of_the_second(Known::Version((7, 1, 4000)), "has")]
    #[case::beyond_what_is_known(Known::Version((7, 2, 0)), "newer")]
    #[case::part_of_a_series(Known::Series((6, 12, 0)), "perhaps")]
    #[case::all_of_a_series(Known::Series((6, 14, 0)), "has")]
    #[case::nothing(Known::Nothing, "unknown")]
    fn a_kernel_is_in_a_range_up_to_its_edges(#[case] known: Known, #[case] expected: &str) {
        let ranges =
            [range(Some("6.12"), Some("6.12.114"), Some("6.12.115")), range(Some("6.13"), Some("7.1"), None)];
        let found = match known.bearing(&ranges) {
            Bearing::Has(_) => "has",
            Bearing::Perhaps(_) => "perhaps",
            Bearing::Newer(_) => "newer",
            Bearing::Unknown => "unknown",
            Bearing::Not => "not",
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_range_without_ends_has_none() {
        let late = Known::Version((99, 0, 0));
        let from = [range(Some("6.12.75"), None, None)];
        assert_eq!(late.bearing(&from), Bearing::Has(Some(&from[0])));
        assert_eq!(Known::Version((6, 12, 74)).bearing(&from), Bearing::Not);
        let to = [range(None, Some("6.14"), Some("6.15"))];
        assert_eq!(Known::Version((2, 6, 39)).bearing(&to), Bearing::Has(Some(&to[0])));
        assert_eq!(late.bearing(&[]), Bearing::Has(None));
    }
}
