//! `-device vfio-pci`.

use std::path::PathBuf;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    romfile: Option<PathBuf>,
    /// 0 or 1, as QEMU's property has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rombar: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootindex: Option<u32>,
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
            let device = plan.devices.iter().find(|device| device.bdf == *host);
            Arg::json(
                "-device",
                &VfioPci {
                    driver: "vfio-pci",
                    id: format!("vfio{port}.{function}"),
                    host: *host,
                    bus: bus.to_owned(),
                    addr: addr(0, *function),
                    multifunction: *function == 0 && siblings == Siblings::Some,
                    romfile: device.and_then(|device| device.rom_file.clone()),
                    rombar: device.and_then(|device| device.rombar).map(u8::from),
                    bootindex: device.and_then(|device| device.boot),
                    vf_token: device.and_then(|device| device.vf_token),
                },
            )
        })
        .collect()
}
