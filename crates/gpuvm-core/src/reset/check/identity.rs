//! Whether it is the device that it was: what of its header and its lists never changes.

use super::super::registers::{HEADER_TYPE, INTERRUPT_PIN, REVISION, Registers, SUBSYSTEM};
use super::super::{Check, Finding, Verdict};
use super::Comparison;

/// Finds other ids than those that the kernel has read when it found the device. Those of a virtual function read ffff.
pub(super) fn identity(at: &Comparison<'_>) -> Vec<Finding> {
    let Some(id) = at.function.after.as_ref().and_then(|registers| registers.dword(0)) else {
        return Vec::new();
    };
    let cached = at.before.id.read().or(at.after.id.read());
    let cached = cached.map(|id| u32::from(id.vendor) | u32::from(id.device) << 16);
    let before = at.function.before.as_ref().and_then(|registers| registers.dword(0));
    let known = cached.or(before).filter(|known| *known != id && !at.is_virtual());
    let found = |known: u32| {
        // As the kernel judges an empty slot (pci_bus_generic_read_dev_vendor_id of drivers/pci/probe.c).
        let (weight, meaning) = match id {
            0 | 0x0000_ffff | 0xffff_0000 => (Verdict::Unreachable, "no device has this id: nothing answers"),
            _ => (Verdict::Impaired, "it answers as another device"),
        };
        at.found(Check::Identity, weight, "config 0x00", format!("{id:#010x}"), meaning)
            .was(format!("{known:#010x}"))
    };
    known.map(found).into_iter().collect()
}

/// Finds another subsystem: the ledger knows a card by it.
pub(super) fn subsystem(at: &Comparison<'_>) -> Vec<Finding> {
    // A bridge has its windows there.
    let value =
        |registers: &Registers<'_>| registers.dword(SUBSYSTEM).filter(|_| registers.layout() == Some(0));
    changed(at.function.of(value), |before, after| {
        at.found(
            Check::Subsystem,
            Verdict::Impaired,
            "config 0x2c subsystem",
            format!("{after:#010x}"),
            "it answers as another card",
        )
        .was(format!("{before:#010x}"))
    })
}

/// Finds another class, which no driver would take it by, and another revision, which its firmware may have brought.
pub(super) fn class(at: &Comparison<'_>) -> Vec<Finding> {
    changed(at.function.of(|registers| registers.dword(REVISION)), |before, after| {
        let (weight, meaning) = if before >> 8 != after >> 8 {
            (Verdict::Impaired, "it answers as a device of another class")
        } else if after & 0xff == 0xff {
            (Verdict::Impaired, "its revision reads ones, as of a device that is gone")
        } else {
            (Verdict::Degraded, "it answers as another revision: it runs other firmware or logic")
        };
        let register = "config 0x08 class and revision";
        at.found(Check::Class, weight, register, format!("{after:#010x}"), meaning)
            .was(format!("{before:#010x}"))
    })
}

/// Finds a header of another layout. The bit that says whether there are other functions isn't of the layout: drivers switch a
/// GPU's audio function on and off (`quirk_nvidia_hda` of drivers/pci/quirks.c).
pub(super) fn header_type(at: &Comparison<'_>) -> Vec<Finding> {
    changed(at.function.of(|registers| registers.byte(HEADER_TYPE)), |before, after| {
        let (weight, meaning) = match before & 0x7f == after & 0x7f {
            true => (None, "it says otherwise than before whether its slot has other functions"),
            false => (Some(Verdict::Impaired), "its header has another layout"),
        };
        at.found(Check::HeaderType, weight, "config 0x0e header type", format!("{after:#04x}"), meaning)
            .was(format!("{before:#04x}"))
    })
}

/// Finds an interrupt pin that there isn't, or that changed: QEMU aborts at one above 4 (`pci_irq_handler`).
pub(super) fn interrupt_pin(at: &Comparison<'_>) -> Vec<Finding> {
    let pin = |registers: &Registers<'_>| registers.byte(INTERRUPT_PIN);
    let Some(after) = at.function.after.as_ref().and_then(pin) else { return Vec::new() };
    let before = at.function.before.as_ref().and_then(pin).filter(|before| *before != after);
    let meaning = match (after, before) {
        (5.., _) => "there are four pins: QEMU aborts when it raises this one",
        (_, Some(_)) => "it has another interrupt pin than before",
        (_, None) => return Vec::new(),
    };
    let register = "config 0x3d interrupt pin";
    let mut finding =
        at.found(Check::InterruptPin, Verdict::Impaired, register, format!("{after:#04x}"), meaning);
    finding.before = before.map(|before| format!("{before:#04x}"));
    vec![finding]
}

/// Finds capabilities that are gone or elsewhere. The lists are fixed in hardware; only as much is compared as was read of both.
pub(super) fn capabilities(at: &Comparison<'_>) -> Vec<Finding> {
    let Some((before, after)) = at.function.pair() else { return Vec::new() };
    let end = before.len().min(after.len());
    let list = |registers: &Registers<'_>| {
        let standard = registers.lists.standard.iter().map(|(id, at)| (*at, u16::from(*id)));
        let extended = registers.lists.extended.iter().map(|(id, at)| (*at, *id));
        standard.chain(extended).filter(|(at, _)| *at < end).collect::<Vec<_>>()
    };
    let words = |list: &[(usize, u16)]| {
        let words: Vec<_> = list.iter().map(|(at, id)| format!("{id:#04x} at {at:#04x}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let (before, after) = (list(before), list(after));
    let without = |these: &[(usize, u16)], those: &[(usize, u16)]| -> Vec<_> {
        these.iter().filter(|entry| !those.contains(entry)).copied().collect()
    };
    let (lost, gained) = (without(&before, &after), without(&after, &before));
    let (weight, meaning) = match (lost.is_empty(), gained.is_empty()) {
        (true, true) => return Vec::new(),
        (true, false) => (None, "it has capabilities that it hadn't"),
        (false, _) => (Some(Verdict::Impaired), "it has lost capabilities, or has them elsewhere"),
    };
    vec![at.found(Check::Capabilities, weight, "capabilities", words(&gained), meaning).was(words(&lost))]
}

/// Finds reset methods that the kernel doesn't list any more: somebody has switched them off, or the device doesn't say that it
/// has them. `up` itself may have, for a card that its profile tells to spare.
pub(super) fn reset_methods(at: &Comparison<'_>) -> Vec<Finding> {
    let Some((before, after)) = at.before.reset_methods.read().zip(at.after.reset_methods.read()) else {
        return Vec::new();
    };
    if before.iter().all(|method| after.contains(method)) {
        return Vec::new();
    }
    let words = |list: &[String]| if list.is_empty() { "none".to_owned() } else { list.join(" ") };
    let meaning = "the kernel would reset it in fewer ways than before";
    vec![at.found(Check::ResetMethods, None, "reset_method", words(after), meaning).was(words(before))]
}

/// Finds what a value's change comes to.
fn changed<T: PartialEq>(values: Option<(T, T)>, finding: impl Fn(T, T) -> Finding) -> Vec<Finding> {
    let changed = values.filter(|(before, after)| before != after);
    changed.map(|(before, after)| finding(before, after)).into_iter().collect()
}
