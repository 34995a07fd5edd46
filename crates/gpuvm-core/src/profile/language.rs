//! The profile language as data: every key, its type, its default and what it is for.
//!
//! The reader takes from here which keys it knows, and [`super::schema`] what an editor is told, so that the two can't drift
//! apart.

/// A key of a table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether it must be there, and what it is without.
    pub presence: Need,
    /// What it is for, in one sentence.
    pub doc: &'static str,
}

/// Whether a key must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It must.
    Required,
    /// It need not, and nothing takes its place.
    Optional,
    /// It need not; this is its default, spelt as in TOML.
    Default(&'static str),
}

/// What a key takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Any string.
    Text,
    /// A string that matches a regular expression (ECMA-262, as JSON Schema has them).
    Pattern(&'static str),
    /// One of a closed set of words.
    Words(fn() -> Vec<&'static str>),
    /// An integer in a range.
    Integer {
        /// The least value.
        low: u32,
        /// The greatest value.
        high: u32,
    },
    /// `true` or `false`.
    Flag,
    /// An array.
    List(&'static Self),
    /// One of several kinds.
    Either(&'static [Self]),
    /// A table.
    Table(&'static [Key]),
    /// An array of tables.
    Tables(&'static [Key]),
}

impl Kind {
    /// Says what is expected, as in "expected an array of strings".
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::Text | Self::Pattern(_) => "a string".to_owned(),
            Self::Words(words) => {
                let words: Vec<_> = words().iter().map(|word| format!("`{word}`")).collect();
                format!("one of {}", words.join(", "))
            }
            Self::Integer { .. } => "an integer".to_owned(),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::List(Self::Integer { .. }) => "an array of integers".to_owned(),
            Self::List(_) => "an array of strings".to_owned(),
            Self::Either(kinds) => kinds.iter().map(Self::expected).collect::<Vec<_>>().join(", or "),
            Self::Table(_) => "a table".to_owned(),
            Self::Tables(_) => "an array of tables".to_owned(),
        }
    }
}

impl Key {
    /// A key that must be there.
    pub(crate) const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { name, kind, presence: Need::Required, doc }
    }

    /// A key that may be left out.
    pub(crate) const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { name, kind, presence: Need::Optional, doc }
    }

    /// A key that has a default.
    pub(crate) const fn default(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { name, kind, presence: Need::Default(default), doc }
    }
}

/// Returns the words of a choice, for [`Kind::Words`].
pub(crate) fn words<T: super::read::Choice>() -> Vec<&'static str> {
    T::WORDS.iter().map(|(word, _)| *word).collect()
}

/// A PCI address with its domain or without.
pub(crate) const BDF: Kind = Kind::Pattern("^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-1][0-9a-fA-F]\\.[0-7]$");
/// A size: a positive integer with an optional K, M, G or T.
pub(crate) const SIZE: Kind = Kind::Pattern("^[0-9]+[KMGT]?$");

/// Returns the keys of a profile; those of its tables are below them.
pub fn root() -> &'static [Key] {
    super::raw::KEYS
}
