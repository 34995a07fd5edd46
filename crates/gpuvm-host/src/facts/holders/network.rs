//! Network interfaces that carry routes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use gpuvm_core::facts::{DEFAULT_ROUTE, Holder};

use crate::HostError;
use crate::root::{HostRoot, list, read_text};

/// Flags of routes (include/uapi/linux/route.h, ipv6_route.h): the kernel's own "unreachable" entries, multicast, and addresses of
/// the host's own.
const RTF_REJECT: u32 = 0x0200;
const RTF_ANYCAST: u32 = 0x0010_0000;
const RTF_LOCAL: u32 = 0x8000_0000;

/// Finds the interfaces that routes go out by, with the sysfs folders of the hardware that they rest on.
///
/// An interface that is down has no routes.
pub(super) fn read(root: &HostRoot) -> Result<Vec<(Holder, BTreeSet<PathBuf>)>, HostError> {
    let mut routes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let v4 = read_text(&root.path("/proc/net/route"))?.unwrap_or_default();
    let v6 = read_text(&root.path("/proc/net/ipv6_route"))?.unwrap_or_default();
    for (interface, destination) in
        v4.lines().skip(1).filter_map(route_v4).chain(v6.lines().filter_map(route_v6))
    {
        routes.entry(interface.to_owned()).or_default().insert(destination);
    }
    let holder = |(interface, destinations): (String, BTreeSet<String>)| {
        let below = interfaces_below(root, &interface);
        (Holder::Route { interface, destinations }, below)
    };
    Ok(routes.into_iter().map(holder).collect())
}

/// Reads a line of /proc/net/route: interface, destination, gateway, flags, three counters, mask; addresses as the machine keeps
/// them.
fn route_v4(line: &str) -> Option<(&str, String)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [interface, destination, _, flags, _, _, _, mask, ..] = fields.as_slice() else { return None };
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let (destination, flags, mask) = (number(destination)?, number(flags)?, number(mask)?);
    let words = match (destination, mask) {
        (0, 0) => DEFAULT_ROUTE.to_owned(),
        _ => format!("{}/{}", Ipv4Addr::from(destination.to_le_bytes()), mask.count_ones()),
    };
    (flags & RTF_REJECT == 0).then_some((*interface, words))
}

/// Reads a line of /proc/net/ipv6_route: destination, its prefix, source, its prefix, next hop, metric, two counters, flags,
/// interface. What every interface gets that is up, whether it is used or not, is left out: its own addresses, link-local ones, and
/// multicast.
fn route_v6(line: &str) -> Option<(&str, String)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [destination, prefix, _, _, _, _, _, _, flags, interface] = fields.as_slice() else { return None };
    let destination = Ipv6Addr::from(u128::from_str_radix(destination, 16).ok()?);
    let (prefix, flags) = (u8::from_str_radix(prefix, 16).ok()?, u32::from_str_radix(flags, 16).ok()?);
    let everybodys = destination.is_unicast_link_local() || destination.is_multicast() || *interface == "lo";
    let words = match prefix {
        0 => DEFAULT_ROUTE.to_owned(),
        prefix => format!("{destination}/{prefix}"),
    };
    (flags & (RTF_REJECT | RTF_ANYCAST | RTF_LOCAL) == 0 && !everybodys).then_some((*interface, words))
}

/// Follows an interface down through bridges, bonds and VLANs (`lower_*`) to the folders of the hardware.
fn interfaces_below(root: &HostRoot, interface: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut left = vec![interface.to_owned()];
    while let Some(name) = left.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let folder = root.path("/sys/class/net").join(&name);
        found.extend(fs::canonicalize(folder.join("device")).ok());
        let names = list(&folder).unwrap_or_default();
        left.extend(names.iter().filter_map(|name| name.strip_prefix("lower_")).map(str::to_owned));
    }
    found
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0", Some(("eth0", "default")))]
    #[case("eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0", Some(("eth0", "10.0.2.0/24")))]
    #[case("*\t0000A8C0\t00000000\t0200\t0\t0\t0\t0000FFFF\t0\t0\t0", None)]
    #[case("Iface Destination", None)]
    fn ipv4_routes_are_named_by_their_destination(
        #[case] line: &str,
        #[case] expected: Option<(&str, &str)>,
    ) {
        assert_eq!(route_v4(line), expected.map(|(interface, words)| (interface, words.to_owned())));
    }

    #[rstest]
    #[case("00000000000000000000000000000000", "00", "00450003", "eth0", Some("default"))]
    #[case("20010db8000000000000000000000000", "20", "00000001", "eth0", Some("2001:db8::/32"))]
    #[case("fe800000000000000000000000000000", "40", "00000001", "eth0", None)]
    #[case("ff000000000000000000000000000000", "08", "00000001", "eth0", None)]
    #[case("20010db8000000000000000000000001", "80", "80200001", "eth0", None)]
    #[case("00000000000000000000000000000000", "00", "00200200", "lo", None)]
    #[case("00000000000000000000000000000001", "80", "00000001", "lo", None)]
    fn ipv6_routes_count_but_those_that_every_interface_has(
        #[case] destination: &str,
        #[case] prefix: &str,
        #[case] flags: &str,
        #[case] interface: &str,
        #[case] expected: Option<&str>,
    ) {
        let zero = "0".repeat(32);
        let line =
            format!("{destination} {prefix} {zero} 00 {zero} 00000100 00000001 00000000 {flags} {interface}");
        assert_eq!(route_v6(&line), expected.map(|words| (interface, words.to_owned())));
    }
}
