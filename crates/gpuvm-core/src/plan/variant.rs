//! Which VFIO driver fits a device best: vfio-pci, or one that its maker wrote for it.
//!
//! The kernel's modules say what they are for by patterns of `modalias`. Those of VFIO begin with `vfio_pci:`, so that nothing is
//! loaded by itself, and the one that says most about the device is meant for it: the one with the fewest wildcards.

use super::Refusal;
use super::obstacle::Obstacles;
use crate::facts::{DeviceFacts, VfioAlias};
use crate::pci::{Bdf, DriverName};

/// What the aliases of VFIO's drivers begin with.
pub const ALIAS: &str = "vfio_pci:";
/// The module of vfio-pci itself, whose pattern fits everything.
const GENERIC: &str = "vfio_pci";

/// The driver that a device is given to, and why that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VfioDriver {
    pub(super) name: DriverName,
    pub(super) reason: String,
}

impl VfioDriver {
    /// The driver for any device.
    pub(super) fn generic() -> Self {
        let reason = "VFIO gives a device to a guest through this driver".to_owned();
        Self { name: DriverName::vfio_pci(), reason }
    }
}

/// Tells whether a device's `modalias` (with `pci:`) fits a module's pattern (with `vfio_pci:`).
pub fn fits(pattern: &str, modalias: &str) -> bool {
    match (pattern.strip_prefix(ALIAS), modalias.strip_prefix("pci:")) {
        (Some(pattern), Some(device)) => matches(pattern.as_bytes(), device.as_bytes()),
        _ => false,
    }
}

/// Tells whether a text fits a pattern in which `*` stands for any bytes and `?` for any one (fnmatch(3)).
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // The last `*` seen, and where in the text what follows it was last tried.
    let mut star = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((behind, tried)) = star else { return false };
                star = Some((behind, tried + 1));
                at = behind + 1;
                from = tried + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Chooses among the drivers that fit a device: fewest wildcards; of equals the first in the kernel's list.
fn best(aliases: &[VfioAlias]) -> Option<&VfioAlias> {
    let wildcards = |alias: &&VfioAlias| alias.pattern.bytes().filter(|byte| b"*?".contains(byte)).count();
    aliases.iter().min_by_key(wildcards).filter(|alias| alias.module != GENERIC)
}

/// Chooses the driver for a device, and refuses one that isn't loaded.
pub(super) fn choose(bdf: Bdf, device: &DeviceFacts, obstacles: &mut Obstacles) -> VfioDriver {
    let Some(alias) = best(&device.vfio_aliases) else { return VfioDriver::generic() };
    match &alias.driver {
        Some(name) => {
            let reason = format!(
                "the VFIO driver that was made for this device: modules.alias says {}",
                alias.pattern
            );
            VfioDriver { name: name.clone(), reason }
        }
        None => {
            obstacles.refuse(Refusal::VariantNotLoaded { bdf, module: alias.module.clone() });
            VfioDriver::generic()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const MLX5: &str = "pci:v000015B3d0000101Esv000015B3sd00000023bc02sc00i00";

    #[rstest]
    #[case("vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*", MLX5, true)]
    #[case("vfio_pci:v*d*sv*sd*bc*sc*i*", MLX5, true)]
    #[case("vfio_pci:v000015B3d0000101?sv*sd*bc*sc*i*", MLX5, true)]
    #[case("vfio_pci:v000015B3d0000101Fsv*sd*bc*sc*i*", MLX5, false)]
    #[case("pci:v000015B3d0000101Esv*sd*bc*sc*i*", MLX5, false)]
    #[case("vfio_pci:v000015B3d0000101E", MLX5, false)]
    #[case("vfio_pci:v000015B3*", "of:v000015B3", false)]
    fn a_pattern_of_vfio_fits_the_device_that_it_names(
        #[case] pattern: &str,
        #[case] modalias: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(fits(pattern, modalias), expected);
    }

    fn alias(pattern: &str, module: &str) -> VfioAlias {
        VfioAlias { pattern: pattern.to_owned(), module: module.to_owned(), driver: None }
    }

    #[rstest]
    #[case(&[("v*d*sv*", "vfio_pci"), ("v1d2sv*", "special"), ("v1d*sv*", "vendor")], Some("special"))]
    #[case(&[("v1d*", "first"), ("v*d2", "second")], Some("first"))]
    #[case(&[("v*d*", "vfio_pci")], None)]
    #[case(&[], None)]
    fn the_pattern_with_fewest_wildcards_is_taken(
        #[case] given: &[(&str, &str)],
        #[case] module: Option<&str>,
    ) {
        let aliases: Vec<_> = given.iter().map(|(pattern, module)| alias(pattern, module)).collect();
        assert_eq!(best(&aliases).map(|alias| alias.module.as_str()), module);
    }

    /// The same by plain recursion, as fnmatch(3) is described.
    fn by_recursion(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skipped| by_recursion(rest, &text[skipped..])),
            Some((byte, rest)) => text
                .split_first()
                .is_some_and(|(first, left)| (*byte == b'?' || byte == first) && by_recursion(rest, left)),
        }
    }

    proptest! {
        #[test]
        fn any_pattern_fits_what_plain_recursion_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let expected = by_recursion(pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected);
        }

        #[test]
        fn a_text_with_parts_made_wildcards_is_still_fitted(text in "[a-z0-9]{1,30}", mask in prop::collection::vec(0u8..4, 30)) {
            let pattern: String = text.chars().zip(mask).map(|(letter, kind)| match kind {
                0 => '*',
                1 => '?',
                _ => letter,
            }).collect();
            prop_assert!(matches(pattern.as_bytes(), text.as_bytes()), "{}", pattern);
        }
    }
}
