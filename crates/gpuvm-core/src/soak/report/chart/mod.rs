//! Charts as SVG, without anything that isn't in the file: colours come from the page's style, by class.

pub(super) mod overview;
pub(super) mod series;
pub(super) mod spread;
pub(super) mod timeline;

use std::fmt::Write;

use super::clean::escaped;
use super::slots::Slots;
use crate::soak::tally::float;

/// The width of a chart that takes the whole page.
pub(super) const WIDE: f64 = 900.0;
/// The room for words at the left of one.
pub(super) const GUTTER: f64 = 96.0;
/// The room at its right.
pub(super) const RIGHT: f64 = 12.0;

/// A chart as it is written.
#[derive(Debug)]
pub(super) struct Svg {
    pub(super) width: f64,
    pub(super) height: f64,
    body: String,
}

/// Which end of a text stands at its place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Begin,
    Middle,
    End,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub(super) fn rect(&mut self, class: &str, [x, y, w, h]: [f64; 4]) {
        let [x, y, w, h] = [x, y, w.max(0.0), h.max(0.0)].map(number);
        writeln!(self.body, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\"/>")
            .ok();
    }

    pub(super) fn line(&mut self, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(number);
        writeln!(self.body, "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>").ok();
    }

    pub(super) fn path(&mut self, class: &str, path: &str) {
        if !path.is_empty() {
            writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"/>").ok();
        }
    }

    /// Draws a path that says something of itself when it is pointed at.
    pub(super) fn telling_path(&mut self, class: &str, path: &str, title: &str) {
        let title = escaped(title);
        writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"><title>{title}</title></path>").ok();
    }

    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let [x, y] = [x, y].map(number);
        let anchor = match anchor {
            Anchor::Begin => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let text = escaped(text);
        writeln!(self.body, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{text}</text>").ok();
    }

    /// Ends it with what it shows, in few words and in a sentence for those who don't see it.
    pub(super) fn finish(self, title: &str, description: &str) -> String {
        let [width, height] = [self.width, self.height].map(number);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{}</title>\n\
             <desc>{}</desc>\n{}</svg>",
            escaped(title),
            escaped(description),
            self.body
        )
    }
}

/// Spells a number with one decimal at most.
pub(super) fn number(number: f64) -> String {
    let text = format!("{number:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Makes a place in a list a number to reckon with.
pub(super) fn at(place: usize) -> f64 {
    float(u64::try_from(place).unwrap_or(u64::MAX))
}

/// Where values come to lie on an axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) from: f64,
    pub(super) to: f64,
    /// Where the least and the largest lie.
    pub(super) place: (f64, f64),
}

impl Scale {
    pub(super) fn at(self, value: f64) -> f64 {
        let part = (value - self.from) / (self.to - self.from);
        let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        self.place.0 + part * (self.place.1 - self.place.0)
    }
}

/// Finds round numbers for an axis, about as many as are wanted, the first no larger than the least value and the last no smaller
/// than the largest.
pub(super) fn ticks(least: f64, most: f64, wanted: u32) -> Vec<f64> {
    let span = (most - least).max(most.abs() * 1e-9);
    if !span.is_finite() || span <= 0.0 {
        return vec![least, least + 1.0];
    }
    let rough = span / f64::from(wanted.max(1));
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|round| round * power).find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(power * 10.0);
    let first = (least / step).floor();
    let mut ticks: Vec<f64> = Vec::new();
    // One more than wanted at either end.
    for nth in 0..=wanted + 2 {
        let tick = (first + f64::from(nth)) * step;
        ticks.push(tick);
        if tick >= most - step * 1e-6 {
            break;
        }
    }
    ticks
}

/// Draws the axis of cycles: their numbers below, at about as many places as are wanted.
pub(super) fn cycle_axis(svg: &mut Svg, slots: &Slots<'_>, (left, right): (f64, f64), y: f64, wanted: usize) {
    let count = slots.0.len();
    let step = [1, 2, 5].into_iter().cycle().zip((0..).flat_map(|power| [10usize.saturating_pow(power); 3]));
    let step = step.map(|(round, power)| power.saturating_mul(round)).find(|step| count <= step * wanted);
    let step = step.unwrap_or(count).max(1);
    for (place, slot) in
        slots.0.iter().enumerate().filter(|(place, _)| (place + 1) % step == 0 || *place == 0)
    {
        // The first and the next after it would run into each other.
        if place == 0 && count > 1 && step <= 2 && wanted < 4 {
            continue;
        }
        let x = center(place, count, (left, right));
        svg.line("tick", [x, y, x, y + 4.0]);
        let number = slot.number.to_string();
        // The last may have no room to its right.
        let (x, anchor) = match x + 4.0 * at(number.len()) > svg.width {
            true => (svg.width - 1.0, Anchor::End),
            false => (x, Anchor::Middle),
        };
        svg.text("label", (x, y + 17.0), anchor, &number);
    }
}

/// Returns the middle of a cycle's place.
pub(super) fn center(place: usize, count: usize, (left, right): (f64, f64)) -> f64 {
    left + (at(place) + 0.5) / at(count.max(1)) * (right - left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0.0, 21.0, 5, &[0.0, 5.0, 10.0, 15.0, 20.0, 25.0])]
    #[case(0.0, 1.0, 3, &[0.0, 0.5, 1.0])]
    #[case(-3.0, 4.0, 3, &[-5.0, 0.0, 5.0])]
    #[case(101.0, 149.0, 6, &[100.0, 110.0, 120.0, 130.0, 140.0, 150.0])]
    fn axes_have_round_numbers(
        #[case] least: f64,
        #[case] most: f64,
        #[case] wanted: u32,
        #[case] expected: &[f64],
    ) {
        let found = ticks(least, most, wanted);
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9) && found.len() == expected.len(),
            "{found:?}"
        );
    }

    proptest! {
        #[test]
        fn axes_enclose_what_they_show(least in 0.0..1e18, span in 0.0..1e19, wanted in 1u32..10) {
            let most = least + span;
            let found = ticks(least, most, wanted);
            prop_assert!(found.len() >= 2 && found.len() <= 13, "{found:?}");
            prop_assert!(found[0] <= least && found[found.len() - 1] >= most * (1.0 - 1e-6), "{found:?}");
            prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
