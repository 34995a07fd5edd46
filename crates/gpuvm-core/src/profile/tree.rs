//! TOML text as an owned tree whose every key and value knows its place.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, ProblemKind};

/// The texts that a profile is made of: the file, then each `--set KEY=VALUE` in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    texts: Vec<(String, String)>,
}

impl Sources {
    /// Starts with the profile's own text under the name that messages call it by.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { texts: vec![(name.into(), text.into())] }
    }

    /// Adds an override, `memory.size="8G"`; a value that is no TOML is taken as a string (`name=test`).
    pub fn with_override(mut self, assignment: &str) -> Self {
        let text = match assignment.split_once('=') {
            Some((key, value)) if !is_toml_value(value) => {
                format!("{key}={}", toml::Value::String(value.to_owned()))
            }
            _ => assignment.to_owned(),
        };
        self.texts.push((format!("--set {assignment}"), text));
        self
    }

    /// Returns the name and the text that a place points into.
    pub fn at(&self, place: &Place) -> Option<(&str, &str)> {
        self.texts.get(place.source).map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Returns the 1-based line of a place.
    pub fn line(&self, place: &Place) -> usize {
        let text = self.at(place).map_or("", |(_, text)| text);
        1 + text.bytes().take(place.start).filter(|b| *b == b'\n').count()
    }
}

fn is_toml_value(value: &str) -> bool {
    // A value with a newline could smuggle in further keys.
    !value.contains('\n') && DeTable::parse(&format!("v={value}")).is_ok()
}

/// A stretch of one of the sources' texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    source: usize,
    start: usize,
    end: usize,
}

impl Place {
    fn new(source: usize, span: Range<usize>) -> Self {
        Self { source, start: span.start, end: span.end }
    }

    /// Returns the place right behind this one.
    pub(crate) fn end(&self) -> Self {
        Self { source: self.source, start: self.end, end: self.end }
    }

    /// Returns the stretch in bytes.
    pub fn span(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// A table: its entries in the order of the text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
    pub(crate) place: Place,
}

/// One key and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) value: Value,
    pub(crate) place: Place,
}

/// A value; what gpuvm has no use for is kept only by the name of its type.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    String(String),
    Integer(i128),
    Boolean(bool),
    Array(Vec<(Value, Place)>),
    Table(Table),
    Other(&'static str),
}

impl Value {
    /// Returns the name of the value's type, as TOML calls it, with its article.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::String(text) if text.parse::<i128>().is_ok() => "a number in quotes",
            Self::String(text) if text.parse::<bool>().is_ok() => "`true` or `false` in quotes",
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}

impl Table {
    /// Returns the entry of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Lays another table over this one: tables are merged, all else is replaced.
    fn overlay(&mut self, over: Table) {
        for entry in over.entries {
            match self.entries.iter_mut().find(|mine| mine.key == entry.key) {
                Some(mine) => match (&mut mine.value, entry.value) {
                    (Value::Table(mine), Value::Table(theirs)) => mine.overlay(theirs),
                    (value, theirs) => {
                        *value = theirs;
                        mine.key_place = entry.key_place;
                        mine.place = entry.place;
                    }
                },
                None => self.entries.push(entry),
            }
        }
    }
}

/// Parses all sources into one table, or reports each syntax error.
pub(crate) fn parse(sources: &Sources, problems: &mut Vec<Problem>) -> Option<Table> {
    let mut merged: Option<Table> = None;
    let before = problems.len();
    for (source, (_, text)) in sources.texts.iter().enumerate() {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let place = Place::new(source, error.span().unwrap_or(0..0));
            let message = error.message().to_owned();
            problems.push(Problem { key: String::new(), place, kind: ProblemKind::Syntax { message } });
        }
        let table = convert_table(table.get_ref(), 0..text.len(), source);
        match &mut merged {
            Some(merged) => merged.overlay(table),
            None => merged = Some(table),
        }
    }
    (problems.len() == before).then_some(merged).flatten()
}

fn convert_table(table: &DeTable<'_>, span: Range<usize>, source: usize) -> Table {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().clone().into_owned(),
            key_place: Place::new(source, key.span()),
            value: convert(value, source),
            place: Place::new(source, value.span()),
        })
        .collect();
    entries.sort_by(|a, b| a.key_place.cmp(&b.key_place));
    Table { entries, place: Place::new(source, span) }
}

fn convert(value: &Spanned<DeValue<'_>>, source: usize) -> Value {
    match value.get_ref() {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("an integer that is too large"), Value::Integer),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Array(items) => Value::Array(
            items.iter().map(|item| (convert(item, source), Place::new(source, item.span()))).collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, value.span(), source)),
        DeValue::Float(_) => Value::Other("a float"),
        DeValue::Datetime(_) => Value::Other("a date"),
    }
}
