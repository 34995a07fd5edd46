//! The cycles of a record along an axis: each in its place, or several in one where there are many.

use std::ops::Range;

use crate::soak::{Cycle, Line};

/// Up to so many cycles have a place each.
pub(super) const MOST: usize = 400;
/// The most places of more cycles: a round of a usual mix shares one then, so that neighbours are of a kind.
const SHARED: usize = 200;

/// A cycle's place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) number: u32,
    /// Nothing for one that was cut.
    pub(super) cycle: Option<&'a Cycle>,
    /// Whether the soak went on here after it was stopped.
    pub(super) resumed: bool,
}

/// All cycles, in the record's order.
#[derive(Debug)]
pub(super) struct Slots<'a>(pub(super) Vec<Slot<'a>>);

impl<'a> Slots<'a> {
    pub(super) fn of(lines: &'a [Line]) -> Self {
        let mut slots: Vec<Slot<'a>> = Vec::new();
        let mut resumed = false;
        for line in lines {
            match line {
                Line::Begun(begun) => resumed |= !slots.is_empty() || begun.done_before > 0,
                Line::Cycle(cycle) => {
                    let resumed = std::mem::take(&mut resumed);
                    slots.push(Slot { number: cycle.number, cycle: Some(cycle), resumed });
                }
                // It was cut before the soak went on, whenever that is told.
                Line::Cut(cut) => slots.push(Slot { number: cut.number, cycle: None, resumed: false }),
                Line::Ended(_) | Line::Newer(_) => {}
            }
        }
        Self(slots)
    }

    pub(super) fn cycles(&self) -> impl Iterator<Item = &'a Cycle> + '_ {
        self.0.iter().filter_map(|slot| slot.cycle)
    }

    /// Returns how many cycles share a place.
    pub(super) fn per_bin(&self) -> usize {
        if self.0.len() <= MOST { 1 } else { self.0.len().div_ceil(SHARED) }
    }

    /// Returns the cycles of each place.
    pub(super) fn bins(&self) -> impl Iterator<Item = (Range<usize>, &[Slot<'a>])> {
        let per = self.per_bin();
        self.0.chunks(per).enumerate().map(move |(at, slots)| (at * per..at * per + slots.len(), slots))
    }
}
