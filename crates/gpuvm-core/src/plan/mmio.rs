//! The guest's physical address space.

use crate::units::ByteSize;

/// Less memory than this stays below 4 GiB in one piece (hw/i386/pc_q35.c).
const LOW_WHOLE: u64 = 0xb000_0000;
/// Of more than that, this much lies below 4 GiB.
const LOW_SPLIT: u64 = 0x8000_0000;
const FOUR_GIB: u64 = 1 << 32;

/// Returns the last address of a Q35 guest's memory.
///
/// What lies beyond the hole below 4 GiB moves above it. On AMD hosts QEMU moves it above 1 TiB once it would reach the
/// HyperTransport range there (from about 1010 GiB on); that is not counted here.
pub fn memory_top(size: ByteSize) -> u64 {
    match size.as_bytes() {
        bytes if bytes < LOW_WHOLE => bytes.saturating_sub(1),
        bytes => FOUR_GIB + (bytes - LOW_SPLIT) - 1,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1G", 0x3fff_ffff)]
    #[case("2814M", 0xafdf_ffff)]
    #[case("2816M", 0x1_2fff_ffff)]
    #[case("4G", 0x1_7fff_ffff)]
    fn the_top_moves_above_the_hole(#[case] size: &str, #[case] top: u64) {
        assert_eq!(memory_top(size.parse().unwrap()), top);
    }
}
