//! What couldn't be read: whatever rests on it isn't known, and "healthy" would be a guess.

use super::super::registers::Registers;
use super::super::{Check, Finding, Reading, Snapshot, Verdict};
use super::{Comparison, found};
use crate::pci::Bdf;

/// What came of reading one thing, without its value.
enum Got<'a> {
    Value,
    Nothing,
    Failure(&'a str),
}

impl<'a, T> From<&'a Reading<T>> for Got<'a> {
    fn from(reading: &'a Reading<T>) -> Self {
        match reading {
            Reading::Read(_) => Self::Value,
            Reading::Absent => Self::Nothing,
            Reading::Unread(why) => Self::Failure(why),
        }
    }
}

/// Lists everything of a snapshot but the function's config space, which has its own check.
fn fields(snapshot: &Snapshot) -> Vec<(Bdf, &'static str, Got<'_>)> {
    let bdf = snapshot.bdf;
    let mut fields = vec![
        (bdf, "vendor, device", (&snapshot.id).into()),
        (bdf, "resource", (&snapshot.bars).into()),
        (bdf, "power_state", (&snapshot.power_state).into()),
        (bdf, "power/control, d3cold_allowed", (&snapshot.power).into()),
        (bdf, "aer_dev_*", (&snapshot.errors).into()),
        (bdf, "reset_method", (&snapshot.reset_methods).into()),
    ];
    if let Some(port) = &snapshot.port {
        fields.push((port.bdf, "config", (&port.config).into()));
        fields.push((port.root_port, "aer_rootport_total_err_*", (&port.root_errors).into()));
    }
    fields
}

/// Finds what couldn't be read before or after, and what is gone. What was never there is no finding.
pub(super) fn unread(at: &Comparison<'_>) -> Vec<Finding> {
    let before = fields(at.before);
    let is_gone = at.after.config == Reading::Absent;
    let finding = |(bdf, name, got): (Bdf, &str, Got<'_>)| {
        let was = before.iter().find(|(its, field, _)| (*its, *field) == (bdf, name)).map(|(_, _, was)| was);
        let found = |after: &str, meaning| found(Check::Unread, Verdict::Unknown, bdf, name, after, meaning);
        match (was, got) {
            (_, Got::Failure(why)) => Some(found(why, "it couldn't be read")),
            // Of a device that is gone, everything is.
            (Some(Got::Value), Got::Nothing) if !is_gone => {
                Some(found("not there", "it was there before").was("read"))
            }
            (Some(Got::Failure(why)), _) => {
                Some(found("read", "there is nothing to hold it against").was(format!("unread: {why}")))
            }
            _ => None,
        }
    };
    let after = fields(at.after);
    let is_there = |its: Bdf, name: &str| after.iter().any(|(bdf, field, _)| (*bdf, *field) == (its, name));
    // What could be read neither then nor now, its port being another.
    let elsewhere = before.iter().filter(|(bdf, name, _)| !is_there(*bdf, name));
    let mut findings: Vec<_> = elsewhere
        .filter_map(|(bdf, name, got)| match got {
            Got::Failure(why) => {
                Some(found(Check::Unread, Verdict::Unknown, *bdf, name, why, "it couldn't be read before"))
            }
            Got::Value | Got::Nothing => None,
        })
        .collect();
    findings.extend(after.into_iter().filter_map(finding));
    findings.extend(cut_short(at, at.after.bdf, at.function.before.as_ref(), at.function.after.as_ref()));
    if let Some(bdf) = at.port_bdf() {
        findings.extend(cut_short(at, bdf, at.port.before.as_ref(), at.port.after.as_ref()));
    }
    findings
}

/// Finds a config space of which only the header was read, as whoever isn't root does, or not as much as the other time.
fn cut_short(
    at: &Comparison<'_>,
    bdf: Bdf,
    before: Option<&Registers<'_>>,
    after: Option<&Registers<'_>>,
) -> Option<Finding> {
    let after = after?;
    // The list of capabilities lies in the first 256 bytes, and everything here that isn't the header's lies in them.
    let is_cut = after.len() < 256;
    let was = before.map(Registers::len).filter(|was| *was != after.len() && at.heard.is_some());
    if !is_cut && was.is_none() {
        return None;
    }
    let length = format!("{} bytes", after.len());
    let meaning = "its capabilities couldn't be read and compared, or not all";
    let finding = found(Check::Unread, Verdict::Unknown, bdf, "config", length, meaning);
    Some(match was {
        Some(was) => finding.was(format!("{was} bytes")),
        None => finding,
    })
}
