//! `-device pcie-root-port`, and the bus addresses of what sits behind the ports.

use serde::Serialize;

use super::arg::Arg;
use crate::plan::RootPort;

/// `-device pcie-root-port`.
#[derive(Serialize)]
struct PcieRootPort {
    driver: &'static str,
    id: String,
    bus: &'static str,
    addr: String,
    multifunction: bool,
    /// Numbers the port in its slot capability; unique in the machine (hw/pci/pcie_port.c).
    chassis: u16,
    slot: u16,
}

/// Names the bus behind a port, which is also the port's id.
pub(super) fn bus(port: &RootPort) -> String {
    format!("rp{}", port.index)
}

/// Spells a device and function number as QEMU's `addr` property takes it.
pub(super) fn addr(device: u8, function: u8) -> String {
    format!("{device:#x}.{function:#x}")
}

/// Renders a root port. Function 0 of a shared slot carries the bit that makes the guest look for the others.
pub(super) fn arg(port: &RootPort, siblings: Siblings) -> Arg {
    Arg::json(
        "-device",
        &PcieRootPort {
            driver: "pcie-root-port",
            id: bus(port),
            bus: "pcie.0",
            addr: addr(port.slot, port.function),
            multifunction: port.function == 0 && siblings == Siblings::Some,
            chassis: port.index + 1,
            slot: port.index + 1,
        },
    )
}

/// Whether a slot holds more functions than this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Siblings {
    /// It does.
    Some,
    /// It doesn't.
    None,
}
