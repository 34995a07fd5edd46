//! Whether its base address registers are where the kernel has placed them.

use super::super::registers::{BAR_0, REVISION, Registers};
use super::super::{Check, Finding, Verdict};
use super::Comparison;
use crate::facts::{BarFacts, BarKind};

/// Finds registers that aren't where the kernel has placed them: nothing would arrive.
///
/// `resource` is cached and keeps its good-looking values on a device that has lost its own. Not looked at are: a virtual function,
/// whose registers are in its physical function; a device in D3hot without No_Soft_Reset, which may have lost them until it is
/// resumed; one of Enhanced Allocation, whose registers are empty; what the kernel found no room for; and the ROM, whose
/// register the kernel writes only while it reads it.
pub(super) fn bars(at: &Comparison<'_>) -> Vec<Finding> {
    let Some(registers) = at.function.after.as_ref() else { return Vec::new() };
    let asleep = registers.may_have_lost_registers();
    if at.is_virtual() || asleep || registers.has_fixed_addresses() {
        return Vec::new();
    }
    let count = match registers.layout() {
        Some(0) => 6,
        Some(1) => 2,
        _ => 0,
    };
    let placed = at.after.bars.read().into_iter().flatten();
    placed
        .filter(|bar| bar.index < count && !has_old_ports(registers, **bar))
        .filter_map(|bar| misplaced(at, registers, *bar))
        .collect()
}

/// Tells whether a register of an IDE controller stands for the ports of old, which it doesn't hold (PCI IDE Controller
/// Specification 1.0).
fn has_old_ports(registers: &Registers<'_>, bar: BarFacts) -> bool {
    let class = registers.dword(REVISION).unwrap_or(0);
    let native = match bar.index {
        0 | 1 => 0x1,
        2 | 3 => 0x4,
        _ => return false,
    };
    class >> 16 == 0x0101 && class >> 8 & native == 0
}

fn misplaced(at: &Comparison<'_>, registers: &Registers<'_>, bar: BarFacts) -> Option<Finding> {
    let address = bar.address?;
    let place = BAR_0 + 4 * usize::from(bar.index);
    let low = registers.dword(place)?;
    // The low bits say what it is: ports, or memory, of 64 bits with the next register.
    let flags = if bar.kind == BarKind::Io { 0x3 } else { 0xf };
    let is_wide = bar.kind != BarKind::Io && (low & 0x6 == 0x4 || address >> 32 != 0);
    let high = if is_wide && bar.index < 5 { registers.dword(place + 4)? } else { 0 };
    let value = u64::from(high) << 32 | u64::from(low & !flags);
    if value == address {
        return None;
    }
    let is_unchanged =
        || at.function.before.as_ref().and_then(|registers| registers.dword(place)) == Some(low);
    let mut weight = Some(Verdict::Impaired);
    let meaning = match (low, value) {
        (u32::MAX, _) => "it reads ones",
        // Only x86 has ports of the CPU's own. Elsewhere the kernel numbers those of all root buses in one row
        // (lib/logic_pio.c), and the register holds the bus's number.
        _ if bar.kind == BarKind::Io && value != 0 && is_unchanged() => {
            weight = None;
            "the kernel numbers its ports otherwise than its bus does"
        }
        (_, 0) => "it has lost its address, as in a reset after which nobody has restored it",
        _ => "it isn't where the kernel has placed it: nothing would arrive",
    };
    let register = format!("config {place:#04x} BAR {}", bar.index);
    Some(
        at.found(Check::Bars, weight, &register, format!("{value:#x}"), meaning).was(format!("{address:#x}")),
    )
}
