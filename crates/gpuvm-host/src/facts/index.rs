//! What can be chosen: few attributes of many functions.

use std::fs;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::pci::{Bdf, ClassCode};
use gpuvm_core::profile::Selector;
use gpuvm_core::select::{FunctionIndex, IndexedFunction};

use super::{Depth, Reading, Scope, pci};
use crate::HostError;
use crate::root::{HostRoot, list, read_hex};

/// Reads what these selectors ask for: ids, class and node of all functions but the virtual ones, and serial numbers only of those
/// that fit the rest, since reading them means to read a device's config space.
///
/// # Errors
/// Returns the first attribute that can't be read or makes no sense; a serial number that can't be read is unknown.
pub fn index(root: &HostRoot, selectors: &[&Selector]) -> Result<FunctionIndex, HostError> {
    let reading = Reading::strict();
    let mut index = FunctionIndex::default();
    let names = list(&root.path("/sys/bus/pci/devices"))?;
    for bdf in names.iter().filter_map(|name| name.parse::<Bdf>().ok()).filter(|bdf| !is_virtual(root, *bdf))
    {
        let folder = root.device(bdf);
        let class = read_hex(&folder.join("class"))?.and_then(ClassCode::new);
        // Without ids or class it has gone away meanwhile.
        let Some((id, class)) = pci::id_of(root, bdf, &reading)?.zip(class) else { continue };
        index.insert(bdf, IndexedFunction { id, class, node: pci::node_of(&folder)?, serial: None });
    }
    let numbered = selectors.iter().filter(|selector| selector.serial.is_some());
    let close = numbered.flat_map(|selector| index.candidates(selector)).collect();
    let mut facts = HostFacts::default();
    pci::read_places(root, &Scope::Devices(close), Depth::Config, &Reading::lenient(), &mut facts)?;
    index.know(&facts);
    Ok(index)
}

/// Tells whether a function is a virtual one: of 10,000 only the link to their card is looked at.
pub(super) fn is_virtual(root: &HostRoot, bdf: Bdf) -> bool {
    fs::symlink_metadata(root.device(bdf).join("physfn")).is_ok()
}
