//! A device over the cycles: its link, and the errors that were counted.

use std::fmt::Write;

use super::super::slots::Slots;
use super::{Anchor, GUTTER, RIGHT, Svg, WIDE, at, center, cycle_axis, number};
use crate::facts::ErrorCounters;
use crate::pci::Bdf;
use crate::soak::DeviceCycle;
use crate::soak::tally::float;

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

/// Draws it.
pub(in super::super) fn draw(slots: &Slots<'_>, bdf: Bdf) -> String {
    let across = (GUTTER, WIDE - RIGHT - 60.0);
    let of: Vec<Option<&DeviceCycle>> =
        slots.0.iter().map(|slot| slot.cycle?.devices.iter().find(|device| device.bdf == bdf)).collect();
    let mut svg = Svg::new(WIDE, 4.0 * ROW + 30.0);
    let mut description = links(&mut svg, &of, across);
    for (nth, (name, errors)) in (1..).zip(ERRORS) {
        let y = f64::from(nth) * ROW;
        let counts: Vec<u64> =
            of.iter().map(|device| device.map_or(0, |device| errors(&device.errors))).collect();
        let sum = counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        svg.rect("row", [across.0, y, across.1 - across.0, ROW - 4.0]);
        svg.text("label", (GUTTER - 8.0, y + 14.0), Anchor::End, name);
        svg.text("label", (across.1 + 8.0, y + 14.0), Anchor::Begin, &format!("sum {sum}"));
        svg.path("errors", &bars(slots, &counts, across, y + ROW - 4.0));
        write!(description, " {sum} {name} errors.").ok();
    }
    cycle_axis(&mut svg, slots, across, 4.0 * ROW, 10);
    svg.text("label", (0.0, 4.0 * ROW + 17.0), Anchor::Begin, "cycle");
    svg.finish(&format!("Link and errors of {bdf}"), &description)
}

/// Draws the link: a block for each stretch of cycles in which it was the same, with its words where they fit.
fn links(svg: &mut Svg, of: &[Option<&DeviceCycle>], across: (f64, f64)) -> String {
    svg.text("label", (GUTTER - 8.0, 14.0), Anchor::End, "link");
    let states: Vec<Option<String>> = of.iter().map(|device| device.and_then(link)).collect();
    let usual = usual(&states);
    let x = |place: usize| across.0 + at(place) / at(of.len().max(1)) * (across.1 - across.0);
    let (mut begin, mut runs) = (0, 0);
    for run in states.chunk_by(|a, b| a == b) {
        let (from, to) = (x(begin), x(begin + run.len()));
        if let Some(Some(state)) = run.first() {
            let class = if Some(state) == usual.as_ref() { "usual" } else { "unusual" };
            runs += 1;
            // A link that changes from cycle to cycle is told of in the findings; a picture has no room for all.
            if runs <= super::super::slots::MOST {
                svg.rect(class, [from, 0.0, (to - from).max(1.0), ROW - 4.0]);
            }
            let wide = at(state.chars().count()) * 8.0 + 10.0;
            if to - from > wide {
                svg.text("label", (from + 6.0, 14.0), Anchor::Begin, state);
            }
        }
        begin += run.len();
    }
    match (usual, runs) {
        (None, _) => "Its link was not told.".to_owned(),
        (Some(usual), 1) => format!("Its link was {usual} all the time."),
        (Some(usual), _) => format!("Its link was mostly {usual}, and changed {} times.", runs - 1),
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

/// Lists in a sentence what the links and the errors of all cycles come to, where nothing ever happened.
pub(in super::super) fn is_quiet(slots: &Slots<'_>, bdf: Bdf) -> Option<String> {
    let mut states: Vec<Option<String>> = Vec::new();
    for device in slots.cycles().flat_map(|cycle| &cycle.devices).filter(|device| device.bdf == bdf) {
        if device.errors != ErrorCounters::default() {
            return None;
        }
        let state = link(device);
        if !states.contains(&state) {
            states.push(state);
        }
    }
    match states.as_slice() {
        [] => Some("it was in no cycle".to_owned()),
        [None] => Some("its link was not told, and no errors were counted".to_owned()),
        [Some(state)] => Some(format!("its link was {state} after every cycle, and no errors were counted")),
        _ => None,
    }
}
