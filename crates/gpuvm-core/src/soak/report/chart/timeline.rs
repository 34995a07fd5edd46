//! A device over the cycles: its link, and the errors that were counted.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::super::slots::{MOST, Slots};
use super::super::words;
use super::{Anchor, GUTTER, RIGHT, Svg, WIDE, at, center, cycle_axis, number};
use crate::facts::ErrorCounters;
use crate::pci::Bdf;
use crate::soak::tally::float;
use crate::soak::{Cycle, DeviceCycle};

const ROW: f64 = 24.0;

/// What a device's link was in a cycle; nothing where it wasn't told.
fn link(device: &DeviceCycle) -> Option<String> {
    match (device.speed, device.width) {
        (None, None) => None,
        (speed, Some(0)) => Some(speed.map_or_else(|| "down".to_owned(), |speed| format!("{speed}, down"))),
        (Some(speed), Some(width)) => Some(format!("{speed} x{width}")),
        (Some(speed), None) => Some(speed.to_string()),
        (None, Some(width)) => Some(format!("x{width}")),
    }
}

/// How many errors of a kind there are.
type Count = fn(&ErrorCounters) -> u64;

/// The kinds of errors, by the names that PCI Express has for them.
const ERRORS: [(&str, Count); 3] = [
    ("correctable", |errors| errors.correctable),
    ("non-fatal", |errors| errors.nonfatal),
    ("fatal", |errors| errors.fatal),
];

/// A device over the cycles.
#[derive(Debug)]
pub(in super::super) struct History<'a> {
    bdf: Bdf,
    /// What was told of it in each cycle's place.
    told: Vec<Option<&'a DeviceCycle>>,
    /// Its link in each.
    links: Vec<Option<String>>,
    /// The number of the cycle in each.
    numbers: Vec<u32>,
    /// The link that it had most often.
    usual: Option<String>,
}

impl<'a> History<'a> {
    pub(in super::super) fn of(slots: &Slots<'a>, bdf: Bdf) -> Self {
        let device = |cycle: &'a Cycle| cycle.devices.iter().find(|device| device.bdf == bdf);
        let told: Vec<_> = slots.0.iter().map(|slot| slot.cycle.and_then(device)).collect();
        let links: Vec<_> = told.iter().map(|device| device.and_then(link)).collect();
        let usual = usual(&links);
        Self { bdf, told, links, numbers: slots.0.iter().map(|slot| slot.number).collect(), usual }
    }

    fn sum(&self, errors: Count) -> u64 {
        let counts = self.told.iter().flatten().map(|device| errors(&device.errors));
        counts.fold(0, u64::saturating_add)
    }

    /// Tells whether nothing ever happened.
    pub(in super::super) fn is_quiet(&self) -> bool {
        self.links.iter().flatten().all(|link| Some(link) == self.usual.as_ref())
            && ERRORS.iter().all(|(_, errors)| self.sum(*errors) == 0)
    }

    /// Says what its link was and what errors were counted, in a sentence without its subject.
    pub(in super::super) fn words(&self) -> String {
        let others: BTreeSet<&String> =
            self.links.iter().flatten().filter(|link| Some(*link) != self.usual.as_ref()).collect();
        let mut words = match (&self.usual, others.is_empty()) {
            (None, _) => "its link was not told".to_owned(),
            (Some(usual), true) => format!("its link was {usual} after every cycle"),
            (Some(usual), false) => format!("its link was mostly {usual}"),
        };
        for other in others.into_iter().take(OTHERS) {
            let cycles =
                self.numbers.iter().zip(&self.links).filter(|(_, link)| link.as_ref() == Some(other));
            let cycles: Vec<u32> = cycles.map(|(number, _)| *number).collect();
            let cycle = if cycles.len() == 1 { "cycle" } else { "cycles" };
            write!(words, ", {other} after {cycle} {}", words::numbers(&cycles)).ok();
        }
        let errors = ERRORS.map(|(name, errors)| (name, self.sum(errors)));
        match errors.iter().all(|(_, count)| *count == 0) {
            true => words.push_str("; no errors were counted"),
            false => {
                let counted: Vec<String> =
                    errors.iter().map(|(name, count)| format!("{count} {name}")).collect();
                write!(words, "; errors: {}", counted.join(", ")).ok();
            }
        }
        words
    }
}

/// The most other links that are told of in words.
const OTHERS: usize = 4;

/// Draws it.
pub(in super::super) fn draw(slots: &Slots<'_>, history: &History<'_>) -> String {
    let across = (GUTTER, WIDE - RIGHT - 70.0);
    let mut svg = Svg::new(WIDE, 4.0 * ROW + 24.0);
    links(&mut svg, history, across);
    for (nth, (name, errors)) in (1..).zip(ERRORS) {
        let y = f64::from(nth) * ROW;
        let counts: Vec<u64> =
            history.told.iter().map(|device| device.map_or(0, |device| errors(&device.errors))).collect();
        svg.rect("row", [across.0, y, across.1 - across.0, ROW - 4.0]);
        svg.text("label", (GUTTER - 8.0, y + 14.0), Anchor::End, name);
        svg.text(
            "label",
            (across.1 + 8.0, y + 14.0),
            Anchor::Begin,
            &format!("sum {}", short(history.sum(errors))),
        );
        svg.path("errors", &bars(slots, &counts, across, y + ROW - 4.0));
    }
    cycle_axis(&mut svg, slots, across, 4.0 * ROW, 10);
    svg.text("label", (0.0, 4.0 * ROW + 17.0), Anchor::Begin, "cycle");
    svg.finish(&format!("Link and errors of {}", history.bdf), &history.words())
}

/// Spells a count in a few letters.
fn short(count: u64) -> String {
    if count < 100_000 { count.to_string() } else { words::figure(float(count)) }
}

/// Draws the link: a block for each stretch of cycles in which it was the same, with its words where they fit.
fn links(svg: &mut Svg, history: &History<'_>, across: (f64, f64)) {
    svg.text("label", (GUTTER - 8.0, 14.0), Anchor::End, "link");
    let x = |place: usize| across.0 + at(place) / at(history.links.len().max(1)) * (across.1 - across.0);
    let (mut begin, mut drawn) = (0, 0);
    for run in history.links.chunk_by(|a, b| a == b) {
        let (from, to) = (x(begin), x(begin + run.len()));
        begin += run.len();
        // A picture has no room for a link that changes from cycle to cycle over thousands of them; the words tell of it.
        let Some(Some(state)) = run.first().filter(|_| drawn < MOST) else { continue };
        drawn += 1;
        let class = if Some(state) == history.usual.as_ref() { "usual" } else { "unusual" };
        svg.rect(class, [from, 0.0, (to - from).max(1.0), ROW - 4.0]);
        if to - from > at(state.chars().count()) * 8.0 + 10.0 {
            svg.text("ink", (from + 6.0, 14.0), Anchor::Begin, state);
        }
    }
}

/// Returns the state that was there most often.
fn usual(states: &[Option<String>]) -> Option<String> {
    let mut counts: std::collections::BTreeMap<&String, usize> = std::collections::BTreeMap::new();
    states.iter().flatten().for_each(|state| *counts.entry(state).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(state, _)| state.clone())
}

/// Draws a bar for each place with errors, as high as the logarithm of their number.
fn bars(slots: &Slots<'_>, counts: &[u64], across: (f64, f64), bottom: f64) -> String {
    let mut path = String::new();
    let most = counts.iter().copied().max().unwrap_or_default();
    for (range, _) in slots.bins() {
        let sum =
            counts.get(range.clone()).unwrap_or_default().iter().fold(0u64, |sum, n| sum.saturating_add(*n));
        if sum > 0 {
            let part = (float(sum) + 1.0).ln() / (float(most.max(sum)) + 1.0).ln();
            let high = 5.0 + part.clamp(0.0, 1.0) * (ROW - 11.0);
            let x = center(range.start, slots.0.len(), across);
            let [x, y, high] = [x - 1.5, bottom - high, high].map(number);
            write!(path, "M{x} {y}h3v{high}h-3z").ok();
        }
    }
    path
}
