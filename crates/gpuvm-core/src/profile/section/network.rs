//! `network` and `[[forward]]`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::profile::check::{Checker, value_or};
use crate::profile::language::{Key, Kind, words};
use crate::profile::problem::{Problem, ProblemKind};
use crate::profile::read::{Choice, Cursor, Leaf};
use crate::profile::tree::Place;

/// The guest's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A VirtIO interface behind QEMU's own user-mode NAT.
    User,
    /// No interface.
    None,
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forward {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address that is listened on; QEMU's forwarding knows IPv4 only (slirp).
    pub host_address: Ipv4Addr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// An address of the host, as [`Forward::host_address`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostAddress(Ipv4Addr);

impl std::str::FromStr for HostAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = |_| format!("`{text}` is no IPv4 address like 127.0.0.1 (names and IPv6 aren't taken)");
        text.parse().map(Self).map_err(error)
    }
}

impl Choice for Network {
    const WORDS: &'static [(&'static str, Self)] = &[("user", Self::User), ("none", Self::None)];
}

impl Choice for Protocol {
    const WORDS: &'static [(&'static str, Self)] = &[("tcp", Self::Tcp), ("udp", Self::Udp)];
}

const PORTS: Kind = Kind::Integer { low: 1, high: 65_535 };

pub(in crate::profile) const KEYS: &[Key] = &[
    Key::default("protocol", Kind::Words(words::<Protocol>), "\"tcp\"", "The protocol."),
    Key::default(
        "host-address",
        Kind::Text,
        "\"127.0.0.1\"",
        "The host's address that is listened on; \"0.0.0.0\" is all of them.",
    ),
    Key::required("host-port", PORTS, "The host's port."),
    Key::required("guest-port", PORTS, "The guest's port."),
];

#[derive(Debug, Clone)]
pub(in crate::profile) struct RawForward {
    key: String,
    place: Place,
    protocol: Leaf<Protocol>,
    host_address: Leaf<HostAddress>,
    host_port: Leaf<u32>,
    guest_port: Leaf<u32>,
}

pub(in crate::profile) fn read(mut table: Cursor<'_>, problems: &mut Vec<Problem>) -> RawForward {
    let forward = RawForward {
        key: table.key("host-port"),
        place: table.place(),
        protocol: table.choice("protocol", problems),
        host_address: table.parsed("host-address", problems),
        host_port: table.count("host-port", 1..=65_535, problems),
        guest_port: table.count("guest-port", 1..=65_535, problems),
    };
    table.finish(problems);
    forward
}

pub(in crate::profile) fn check(
    raw: Vec<RawForward>,
    network: Network,
    checker: &mut Checker<'_>,
) -> Vec<Forward> {
    let mut seen = BTreeSet::new();
    let mut forwards = Vec::new();
    for RawForward { key, place, protocol, host_address, host_port, guest_port } in raw {
        if network == Network::None {
            let kind =
                ProblemKind::Needs { key: key.replace(".host-port", ""), other: r#"network = "user""# };
            checker.report(&key, place.clone(), kind);
        }
        let guest_key = key.replace(".host-port", ".guest-port");
        let host_port = checker.required(host_port, &key, "host-port = 2222", &place);
        let guest_port = checker.required(guest_port, &guest_key, "guest-port = 22", &place);
        let (Some(host), Some(guest)) = (host_port, guest_port) else { continue };
        let forward = Forward {
            protocol: value_or(protocol, Protocol::Tcp),
            host_address: host_address.map_or(Ipv4Addr::LOCALHOST, |address| address.value.0),
            // Both were read as 1 to 65535.
            host_port: u16::try_from(host.value).unwrap_or(0),
            guest_port: u16::try_from(guest.value).unwrap_or(0),
        };
        if seen.insert((forward.protocol, forward.host_address, forward.host_port)) {
            forwards.push(forward);
        } else {
            let (protocol, port) = (forward.protocol.as_str(), forward.host_port);
            checker.value(&key, host.place, format!("{protocol} port {port} is forwarded twice"));
        }
    }
    forwards
}
