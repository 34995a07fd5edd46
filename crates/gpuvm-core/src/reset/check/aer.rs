//! What errors it, its port and the kernel have counted.

use super::super::registers::{ErrorRegisters, Registers, STATUS};
use super::super::{Check, Finding, Verdict};
use super::{Comparison, found};
use crate::facts::ErrorCounters;
use crate::pci::Bdf;

/// The bits of the status register that tell of errors.
const STATUS_ERRORS: [(u32, &str); 6] = [
    (8, "master data parity error"),
    (11, "signaled target abort"),
    (12, "received target abort"),
    (13, "received master abort"),
    (14, "signaled system error"),
    (15, "detected parity error"),
];
/// The bits of the Device Status register that tell of errors, and that of transactions without an answer.
const DEVICE_ERRORS: [(u32, &str); 5] = [
    (0, "correctable error"),
    (1, "non-fatal error"),
    (2, "fatal error"),
    (3, "unsupported request"),
    (5, "transactions pending"),
];
/// The bits of the Uncorrectable Error Status register, under the names that the kernel has for them (drivers/pci/pcie/aer.c).
const UNCORRECTABLE: [(u32, &str); 17] = [
    (4, "DLP"),
    (5, "SDES"),
    (12, "TLP"),
    (13, "FCP"),
    (14, "CmpltTO"),
    (15, "CmpltAbrt"),
    (16, "UnxCmplt"),
    (17, "RxOF"),
    (18, "MalfTLP"),
    (19, "ECRC"),
    (20, "UnsupReq"),
    (21, "ACSViol"),
    (22, "UncorrIntErr"),
    (23, "BlockedTLP"),
    (24, "AtomicOpBlocked"),
    (25, "TLPBlockedErr"),
    (26, "PoisonTLPBlocked"),
];
/// Advanced Error Reporting's correctable error that stands for a non-fatal one which somebody else deals with.
const ADVISORY: u32 = 1 << 13;

fn names(bits: u32, table: &[(u32, &str)]) -> String {
    let names = table.iter().filter(|(bit, _)| bits & 1 << bit != 0).map(|(_, name)| *name);
    names.collect::<Vec<_>>().join(", ")
}

/// Finds errors of conventional PCI, which are only worth knowing: a reset, a driver or a guest that looks for devices sets some.
pub(super) fn status(at: &Comparison<'_>) -> Vec<Finding> {
    let bits = at.function.of(|registers| registers.word(STATUS));
    new_bits(bits, &STATUS_ERRORS)
        .map(|(before, after, names)| {
            at.found(Check::Status, None, "config 0x06 STATUS", format!("{after:#06x}"), &names)
                .was(format!("{before:#06x}"))
        })
        .into_iter()
        .collect()
}

/// Finds bits of Device Status, which are only worth knowing: what they tell of is in the counters too, where it was reported.
pub(super) fn device_status(at: &Comparison<'_>) -> Vec<Finding> {
    let bits = at.function.of(Registers::device_status);
    new_bits(bits, &DEVICE_ERRORS)
        .map(|(before, after, names)| {
            at.found(Check::DeviceStatus, None, "DEVSTA", format!("{after:#06x}"), &names)
                .was(format!("{before:#06x}"))
        })
        .into_iter()
        .collect()
}

/// Returns what was set since, in words.
fn new_bits(bits: Option<(u16, u16)>, table: &[(u32, &str)]) -> Option<(u16, u16, String)> {
    let (before, after) = bits?;
    let names = names(u32::from(after & !before), table);
    (!names.is_empty()).then(|| (before, after, format!("it shows: {names}")))
}

/// Finds uncorrectable errors in the function's own registers, and in its port's.
///
/// What is masked isn't reported and only worth knowing. So is what the port shows: a reset of its bus leaves such traces, and the
/// kernel counts what it reports (see [`root_port`]).
pub(super) fn error_status(at: &Comparison<'_>) -> Vec<Finding> {
    let function = at.function.of(Registers::errors);
    let port = at.port.of(Registers::errors).zip(at.port_bdf());
    let mut findings = Vec::new();
    if let Some((before, after)) = function {
        findings.extend(errors_shown(at.after.bdf, before, after));
    }
    if let Some(((before, after), bdf)) = port {
        findings.extend(errors_shown(bdf, before, after).map(|finding| Finding { weight: None, ..finding }));
    }
    findings
}

fn errors_shown(bdf: Bdf, before: ErrorRegisters, after: ErrorRegisters) -> Option<Finding> {
    let new = after.status & !before.status;
    if new == 0 {
        return None;
    }
    let named =
        |bits: u32, what: &str| (bits != 0).then(|| format!("{what} {}", names(bits, &UNCORRECTABLE)));
    let (reported, masked) = (new & !after.mask, new & after.mask);
    let (fatal, nonfatal) = (reported & after.severity, reported & !after.severity);
    let advisory = fatal == 0 && after.correctable & !before.correctable & ADVISORY != 0;
    // Nobody clears the bit where the firmware has error reporting: it may be of these errors, or of others before.
    let maybe_advisory = fatal == 0 && after.correctable & before.correctable & ADVISORY != 0;
    let (weight, meaning) = match () {
        () if after.status == u32::MAX => {
            (Some(Verdict::Impaired), "its extended registers read ones".to_owned())
        }
        () => {
            let of_nonfatal = if maybe_advisory { "non-fatal or advisory:" } else { "non-fatal:" };
            let words = [
                named(fatal, "fatal:"),
                named(nonfatal, if advisory { "advisory:" } else { of_nonfatal }),
                named(masked, "not reported:"),
            ];
            let weight = match reported {
                0 => None,
                _ if advisory => Some(Verdict::Degraded),
                // The counters and the log tell of what was reported.
                _ if maybe_advisory => Some(Verdict::Unknown),
                _ => Some(Verdict::Faulted),
            };
            let words: Vec<_> = words.into_iter().flatten().collect();
            (weight, format!("it has seen uncorrectable errors, {}", words.join("; ")))
        }
    };
    let register = "AER uncorrectable error status";
    let status = |registers: ErrorRegisters| format!("{:#010x}", registers.status);
    Some(found(Check::ErrorStatus, weight, bdf, register, status(after), &meaning).was(status(before)))
}

/// One counter of the three.
struct Counter {
    name: &'static str,
    of: fn(&ErrorCounters) -> u64,
    weight: Verdict,
    meaning: &'static str,
}

const COUNTERS: [Counter; 3] = [
    Counter {
        name: "correctable",
        of: |counters| counters.correctable,
        weight: Verdict::Degraded,
        meaning: "errors on its link that the hardware has repaired",
    },
    Counter {
        name: "nonfatal",
        of: |counters| counters.nonfatal,
        weight: Verdict::Faulted,
        meaning: "errors that have cost transactions",
    },
    Counter {
        name: "fatal",
        of: |counters| counters.fatal,
        weight: Verdict::Faulted,
        meaning: "errors that have cost the link",
    },
];

/// Finds errors that the hardware has repaired.
pub(super) fn correctable(at: &Comparison<'_>) -> Vec<Finding> {
    risen(at, Check::CorrectableErrors, &COUNTERS[0])
}

/// Finds errors that have cost a transaction.
pub(super) fn nonfatal(at: &Comparison<'_>) -> Vec<Finding> {
    risen(at, Check::NonfatalErrors, &COUNTERS[1])
}

/// Finds errors that have cost the link. The kernel doesn't read an endpoint's status after one, so that often only the root port's
/// counter rises (see [`root_port`]).
pub(super) fn fatal(at: &Comparison<'_>) -> Vec<Finding> {
    risen(at, Check::FatalErrors, &COUNTERS[2])
}

fn risen(at: &Comparison<'_>, check: Check, counter: &Counter) -> Vec<Finding> {
    let Some((before, after)) = at.before.errors.read().zip(at.after.errors.read()) else {
        return Vec::new();
    };
    let (before, after) = ((counter.of)(before), (counter.of)(after));
    if !has_risen(before, after) {
        return Vec::new();
    }
    let register = format!("aer_dev_{}", counter.name);
    vec![at.found(check, counter.weight, &register, after, counter.meaning).was(before)]
}

/// Tells whether errors were counted. A counter that is lower than before began anew, and what it shows was counted since.
fn has_risen(before: u64, after: u64) -> bool {
    after > before || (after < before && after > 0)
}

/// Finds errors that the root port was told of. They are the function's where the root port is right above it; behind a switch
/// they may be anybody's, and are only worth knowing.
pub(super) fn root_port(at: &Comparison<'_>) -> Vec<Finding> {
    let Some((before, after)) = at.before.port.as_ref().zip(at.after.port.as_ref()) else {
        return Vec::new();
    };
    let Some((was, now)) = before.root_errors.read().zip(after.root_errors.read()) else { return Vec::new() };
    if before.root_port != after.root_port {
        return Vec::new();
    }
    let own = after.root_port == after.bdf;
    let risen = |counter: &Counter| {
        let (was, now) = ((counter.of)(was), (counter.of)(now));
        let name = if counter.name == "correctable" { "cor" } else { counter.name };
        let register = format!("aer_rootport_total_err_{name}");
        let meaning = format!("its root port was told of {}", counter.meaning);
        let weight = own.then_some(counter.weight);
        let finding = found(Check::RootPortErrors, weight, after.root_port, &register, now, &meaning);
        has_risen(was, now).then(|| finding.was(was))
    };
    COUNTERS.iter().filter_map(risen).collect()
}

/// Finds counters that are lower than before: the device was found anew, by a rescan or a boot, and who had it knows nothing of
/// that.
pub(super) fn begun_anew(at: &Comparison<'_>) -> Vec<Finding> {
    let Some((before, after)) = at.before.errors.read().zip(at.after.errors.read()) else {
        return Vec::new();
    };
    let fallen = |counter: &Counter| {
        let (before, after) = ((counter.of)(before), (counter.of)(after));
        let register = format!("aer_dev_{}", counter.name);
        let meaning = "the kernel has found the device anew since";
        let finding = at.found(Check::CountersBegunAnew, None, &register, after, meaning);
        (after < before).then(|| finding.was(before))
    };
    COUNTERS.iter().filter_map(fallen).collect()
}
