//! Two EPYC sockets with four nodes each, and a GPU on each node.

use super::{BarType, EPYC_7763, GIB, MIB, aspeed, endpoint, i350, pcie, root_port, samsung_nvme};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{Function, RootComplex, integrated, pcie_to_pci, root_complex};

/// Starship's GPP bridge.
const PORT: (u16, u16) = (0x1022, 0x1483);
/// The root bus of each node's quadrant, in the order of the nodes: the highest bus is on the first, as these boards number them.
const BUSES: [u8; 8] = [0x60, 0x40, 0x20, 0x00, 0xe0, 0xc0, 0xa0, 0x80];

/// Within a socket 12, across 32: what such boards tell in their SLIT.
const DISTANCES: &[&[u8]] = &[
    &[10, 12, 12, 12, 32, 32, 32, 32],
    &[12, 10, 12, 12, 32, 32, 32, 32],
    &[12, 12, 10, 12, 32, 32, 32, 32],
    &[12, 12, 12, 10, 32, 32, 32, 32],
    &[32, 32, 32, 32, 10, 12, 12, 12],
    &[32, 32, 32, 32, 12, 10, 12, 12],
    &[32, 32, 32, 32, 12, 12, 10, 12],
    &[32, 32, 32, 32, 12, 12, 12, 10],
];

/// NPS4: each socket shows its quadrants as nodes; 8 nodes, 256 CPUs, eight A100 PCIe 80GB.
///
/// # Panics
/// When it can't be written.
pub fn nps4() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: EPYC_7763,
        possible: "0-255",
        threads_apart: Some(128),
        nodes: &[
            Node { cpus: "0-15,128-143", gib: 128 },
            Node { cpus: "16-31,144-159", gib: 128 },
            Node { cpus: "32-47,160-175", gib: 128 },
            Node { cpus: "48-63,176-191", gib: 128 },
            Node { cpus: "64-79,192-207", gib: 128 },
            Node { cpus: "80-95,208-223", gib: 128 },
            Node { cpus: "96-111,224-239", gib: 128 },
            Node { cpus: "112-127,240-255", gib: 128 },
        ],
        distances: DISTANCES,
        iommus: 8,
        product: ("Supermicro", "AS -4124GS-TNR"),
        firmware: ("American Megatrends Inc.", "2.8", "02/27/2024"),
        release: "6.12.22-amd64",
        cmdline: "BOOT_IMAGE=/vmlinuz-6.12.22-amd64 root=/dev/nvme0n1p2 ro iommu=pt",
        os: Os::Debian,
    });
    let complexes: Vec<RootComplex> = (0..).zip(BUSES).map(|(node, bus)| quadrant(node, bus)).collect();
    host.pci(&complexes);
    host.mounted_disk("0000:03:00.0", "nvme0", "/");
    host.default_route("eno1");
    host
}

/// A quadrant's root complex with its GPU; the fourth has what the host runs on too.
fn quadrant(node: i32, bus: u8) -> RootComplex {
    let at = |bus: u8, slot: u8, function: u8| format!("0000:{bus:02x}:{slot:02x}.{function}");
    let full = pcie(4, 16);
    let gpu = root_port(&at(bus, 1, 1), PORT, bus + 1).link(full, full).with(a100(&at(bus + 1, 0, 0), node));
    let mut complex = root_complex(&format!("0000:{bus:02x}"), node)
        .with(integrated(&at(bus, 0, 0), (0x1022, 0x1480), 0x06_0000))
        .with(integrated(&at(bus, 0, 2), (0x1022, 0x1481), 0x08_0600).without_group())
        .with(integrated(&at(bus, 1, 0), (0x1022, 0x1482), 0x06_0000))
        .with(gpu);
    if bus == 0 {
        let x1 = pcie(2, 1);
        complex = complex
            .with(integrated(&at(bus, 3, 0), (0x1022, 0x1482), 0x06_0000))
            .with(
                root_port(&at(bus, 3, 1), PORT, 0x03)
                    .link(pcie(4, 4), pcie(4, 4))
                    .with(samsung_nvme("0000:03:00.0", "nvme0")),
            )
            .with(
                root_port(&at(bus, 3, 2), PORT, 0x04)
                    .link(pcie(2, 4), pcie(4, 4))
                    .with(i350("0000:04:00.0", "eno1"))
                    .with(i350("0000:04:00.1", "eno2")),
            )
            .with(
                root_port(&at(bus, 3, 5), PORT, 0x05).link(x1, x1).with(
                    pcie_to_pci("0000:05:00.0", (0x1a03, 0x1150), 0x06)
                        .with(aspeed("0000:06:00.0").grouped_with("0000:05:00.0")),
                ),
            );
    }
    complex
}

/// A100 PCIe 80GB. Its number of virtual functions and the serial number are assumed.
fn a100(at: &str, node: i32) -> Function {
    let serial = 0x0004_4bb0_0000_20b5 + (u64::from(node.unsigned_abs()) << 16);
    endpoint(at, (0x10de, 0x20b5), 0x03_0200)
        .card((0x10de, 0x1533), 0xa1)
        .driver("nvidia")
        .bar(0, 16 * MIB, BarType::Memory32)
        .bar(1, 128 * GIB, BarType::Prefetchable64)
        .bar(3, 32 * MIB, BarType::Prefetchable64)
        .link(pcie(1, 16), pcie(4, 16))
        .reset("flr bus")
        .serial(serial)
        .virtual_functions(20)
        .aer()
}
