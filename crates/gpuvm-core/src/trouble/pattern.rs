//! Patterns of messages: literal text, `{captures}` of a closed list, and `*` for anything between two parts.
//!
//! A pattern is looked for anywhere in a line, since lines come with time stamps, program names and levels before them. Captures are typed, so
//! that a pattern matches only what it was written for: `{bdf}` is a PCI address, `{ms}` a number.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::pci::Bdf;

/// The least of literal text in a pattern: less than that would match lines that have nothing to do with it.
const LEAST_TEXT: usize = 10;

/// Something in a message that commands can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capture {
    /// A function's address.
    Bdf,
    /// A function's address without its function number, as NVIDIA's driver prints it; as a command uses it, function 0.
    Slot,
    /// An IOMMU group.
    Group,
    /// A number.
    Number,
    /// A process.
    Pid,
    /// A hexadecimal number.
    Hex,
    /// A word: a driver, a property, a kind of reset.
    Word,
    /// A file: no blanks in it.
    Path,
}

impl Capture {
    /// All of them, with their names in patterns and commands.
    const ALL: [(&str, Self); 8] = [
        ("bdf", Self::Bdf),
        ("slot", Self::Slot),
        ("group", Self::Group),
        ("number", Self::Number),
        ("pid", Self::Pid),
        ("hex", Self::Hex),
        ("word", Self::Word),
        ("path", Self::Path),
    ];

    /// Finds a capture by its name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, capture)| *capture)
    }

    /// Returns its name in capitals: what stands for it where it isn't known.
    pub(super) fn unknown(self) -> String {
        let name = Self::ALL.iter().find(|(_, capture)| *capture == self).map_or("", |(name, _)| name);
        name.to_uppercase()
    }
}

/// What a line has in the places of a pattern's captures.
pub(super) type Captures = BTreeMap<Capture, String>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Capture(Capture),
}

/// A pattern of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// Parts between the stars, each to be found behind the one before.
    parts: Vec<Vec<Piece>>,
    /// The longest text in it: a line without it needs no closer look.
    longest: String,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split('*').map(pieces).collect::<Result<Vec<_>, _>>()?;
        if parts.iter().any(Vec::is_empty) {
            return Err(format!("`{text}`: a star stands between two parts, neither of them empty"));
        }
        let longest = texts(&parts).max_by_key(|text| text.len()).unwrap_or_default().to_owned();
        let pattern = Self { parts, longest };
        match pattern.weight() {
            weight if weight < LEAST_TEXT => {
                Err(format!("`{text}` has {weight} characters of text, and {LEAST_TEXT} are the least"))
            }
            _ => Ok(pattern),
        }
    }
}

fn pieces(part: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = part;
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) =
            behind.split_once('}').ok_or_else(|| format!("`{part}`: a brace isn't closed"))?;
        let capture =
            Capture::named(name).ok_or_else(|| format!("`{part}`: there is no capture `{name}`"))?;
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        pieces.push(Piece::Capture(capture));
        rest = behind;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// Lists the literal texts of a pattern's parts.
fn texts(parts: &[Vec<Piece>]) -> impl Iterator<Item = &str> {
    parts.iter().flatten().filter_map(|piece| match piece {
        Piece::Text(text) => Some(text.as_str()),
        Piece::Capture(_) => None,
    })
}

impl Pattern {
    /// Returns how much literal text it has: of two patterns that match a line, the one with more says more about it.
    pub(super) fn weight(&self) -> usize {
        texts(&self.parts).map(str::len).sum()
    }

    /// Returns the captures of the first place where it matches.
    pub(super) fn find(&self, line: &str) -> Option<Captures> {
        if !line.contains(&self.longest) {
            return None;
        }
        let mut captures = Captures::new();
        let mut rest = line;
        for part in &self.parts {
            let (found, end) = find_part(part, rest)?;
            for (capture, value) in found {
                captures.entry(capture).or_insert(value);
            }
            rest = &rest[end..];
        }
        Some(captures)
    }
}

/// What was captured, in order.
type Found = Vec<(Capture, String)>;

/// Finds the leftmost place of a part, and returns what it captures and where it ends.
fn find_part(part: &[Piece], text: &str) -> Option<(Found, usize)> {
    let mut from = 0;
    while from <= text.len() {
        // Most parts begin with text: only its occurrences are looked at.
        let at = match part.first() {
            Some(Piece::Text(first)) => from + text[from..].find(first.as_str())?,
            _ => from,
        };
        let mut found = Found::new();
        if let Some(end) = match_at(part, text, at, &mut found) {
            return Some((found, end));
        }
        from = next_char(text, at);
    }
    None
}

/// Returns where the character after the one at `at` begins; past the end at the end.
fn next_char(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}

/// Matches pieces from a place on, and returns where they end.
fn match_at(pieces: &[Piece], text: &str, at: usize, found: &mut Found) -> Option<usize> {
    let Some((piece, others)) = pieces.split_first() else { return Some(at) };
    let capture = match piece {
        Piece::Text(expected) => {
            text[at..].starts_with(expected.as_str()).then_some(())?;
            return match_at(others, text, at + expected.len(), found);
        }
        Piece::Capture(capture) => *capture,
    };
    match capture {
        Capture::Bdf => {
            let run = run(text, at, |c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'))?;
            // A full stop or a colon behind it is the sentence's.
            let address = run.trim_end_matches([':', '.']);
            let bdf: Bdf = address.parse().ok()?;
            found.push((capture, bdf.to_string()));
            match_at(others, text, at + address.len(), found)
        }
        Capture::Slot => {
            let run = run(text, at, |c| c.is_ascii_hexdigit() || c == ':')?.trim_end_matches(':');
            let bdf: Bdf = format!("{run}.0").parse().ok()?;
            found.push((capture, bdf.to_string()));
            match_at(others, text, at + run.len(), found)
        }
        Capture::Group | Capture::Number | Capture::Pid => {
            taken(capture, run(text, at, |c| c.is_ascii_digit())?, others, text, at, found)
        }
        Capture::Hex => {
            let digits = if text[at..].starts_with("0x") { at + 2 } else { at };
            let length = digits - at + run(text, digits, |c| c.is_ascii_hexdigit())?.len();
            taken(capture, &text[at..at + length], others, text, at, found)
        }
        Capture::Word | Capture::Path => shortest(capture, others, text, at, found),
    }
}

fn taken(
    capture: Capture,
    value: &str,
    others: &[Piece],
    text: &str,
    at: usize,
    found: &mut Found,
) -> Option<usize> {
    found.push((capture, value.to_owned()));
    match_at(others, text, at + value.len(), found)
}

/// Takes the shortest run without blanks behind which the other pieces match; all of it where none come.
fn shortest(capture: Capture, others: &[Piece], text: &str, at: usize, found: &mut Found) -> Option<usize> {
    let whole = run(text, at, |c| !c.is_whitespace())?;
    if others.is_empty() {
        return taken(capture, whole, others, text, at, found);
    }
    let mut end = next_char(text, at);
    while end <= at + whole.len() {
        let mut behind = Found::new();
        if let Some(done) = match_at(others, text, end, &mut behind) {
            found.push((capture, text[at..end].to_owned()));
            found.extend(behind);
            return Some(done);
        }
        end = if end < text.len() { next_char(text, end) } else { end + 1 };
    }
    None
}

/// Returns the longest run of characters of a kind that begins here; none if it is empty, or if it began before.
fn run(text: &str, at: usize, of: impl Fn(char) -> bool) -> Option<&str> {
    let rest = &text[at..];
    let end = rest.find(|c| !of(c)).unwrap_or(rest.len());
    (end > 0).then(|| &rest[..end])
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                f.write_str("*")?;
            }
            for piece in part {
                match piece {
                    Piece::Text(text) => f.write_str(text)?,
                    Piece::Capture(capture) => write!(f, "{{{}}}", capture.unknown().to_lowercase())?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::anywhere("group {group} is not viable", "qemu: vfio 0000:81:00.0: group 16 is not viable", &[(Capture::Group, "16")])]
    #[case::bdf_before_a_colon("{bdf}: not ready", "vfio-pci 0000:81:00.0: not ready 1023ms", &[(Capture::Bdf, "0000:81:00.0")])]
    #[case::bdf_without_domain("device [{bdf}] fault", "DMAR: device [81:00.0] fault", &[(Capture::Bdf, "0000:81:00.0")])]
    #[case::bdf_of_a_wide_domain("{bdf}: not ready", "x 10000:e1:00.0: not ready", &[(Capture::Bdf, "10000:e1:00.0")])]
    #[case::slot("Xid (PCI:{slot}): 79,", "NVRM: Xid (PCI:0000:01:00): 79, pid=1", &[(Capture::Slot, "0000:01:00.0")])]
    #[case::star("not ready {number}ms after * giving up", "not ready 65535ms after bus reset; giving up", &[(Capture::Number, "65535")])]
    #[case::second_place("{number} pages are free", "7 of 12 pages are free", &[(Capture::Number, "12")])]
    #[case::word_to_a_text("Property '{word}' not found", "Property 'vfio-pci.foo' not found", &[(Capture::Word, "vfio-pci.foo")])]
    #[case::word_at_the_end("probe failed by {word}", "probe failed by me now", &[(Capture::Word, "me")])]
    #[case::hex("fault addr {hex} and", "fault addr 0xfee00 and", &[(Capture::Hex, "0xfee00")])]
    fn a_pattern_matches_and_captures(
        #[case] pattern: &str,
        #[case] line: &str,
        #[case] expected: &[(Capture, &str)],
    ) {
        let captures = pattern.parse::<Pattern>().unwrap().find(line);
        let expected: Captures = expected.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        assert_eq!(captures, Some(expected));
    }

    #[rstest]
    #[case::other_order("one thing * another thing", "another thing and one thing")]
    #[case::no_address("vfio-pci {bdf}: not ready", "vfio-pci 0000: not ready")]
    #[case::device_number_too_large("vfio-pci {bdf}: not ready", "vfio-pci 0000:81:20.0: not ready")]
    #[case::blank_in_a_word("Property '{word}' not found", "Property 'a b' not found")]
    #[case::empty("group {group} is not viable", "")]
    fn a_pattern_matches_nothing_else(#[case] pattern: &str, #[case] line: &str) {
        assert_eq!(pattern.parse::<Pattern>().unwrap().find(line), None);
    }

    #[rstest]
    #[case::too_little_text("{bdf}: no")]
    #[case::only_a_star("*")]
    #[case::star_at_the_end("a long enough text*")]
    #[case::unknown_capture("a long enough text {foo}")]
    #[case::open_brace("a long enough text {bdf")]
    fn a_bad_pattern_is_refused(#[case] pattern: &str) {
        assert!(pattern.parse::<Pattern>().is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_looked_through_without_a_panic(line in "\\PC{0,200}") {
            for pattern in ["Property '{word}' not found", "{bdf}: not ready {number}ms * up", "[{path}] of the image"] {
                pattern.parse::<Pattern>().unwrap().find(&line);
            }
        }
    }
}
