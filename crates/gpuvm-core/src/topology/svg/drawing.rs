//! What a picture is made of, with every place known.

use super::measure::Face;

/// A picture.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Drawing {
    pub(super) width: f64,
    pub(super) height: f64,
    /// In the order in which they are drawn.
    pub(super) shapes: Vec<Shape>,
}

/// A part of a picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    Rect {
        area: Area,
        round: f64,
        class: String,
    },
    /// A line from corner to corner.
    Line {
        points: Vec<(f64, f64)>,
        class: &'static str,
    },
    Text(Text),
}

/// A rectangle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) w: f64,
    pub(super) h: f64,
}

impl Area {
    pub(super) fn right(self) -> f64 {
        self.x + self.w
    }

    pub(super) fn bottom(self) -> f64 {
        self.y + self.h
    }

    pub(super) fn middle(self) -> f64 {
        self.y + self.h / 2.0
    }

    pub(super) fn meets(self, other: Self) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }

    /// Returns the smallest area that holds both.
    pub(super) fn with(self, other: Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        Self { x, y, w: self.right().max(other.right()) - x, h: self.bottom().max(other.bottom()) - y }
    }
}

/// A line of text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Text {
    pub(super) x: f64,
    /// Of its baseline.
    pub(super) y: f64,
    pub(super) size: f64,
    pub(super) face: Face,
    pub(super) anchor: Anchor,
    /// Its colour.
    pub(super) class: &'static str,
    pub(super) text: String,
    /// What is shown when it is pointed at.
    pub(super) title: Option<String>,
}

/// Which end of a text stands at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Begin,
    End,
}

impl Drawing {
    pub(super) fn rect(&mut self, area: Area, round: f64, class: impl Into<String>) {
        self.shapes.push(Shape::Rect { area, round, class: class.into() });
    }

    pub(super) fn text(&mut self, text: Text) {
        if !text.text.is_empty() {
            self.shapes.push(Shape::Text(text));
        }
    }

    /// Moves everything.
    pub(super) fn shift(&mut self, dx: f64, dy: f64) {
        for shape in &mut self.shapes {
            match shape {
                Shape::Rect { area, .. } => (area.x, area.y) = (area.x + dx, area.y + dy),
                Shape::Line { points, .. } => {
                    points.iter_mut().for_each(|(x, y)| (*x, *y) = (*x + dx, *y + dy));
                }
                Shape::Text(text) => (text.x, text.y) = (text.x + dx, text.y + dy),
            }
        }
    }
}
