//! What couldn't be read.

use super::*;

/// The cases.
pub(in super::super) const UNREAD: &[Case] = &[
    Case(
        "header-only",
        "only the header could be read, as of whoever isn't root",
        "facts A7",
        |pair| {
            pair.both(|card| card.cut(64));
        },
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "cut-short-since",
        "less could be read than before",
        "facts A7",
        |pair| pair.after.cut(256),
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "resources-unread",
        "where its registers belong isn't known",
        "facts A7",
        |pair| pair.after.bars = unread(),
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "power-unread",
        "its power isn't known",
        "facts A7",
        |pair| pair.after.power_state = unread(),
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "errors-unread-before",
        "there is nothing to hold its counters against",
        "facts D2",
        |pair| {
            pair.before.errors = unread();
        },
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "errors-gone",
        "its counters are gone",
        "facts A6",
        |pair| pair.after.errors = Reading::Absent,
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "root-errors-unread",
        "what the root port counts isn't known",
        "facts A6",
        |pair| {
            pair.after.port.as_mut().unwrap().root_errors = unread();
        },
        Unknown,
        &[Check::Unread],
    ),
    Case(
        "never-there",
        "a kernel without power attributes, error counters and reset methods",
        "facts A8",
        |pair| {
            pair.both(|card| {
                (card.power, card.power_state) = (Reading::Absent, Reading::Absent);
                (card.errors, card.reset_methods) = (Reading::Absent, Reading::Absent);
                card.port.as_mut().unwrap().root_errors = Reading::Absent;
            });
        },
        Healthy,
        &[],
    ),
];
