//! `-netdev` and the VirtIO devices that every guest has: network and random numbers.

use serde::Serialize;

use super::arg::Arg;
use crate::profile::Forward;

#[derive(Serialize)]
struct NetdevUser {
    r#type: &'static str,
    id: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hostfwd: Vec<HostForward>,
}

/// A string that QAPI wraps in an object (qapi/net.json, `String`).
#[derive(Serialize)]
struct HostForward {
    str: String,
}

impl HostForward {
    fn new(forward: &Forward) -> Self {
        let Forward { protocol, host_address, host_port, guest_port } = forward;
        Self { str: format!("{}:{host_address}:{host_port}-:{guest_port}", protocol.as_str()) }
    }
}

#[derive(Serialize)]
struct VirtioNetPci<'a> {
    driver: &'static str,
    id: &'static str,
    bus: &'a str,
    netdev: &'static str,
    /// Empty: no boot over the network, and no ROM that the firmware would run.
    romfile: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct RngBuiltin {
    qom_type: &'static str,
    id: &'static str,
}

#[derive(Serialize)]
struct VirtioRngPci<'a> {
    driver: &'static str,
    id: &'static str,
    bus: &'a str,
    rng: &'static str,
}

/// Renders the network interface.
pub(super) fn net(bus: &str, forwards: &[Forward]) -> [Arg; 2] {
    let device =
        VirtioNetPci { driver: "virtio-net-pci", id: "virtio-net0", bus, netdev: "net0", romfile: "" };
    let hostfwd = forwards.iter().map(HostForward::new).collect();
    [Arg::json("-netdev", &NetdevUser { r#type: "user", id: "net0", hostfwd }), Arg::json("-device", &device)]
}

/// Renders the random number generator.
pub(super) fn rng(bus: &str) -> [Arg; 2] {
    let device = VirtioRngPci { driver: "virtio-rng-pci", id: "virtio-rng0", bus, rng: "rng0" };
    [Arg::json("-object", &RngBuiltin { qom_type: "rng-builtin", id: "rng0" }), Arg::json("-device", &device)]
}
