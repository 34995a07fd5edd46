//! What can be wrong with a profile, typed so that the edge can add the remedy.

use super::tree::Place;

/// One thing that is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, like `device.1.bdf`; empty for the whole text.
    pub key: String,
    /// Where in the text.
    pub place: Place,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// The kinds of mistakes that a profile can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// The text is no TOML.
    #[error("{message}")]
    Syntax {
        /// The parser's own words.
        message: String,
    },
    /// A key that the language doesn't have.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key's path.
        key: String,
        /// The nearest key that is known, if one is near.
        nearest: Option<&'static str>,
    },
    /// A key that must be there isn't.
    #[error("`{key}` is missing")]
    Missing {
        /// The key's path.
        key: String,
        /// An example line.
        example: &'static str,
    },
    /// A value of another type.
    #[error("`{key}` is {found}, expected {expected}")]
    Type {
        /// The key's path.
        key: String,
        /// The type found, with its article.
        found: &'static str,
        /// What is expected, in words.
        expected: String,
    },
    /// A string that is none of the words the key takes.
    #[error("`{key}` is `{value}`, expected {expected}")]
    Choice {
        /// The key's path.
        key: String,
        /// What was written.
        value: String,
        /// What it takes, in words.
        expected: String,
    },
    /// A number outside its range.
    #[error("`{key}` is {value}, expected {low} to {high}")]
    Range {
        /// The key's path.
        key: String,
        /// What was written.
        value: i128,
        /// The least value taken.
        low: u32,
        /// The greatest value taken.
        high: u32,
    },
    /// A string that doesn't parse; the message is the type's own.
    #[error("`{key}`: {message}")]
    Value {
        /// The key's path.
        key: String,
        /// What is wrong with the value.
        message: String,
    },
    /// The profile is written for another version of the language.
    #[error("`version` is {found}; this gpuvm reads version {expected}", expected = super::VERSION)]
    Version {
        /// The version written.
        found: i128,
    },
    /// A key that another one must go with.
    #[error("`{key}` needs {other}")]
    Needs {
        /// The key's path.
        key: String,
        /// What must be written as well.
        other: &'static str,
    },
    /// A key that has no effect.
    #[error("`{key}` has no effect: {because}")]
    Pointless {
        /// The key's path.
        key: String,
        /// Why.
        because: &'static str,
    },
    /// The memory isn't a whole number of hugepages.
    #[error("`memory.size` is {size}, which isn't a whole number of {page} pages")]
    Unaligned {
        /// The size written.
        size: crate::units::ByteSize,
        /// The hugepage size.
        page: crate::units::PageSize,
    },
    /// The same disk twice.
    #[error("`{key}`: {path} is listed twice", path = path.display())]
    TwiceDisk {
        /// The second listing's key.
        key: String,
        /// The image or block device.
        path: std::path::PathBuf,
    },
    /// The same device twice.
    #[error("`{key}`: {bdf} is listed twice")]
    Twice {
        /// The second listing's key.
        key: String,
        /// The device.
        bdf: crate::pci::Bdf,
    },
}

impl ProblemKind {
    /// Returns what to do about it, where that isn't plain from the message.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            Self::Missing { key, example } if key.contains('.') => {
                Some(format!("write, for example:\n{example}"))
            }
            Self::Missing { example, .. } => {
                Some(format!("write, above the first [table], for example:\n{example}"))
            }
            Self::Type { key, found, expected } => type_hint(key, found, expected),
            Self::Unaligned { size, page } => {
                let whole = page.pages_for(*size) * page.as_bytes();
                Some(format!("write `{}`", crate::units::ByteSize::bytes(whole)))
            }
            Self::Pointless { .. } => Some("leave it out".to_owned()),
            _ => None,
        }
    }
}

/// Says how a value is spelt that was written as another type.
fn type_hint(key: &str, found: &str, expected: &str) -> Option<String> {
    match (found, expected) {
        ("a table", "an array of tables") => Some(format!("write [[{key}]]")),
        ("an array", "a table") => Some(format!("write [{key}]")),
        ("an integer" | "a float", "a string") => Some("put it in double quotes".to_owned()),
        ("a number in quotes", "an integer") | ("`true` or `false` in quotes", "`true` or `false`") => {
            Some("write it without quotes".to_owned())
        }
        (_, "an array of strings") => Some("write a list, as in [\"...\", \"...\"]".to_owned()),
        _ => None,
    }
}
