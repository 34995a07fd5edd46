//! One figure over the cycles: a small chart.

use std::fmt::Write;

use super::super::slots::Slots;
use super::super::words;
use super::{Anchor, Scale, Svg, center, cycle_axis, number, ticks};

/// What a chart's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Unit {
    /// Times in ms.
    Time,
    /// Anything else, with its unit's name.
    Of(&'static str),
}

/// A figure over the cycles.
#[derive(Debug)]
pub(in super::super) struct Series<'a> {
    pub(in super::super) title: &'a str,
    pub(in super::super) unit: Unit,
    /// The value in each cycle's place.
    pub(in super::super) values: Vec<Option<f64>>,
}

const WIDTH: f64 = 390.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 118.0;
/// Up to so many, each value has a dot.
const DOTS: usize = 60;

/// Draws it. Where several cycles share a place, there is a band from the least to the largest value, and a line of the medians.
pub(in super::super) fn draw(slots: &Slots<'_>, series: &Series<'_>) -> String {
    let values: Vec<f64> =
        series.values.iter().flatten().copied().filter(|value| value.is_finite()).collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min).min(0.0);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max).max(least);
    let most = if most == least { least + 1.0 } else { most };
    let (unit, length) = match series.unit {
        Unit::Time => words::unit_of_time(most),
        Unit::Of(unit) => (unit, 1.0),
    };
    let marks = ticks(least / length, most / length, 3);
    let ends = [marks.first(), marks.last()].map(|mark| mark.copied().unwrap_or_default() * length);
    let scale = Scale { from: ends[0], to: ends[1], place: (BOTTOM, TOP) };
    let across = (LEFT, WIDTH - 14.0);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    for mark in &marks {
        let y = scale.at(mark * length);
        svg.line("grid", [across.0, y, across.1, y]);
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        svg.text("label", (LEFT - 6.0, y + 4.0), Anchor::End, &format!("{}{unit}", words::figure(*mark)));
    }
    let (band, line, dots) = paths(slots, &series.values, across, scale);
    svg.path("band", &band);
    svg.path("curve", &line);
    svg.path("dots", &dots);
    cycle_axis(&mut svg, slots, across, BOTTOM, 5);
    svg.finish(series.title, &described(series, &values))
}

fn described(series: &Series<'_>, values: &[f64]) -> String {
    let Some(last) = values.last() else { return "No values.".to_owned() };
    let spell = |value: f64| match series.unit {
        Unit::Time => format!("{} ms", words::figure(value)),
        Unit::Of(unit) => format!("{} {unit}", words::figure(value)).trim_end().to_owned(),
    };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!(
        "{} over the cycles: {} values from {} to {}, the last {}.",
        series.title,
        values.len(),
        spell(least),
        spell(most),
        spell(*last)
    )
}

/// Returns the paths of band, line and dots. The line has a gap where there is no value.
fn paths(
    slots: &Slots<'_>,
    values: &[Option<f64>],
    across: (f64, f64),
    scale: Scale,
) -> (String, String, String) {
    let count = slots.0.len();
    let (mut band, mut line, mut dots) = (String::new(), String::new(), String::new());
    let mut is_drawing = false;
    for (range, _) in slots.bins() {
        let middle = f64::midpoint(
            center(range.start, count, across),
            center(range.end.saturating_sub(1).max(range.start), count, across),
        );
        let mut here: Vec<f64> = values.get(range).unwrap_or_default().iter().flatten().copied().collect();
        here.retain(|value| value.is_finite());
        here.sort_by(f64::total_cmp);
        let (Some(first), Some(last)) = (here.first(), here.last()) else {
            // A kind of cycle that is rare would have no line at all otherwise.
            is_drawing &= count > DOTS;
            continue;
        };
        let x = number(middle);
        let median = here.get((here.len() - 1) / 2).copied().unwrap_or(*first);
        let y = number(scale.at(median));
        write!(line, "{}{x} {y}", if is_drawing { "L" } else { "M" }).ok();
        is_drawing = true;
        if last > first {
            write!(band, "M{x} {}V{}", number(scale.at(*first)), number(scale.at(*last))).ok();
        }
        if count <= DOTS {
            write!(dots, "M{x} {y}h0").ok();
        }
    }
    (band, line, dots)
}
