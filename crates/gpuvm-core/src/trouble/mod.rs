//! What a message of the kernel, of QEMU or of a guest's driver means, and what to do about it.
//!
//! The messages are data: `messages.toml` beside this file, compiled in. [`explain`] looks a line up, [`explain_all`] a whole log.

mod pattern;
mod table;

use std::collections::BTreeMap;

use serde::Serialize;

pub use pattern::Capture;
pub use table::{Confidence, Origin};

use crate::doctor::Distribution;
use crate::pci::{Bdf, GroupId};
use crate::qemu::cmdline::quote;
use pattern::Captures;
use table::{Entry, TABLE};

/// The most of a line that is looked at: messages are far shorter, and what comes in may be anything.
const MAX_LINE: usize = 2048;

/// What is known beside the message, for commands that need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// The device that it is about, where the message names none.
    pub bdf: Option<Bdf>,
    /// The group that it is about, where the message names none.
    pub group: Option<GroupId>,
    /// Whose commands to give.
    pub distribution: Distribution,
}

/// What a message means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The name of this meaning.
    pub id: &'static str,
    /// Who prints such messages.
    pub source: Origin,
    /// The message, as it was found, without control characters.
    pub line: String,
    /// How many lines of the text mean the same.
    pub count: usize,
    /// Why it is printed.
    pub cause: &'static str,
    /// What to do next, in order.
    pub commands: Vec<String>,
    /// Why there are no commands, where there are none.
    pub none: Option<&'static str>,
    /// How sure that is.
    pub confidence: Confidence,
    /// Where it is known from.
    pub fact: &'static str,
    /// The first kernel that does so, where only some do.
    pub since: Option<&'static str>,
    /// The last kernel that does so.
    pub until: Option<&'static str>,
}

/// Explains one line; none where no message that is known is in it. Of several that match, the one with the most literal text is taken.
pub fn explain(line: &str, context: &Context) -> Option<Explanation> {
    let line = clean(line);
    let (entry, captures) =
        TABLE.patterns().find_map(|(entry, pattern)| Some((entry, pattern.find(&line)?)))?;
    Some(explanation(entry, line, &captures, context))
}

/// Explains a text of many lines, in the order of the lines; what is said again is counted.
pub fn explain_all(text: &str, context: &Context) -> Vec<Explanation> {
    let mut all: Vec<Explanation> = Vec::new();
    let mut places: BTreeMap<(&str, Vec<String>), usize> = BTreeMap::new();
    for found in text.lines().filter_map(|line| explain(line, context)) {
        let key = (found.id, found.commands.clone());
        match places.get(&key) {
            Some(place) => all[*place].count += 1,
            None => {
                places.insert(key, all.len());
                all.push(found);
            }
        }
    }
    all
}

/// Returns a known meaning by its name, for an error of gpuvm's own that means the same.
pub fn known(id: &str, context: &Context) -> Option<Explanation> {
    let entry = TABLE.entry(id)?;
    Some(explanation(entry, String::new(), &Captures::new(), context))
}

fn explanation(entry: &'static Entry, line: String, captures: &Captures, context: &Context) -> Explanation {
    let fill = |command: &String| filled(command, captures, context);
    let mut commands: Vec<String> = entry.commands.iter().map(fill).collect();
    for option in &entry.kernel_options {
        commands.extend(match context.distribution.kernel_option(option) {
            lines if lines.is_empty() => {
                vec![format!("# boot with {option} on the kernel's command line")]
            }
            lines => lines,
        });
    }
    Explanation {
        id: &entry.id,
        source: entry.source,
        line,
        count: 1,
        cause: &entry.cause,
        commands,
        none: entry.none.as_deref(),
        confidence: entry.confidence,
        fact: &entry.fact,
        since: entry.since.as_deref(),
        until: entry.until.as_deref(),
    }
}

/// Puts what is known in the places of a command. What isn't known stands there in capitals, for the reader to put in.
fn filled(command: &str, captures: &Captures, context: &Context) -> String {
    let mut filled = String::new();
    let mut rest = command;
    while let Some((before, behind)) = rest.split_once('{') {
        filled.push_str(before);
        let (name, behind) = behind.split_once('}').unwrap_or((behind, ""));
        if let Some(capture) = Capture::named(name) {
            filled.push_str(&value(capture, captures, context));
        }
        rest = behind;
    }
    filled.push_str(rest);
    filled
}

fn value(capture: Capture, captures: &Captures, context: &Context) -> String {
    let known = match capture {
        Capture::Bdf | Capture::Slot => context.bdf.map(|bdf| bdf.to_string()),
        Capture::Group => context.group.map(|group| group.to_string()),
        _ => None,
    };
    let twin = match capture {
        Capture::Bdf => Capture::Slot,
        Capture::Slot => Capture::Bdf,
        other => other,
    };
    match captures.get(&capture).or_else(|| captures.get(&twin)) {
        // Whoever wrote the message chose these words; a command is pasted into a shell.
        Some(value) if matches!(capture, Capture::Word | Capture::Path) => quote(value.as_ref()),
        Some(value) => value.clone(),
        None => known.unwrap_or_else(|| capture.unknown()),
    }
}

/// Cuts a line to what can be a message, and takes out what a terminal would act upon.
fn clean(line: &str) -> String {
    let text = line.chars().take(MAX_LINE);
    text.map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests;
