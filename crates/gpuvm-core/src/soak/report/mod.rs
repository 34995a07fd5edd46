//! The report of a soak: one file that a browser shows, with everything in it and nothing that runs.

mod chart;
mod clean;
mod headline;
mod sections;
mod slots;
mod words;

use std::collections::BTreeSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior, context};

use super::compare::differences;
use super::{Begun, Line, Tally};
use crate::pci::Bdf;
use chart::series::{Series, Unit};
use chart::{overview, series, spread, timeline};
use headline::Headline;
use slots::Slots;

pub use clean::clean as harmless;
pub use sections::ready;

/// The page. It is XML as well as HTML, so that it can be checked as such.
const PAGE: &str = include_str!("page.html");

/// The most figures of a guest's job that are drawn.
const FIGURES: usize = 24;
/// The most devices that are told of.
const DEVICES: usize = 64;
/// Up to so many devices, each is drawn.
const FEW_DEVICES: usize = 8;

/// Writes the report of a record.
pub fn html(lines: &[Line]) -> String {
    render(lines).unwrap_or_else(|error| {
        // The template and its values are ours, so this is a defect. The record is still there.
        let error = clean::escaped(&format!("{error:#}"));
        format!(
            "<!DOCTYPE html>\n<html><body><p>This report couldn't be written: {error}</p></body></html>\n"
        )
    })
}

fn render(lines: &[Line]) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?,
    );
    environment.set_formatter(clean::write_value);
    environment.add_template("page.html", PAGE)?;
    environment.get_template("page.html")?.render(page(lines))
}

/// Puts everything together that the page tells.
fn page(lines: &[Line]) -> Value {
    let tally = Tally::of(lines);
    let slots = Slots::of(lines);
    let begun: Vec<&Begun> = lines.iter().filter_map(begun).collect();
    let (first, last) = (begun.first().copied(), begun.last().copied());
    let (not_healthy, not_shown) = sections::not_healthy(&slots);
    let (findings, findings_left_out) = sections::findings(&tally);
    let newer = lines.iter().filter(|line| matches!(line, Line::Newer(_))).count();
    context! {
        headline => told(Headline::of(lines, &tally)),
        vm => last.map(|begun| begun.vm.to_string()),
        asked => told(last.map(sections::asked).unwrap_or_default()),
        times => told(sections::times(lines)),
        charts => charts(&slots, &tally),
        percentiles => told(sections::percentiles(&tally)),
        failed_resets => failed_resets(&tally),
        findings => told(findings), findings_left_out,
        not_healthy => told(not_healthy), not_shown,
        cuts => told(sections::cuts(lines)),
        repairs => told(sections::repairs(&slots)),
        rungs => sections::rungs(&slots),
        poll => told(sections::poll(&slots)),
        own => own(&slots),
        machine => told(last.map(sections::machine).unwrap_or_default()),
        changed => told(if begun.len() > 1 { differences(first, last) } else { Vec::new() }),
        devices => told(last.map(sections::devices).unwrap_or_default()),
        profile_text => last.map(|begun| begun.settings.profile_text.clone()).unwrap_or_default(),
        newer,
    }
}

/// Makes something a value of the template. What it is made of is none of a kind that couldn't be.
fn told(value: impl serde::Serialize) -> Value {
    Value::from(Serde(value))
}

fn begun(line: &Line) -> Option<&Begun> {
    match line {
        Line::Begun(begun) => Some(begun),
        _ => None,
    }
}

/// Draws all charts. What they hold is escaped already.
fn charts(slots: &Slots<'_>, tally: &Tally) -> Value {
    if slots.0.is_empty() {
        return Value::from(());
    }
    let parts = overview::PARTS.map(|(class, name, _)| context! { class, name });
    let verdicts = tally.verdicts.keys().filter(|verdict| **verdict > super::CycleVerdict::Healthy);
    let signs = verdicts.map(|verdict| {
        context! {
            class => overview::class(*verdict), path => Value::from_safe_string(overview::sign(*verdict, 7.0, 7.0)),
            name => verdict.to_string(),
        }
    });
    let resets: Vec<_> = tally.resets.iter().map(|(way, times)| (way.to_string(), times)).collect();
    context! {
        overview => Value::from_safe_string(overview::draw(slots)),
        per_bin => slots.per_bin(),
        is_cut_off => overview::is_cut_off(slots),
        parts, signs => signs.collect::<Vec<_>>(),
        phases => phases(slots, tally),
        resets => (!resets.is_empty()).then(|| Value::from_safe_string(spread::draw("Reset times", &resets))),
        links => links(slots),
        figures => figures(slots),
        poll => polls(slots),
    }
}

fn drawn(slots: &Slots<'_>, title: &str, unit: Unit, values: Vec<Option<f64>>) -> Value {
    let chart = series::draw(slots, &Series { title, unit, values });
    context! { title, chart => Value::from_safe_string(chart) }
}

fn phases(slots: &Slots<'_>, tally: &Tally) -> Vec<Value> {
    let sums: Vec<_> = slots.0.iter().map(|slot| slot.cycle.map(super::Cycle::phase_sums)).collect();
    let chart = |phase: &super::Phase| {
        let value = |sums: &Option<std::collections::BTreeMap<super::Phase, u64>>| {
            sums.as_ref()?.get(phase).map(|ms| super::tally::float(*ms))
        };
        drawn(slots, phase.name(), Unit::Time, sums.iter().map(value).collect())
    };
    tally.phases.keys().map(chart).collect()
}

/// Tells of the links and errors of all devices, and draws them; of many devices, those alone that anything happened to.
fn links(slots: &Slots<'_>) -> Vec<Value> {
    let devices: BTreeSet<Bdf> =
        slots.cycles().flat_map(|cycle| cycle.devices.iter().map(|device| device.bdf)).collect();
    let chart = |bdf: &Bdf| {
        let history = timeline::History::of(slots, *bdf);
        let is_drawn = devices.len() <= FEW_DEVICES || !history.is_quiet();
        context! {
            bdf => bdf.to_string(), words => history.words(),
            chart => is_drawn.then(|| Value::from_safe_string(timeline::draw(slots, &history))),
        }
    };
    devices.iter().take(DEVICES).map(chart).collect()
}

fn figures(slots: &Slots<'_>) -> Vec<Value> {
    let reports = slots.cycles().filter_map(|cycle| cycle.job.as_ref());
    let names: BTreeSet<&String> = reports
        .flat_map(|job| job.figures.iter().filter(|(_, value)| value.is_number()))
        .map(|(name, _)| name)
        .collect();
    let chart = |name: &&String| {
        let value = |slot: &slots::Slot<'_>| slot.cycle?.job.as_ref()?.figures.get(*name)?.as_f64();
        // A guest names its figures as it likes.
        let title: String = clean::clean(name).chars().take(80).collect();
        drawn(slots, &title, Unit::Of(""), slots.0.iter().map(value).collect())
    };
    names.iter().take(FIGURES).map(chart).collect()
}

fn polls(slots: &Slots<'_>) -> Vec<Value> {
    let polled = |of: fn(&super::Polled) -> f64| -> Vec<Option<f64>> {
        slots.0.iter().map(|slot| Some(of(slot.cycle?.polled.as_ref()?))).collect()
    };
    if polled(|_| 0.0).iter().all(Option::is_none) {
        return Vec::new();
    }
    vec![
        drawn(slots, "longest poll", Unit::Time, polled(|polled| super::tally::float(polled.longest_ms))),
        drawn(slots, "failed polls", Unit::Of(""), polled(|polled| f64::from(polled.failed))),
    ]
}

/// Draws what gpuvm itself used.
fn own(slots: &Slots<'_>) -> Vec<Value> {
    if slots.cycles().next().is_none() {
        return Vec::new();
    }
    let used = |of: fn(&super::OwnUse) -> f64| -> Vec<Option<f64>> {
        slots.0.iter().map(|slot| slot.cycle.map(|cycle| of(&cycle.own))).collect()
    };
    vec![
        drawn(slots, "memory", Unit::Of("MiB"), used(|own| super::tally::float(own.rss_kib) / 1024.0)),
        drawn(slots, "open files", Unit::Of(""), used(|own| f64::from(own.fds))),
    ]
}

fn failed_resets(tally: &Tally) -> Vec<String> {
    tally.failed_resets.iter().map(|(way, count)| format!("{way}: {count} failed")).collect()
}
