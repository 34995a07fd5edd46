//! Eight H100 SXM on an HGX board, as in NVIDIA's DGX H100, whose bus numbers these are.

use super::{BarType, GIB, MIB, XEON_8480, aspeed, endpoint, i350, pcie, root_port, samsung_nvme};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{
    Function, RootComplex, downstream_port, integrated, pcie_to_pci, root_complex, upstream_port,
};

/// Broadcom PEX890xx: all of its ports have this id.
const SWITCH: (u16, u16) = (0x1000, 0xc030);
/// A root port of Sapphire Rapids.
const ROOT_PORT: (u16, u16) = (0x8086, 0x352a);

/// For each GPU the buses of its root complex, of the switch's upstream and downstream ports, and its node.
const GPUS: [(u8, i32); 8] =
    [(0x15, 0), (0x3d, 0), (0x4c, 0), (0x5b, 0), (0x97, 1), (0xbd, 1), (0xcb, 1), (0xd9, 1)];

/// Two sockets, two nodes, eight GPUs with a ConnectX-7 and an NVMe disk each behind a switch of its own, and four NVSwitches.
///
/// # Panics
/// When it can't be written.
pub fn hgx_h100() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: XEON_8480,
        possible: "0-223",
        threads_apart: Some(112),
        nodes: &[Node { cpus: "0-55,112-167", gib: 1024 }, Node { cpus: "56-111,168-223", gib: 1024 }],
        distances: &[&[10, 21], &[21, 10]],
        iommus: 10,
        product: ("NVIDIA", "DGXH100"),
        firmware: ("American Megatrends International, LLC.", "1.06.07", "05/14/2024"),
        release: "6.8.0-60-generic",
        cmdline: "BOOT_IMAGE=/boot/vmlinuz-6.8.0-60-generic root=UUID=5c1f1c6e ro intel_iommu=on iommu=pt",
        os: Os::Ubuntu,
    });
    let mut complexes = vec![chipset()];
    complexes.extend((0..).zip(GPUS).map(|(index, (bus, node))| gpu_complex(index, bus, node)));
    host.pci(&complexes);
    host.mounted_disk("0000:02:00.0", "nvme0", "/");
    host.default_route("eno1");
    host
}

/// One root complex: root port, switch, and behind it NIC, disk and GPU.
fn gpu_complex(index: u32, bus: u8, node: i32) -> RootComplex {
    let at = |bus: u8, slot: u8| format!("0000:{bus:02x}:{slot:02x}.0");
    let (full, x4) = (pcie(5, 16), pcie(4, 4));
    let below = bus + 2;
    let down = |slot: u8, link| downstream_port(&at(below, slot), SWITCH, bus + 3 + slot).link(link, full);
    let switch = upstream_port(&at(bus + 1, 0), SWITCH, below)
        .link(full, full)
        .with(down(0, full).with(connectx7(&at(bus + 3, 0), index)))
        .with(down(1, x4).with(samsung_nvme(&at(bus + 4, 0), &format!("nvme{}", index + 1))))
        .with(down(2, pcie(1, 0)))
        .with(down(3, full).with(h100(&at(bus + 6, 0), index)));
    let port = root_port(&at(bus, 1), ROOT_PORT, bus + 1).link(full, full).with(switch);
    root_complex(&format!("0000:{bus:02x}"), node).with(port)
}

/// H100 SXM5 80GB. Reset methods, SR-IOV and the serial number are assumed.
fn h100(at: &str, index: u32) -> Function {
    endpoint(at, (0x10de, 0x2330), 0x03_0200)
        .card((0x10de, 0x16c1), 0xa1)
        .driver("nvidia")
        .bar(0, 16 * MIB, BarType::Prefetchable64)
        .bar(2, 128 * GIB, BarType::Prefetchable64)
        .bar(4, 32 * MIB, BarType::Prefetchable64)
        .resizable(2, 6..=17)
        .link(pcie(5, 16), pcie(5, 16))
        .reset("flr bus")
        .serial(0x0004_4bb0_0000_2330 + (u64::from(index) << 16))
        .virtual_functions(16)
        .aer()
}

/// ConnectX-7 with one port.
fn connectx7(at: &str, index: u32) -> Function {
    endpoint(at, (0x15b3, 0x1021), 0x02_0700)
        .card((0x15b3, 0x0051), 0)
        .driver("mlx5_core")
        .bar(0, 32 * MIB, BarType::Prefetchable64)
        .link(pcie(5, 16), pcie(5, 16))
        .reset("flr bus")
        .serial(0xa088_c203_0000_1021 + (u64::from(index) << 16))
        .virtual_functions(16)
        .node("net", format!("ibs{index}"))
        .node("infiniband", format!("mlx5_{index}"))
        .aer()
}

/// An NVSwitch of the third generation: a bridge by its class, and an endpoint by its header.
fn nvswitch(at: &str) -> Function {
    endpoint(at, (0x10de, 0x22a3), 0x06_8000)
        .card((0x10de, 0x1796), 0xa1)
        .driver("nvidia-nvswitch")
        .bar(0, 32 * MIB, BarType::Memory64)
        .link(pcie(4, 2), pcie(4, 2))
        .reset("flr bus")
        .aer()
}

/// The chipset's root complex: the disk with the root file system, the way out, the management controller and the NVSwitches.
fn chipset() -> RootComplex {
    let id = (0x8086, 0x1bbf);
    let x2 = pcie(4, 2);
    let mut fabric = upstream_port("0000:05:00.0", SWITCH, 0x06).link(pcie(4, 4), pcie(5, 16));
    for slot in 0..4u8 {
        let port =
            downstream_port(&format!("0000:06:{slot:02x}.0"), SWITCH, 0x07 + slot).link(x2, pcie(5, 16));
        fabric = fabric.with(port.with(nvswitch(&format!("0000:{:02x}:00.0", 0x07 + slot))));
    }
    root_complex("0000:00", 0)
        .with(integrated("0000:00:00.0", (0x8086, 0x09a2), 0x08_8000))
        .with(
            root_port("0000:00:0c.0", id, 0x01)
                .link(pcie(2, 4), pcie(4, 4))
                .with(i350("0000:01:00.0", "eno1"))
                .with(i350("0000:01:00.1", "eno2")),
        )
        .with(
            root_port("0000:00:0e.0", id, 0x02)
                .link(pcie(4, 4), pcie(4, 4))
                .with(samsung_nvme("0000:02:00.0", "nvme0")),
        )
        .with(
            root_port("0000:00:0f.0", id, 0x03).link(pcie(2, 1), pcie(3, 1)).with(
                pcie_to_pci("0000:03:00.0", (0x1a03, 0x1150), 0x04)
                    .with(aspeed("0000:04:00.0").grouped_with("0000:03:00.0")),
            ),
        )
        .with(root_port("0000:00:10.0", id, 0x05).link(pcie(4, 4), pcie(4, 4)).with(fabric))
}
