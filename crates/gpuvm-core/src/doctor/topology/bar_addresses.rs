//! Whether every register of a device got an address.

use crate::doctor::device::{each, of, path, unread};
use crate::doctor::{Case, Definition, Judgement, Layer, Remedy, Verdict};
use crate::facts::{BarFacts, BarKind, DeviceFacts, Presence};
use crate::pci::Bdf;

pub(super) const CHECK: Definition = Definition {
    name: "bar-addresses",
    layer: Layer::Topology,
    why: "a device with a register that has no address can't be switched on (pci_enable_device), and VFIO can't open it",
    judge,
};

const BELOW_4G: u64 = 1 << 32;

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    each(case, |bdf, device| judge_one(case, bdf, device).read(path(bdf, "resource")))
}

fn judge_one(case: &Case<'_>, bdf: Bdf, device: &DeviceFacts) -> Judgement {
    if let Some(why) = unread(case, bdf, "resource") {
        return of(bdf, Verdict::Unknown, why);
    }
    if device.virtual_function == Presence::Present {
        return of(bdf, Verdict::NotApplicable, "a virtual function's registers are its parent's");
    }
    let unplaced: Vec<String> =
        device.bars.iter().filter(|bar| bar.address.is_none()).map(describe).collect();
    if !unplaced.is_empty() {
        return of(
            bdf,
            Verdict::Failed,
            format!("{} got no address: there was no room", unplaced.join(", ")),
        )
        .remedy(make_room(case));
    }
    match lost(device) {
        None => of(
            bdf,
            Verdict::Unknown,
            format!(
                "{} registers have addresses; whether others were given up isn't known, since its config space wasn't read",
                device.bars.len()
            ),
        ),
        Some(lost) if lost.is_empty() => of(bdf, Verdict::Ok, placed(device)),
        Some(lost) => given_up(case, bdf, &lost),
    }
}

/// A register that the kernel has given up.
#[derive(Debug, PartialEq, Eq)]
enum Lost {
    /// I/O ports, of which a host has 64 KiB in all: on one with many cards they run out, and drivers do without.
    Ports(String),
    Memory(String),
}

impl Lost {
    fn words(&self) -> &str {
        match self {
            Self::Ports(words) | Self::Memory(words) => words,
        }
    }
}

fn given_up(case: &Case<'_>, bdf: Bdf, lost: &[Lost]) -> Judgement {
    let words = lost.iter().map(Lost::words).collect::<Vec<_>>().join(", ");
    if lost.iter().all(|lost| matches!(lost, Lost::Ports(_))) {
        let found =
            format!("the kernel has found no I/O ports for {words}: the guest sees the device without them");
        return of(bdf, Verdict::Warning, found).read(path(bdf, "config")).remedy(Remedy::new(
            "none is needed unless a driver or the card's own ROM asks for them: few do since BIOS days",
        ));
    }
    let found =
        format!("the kernel has given up {words}: there was no room, or somebody else has its address");
    of(bdf, Verdict::Failed, found).read(path(bdf, "config")).remedy(make_room(case))
}

/// Lists the registers that the device has and the kernel shows no resource of: what fails to be placed at boot is cleared
/// (reset_resource of drivers/pci/setup-bus.c). A register that reads zero can't be told from none.
fn lost(device: &DeviceFacts) -> Option<Vec<Lost>> {
    let config = device.config.as_ref().filter(|config| config.silent == Presence::Absent)?;
    let registers = &config.registers;
    let mut lost = Vec::new();
    let mut upper_half = false;
    for (index, register) in (0..).zip(registers) {
        if std::mem::take(&mut upper_half) {
            continue;
        }
        // Memory, 64 bits wide (PCI Local Bus Specification 3.0, 6.2.5.1).
        upper_half = register & 0x7 == 0x4;
        if *register != 0 && *register != u32::MAX && !device.bars.iter().any(|bar| bar.index == index) {
            let words = format!("BAR {index} (config space: {register:#010x})");
            lost.push(if register & 1 == 1 { Lost::Ports(words) } else { Lost::Memory(words) });
        }
    }
    Some(lost)
}

fn describe(bar: &BarFacts) -> String {
    format!("BAR {} of {}", bar.index, bar.size)
}

fn placed(device: &DeviceFacts) -> String {
    if device.bars.is_empty() {
        return "it has no registers".to_owned();
    }
    let low = |bar: &&BarFacts| bar.kind == BarKind::High && bar.address.is_some_and(|at| at < BELOW_4G);
    let bars: Vec<String> = device.bars.iter().map(describe).collect();
    let hint = match device.bars.iter().find(low) {
        Some(bar) => format!(
            "; {} sits below 4 GiB though it could be above: \"Above 4G decoding\" may be off in the firmware's setup",
            describe(bar)
        ),
        None => String::new(),
    };
    format!("{}{hint}", bars.join(", "))
}

fn make_room(case: &Case<'_>) -> Remedy {
    Remedy::new(
        "switch on \"Above 4G decoding\" (\"Memory mapped I/O above 4GB\", \"MMIO high size\") in the firmware's setup; if it is on, \
         let the kernel place them",
    )
    .commands(case.distribution().kernel_option("pci=realloc"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::device::testing::{GPU, change, host, told};
    use crate::units::ByteSize;

    fn bar(index: u8, address: Option<u64>) -> BarFacts {
        BarFacts { index, size: ByteSize::bytes(1 << 28), address, kind: BarKind::High }
    }

    #[rstest]
    #[case::above(Some(0x38_0000_0000), Verdict::Ok, "BAR 1 of 256M")]
    #[case::below(Some(0xe000_0000), Verdict::Ok, "Above 4G decoding")]
    #[case::nowhere(None, Verdict::Failed, "BAR 1 of 256M got no address")]
    fn a_register_is_judged_by_its_address(
        #[case] address: Option<u64>,
        #[case] verdict: Verdict,
        #[case] says: &str,
    ) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.bars = vec![bar(1, address)]);
        let (found, text) = told(&CHECK, &facts);
        assert_eq!(found, verdict);
        assert!(text.contains(says), "{text}");
    }

    #[rstest]
    // A 64-bit register's upper half is no register; what is all ones is a device that is gone, which is said elsewhere.
    #[case::all_shown(&[0xe000_0000, 0xc, 0x38], &[0, 1], Verdict::Ok)]
    #[case::one_cleared(&[0xe000_0000, 0xc, 0x00], &[0], Verdict::Failed)]
    #[case::ports_cleared(&[0xe000_0000, 0xc, 0x38, 0x1], &[0, 1], Verdict::Warning)]
    #[case::gone(&[u32::MAX; 6], &[0], Verdict::Ok)]
    fn a_register_that_the_kernel_has_cleared_is_found_in_config_space(
        #[case] registers: &[u32],
        #[case] shown: &[u8],
        #[case] verdict: Verdict,
    ) {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| {
            gpu.bars = shown.iter().map(|index| bar(*index, Some(1 << 36))).collect();
            gpu.config.as_mut().unwrap().registers = registers.to_vec();
        });
        assert_eq!(told(&CHECK, &facts).0, verdict);
    }

    #[test]
    fn what_was_not_read_is_unknown() {
        let mut facts = host();
        change(&mut facts, GPU, |gpu| gpu.config = None);
        assert_eq!(told(&CHECK, &facts).0, Verdict::Unknown);
        let mut facts = host();
        facts.unread.push(format!("read /sys/bus/pci/devices/{GPU}/resource: Permission denied"));
        assert_eq!(told(&CHECK, &facts).0, Verdict::Unknown);
    }
}
