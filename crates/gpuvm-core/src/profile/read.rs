//! Reads typed leaves out of a table, remembers which keys are known, and collects what is wrong.

use std::str::FromStr;

use super::language::{Key, Kind};
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

/// A value that may not have been written.
pub(crate) type Leaf<T> = Option<Located<T>>;

/// A closed set of words that a key takes.
pub(crate) trait Choice: Copy + 'static {
    /// The words and what they mean.
    const WORDS: &'static [(&'static str, Self)];
}

/// Reads one table's keys; [`Cursor::finish`] reports the keys that nobody asked for.
pub(crate) struct Cursor<'a> {
    table: &'a Table,
    path: String,
    keys: &'static [Key],
}

impl<'a> Cursor<'a> {
    /// Starts at a table whose keys have this path before them (empty at the root).
    pub(crate) fn new(table: &'a Table, path: String, keys: &'static [Key]) -> Self {
        Self { table, path, keys }
    }

    /// Returns the place of the table itself.
    pub(crate) fn place(&self) -> Place {
        self.table.place.clone()
    }

    /// Returns the full path of a key of this table.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        debug_assert!(self.known(key).is_some(), "the language doesn't have {key}");
        self.table.get(key)
    }

    fn known(&self, key: &str) -> Option<&'static Key> {
        self.keys.iter().find(|known| known.name == key)
    }

    /// Returns the keys of the tables that a key holds.
    fn keys_below(&self, key: &str) -> &'static [Key] {
        match self.known(key).map(|known| known.kind) {
            Some(Kind::Table(keys) | Kind::Tables(keys)) => keys,
            _ => &[],
        }
    }

    fn expected(&self, key: &str) -> String {
        self.known(key).map(|known| known.kind.expected()).unwrap_or_default()
    }

    fn wrong_type(&self, entry: &Entry) -> Problem {
        let key = self.key(&entry.key);
        let (found, expected) = (entry.value.type_name(), self.expected(&entry.key));
        Problem {
            key: key.clone(),
            place: entry.place.clone(),
            kind: ProblemKind::Type { key, found, expected },
        }
    }

    /// Reads a string.
    pub(crate) fn text(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<Located<String>> {
        let entry = self.entry(key)?;
        match &entry.value {
            Value::String(text) => Some(Located { value: text.clone(), place: entry.place.clone() }),
            _ => {
                problems.push(self.wrong_type(entry));
                None
            }
        }
    }

    /// Reads an integer.
    pub(crate) fn integer(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Located<i128>> {
        let entry = self.entry(key)?;
        match &entry.value {
            Value::Integer(number) => Some(Located { value: *number, place: entry.place.clone() }),
            _ => {
                problems.push(self.wrong_type(entry));
                None
            }
        }
    }

    /// Reads an integer in a range.
    pub(crate) fn count(
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
    pub(crate) fn parsed<T: FromStr<Err: ToString>>(
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
    pub(crate) fn choice<T: Choice>(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Located<T>> {
        let Located { value, place } = self.text(key, problems)?;
        if let Some((_, choice)) = T::WORDS.iter().find(|(word, _)| *word == value) {
            return Some(Located { value: *choice, place });
        }
        let (key, expected) = (self.key(key), self.expected(key));
        problems.push(Problem {
            key: key.clone(),
            place,
            kind: ProblemKind::Choice { key, value, expected },
        });
        None
    }

    /// Reads `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Leaf<bool> {
        let entry = self.entry(key)?;
        match &entry.value {
            Value::Boolean(value) => Some(Located { value: *value, place: entry.place.clone() }),
            _ => {
                problems.push(self.wrong_type(entry));
                None
            }
        }
    }

    /// Tells whether a key holds an array, for keys that take a word as well.
    pub(crate) fn is_list(&mut self, key: &'static str) -> bool {
        self.entry(key).is_some_and(|entry| matches!(entry.value, Value::Array(_)))
    }

    /// Tells whether a key is written at all.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Tells whether a key holds an array of nothing.
    pub(crate) fn is_empty_list(&self, key: &str) -> bool {
        self.table
            .get(key)
            .is_some_and(|entry| matches!(&entry.value, Value::Array(items) if items.is_empty()))
    }

    fn list(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<&'a Entry> {
        let entry = self.entry(key)?;
        if !matches!(entry.value, Value::Array(_)) {
            problems.push(self.wrong_type(entry));
            return None;
        }
        Some(entry)
    }

    /// Reads an array of strings, each of which parses as a type of ours.
    pub(crate) fn list_parsed<T: FromStr<Err: ToString>>(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Vec<Located<T>> {
        let items = match self.list(key, problems).map(|entry| &entry.value) {
            Some(Value::Array(items)) => items.as_slice(),
            _ => &[],
        };
        let mut values = Vec::new();
        for (index, (item, place)) in items.iter().enumerate() {
            let key = format!("{}.{index}", self.key(key));
            let kind = match item {
                Value::String(text) => match text.parse::<T>() {
                    Ok(value) => {
                        values.push(Located { value, place: place.clone() });
                        continue;
                    }
                    Err(error) => ProblemKind::Value { key: key.clone(), message: error.to_string() },
                },
                other => ProblemKind::Type {
                    key: key.clone(),
                    found: other.type_name(),
                    expected: "a string".to_owned(),
                },
            };
            problems.push(Problem { key, place: place.clone(), kind });
        }
        values
    }

    /// Reads an array of integers in a range.
    pub(crate) fn list_of_counts(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u32>,
        problems: &mut Vec<Problem>,
    ) -> Leaf<Vec<u32>> {
        let entry = self.list(key, problems)?;
        let Value::Array(items) = &entry.value else { return None };
        let before = problems.len();
        let mut values = Vec::new();
        for (index, (item, place)) in items.iter().enumerate() {
            let key = format!("{}.{index}", self.key(key));
            let kind = match item {
                Value::Integer(value) => {
                    match u32::try_from(*value).ok().filter(|count| range.contains(count)) {
                        Some(count) => {
                            values.push(count);
                            continue;
                        }
                        None => {
                            let (low, high) = (*range.start(), *range.end());
                            ProblemKind::Range { key: key.clone(), value: *value, low, high }
                        }
                    }
                }
                other => ProblemKind::Type {
                    key: key.clone(),
                    found: other.type_name(),
                    expected: "an integer".to_owned(),
                },
            };
            problems.push(Problem { key, place: place.clone(), kind });
        }
        (problems.len() == before).then(|| Located { value: values, place: entry.place.clone() })
    }

    /// Enters a table.
    pub(crate) fn table(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<Cursor<'a>> {
        let entry = self.entry(key)?;
        match &entry.value {
            Value::Table(table) => Some(Cursor::new(table, self.key(key), self.keys_below(key))),
            _ => {
                problems.push(self.wrong_type(entry));
                None
            }
        }
    }

    /// Enters each table of an array of tables; paths count from 0.
    pub(crate) fn tables(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Vec<Cursor<'a>> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let Value::Array(items) = &entry.value else {
            problems.push(self.wrong_type(entry));
            return Vec::new();
        };
        let mut cursors = Vec::new();
        for (index, (item, place)) in items.iter().enumerate() {
            let path = format!("{}.{index}", self.key(key));
            match item {
                Value::Table(table) => cursors.push(Cursor::new(table, path, self.keys_below(key))),
                other => {
                    let kind = ProblemKind::Type {
                        key: path.clone(),
                        found: other.type_name(),
                        expected: "a table".to_owned(),
                    };
                    problems.push(Problem { key: path, place: place.clone(), kind });
                }
            }
        }
        cursors
    }

    /// Reports each key that was never asked for, with the nearest that was.
    pub(crate) fn finish(self, problems: &mut Vec<Problem>) {
        for entry in &self.table.entries {
            if self.known(&entry.key).is_some() {
                continue;
            }
            let key = self.key(&entry.key);
            let kind = ProblemKind::UnknownKey { key: key.clone(), nearest: nearest(&entry.key, self.keys) };
            problems.push(Problem { key, place: entry.key_place.clone(), kind });
        }
    }
}

/// Finds the known key that a slip of a finger away from this one.
fn nearest(key: &str, known: &[Key]) -> Option<&'static str> {
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known.name, key), known.name))
        .filter(|(distance, word)| *distance <= 2.max(word.len() / 3) && *distance < word.len())
        .min()
        .map(|(_, word)| word)
}
