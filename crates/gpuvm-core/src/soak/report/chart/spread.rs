//! How times are distributed: for each a histogram, with a box from the first to the third quarter.

use std::fmt::Write;

use super::super::words::{self, duration};
use super::{Anchor, Scale, Svg, WIDE, at, number, ticks};
use crate::soak::tally::{Times, float};

const LEFT: f64 = 26.0;
const ROW: f64 = 84.0;
/// The height of a row's bars.
const BARS: f64 = 40.0;
/// The width of a bar.
const BAR: f64 = 4.0;

/// Draws one histogram for each name, all on one axis. It is logarithmic where the longest is more than twenty times the shortest.
pub(in super::super) fn draw(title: &str, rows: &[(String, &Times)]) -> String {
    let all = rows.iter().flat_map(|(_, times)| times.sorted());
    let least = float(all.clone().copied().min().unwrap_or_default());
    let most = float(all.copied().max().unwrap_or_default());
    let is_log = most > 20.0 * least.max(1.0);
    let margin = (most * 0.05).max(2.0);
    let marks = match is_log {
        true => powers(least.max(1.0), most),
        false => ticks((least - margin).max(0.0), most + margin, 6),
    };
    let (from, to) = (marks.first().copied().unwrap_or(0.0), marks.last().copied().unwrap_or(1.0));
    let bend = |value: f64| if is_log { value.max(1.0).log10() } else { value };
    let scale = Scale { from: bend(from), to: bend(to), place: (LEFT, WIDE - 46.0) };
    let down = ROW * at(rows.len());
    let mut svg = Svg::new(WIDE, down + 26.0);
    for mark in &marks {
        let x = scale.at(bend(*mark));
        for row in 0..rows.len() {
            svg.line("grid", [x, at(row) * ROW + 22.0, x, at(row + 1) * ROW]);
        }
        svg.text("label", (x, down + 16.0), Anchor::Middle, &short(*mark));
    }
    let mut description = String::new();
    for (nth, (name, times)) in rows.iter().enumerate() {
        let Some(spread) = times.spread() else { continue };
        let words = format!(
            "{name}: {}, median {}, p95 {}, longest {}",
            words::counted(spread.count, "reset", "resets"),
            duration(spread.p50),
            duration(spread.p95),
            duration(spread.max)
        );
        let top = ROW * at(nth);
        svg.text("name", (LEFT, top + 15.0), Anchor::Begin, &words);
        histogram(&mut svg, times, top, |ms| scale.at(bend(float(ms))));
        write!(description, "{words}. ").ok();
    }
    description.push_str(if is_log { "The axis is logarithmic." } else { "The axis is linear." });
    svg.finish(title, &description)
}

fn histogram(svg: &mut Svg, times: &Times, top: f64, place: impl Fn(u64) -> f64) {
    let bottom = top + 24.0 + BARS;
    let bar = |ms: u64| (place(ms) / BAR).floor();
    let bars: Vec<(f64, usize)> = times
        .sorted()
        .chunk_by(|a, b| bar(*a) == bar(*b))
        .filter_map(|times| Some((bar(*times.first()?) * BAR, times.len())))
        .collect();
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(1);
    let mut path = String::new();
    for (x, count) in &bars {
        // A single one among thousands is seen, too.
        let high = (at(*count) / at(most) * BARS).max(3.0);
        let [x, y, wide, high] = [*x, bottom - high, BAR - 0.6, high].map(number);
        write!(path, "M{x} {y}h{wide}v{high}h-{wide}z").ok();
    }
    svg.path("bars", &path);
    let quarter = |percent| times.percentile(percent).map(&place);
    if let (Some(from), Some(to)) = (quarter(25), quarter(75)) {
        svg.rect("box", [from - 1.0, bottom + 5.0, to - from + 2.0, 8.0]);
    }
    if let Some(x) = quarter(50) {
        svg.line("median", [x, bottom + 2.0, x, bottom + 16.0]);
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
