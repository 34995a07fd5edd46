//! The time of each cycle, in its larger parts, with the marks of what was special about it.

use std::fmt::Write;

use super::super::slots::{Slot, Slots};
use super::super::words::{self, duration};
use super::{Anchor, GUTTER, RIGHT, Scale, Svg, WIDE, at, center, cycle_axis, number, ticks};
use crate::soak::tally::{Times, float};
use crate::soak::{Cycle, CycleKind, CycleVerdict, Phase};

/// The larger parts of a cycle, from the bottom to the top.
pub(in super::super) const PARTS: [(&str, &str, &[Phase]); 5] = [
    ("p0", "gpuvm before the guest (plan, prepare)", &[Phase::Plan, Phase::Prepare]),
    ("p1", "QEMU's start", &[Phase::Start]),
    ("p2", "guest (boot, work, reboot)", &[Phase::Boot, Phase::Work, Phase::Reboot]),
    ("p3", "its end (stop)", &[Phase::Stop]),
    (
        "p4",
        "gpuvm after it (reset, judge, repair, give-back)",
        &[Phase::Reset, Phase::Judge, Phase::Repair, Phase::GiveBack],
    ),
];

const TOP: f64 = 14.0;
const PLOT: f64 = 210.0;
const ROW: f64 = 19.0;

/// Draws it.
pub(in super::super) fn draw(slots: &Slots<'_>) -> String {
    let across = (GUTTER, WIDE - RIGHT);
    let totals: Times = slots.cycles().map(total).collect();
    let (most, cut_off) = reach(&totals);
    let (unit, length) = words::unit_of_time(most);
    let marks = ticks(0.0, most / length, 5);
    let bottom = TOP + PLOT;
    let top = marks.last().copied().unwrap_or(1.0) * length;
    let scale = Scale { from: 0.0, to: top, place: (bottom, TOP) };
    let mut svg = Svg::new(WIDE, bottom + 3.0 * ROW + 46.0);
    for mark in &marks {
        let y = scale.at(mark * length);
        svg.line("grid", [across.0, y, across.1, y]);
        svg.text("label", (GUTTER - 8.0, y + 4.0), Anchor::End, &format!("{} {unit}", words::figure(*mark)));
    }
    bars(&mut svg, slots, across, scale);
    rows(&mut svg, slots, across, bottom);
    cycle_axis(&mut svg, slots, across, bottom + 3.0 * ROW + 8.0, 10);
    svg.text("label", (0.0, bottom + 3.0 * ROW + 25.0), Anchor::Begin, "cycle");
    let mut description = format!(
        "Stacked bars of time over {}; the median is {}, the longest {}.",
        words::counted(slots.0.len(), "cycle", "cycles"),
        duration(totals.percentile(50).unwrap_or_default()),
        duration(totals.percentile(100).unwrap_or_default())
    );
    if cut_off {
        write!(
            description,
            " Bars higher than {} {unit} are cut off at the top.",
            words::figure(top / length)
        )
        .ok();
    }
    svg.finish("Time of each cycle", &description)
}

/// Tells whether bars are cut off, because a few of them are so much higher than the others that nothing could be seen of these.
pub(in super::super) fn is_cut_off(slots: &Slots<'_>) -> bool {
    reach(&slots.cycles().map(total).collect()).1
}

fn reach(totals: &Times) -> (f64, bool) {
    let most = float(totals.percentile(100).unwrap_or_default());
    let usual = float(totals.percentile(95).unwrap_or_default()) * 1.2;
    match most > 3.0 * usual && usual > 0.0 {
        true => (usual, true),
        false => (most.max(1.0), false),
    }
}

fn total(cycle: &Cycle) -> u64 {
    cycle.phases.iter().fold(0, |sum: u64, part| sum.saturating_add(part.ms))
}

fn sum_of(cycle: &Cycle, phases: &[Phase]) -> f64 {
    cycle.phases.iter().filter(|part| phases.contains(&part.phase)).map(|part| float(part.ms)).sum()
}

fn bars(svg: &mut Svg, slots: &Slots<'_>, across: (f64, f64), scale: Scale) {
    let count = slots.0.len();
    let mut paths: [String; PARTS.len()] = Default::default();
    let (mut longest, mut over) = (String::new(), String::new());
    for (range, bin) in slots.bins() {
        let cycles: Vec<&Cycle> = bin.iter().filter_map(|slot| slot.cycle).collect();
        if cycles.is_empty() {
            continue;
        }
        let place = at(count.max(1));
        let left = across.0 + at(range.start) / place * (across.1 - across.0);
        let wide = at(range.len()) / place * (across.1 - across.0);
        // A gap between bars, as long as they are wide enough; and none wider than makes sense for two or three.
        let gap = if wide > 3.0 { (wide * 0.25).max(1.0) } else { 0.0 };
        let (left, wide) = (left + gap / 2.0, wide - gap);
        let (left, wide) = if wide > 40.0 { (left + (wide - 40.0) / 2.0, 40.0) } else { (left, wide) };
        let mut below = 0.0;
        for (path, (_, _, phases)) in paths.iter_mut().zip(PARTS) {
            let mean = cycles.iter().map(|cycle| sum_of(cycle, phases)).sum::<f64>() / at(cycles.len());
            let (from, to) = (scale.at(below), scale.at(below + mean));
            if from - to >= 0.05 {
                block(path, left, to, wide, from - to);
            }
            below += mean;
        }
        let most = cycles.iter().map(|cycle| float(total(cycle))).fold(0.0, f64::max);
        if cycles.len() > 1 {
            block(&mut longest, left, scale.at(most) - 0.5, wide, 1.0);
        }
        if most > scale.to {
            let (x, y) = (left + wide / 2.0, TOP - 10.0);
            write!(over, "M{} {}l4 8h-8z", number(x), number(y)).ok();
        }
    }
    for (path, (class, _, _)) in paths.iter().zip(PARTS) {
        svg.path(class, path);
    }
    svg.path("ink", &longest);
    svg.path("ink", &over);
}

fn block(path: &mut String, x: f64, y: f64, w: f64, h: f64) {
    let [x, y, w, h] = [x, y, w, h].map(number);
    write!(path, "M{x} {y}h{w}v{h}h-{w}z").ok();
}

/// Draws what was special: kills and reboots, cycles that weren't healthy, and where the soak was stopped and went on.
fn rows(svg: &mut Svg, slots: &Slots<'_>, across: (f64, f64), bottom: f64) {
    let count = slots.0.len();
    for (nth, words) in (0..3).zip(["killed", "rebooted", "not healthy"]) {
        let y = bottom + 8.0 + f64::from(nth) * ROW;
        svg.rect("row", [across.0, y, across.1 - across.0, ROW - 3.0]);
        svg.text("label", (GUTTER - 8.0, y + 12.0), Anchor::End, words);
    }
    for (nth, kind) in (0..2).zip([CycleKind::Kill, CycleKind::Reboot]) {
        let y = bottom + 10.0 + f64::from(nth) * ROW;
        let mut path = String::new();
        for (range, bin) in slots.bins() {
            if bin.iter().filter_map(|slot| slot.cycle).any(|cycle| cycle.kind == kind) {
                let x = center(range.start, count, across) - 1.0;
                block(&mut path, x, y, 2.0, ROW - 7.0);
            }
        }
        svg.path("ink", &path);
    }
    for (range, bin) in slots.bins() {
        let x = center(range.start, count, across);
        if let Some((slot, verdict)) = worst(bin) {
            let title = tells(slot, verdict);
            svg.telling_path(class(verdict), &sign(verdict, x, bottom + 16.0 + 2.0 * ROW), &title);
        }
        for slot in bin.iter().filter(|slot| slot.resumed) {
            // At the edge of its place, so that it lies before the bar.
            let edge = across.0 + at(range.start) / at(count.max(1)) * (across.1 - across.0);
            let path = format!("M{} {}V{}", number(edge), number(TOP), number(bottom + 3.0 * ROW + 4.0));
            svg.telling_path("resumed", &path, &format!("went on before cycle {}", slot.number));
        }
        for slot in bin.iter().filter(|slot| slot.cycle.is_none()) {
            let y = bottom + 16.0 + 2.0 * ROW;
            let path = format!("M{} {}v10m4 0v-10", number(x - 2.0), number(y - 5.0));
            svg.telling_path("cut", &path, &format!("cycle {}: gpuvm didn't see its end", slot.number));
        }
    }
}

fn tells(slot: &Slot<'_>, verdict: CycleVerdict) -> String {
    let reason = slot.cycle.and_then(Cycle::reason).unwrap_or_default();
    format!("cycle {}: {verdict}: {reason}", slot.number)
}

fn worst<'a, 'b>(bin: &'b [Slot<'a>]) -> Option<(&'b Slot<'a>, CycleVerdict)> {
    let verdicts = bin.iter().filter_map(|slot| Some((slot, slot.cycle?.verdict())));
    // Of several that are as bad, the first.
    verdicts.rev().max_by_key(|(_, verdict)| *verdict).filter(|(_, verdict)| *verdict > CycleVerdict::Healthy)
}

/// Returns the class of a verdict's colour.
pub(in super::super) fn class(verdict: CycleVerdict) -> &'static str {
    match verdict {
        CycleVerdict::Healthy => "healthy",
        CycleVerdict::Degraded => "degraded",
        CycleVerdict::Repaired => "repaired",
        CycleVerdict::Failed => "failed",
        CycleVerdict::Bad => "bad",
    }
}

/// Draws a verdict's sign: each has a shape of its own.
pub(in super::super) fn sign(verdict: CycleVerdict, x: f64, y: f64) -> String {
    let [x, y] = [x, y].map(number);
    match verdict {
        CycleVerdict::Healthy => format!("M{x} {y}m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"),
        CycleVerdict::Degraded => format!("M{x} {y}m0 -5l5 9h-10z"),
        CycleVerdict::Repaired => format!("M{x} {y}m-4 -4h8v8h-8z"),
        CycleVerdict::Failed => {
            format!("M{x} {y}m-5 -3l2 -2l3 3l3 -3l2 2l-3 3l3 3l-2 2l-3 -3l-3 3l-2 -2l3 -3z")
        }
        CycleVerdict::Bad => format!("M{x} {y}m0 -6l6 6l-6 6l-6 -6z"),
    }
}
