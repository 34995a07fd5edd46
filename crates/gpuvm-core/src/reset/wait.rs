//! How long the kernel waits for functions that are dead: what every deadline around QEMU rests on.
//!
//! `pci_dev_wait` of drivers/pci/pci.c doubles its wait until it is past 60 s, so an attempt to reset a dead function ends with
//! "not ready 65535ms ...; giving up" after 65.5 s, in uninterruptible sleep that no signal shortens. Methods that it tries after that
//! fail at once or within seconds: in the lab, QEMU's exit with one dead NVMe took 74.0 s, and 72.5 s when it was killed.

use std::time::Duration;

/// One attempt to reset one dead function: 65.5 s, and what comes with it.
pub const DEAD_FUNCTION: Duration = Duration::from_secs(75);
/// Attempts per function before QEMU's first word: vfio-pci resets it at open (`vfio_pci_core_enable`), by each method of its list in turn,
/// and a bus reset waits twice, once for the slot and once for the bus. A dead function isn't opened in the end, so QEMU's own reset of
/// the machine doesn't come to it.
const AT_START: u32 = 3;
/// Attempts per function from the order to end until QEMU is gone: one at the last close (`vfio_pci_core_disable`), which then tries the
/// bus; and those of a machine reset that the end came in the midst of. Four were seen of an NVMe that fell under its guest.
const AT_EXIT: u32 = 4;

/// Returns how long resets of so many functions hold QEMU up before it greets, if all of them are dead.
pub fn at_start(functions: usize) -> Duration {
    resets(functions, AT_START)
}

/// Returns how long resets of so many functions hold QEMU's end up, if all of them are dead.
pub fn at_exit(functions: usize) -> Duration {
    resets(functions, AT_EXIT)
}

/// Resets on one bus follow one another, since its devices share a lock (`vfio_device_set`); QEMU opens and closes devices one by one.
fn resets(functions: usize, attempts: u32) -> Duration {
    let functions = u32::try_from(functions).unwrap_or(u32::MAX);
    DEAD_FUNCTION.saturating_mul(functions.saturating_mul(attempts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dead_function_and_attempt_has_its_time() {
        assert_eq!([at_start(0), at_exit(0)], [Duration::ZERO; 2]);
        assert_eq!(at_start(2), Duration::from_secs(2 * 3 * 75));
        // What the lab saw of one NVMe: four attempts, some 70 s each.
        assert!(at_exit(1) > Duration::from_secs(4 * 70) && at_exit(1) < Duration::from_secs(5 * 70));
    }
}
