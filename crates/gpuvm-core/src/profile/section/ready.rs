//! `ready`.

use std::fmt;
use std::str::FromStr;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// When a VM counts as up, for those who wait for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Ready {
    /// As soon as its guest runs.
    #[default]
    Running,
    /// Once its serial port has said something.
    Console(Said),
}

/// A regular expression for what a serial port says, of which `^` and `$` mean a line's ends.
#[derive(Debug, Clone)]
pub struct Said {
    text: String,
    regex: Regex,
}

impl Said {
    /// Returns what matches it.
    pub fn regex(&self) -> &Regex {
        &self.regex
    }
}

impl PartialEq for Said {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Said {}

impl FromStr for Ready {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "running" {
            return Ok(Self::Running);
        }
        let Some(said) = text.strip_prefix("console:").filter(|said| !said.is_empty()) else {
            return Err("expected running or console:REGEX".to_owned());
        };
        let regex = RegexBuilder::new(said).multi_line(true).build().map_err(|error| words(&error))?;
        Ok(Self::Console(Said { text: said.to_owned(), regex }))
    }
}

/// Says what is wrong with a regular expression, in one line.
fn words(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    format!("the regular expression makes no sense: {}", last.strip_prefix("error: ").unwrap_or(last))
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Console(said) => write!(f, "console:{}", said.text),
        }
    }
}

impl TryFrom<String> for Ready {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Ready> for String {
    fn from(ready: Ready) -> Self {
        ready.to_string()
    }
}
