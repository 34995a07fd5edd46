//! How times are distributed: a strip of marks for each, with a box from the first to the third quarter.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::super::words::{self, duration};
use super::{Anchor, Scale, Svg, WIDE, number, ticks};
use crate::soak::tally::{Times, float};

const LEFT: f64 = 14.0;
const ROW: f64 = 62.0;

/// Draws one strip for each name. The axis is logarithmic where the longest is more than twenty times the shortest.
pub(in super::super) fn draw(title: &str, rows: &[(String, &Times)]) -> String {
    let all = rows.iter().flat_map(|(_, times)| times.sorted());
    let least = float(all.clone().copied().min().unwrap_or_default()).max(1.0);
    let most = float(all.copied().max().unwrap_or_default()).max(least);
    let is_log = most / least > 20.0;
    let down = ROW * super::at(rows.len());
    let mut svg = Svg::new(WIDE, down + 34.0);
    let marks = if is_log { powers(least, most) } else { ticks(0.0, most, 6) };
    let (from, to) = (marks.first().copied().unwrap_or(0.0), marks.last().copied().unwrap_or(1.0));
    let bend = |value: f64| if is_log { value.max(1.0).log10() } else { value };
    let scale = Scale { from: bend(from), to: bend(to), place: (LEFT, WIDE - 46.0) };
    for mark in &marks {
        let x = scale.at(bend(*mark));
        svg.line("grid", [x, 22.0, x, down]);
        svg.text("label", (x, down + 16.0), Anchor::Middle, &short(*mark));
    }
    let mut description = String::new();
    for (nth, (name, times)) in rows.iter().enumerate() {
        let Some(spread) = times.spread() else { continue };
        let words = format!(
            "{name}: {}, median {}, p95 {}, max {}",
            spread.count,
            duration(spread.p50),
            duration(spread.p95),
            duration(spread.max)
        );
        let top = ROW * super::at(nth);
        svg.text("name", (LEFT, top + 15.0), Anchor::Begin, &words);
        strip(&mut svg, times, top, |ms| scale.at(bend(float(ms))));
        write!(description, "{words}. ").ok();
    }
    description.push_str(if is_log { "The axis is logarithmic." } else { "The axis begins at 0." });
    svg.finish(title, &description)
}

fn strip(svg: &mut Svg, times: &Times, top: f64, place: impl Fn(u64) -> f64) {
    let (middle, quarter) = (top + 40.0, |percent| times.percentile(percent).map(&place));
    // Times that would lie on each other take one mark, so that the file stays small; three lanes show some of the mass.
    let mut seen = BTreeSet::new();
    let mut path = String::new();
    for (nth, ms) in times.sorted().iter().enumerate() {
        let lane = f64::from(u8::try_from(nth % 3).unwrap_or_default()) * 7.0 - 9.0;
        let mark = format!("M{} {}v5", number(place(*ms)), number(middle + lane));
        if seen.insert(mark.clone()) {
            path.push_str(&mark);
        }
    }
    svg.path("marks", &path);
    if let (Some(from), Some(to)) = (quarter(25), quarter(75)) {
        svg.rect("box", [from - 0.5, middle - 13.0, to - from + 1.0, 26.0]);
    }
    if let Some(x) = quarter(50) {
        svg.line("median", [x, middle - 13.0, x, middle + 13.0]);
    }
}

/// The powers of ten, with 2 and 5 between them where there is room, that enclose two values.
fn powers(least: f64, most: f64) -> Vec<f64> {
    let decades = (most / least).log10();
    let rounds: &[f64] = if decades < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let all: Vec<f64> =
        (0..21).flat_map(|power| rounds.iter().map(move |round| round * 10f64.powi(power))).collect();
    let first = all.iter().rposition(|mark| *mark <= least).unwrap_or(0);
    let last = all.iter().position(|mark| *mark >= most).unwrap_or(all.len() - 1);
    all.get(first..=last).unwrap_or(&all).to_vec()
}

/// Spells a mark of an axis.
fn short(ms: f64) -> String {
    let (unit, length) = if ms == 0.0 { ("ms", 1.0) } else { words::unit_of_time(ms * 1.999) };
    format!("{} {unit}", words::figure(ms / length))
}
