//! The firmware's screens, as far as a driver of the kernel holds their memory.

use gpuvm_core::facts::Framebuffer;

use crate::HostError;
use crate::facts::Reading;
use crate::root::{HostRoot, read_text};

/// What the drivers of firmware screens call the memory that they hold: `BOOTFB` is the platform device that is made for them
/// (drivers/firmware/sysfb_simplefb.c), the others are drivers (drivers/gpu/drm/sysfb, drivers/video/fbdev).
const NAMES: [&str; 9] = [
    "BOOTFB",
    "efifb",
    "efidrm",
    "ofdrm",
    "simple-framebuffer",
    "simpledrm",
    "simplefb",
    "vesadrm",
    "vesafb",
];

/// Reads them; nothing where this user is shown zeros in place of addresses.
pub(super) fn read(root: &HostRoot, reading: &Reading) -> Result<Option<Vec<Framebuffer>>, HostError> {
    let text = reading.take(read_text(&root.path("/proc/iomem")))?;
    Ok(text.as_deref().and_then(parse))
}

fn parse(iomem: &str) -> Option<Vec<Framebuffer>> {
    let lines = || iomem.lines().filter_map(line);
    // Somewhere there is memory, so an address that isn't zero.
    lines().any(|(_, end, _)| end != 0).then(|| {
        let screens = lines().filter(|(.., name)| NAMES.iter().any(|known| name.starts_with(known)));
        screens.map(|(begin, end, name)| Framebuffer { name: name.to_owned(), begin, end }).collect()
    })
}

/// Reads `  e0000000-e02fffff : BOOTFB`.
fn line(line: &str) -> Option<(u64, u64, &str)> {
    let (range, name) = line.split_once(" : ")?;
    let (begin, end) = range.trim().split_once('-')?;
    Some((u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?, name.trim()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const IOMEM: &str = "00001000-0009ffff : System RAM\ne0000000-efffffff : PCI Bus 0000:01\n  \
                         e0000000-e0ffffff : 0000:01:00.0\n    e0000000-e02fffff : BOOTFB\n      \
                         e0000000-e02fffff : simpledrm\nf0000000-f0ffffff : efi-something\n";

    #[test]
    fn screens_are_found_by_the_names_of_their_drivers() {
        let found = parse(IOMEM).unwrap();
        let names: Vec<_> = found.iter().map(|screen| screen.name.as_str()).collect();
        assert_eq!(names, ["BOOTFB", "simpledrm"]);
        assert_eq!((found[0].begin, found[0].end), (0xe000_0000, 0xe02f_ffff));
    }

    #[rstest]
    #[case::zeros("00000000-00000000 : System RAM\n  00000000-00000000 : BOOTFB\n", None)]
    #[case::nothing("", None)]
    #[case::garbage("x : y\n-:\n", None)]
    #[case::no_screen("00001000-0009ffff : System RAM\n", Some(0))]
    fn addresses_that_are_not_shown_are_not_taken_for_none(
        #[case] iomem: &str,
        #[case] count: Option<usize>,
    ) {
        assert_eq!(parse(iomem).map(|screens| screens.len()), count);
    }
}
