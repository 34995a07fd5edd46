//! What the picture's colours and words mean.

use super::SMALL;
use super::drawing::{Anchor, Area, Drawing, Text};
use super::measure::{Face, width};

/// The least width that the longest entry fits in.
pub(super) const NARROWEST: f64 = 620.0;

const SWATCH: f64 = 22.0;
const LINE: f64 = 24.0;
const GAP: f64 = 26.0;

const ENTRIES: [(&str, &str); 5] = [
    ("gpu", "GPU or accelerator"),
    ("device", "other device"),
    ("port", "port or bridge, with its group"),
    ("group g0", "IOMMU group: passed whole or not at all"),
    ("", "x8/16 2.5/32 GT/s: 8 lanes of 16, 2.5 GT/s of 32 that both ends can do"),
];

/// Draws the legend, in as many lines as a width makes it take.
pub(super) fn draw(most: f64) -> Drawing {
    let mut legend = Drawing::default();
    let (mut x, mut y) = (0.0, 0.0);
    for (class, words) in ENTRIES {
        let swatch = if class.is_empty() { 0.0 } else { SWATCH + 8.0 };
        let wide = swatch + width(words, Face::Sans, SMALL);
        if x > 0.0 && x + wide > most {
            (x, y) = (0.0, y + LINE);
        }
        if !class.is_empty() {
            legend.rect(Area { x, y, w: SWATCH, h: 15.0 }, 3.0, class);
        }
        legend.text(Text {
            x: x + swatch,
            y: y + 12.0,
            size: SMALL,
            face: Face::Sans,
            anchor: Anchor::Begin,
            class: "muted",
            text: words.to_owned(),
            title: None,
        });
        legend.width = legend.width.max(x + wide);
        x += wide + GAP;
    }
    legend.height = y + LINE;
    legend
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_fits_in_the_least_width() {
        assert!(draw(NARROWEST).width <= NARROWEST);
    }
}
