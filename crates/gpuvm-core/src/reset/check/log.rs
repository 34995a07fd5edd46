//! What the kernel has said between the snapshots.

use super::super::log::{Severity, What};
use super::super::{Check, Finding, Heard, Verdict};
use super::{Comparison, found};
use crate::pci::Bdf;

/// Finds that the log wasn't heard, or not all of it: nothing is known then of what it would have told.
pub(super) fn heard(at: &Comparison<'_>) -> Vec<Finding> {
    let (after, meaning) = match at.heard {
        None | Some(Heard::Said(_)) => return Vec::new(),
        Some(Heard::Deaf(why)) => (why, "what the kernel has said of it isn't known"),
        Some(Heard::Partly { lost, .. }) => (lost, "not all that the kernel has said of it is known"),
    };
    vec![at.found(Check::Log, Verdict::Unknown, "kernel log", after, meaning)]
}

/// As long as the kernel waits at first after a reset of a bus, in ms, and more than that.
const FIRST_WAIT_MS: u64 = 10_000;

/// Finds that the kernel has given up waiting for it.
///
/// After the reset of a bus behind a slow port the kernel "gives up" after the first second, looks whether the link is up, and waits on
/// (`pci_bridge_wait_for_secondary_bus` of drivers/pci/pci.c). What was ready afterwards wasn't given up; and of what isn't said to
/// have been ready, and answers, no more is known than that the reset took long or was refused.
pub(super) fn gave_up(at: &Comparison<'_>) -> Vec<Finding> {
    let Some(longest) = given_up_for(at) else { return Vec::new() };
    let (weight, meaning) = if longest < FIRST_WAIT_MS && at.function.after.is_some() {
        (Verdict::Degraded, "the kernel has given up its first wait for it, and it answers")
    } else {
        (Verdict::Faulted, "the kernel has given up waiting for it")
    };
    said(at, Check::GaveUp, weight, meaning, |what| matches!(what, What::GaveUp { .. }))
}

/// Returns how long the kernel has waited for the function before it gave up. A first wait is forgotten once it was ready; a whole
/// one isn't: a later reset, after which it was, doesn't undo what had the device meanwhile.
fn given_up_for(at: &Comparison<'_>) -> Option<u64> {
    let ours = at.events.iter().filter(|(event, _)| event.is_about(at.after.bdf));
    ours.fold(None, |longest, (event, _)| match event.what {
        What::GaveUp { ms, .. } => longest.max(Some(ms)),
        What::Ready { .. } => longest.filter(|ms| *ms >= FIRST_WAIT_MS),
        _ => longest,
    })
}

/// Finds that it couldn't be woken.
pub(super) fn power_stuck(at: &Comparison<'_>) -> Vec<Finding> {
    said(at, Check::PowerStuck, Verdict::Faulted, "the kernel couldn't change its power state", |what| {
        matches!(what, What::PowerStuck { .. })
    })
}

/// Finds that its config space was inaccessible.
pub(super) fn inaccessible(at: &Comparison<'_>) -> Vec<Finding> {
    said(at, Check::Inaccessible, Verdict::Faulted, "the kernel found it inaccessible", |what| {
        *what == What::Inaccessible
    })
}

/// Finds that the kernel couldn't recover it.
pub(super) fn recovery_failed(at: &Comparison<'_>) -> Vec<Finding> {
    said(
        at,
        Check::RecoveryFailed,
        Verdict::Faulted,
        "the kernel couldn't recover it from an error",
        |what| *what == What::RecoveryFailed,
    )
}

/// Finds uncorrectable errors. That the kernel says that it has recovered the device doesn't heal what had it: QEMU has stopped then.
pub(super) fn uncorrectable(at: &Comparison<'_>) -> Vec<Finding> {
    said(at, Check::UncorrectableLogged, Verdict::Faulted, "it has reported an uncorrectable error", |what| {
        matches!(what, What::Error(Severity::Nonfatal | Severity::Fatal))
    })
}

/// Finds errors that the hardware has repaired.
pub(super) fn correctable(at: &Comparison<'_>) -> Vec<Finding> {
    said(
        at,
        Check::CorrectableLogged,
        Verdict::Degraded,
        "it has reported errors that the hardware has repaired",
        |what| *what == What::Error(Severity::Correctable),
    )
}

/// Finds a reset that took long: the kernel speaks of those above a second only. One that it has given up on wasn't slow.
pub(super) fn slow_reset(at: &Comparison<'_>) -> Vec<Finding> {
    let gave_up = given_up_for(at).is_some();
    said(at, Check::SlowReset, Verdict::Degraded, "it took more than a second to answer again", |what| {
        match what {
            What::Waiting { ms, .. } => *ms > 1000 && !gave_up,
            What::Ready { ms, .. } => *ms > 1000,
            _ => false,
        }
    })
}

/// Finds a link that didn't come up in time.
pub(super) fn link_not_active(at: &Comparison<'_>) -> Vec<Finding> {
    said(at, Check::LinkNotActive, Verdict::Degraded, "its link didn't come up in time", |what| {
        matches!(what, What::LinkNotActive { .. })
    })
}

/// Finds a reset over transactions that had no answer.
pub(super) fn pending_transaction(at: &Comparison<'_>) -> Vec<Finding> {
    said(
        at,
        Check::PendingTransaction,
        Verdict::Degraded,
        "it was reset while transactions of it had no answer",
        |what| *what == What::PendingTransaction,
    )
}

/// Finds accesses that the IOMMU has stopped.
pub(super) fn iommu_fault(at: &Comparison<'_>) -> Vec<Finding> {
    said(at, Check::IommuFault, Verdict::Degraded, "the IOMMU has stopped an access of it", |what| {
        *what == What::IommuFault
    })
}

/// Makes one finding for all lines of a kind that are about the function or the port right above it, and one that is only worth
/// knowing for those of the root port above a switch: they may be about others. Lines of other devices are nobody's business here.
fn said(
    at: &Comparison<'_>,
    check: Check,
    weight: Verdict,
    meaning: &str,
    is_meant: impl Fn(&What) -> bool,
) -> Vec<Finding> {
    let root_port = at.after.port.as_ref().or(at.before.port.as_ref()).map(|port| port.root_port);
    let port = at.port_bdf();
    let finding = |bdf: Bdf, weight: Option<Verdict>| {
        let mut lines = at
            .events
            .iter()
            .filter(|(event, _)| event.is_about(bdf) && is_meant(&event.what))
            .map(|(_, line)| *line);
        // The last one: of waiting, the longest.
        let last = lines.next_back()?;
        let after = match lines.count() {
            0 => last.to_owned(),
            more => format!("{last} (and {more} more like it)"),
        };
        Some(found(check, weight, bdf, "kernel log", after, meaning))
    };
    let own = finding(at.after.bdf, Some(weight));
    let ports = port.and_then(|port| finding(port, Some(weight)));
    let roots = root_port.filter(|root| Some(*root) != port).and_then(|root| finding(root, None));
    own.into_iter().chain(ports).chain(roots).collect()
}
