//! The host's text console, where a framebuffer shows it.

use std::fs;

use gpuvm_core::pci::Bdf;

use super::nodes::functions_on;
use crate::root::{HostRoot, list, read_text};

/// Finds the framebuffer that the text console is shown on, with the functions that it lies below.
///
/// The console is shown on the framebuffer that came first, unless somebody moved it (`con2fbmap`), which the kernel doesn't
/// tell.
pub(super) fn read(root: &HostRoot) -> Option<(String, Vec<Bdf>)> {
    let text = |path: String| read_text(&root.path(path)).ok().flatten().unwrap_or_default();
    let bound = |console: &String| {
        let attribute = |name: &str| text(format!("/sys/class/vtconsole/{console}/{name}"));
        attribute("name").contains("frame buffer") && attribute("bind").trim() == "1"
    };
    if !list(&root.path("/sys/class/vtconsole")).unwrap_or_default().iter().any(bound) {
        return None;
    }
    let framebuffers = text("/proc/fb".to_owned());
    let number = |line: &str| line.split_ascii_whitespace().next()?.parse::<u32>().ok();
    let framebuffer = format!("fb{}", framebuffers.lines().filter_map(number).min()?);
    let link = fs::read_link(root.path("/sys/class/graphics").join(&framebuffer)).ok()?;
    let functions = functions_on(&link).collect();
    Some((framebuffer, functions))
}
