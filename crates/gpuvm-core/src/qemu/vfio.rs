//! `-device vfio-pci`.

use serde::Serialize;

use super::arg::Arg;
use super::pcie::{Siblings, addr};
use crate::pci::Bdf;
use crate::plan::Plan;

/// `-device vfio-pci`.
#[derive(Serialize)]
struct VfioPci {
    driver: &'static str,
    id: String,
    host: Bdf,
    bus: String,
    addr: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    multifunction: bool,
    #[serde(rename = "vf-token", skip_serializing_if = "Option::is_none")]
    vf_token: Option<uuid::Uuid>,
}

/// Renders the functions behind one port.
pub(super) fn args(plan: &Plan, port: u16, bus: &str, functions: &[(u8, Bdf)]) -> Vec<Arg> {
    let siblings = if functions.len() > 1 { Siblings::Some } else { Siblings::None };
    // Function 0 goes last: QEMU takes a slot as complete once function 0 is plugged (hw/pci/pci.c).
    let mut order: Vec<_> = functions.to_vec();
    order.sort_by_key(|(function, _)| std::cmp::Reverse(*function));
    order
        .iter()
        .map(|(function, host)| {
            Arg::json(
                "-device",
                &VfioPci {
                    driver: "vfio-pci",
                    id: format!("vfio{port}.{function}"),
                    host: *host,
                    bus: bus.to_owned(),
                    addr: addr(0, *function),
                    multifunction: *function == 0 && siblings == Siblings::Some,
                    vf_token: plan.devices.iter().find(|device| device.bdf == *host).and_then(|d| d.vf_token),
                },
            )
        })
        .collect()
}
