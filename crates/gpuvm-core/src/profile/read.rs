//! Reads typed leaves out of a table, remembers which keys are known, and collects what is wrong.

use std::str::FromStr;

use super::problem::{Problem, ProblemKind};
use super::tree::{Entry, Place, Table, Value};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// A closed set of words that a key takes.
pub(super) trait Choice: Copy + 'static {
    /// The words and what they mean.
    const WORDS: &'static [(&'static str, Self)];
}

/// Reads one table's keys; [`Cursor::finish`] reports the keys that nobody asked for.
pub(super) struct Cursor<'a> {
    table: &'a Table,
    path: String,
    known: Vec<&'static str>,
}

impl<'a> Cursor<'a> {
    /// Starts at a table whose keys have this path before them (empty at the root).
    pub(super) fn new(table: &'a Table, path: String) -> Self {
        Self { table, path, known: Vec::new() }
    }

    /// Returns the place of the table itself.
    pub(super) fn place(&self) -> Place {
        self.table.place.clone()
    }

    /// Returns the full path of a key of this table.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        self.known.push(key);
        self.table.get(key)
    }

    fn wrong_type(&self, entry: &Entry, expected: &'static str) -> Problem {
        let key = self.key(&entry.key);
        let found = entry.value.type_name();
        Problem {
            key: key.clone(),
            place: entry.place.clone(),
            kind: ProblemKind::Type { key, found, expected },
        }
    }

    /// Reads a string.
    pub(super) fn text(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<Located<String>> {
        let entry = self.entry(key)?;
        match &entry.value {
            Value::String(text) => Some(Located { value: text.clone(), place: entry.place.clone() }),
            _ => {
                problems.push(self.wrong_type(entry, "a string"));
                None
            }
        }
    }

    /// Reads an integer.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Located<i128>> {
        let entry = self.entry(key)?;
        match &entry.value {
            Value::Integer(number) => Some(Located { value: *number, place: entry.place.clone() }),
            _ => {
                problems.push(self.wrong_type(entry, "an integer"));
                None
            }
        }
    }

    /// Reads an integer in a range.
    pub(super) fn count(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u32>,
        problems: &mut Vec<Problem>,
    ) -> Option<Located<u32>> {
        let Located { value, place } = self.integer(key, problems)?;
        match u32::try_from(value).ok().filter(|count| range.contains(count)) {
            Some(value) => Some(Located { value, place }),
            None => {
                let (key, low, high) = (self.key(key), *range.start(), *range.end());
                let kind = ProblemKind::Range { key: key.clone(), value, low, high };
                problems.push(Problem { key, place, kind });
                None
            }
        }
    }

    /// Reads a string that parses as a type of ours.
    pub(super) fn parsed<T: FromStr<Err: ToString>>(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Located<T>> {
        let Located { value, place } = self.text(key, problems)?;
        match value.parse() {
            Ok(value) => Some(Located { value, place }),
            Err(error) => {
                let key = self.key(key);
                let kind = ProblemKind::Value { key: key.clone(), message: error.to_string() };
                problems.push(Problem { key, place, kind });
                None
            }
        }
    }

    /// Reads one of a closed set of words.
    pub(super) fn choice<T: Choice>(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Located<T>> {
        let Located { value, place } = self.text(key, problems)?;
        if let Some((_, choice)) = T::WORDS.iter().find(|(word, _)| *word == value) {
            return Some(Located { value: *choice, place });
        }
        let key = self.key(key);
        let expected = T::WORDS.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        problems.push(Problem {
            key: key.clone(),
            place,
            kind: ProblemKind::Choice { key, value, expected },
        });
        None
    }

    /// Enters a table.
    pub(super) fn table(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<Cursor<'a>> {
        let entry = self.entry(key)?;
        match &entry.value {
            Value::Table(table) => Some(Cursor::new(table, self.key(key))),
            _ => {
                problems.push(self.wrong_type(entry, "a table"));
                None
            }
        }
    }

    /// Enters each table of an array of tables; paths count from 0.
    pub(super) fn tables(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Vec<Cursor<'a>> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let Value::Array(items) = &entry.value else {
            problems.push(self.wrong_type(entry, "an array of tables"));
            return Vec::new();
        };
        let mut cursors = Vec::new();
        for (index, (item, place)) in items.iter().enumerate() {
            let path = format!("{}.{index}", self.key(key));
            match item {
                Value::Table(table) => cursors.push(Cursor::new(table, path)),
                other => {
                    let kind = ProblemKind::Type {
                        key: path.clone(),
                        found: other.type_name(),
                        expected: "a table",
                    };
                    problems.push(Problem { key: path, place: place.clone(), kind });
                }
            }
        }
        cursors
    }

    /// Reports each key that was never asked for, with the nearest that was.
    pub(super) fn finish(self, problems: &mut Vec<Problem>) {
        for entry in &self.table.entries {
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            let key = self.key(&entry.key);
            let kind =
                ProblemKind::UnknownKey { key: key.clone(), nearest: nearest(&entry.key, &self.known) };
            problems.push(Problem { key, place: entry.key_place.clone(), kind });
        }
    }
}

/// Finds the known key that a slip of a finger away from this one.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(word, key), *word))
        .filter(|(distance, word)| *distance <= 2.max(word.len() / 3) && *distance < word.len())
        .min()
        .map(|(_, word)| word)
}
