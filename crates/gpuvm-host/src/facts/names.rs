//! What devices are called.

use gpuvm_core::facts::HostFacts;
use gpuvm_core::names::{PciNames, Wanted};

use super::Reading;
use crate::HostError;
use crate::root::{HostRoot, read_text};

/// Where distributions put the list, best first: Debian's is a link to what update-pciids fetches, Fedora's is of hwdata, and
/// others have it as pciutils installs it.
const PLACES: [&str; 3] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids", "/usr/share/pci.ids"];

/// Looks up the names of the devices in scope. A host without a list has devices without names, and that is no failure.
pub(super) fn read(root: &HostRoot, reading: &Reading, facts: &HostFacts) -> Result<PciNames, HostError> {
    let wanted = Wanted::of(facts.devices.values());
    if wanted.is_empty() {
        return Ok(PciNames::default());
    }
    for place in PLACES {
        if let Some(list) = reading.take(read_text(&root.path(place)))? {
            return Ok(PciNames::parse(&list, &wanted));
        }
    }
    Ok(PciNames::default())
}
