//! The table of messages: parsed once, from a text that is compiled in.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::pattern::{Capture, Pattern};

/// The table's text.
pub(super) const TEXT: &str = include_str!("messages.toml");

/// The table. A text that doesn't parse fails a test; here it would only mean that nothing is explained.
pub(super) static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(TEXT).unwrap_or_default());

/// Who prints a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The host's kernel, in its log.
    Kernel,
    /// QEMU, on standard error.
    Qemu,
    /// The guest's firmware.
    Ovmf,
    /// The guest: its kernel or a driver in it.
    Guest,
}

/// How sure an explanation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Read in the source of what prints it, or seen to be so.
    Certain,
    /// What it mostly is.
    Likely,
    /// What one report found.
    OneReport,
}

/// One meaning.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) source: Origin,
    pub(super) patterns: Vec<String>,
    /// Real messages. The tests match them; nothing else reads them.
    #[allow(dead_code, reason = "for the tests, and for whoever reads the table")]
    pub(super) examples: Vec<String>,
    pub(super) cause: String,
    #[serde(default)]
    pub(super) commands: Vec<String>,
    /// Options for the kernel's command line, which each distribution has its own way to add.
    #[serde(default)]
    pub(super) kernel_options: Vec<String>,
    pub(super) none: Option<String>,
    pub(super) fact: String,
    pub(super) since: Option<String>,
    pub(super) until: Option<String>,
    pub(super) confidence: Confidence,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    message: Vec<Entry>,
}

/// All meanings.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    /// Each pattern with the index of its entry, the one with the most literal text first; among equals in the order of the text.
    patterns: Vec<(usize, Pattern)>,
}

impl Table {
    /// Parses and checks the table.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let File { message: entries } = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut ids = BTreeSet::new();
        let mut patterns = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            check(entry).map_err(|problem| format!("{}: {problem}", entry.id))?;
            if !ids.insert(&entry.id) {
                return Err(format!("{}: there are two of this id", entry.id));
            }
            for text in &entry.patterns {
                patterns.push((index, text.parse().map_err(|problem| format!("{}: {problem}", entry.id))?));
            }
        }
        patterns.sort_by_key(|(_, pattern): &(usize, Pattern)| std::cmp::Reverse(pattern.weight()));
        Ok(Self { entries, patterns })
    }

    /// Lists all patterns in the order in which they are tried.
    pub(super) fn patterns(&self) -> impl Iterator<Item = (&Entry, &Pattern)> {
        self.patterns.iter().map(|(index, pattern)| (&self.entries[*index], pattern))
    }

    /// Returns an entry by its id.
    pub(super) fn entry(&self, id: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

fn check(entry: &Entry) -> Result<(), String> {
    let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if entry.id.is_empty() || !entry.id.chars().all(kebab) {
        return Err("an id is lower case letters, digits and -".to_owned());
    }
    if entry.patterns.is_empty()
        || entry.examples.is_empty()
        || entry.cause.is_empty()
        || entry.fact.is_empty()
    {
        return Err("a pattern, an example, a cause and a fact are needed".to_owned());
    }
    let does_something = !entry.commands.is_empty() || !entry.kernel_options.is_empty();
    if does_something == entry.none.is_some() {
        return Err("either there is something to do, or `none` says why not".to_owned());
    }
    if entry.commands.iter().any(|command| command.trim().is_empty()) {
        return Err("a command is empty".to_owned());
    }
    entry.commands.iter().try_for_each(|command| placeholders(command))
}

/// Checks that each brace of a command is a capture's.
fn placeholders(command: &str) -> Result<(), String> {
    let mut rest = command;
    while let Some((_, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').ok_or_else(|| format!("`{command}`: an open brace"))?;
        Capture::named(name).ok_or_else(|| format!("`{command}`: there is no capture `{name}`"))?;
        rest = behind;
    }
    Ok(())
}
