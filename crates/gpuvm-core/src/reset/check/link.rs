//! Whether its link is what it was, by both ends.

use super::super::registers::{LinkStatus, Presence, Registers, presence};
use super::super::{Check, Finding, Reading, Verdict};
use super::{Comparison, found};
use crate::pci::Bdf;

/// An end of the link before and after.
type End = (Bdf, LinkStatus, LinkStatus);

/// Lists the ends of the link that could be read both times.
fn ends(at: &Comparison<'_>) -> Vec<End> {
    let function =
        at.function.of(Registers::link_status).map(|(before, after)| (at.after.bdf, before, after));
    let port = at.port.of(|port| port.link_status().filter(|_| port.leads_down()));
    let port = port.zip(at.port_bdf()).map(|((before, after), bdf)| (bdf, before, after));
    function.into_iter().chain(port).collect()
}

/// Finds a link with fewer lanes: it doesn't lose them by idling.
pub(super) fn width(at: &Comparison<'_>) -> Vec<Finding> {
    let narrower = ends(at).into_iter().filter(|(_, before, after)| after.width() < before.width());
    narrower
        .map(|(bdf, before, after)| {
            let meaning =
                "its link has fewer lanes than before; some cards get them back only by a cold boot";
            found(Check::LinkWidth, Verdict::Degraded, bdf, "LNKSTA", format!("x{}", after.width()), meaning)
                .was(format!("x{}", before.width()))
        })
        .collect()
}

/// Finds a slower link, which is only worth knowing: GPUs slow it down when they idle.
pub(super) fn speed(at: &Comparison<'_>) -> Vec<Finding> {
    let words = |status: LinkStatus| match status.speed() {
        1 => "2.5 GT/s".to_owned(),
        2 => "5 GT/s".to_owned(),
        generation @ 3..=6 => format!("{} GT/s", 1 << generation),
        other => format!("speed {other}"),
    };
    let slower = ends(at).into_iter().filter(|(_, before, after)| after.speed() < before.speed());
    slower
        .map(|(bdf, before, after)| {
            let meaning = "its link is slower than before, as it may be when it idles";
            found(Check::LinkSpeed, None, bdf, "LNKSTA", words(after), meaning).was(words(before))
        })
        .collect()
}

/// Finds a port that says that the link is down, which it said was up.
///
/// Only of a port that reports it (Link Capabilities, bit 20), and that is awake. One that has never said that it is up tells
/// nothing: QEMU's root ports don't while a PCI Express device is below.
pub(super) fn active(at: &Comparison<'_>) -> Vec<Finding> {
    let (Some((before, after)), Some(bdf)) = (at.port.pair(), at.port_bdf()) else { return Vec::new() };
    let is_active = |port: &Registers<'_>| port.link_status().is_some_and(LinkStatus::is_active);
    let told = after.leads_down() && after.reports_link() && after.link_status().is_some();
    if !told || !is_active(before) || is_active(after) {
        return Vec::new();
    }
    let (weight, meaning) = match after.power_state() {
        None | Some(0) => (Some(Verdict::Faulted), "its port says that the link is down"),
        Some(_) => (None, "its port sleeps, and says that the link is down"),
    };
    vec![found(Check::LinkActive, weight, bdf, "LNKSTA DLLLA", 0, meaning).was(1)]
}

/// Finds a port that is training the link: it has lost it, or never got it.
pub(super) fn training(at: &Comparison<'_>) -> Vec<Finding> {
    let Some((port, bdf)) = at.port.after.as_ref().zip(at.port_bdf()) else { return Vec::new() };
    if !port.leads_down() || !port.link_status().is_some_and(LinkStatus::is_training) {
        return Vec::new();
    }
    let meaning = "its port is training the link";
    vec![found(Check::LinkTraining, Verdict::Degraded, bdf, "LNKSTA link training", 1, meaning)]
}

/// Finds a port that doesn't answer, or isn't the one that it was.
pub(super) fn port(at: &Comparison<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let dead = at.after.port.as_ref().and_then(|port| Some((port.bdf, port.config.read()?)));
    if let Some((bdf, config)) = dead.filter(|(_, config)| presence(config, false) != Presence::Answers) {
        let after = config.dword(0).map_or_else(|| "too short".to_owned(), |id| format!("{id:#010x}"));
        let meaning = "the port above it doesn't answer";
        findings.push(found(Check::Port, Verdict::Faulted, bdf, "config 0x00", after, meaning));
    }
    let place = |port: Option<Bdf>| port.map_or_else(|| "a root bus".to_owned(), |port| port.to_string());
    let [before, after] = [at.before, at.after].map(|snapshot| snapshot.port.as_ref().map(|port| port.bdf));
    // Of a device that is gone, the port is too.
    if before != after && at.after.config != Reading::Absent {
        let meaning = "it hangs elsewhere than before: its link can't be held against what it was";
        findings
            .push(at.found(Check::Port, Verdict::Unknown, "port", place(after), meaning).was(place(before)));
    }
    findings
}
