//! What `up --detach` waits for.

use std::str::FromStr;

use gpuvm_core::profile::Ready;
use regex::bytes::Regex;

/// How much of the console is matched at once: what is waited for is a line, or a few.
const WINDOW: usize = 16 << 10;

/// What is waited for.
#[derive(Debug, Clone)]
pub(crate) enum WaitFor {
    /// That the VM is reserved.
    None,
    /// What a profile can say as well.
    Ready(Ready),
}

impl FromStr for WaitFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(ready) => Ok(Self::Ready(ready)),
            Err(_) if text == "none" => Ok(Self::None),
            Err(error) if text.strip_prefix("console:").is_some_and(|said| !said.is_empty()) => Err(error),
            Err(_) => Err("expected running, console:REGEX or none".to_owned()),
        }
    }
}

/// Matches a console that comes in pieces.
pub(super) struct Matcher {
    expect: Regex,
    seen: Vec<u8>,
}

impl Matcher {
    pub(super) fn new(expect: Regex) -> Self {
        Self { expect, seen: Vec::new() }
    }

    /// Takes what was said, and tells whether it has shown by now.
    pub(super) fn shows(&mut self, bytes: &[u8]) -> bool {
        // A carriage return would keep `$` from the end of a line.
        self.seen.extend(bytes.iter().filter(|byte| **byte != b'\r'));
        let shows = self.expect.is_match(&self.seen);
        let old = self.seen.len().saturating_sub(WINDOW);
        self.seen.drain(..old);
        shows
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("none", "None")]
    #[case("running", "Ready(Running")]
    #[case("console:login:$", "Ready(Console")]
    fn what_is_waited_for_is_read(#[case] text: &str, #[case] wanted: &str) {
        assert!(format!("{:?}", text.parse::<WaitFor>().unwrap()).starts_with(wanted));
    }

    #[rstest]
    #[case("", "expected running, console:REGEX or none")]
    #[case("console:", "expected running, console:REGEX or none")]
    #[case("forever", "expected running, console:REGEX or none")]
    #[case("console:(", "makes no sense: unclosed group")]
    fn what_makes_no_sense_is_refused(#[case] text: &str, #[case] words: &str) {
        let error = text.parse::<WaitFor>().unwrap_err();
        assert!(error.ends_with(words), "{error}");
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_matched_once_it_is_there() {
        let Ok(Ready::Console(said)) = "console:^guest (is )?ready$".parse() else { panic!() };
        let mut matcher = Matcher::new(said.regex().clone());
        assert!(!matcher.shows(b"the guest is ready not\r\nguest is rea"));
        assert!(!matcher.shows(&b"x".repeat(3 * WINDOW)));
        assert!(!matcher.shows(b"\r\nguest is rea"));
        assert!(matcher.shows(b"dy\r\n"));
        assert!(matcher.seen.len() <= WINDOW);
    }
}
