//! Cuts a device's reset methods down (`reset_method`); undo puts the former list back.

use std::io;

use gpuvm_core::host_ops::{Undoing, undoing};
use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::Method;
use gpuvm_sys::errno::EINVAL;

use crate::apply::{Host, STORE_DEADLINE};
use crate::kernel::Kernel;
use crate::root::{HostRoot, read_text};
use crate::{HostError, snapshot};

/// The method that the kernel may list and not take: it looks for it before it knows the other functions on the bus.
const STALE: &str = "bus";
/// What makes the kernel look for a device's methods again.
const DEFAULT: &str = "default";

/// Reads the methods that the kernel lists, in its order.
///
/// # Errors
/// Returns failures to read; a device that has no list at all has none.
pub(crate) fn read(root: &HostRoot, bdf: Bdf) -> Result<Vec<String>, HostError> {
    let text = read_text(&root.device(bdf).join("reset_method"))?.unwrap_or_default();
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Sets the list.
pub(crate) fn apply(kernel: &Kernel, doing: &str, bdf: Bdf, methods: &[Method]) -> Result<(), HostError> {
    set(kernel, doing, bdf, &names(methods))
}

/// Puts the list back that was there before, unless somebody else has changed it since.
///
/// A list with a bus reset that never was one is refused by the kernel, which knows all functions on the bus by now. It is put back
/// without: what the kernel resets the device by is the same then.
pub(crate) fn undo(host: &Host<'_>, bdf: Bdf, ours: &[Method], saved: Vec<String>) -> Result<(), HostError> {
    let doing = format!("set the reset methods of {bdf} back to {}", words(&saved));
    let now = read(&host.kernel.root, bdf)?;
    let ours = names(ours);
    let without = without_stale(&saved);
    match undoing(saved, &ours, &now) {
        Undoing::Nothing => Ok(()),
        Undoing::Restore(saved) => {
            // The kernel looks at the registers of a device for some of its methods, and one that doesn't answer has none.
            snapshot::answers(host, bdf)?;
            put_back(host.kernel, &doing, bdf, &saved)
        }
        // A crash in the middle of giving back leaves it so.
        Undoing::ChangedByOthers if now == without => Ok(()),
        Undoing::ChangedByOthers => Err(HostError::ChangedByOthers {
            doing,
            what: format!("reset_method of {bdf}"),
            ours: words(&ours),
            now: words(&now),
        }),
    }
}

/// Sets the list that was there before, as far as the kernel takes it: see [`undo`].
pub(crate) fn put_back(kernel: &Kernel, doing: &str, bdf: Bdf, saved: &[String]) -> Result<(), HostError> {
    let without = without_stale(saved);
    match set(kernel, doing, bdf, saved) {
        Err(HostError::Refused { source, .. }) if is_stale(&source) && without != saved => {
            put_back_without(kernel, doing, bdf, &without)
        }
        result => result,
    }
}

fn without_stale(saved: &[String]) -> Vec<String> {
    saved.iter().filter(|name| *name != STALE).cloned().collect()
}

fn is_stale(source: &io::Error) -> bool {
    source.raw_os_error() == Some(EINVAL)
}

/// Has the kernel look for the methods again, and writes only what it doesn't find by itself.
fn put_back_without(kernel: &Kernel, doing: &str, bdf: Bdf, saved: &[String]) -> Result<(), HostError> {
    write(kernel, doing, bdf, DEFAULT)?;
    if read(&kernel.root, bdf)? == saved { Ok(()) } else { set(kernel, doing, bdf, saved) }
}

/// Writes a list and sees to it that it is there. Emptying it takes a newline: an empty write changes nothing.
fn set(kernel: &Kernel, doing: &str, bdf: Bdf, methods: &[String]) -> Result<(), HostError> {
    let value = if methods.is_empty() { "\n".to_owned() } else { methods.join(" ") };
    write(kernel, doing, bdf, &value)?;
    let now = read(&kernel.root, bdf)?;
    if now == methods { Ok(()) } else { Err(HostError::no_effect(doing, bdf, words(&now))) }
}

fn write(kernel: &Kernel, doing: &str, bdf: Bdf, value: &str) -> Result<(), HostError> {
    kernel.write(doing, &kernel.root.device(bdf).join("reset_method"), value, STORE_DEADLINE)
}

fn names(methods: &[Method]) -> Vec<String> {
    methods.iter().map(|method| method.name().to_owned()).collect()
}

fn words(methods: &[String]) -> String {
    if methods.is_empty() { "none".to_owned() } else { methods.join(" ") }
}
