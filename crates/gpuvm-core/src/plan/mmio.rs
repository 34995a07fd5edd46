//! The guest's physical address space: where memory lies, and whether the BARs of its devices find room.

use serde::{Deserialize, Serialize};

use super::Refusal;
use super::obstacle::{Obstacles, Topic};
use crate::facts::{BarKind, CpuVendor, HostFacts};
use crate::pci::Bdf;
use crate::profile::{Accel, FirmwareKind, Profile};
use crate::units::ByteSize;

/// Less memory than this stays below 4 GiB in one piece (hw/i386/pc_q35.c).
const LOW_WHOLE: u64 = 0xb000_0000;
/// Of more than that, this much lies below 4 GiB.
const LOW_SPLIT: u64 = 0x8000_0000;
const FOUR_GIB: u64 = 1 << 32;
const ONE_TIB: u64 = 1 << 40;
/// HyperTransport's range on AMD hosts, which no device can reach (hw/i386/pc.c, AMD_HT_START).
const AMD_HT_START: u64 = 0xfd_0000_0000;
/// The room for 64-bit BARs that Q35 keeps free above memory (hw/pci-host/q35.c).
const HOLE64: u64 = 32 << 30;
/// The room for 64-bit BARs that OVMF gives without any rule (OvmfPkg/Library/PlatformInitLib/MemDetect.c).
const OVMF_CLASSIC: u64 = 32 << 30;
/// The most that X-PciMmio64Mb may ask for.
const OVMF_LARGEST: u64 = 16 << 40;
/// The address bits of QEMU's translator (target/i386/cpu.h, TCG_PHYS_ADDR_BITS).
const TCG_BITS: u8 = 40;

/// Where things lie in the guest's physical address space.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AddressPlan {
    /// The width of the guest's physical addresses, where it is known.
    pub phys_bits: Option<u8>,
    /// The end of the memory below 4 GiB, exclusive.
    pub low_end: u64,
    /// The memory above it: begin and end, exclusive.
    pub high: Option<(u64, u64)>,
    /// The BARs of the devices that are passed.
    pub bars: Vec<PlannedBar>,
    /// What BARs need below 4 GiB.
    pub low_need: ByteSize,
    /// What BARs need above it, where alone 64-bit ones of a card fit.
    pub high_need: ByteSize,
    /// How much room OVMF is told to make above, where its own rule may give too little, in MiB.
    pub ovmf_mmio64_mib: Option<u64>,
    /// The arithmetic in words.
    pub reason: String,
}

/// A BAR of a device that is passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBar {
    /// The device.
    pub bdf: Bdf,
    /// The BAR's number.
    pub index: u8,
    /// Its size.
    pub size: ByteSize,
    /// Where it can be placed.
    pub kind: BarKind,
}

impl AddressPlan {
    /// Returns the last address of the guest's memory.
    pub fn memory_top(&self) -> u64 {
        self.high.map_or(self.low_end, |(_, end)| end).saturating_sub(1)
    }

    /// Returns the room that is kept for BARs above memory. QEMU keeps some whether there are any BARs or not.
    pub fn room(&self) -> ByteSize {
        let asked = self.ovmf_mmio64_mib.map_or(self.high_need.as_bytes(), |mib| mib << 20);
        ByteSize::bytes(asked.max(HOLE64))
    }

    /// Returns the end of memory and the room above it where that lies beyond the guest's addresses: QEMU doesn't start then.
    pub fn overrun(&self) -> Option<u64> {
        let top = self.high.map_or(FOUR_GIB, |(_, end)| end);
        let end = top.saturating_add(self.room().as_bytes());
        let bits = self.phys_bits.filter(|bits| *bits < 64)?;
        (end > 1 << bits).then_some(end)
    }
}

/// Splits memory into what lies below 4 GiB and above it; ends are exclusive.
///
/// What lies beyond the hole below 4 GiB moves above it; with an AMD CPU above 1 TiB once memory and the room for 64-bit BARs
/// would reach the HyperTransport range there (hw/i386/pc.c, pc_memory_init).
fn layout(size: ByteSize, vendor: CpuVendor) -> (u64, Option<(u64, u64)>) {
    let size = size.as_bytes();
    if size < LOW_WHOLE {
        return (size, None);
    }
    let above = size - LOW_SPLIT;
    let begin = match vendor {
        CpuVendor::Amd if FOUR_GIB + above + HOLE64 > AMD_HT_START => ONE_TIB,
        _ => FOUR_GIB,
    };
    (LOW_SPLIT, Some((begin, begin + above)))
}

/// Plans the address space of a guest that gets these devices.
pub(super) fn addresses(
    profile: &Profile,
    facts: &HostFacts,
    devices: &[Bdf],
    obstacles: &mut Obstacles,
) -> AddressPlan {
    let (phys_bits, vendor) = match profile.accel {
        Accel::Kvm => (facts.cpus.phys_bits, facts.cpus.vendor),
        // The CPU that QEMU's translator shows is AMD's (target/i386/cpu.c, max).
        Accel::Tcg => (Some(TCG_BITS), CpuVendor::Amd),
    };
    let (low_end, high) = layout(profile.memory.size, vendor);
    let bars = bars(facts, devices);
    // Facts may come from a file, which may say anything.
    let sizes = |kind| bars.iter().filter(move |bar| bar.kind == kind).map(|bar| bar.size.as_bytes());
    let need = |kind| sizes(kind).fold(0, u64::saturating_add);
    let (low_need, high_need) = (need(BarKind::Low), need(BarKind::High));
    let ovmf = ovmf_window(profile, phys_bits, high_need, obstacles);
    let reason = reason(profile, phys_bits, high_need, ovmf);
    let plan = AddressPlan {
        phys_bits,
        low_end,
        high,
        low_need: ByteSize::bytes(low_need),
        high_need: ByteSize::bytes(high_need),
        ovmf_mmio64_mib: ovmf.map(|bytes| bytes >> 20),
        bars,
        reason,
    };
    if let Some((end, bits)) = plan.overrun().zip(phys_bits) {
        obstacles.refuse(Refusal::AddressSpace { need: end - 1, bars: plan.room(), bits });
    }
    plan
}

fn bars(facts: &HostFacts, devices: &[Bdf]) -> Vec<PlannedBar> {
    let of = |bdf: &Bdf| {
        let bars = facts.devices.get(bdf).map(|device| device.bars.as_slice()).unwrap_or_default();
        bars.iter()
            .map(|bar| PlannedBar { bdf: *bdf, index: bar.index, size: bar.size, kind: bar.kind })
            .collect::<Vec<_>>()
    };
    devices.iter().flat_map(of).collect()
}

/// Returns the room that OVMF must be told to make, or `None` where its own rule gives enough.
///
/// The rule has changed over the years, and a firmware doesn't tell which it follows, so the least of them is taken: an
/// eighth of the address space where its width is plausible, 32 GiB else. Twice the need is asked for, rounded up to a power
/// of two: each BAR lies at a multiple of its size.
fn ovmf_window(
    profile: &Profile,
    phys_bits: Option<u8>,
    need: u64,
    obstacles: &mut Obstacles,
) -> Option<u64> {
    match profile.firmware {
        FirmwareKind::Uefi if need > ovmf_least(phys_bits) => {
            let twice = need.saturating_mul(2).checked_next_power_of_two();
            Some(twice.map_or(OVMF_LARGEST, |twice| twice.min(OVMF_LARGEST)))
        }
        FirmwareKind::Bios if need > HOLE64 => {
            let need = ByteSize::bytes(need);
            obstacles.warn(
                Topic::AddressSpace,
                format!("the devices' BARs need {need} above 4 GiB, and Q35 keeps 32G free there with SeaBIOS; firmware = \"uefi\" makes room"),
            );
            None
        }
        _ => None,
    }
}

fn ovmf_least(phys_bits: Option<u8>) -> u64 {
    match phys_bits {
        // Widths above 46 bits count as 46, and 40 is taken for a guess unless the CPU is AMD's.
        Some(bits @ (36 | 39 | 41..=64)) => (1 << (bits.min(46) - 3)).max(OVMF_CLASSIC),
        _ => OVMF_CLASSIC,
    }
}

fn reason(profile: &Profile, phys_bits: Option<u8>, need: u64, ovmf: Option<u64>) -> String {
    let need = ByteSize::bytes(need);
    match (profile.firmware, ovmf) {
        _ if need.as_bytes() == 0 => "no BAR needs addresses above 4 GiB".to_owned(),
        (FirmwareKind::Uefi, Some(room)) => format!(
            "BARs need {need} above 4 GiB, and OVMF's own rule may give no more than {}: it is told to make {} of room",
            ByteSize::bytes(ovmf_least(phys_bits)),
            ByteSize::bytes(room)
        ),
        (FirmwareKind::Uefi, None) => format!(
            "BARs need {need} above 4 GiB, and OVMF makes at least {} of room there",
            ByteSize::bytes(ovmf_least(phys_bits))
        ),
        (FirmwareKind::Bios, _) => format!("BARs need {need}, which SeaBIOS places where it fits"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1G", CpuVendor::Other, 0x3fff_ffff)]
    #[case("2814M", CpuVendor::Other, 0xafdf_ffff)]
    #[case("2816M", CpuVendor::Other, 0x1_2fff_ffff)]
    #[case("4G", CpuVendor::Other, 0x1_7fff_ffff)]
    #[case("978G", CpuVendor::Amd, 0xf4_ffff_ffff)]
    #[case("1020G", CpuVendor::Amd, 0x1fe_7fff_ffff)]
    #[case("1020G", CpuVendor::Other, 0xff_7fff_ffff)]
    fn the_top_moves_above_the_hole(#[case] size: &str, #[case] vendor: CpuVendor, #[case] top: u64) {
        let (low_end, high) = layout(size.parse().unwrap(), vendor);
        assert_eq!(AddressPlan { low_end, high, ..AddressPlan::default() }.memory_top(), top);
    }

    #[rstest]
    #[case::unknown(None, 32 << 30)]
    #[case::a_guess(Some(40), 32 << 30)]
    #[case::small(Some(36), 32 << 30)]
    #[case::desktop(Some(39), 64 << 30)]
    #[case::server(Some(46), 8 << 40)]
    #[case::capped(Some(52), 8 << 40)]
    fn the_least_room_of_ovmf_is_assumed(#[case] bits: Option<u8>, #[case] bytes: u64) {
        assert_eq!(ovmf_least(bits), bytes);
    }
}
