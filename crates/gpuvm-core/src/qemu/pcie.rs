//! `-device pxb-pcie` and `pcie-root-port`, and the bus addresses of what sits behind the ports.

use serde::Serialize;

use super::arg::Arg;
use crate::plan::{Expander, RootBus, RootPort};

/// `-device pcie-root-port`.
#[derive(Serialize)]
struct PcieRootPort {
    driver: &'static str,
    id: String,
    bus: String,
    addr: String,
    multifunction: bool,
    /// Numbers the port in its slot capability; unique in the machine (hw/pci/pcie_port.c).
    chassis: u16,
    slot: u16,
}

/// `-device pxb-pcie`.
#[derive(Serialize)]
struct PxbPcie {
    driver: &'static str,
    id: String,
    bus: &'static str,
    addr: String,
    bus_nr: u8,
    numa_node: u32,
}

/// Names a root bus.
fn root(bus: RootBus) -> String {
    match bus {
        RootBus::Main => "pcie.0".to_owned(),
        RootBus::Expander(node) => format!("pxb{node}"),
    }
}

/// Renders the expander of a guest's node.
pub(super) fn expander(expander: &Expander) -> Arg {
    let id = root(RootBus::Expander(expander.node));
    let (addr, bus_nr) = (addr(expander.slot, 0), expander.bus);
    let device = PxbPcie { driver: "pxb-pcie", id, bus: "pcie.0", addr, bus_nr, numa_node: expander.node };
    Arg::json("-device", &device)
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
            bus: root(port.root),
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
