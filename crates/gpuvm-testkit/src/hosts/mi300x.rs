//! Eight MI300X behind switches, as in the servers that sell them. Bus numbers of the GPUs are those that `rocm-smi` shows in public.

use super::{
    BarType, EPYC_9554, GIB, KIB, MIB, aspeed, endpoint, i350, integrated, pcie, root_port, samsung_nvme,
};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{
    Function, RootComplex, downstream_port, pcie_to_pci, root_complex, upstream_port,
};

/// Broadcom PEX890xx.
const SWITCH: (u16, u16) = (0x1000, 0xc030);
/// Genoa's GPP bridge.
const ROOT_PORT: (u16, u16) = (0x1022, 0x14ab);
/// The bus of each GPU and its node.
const GPUS: [(u8, i32); 8] =
    [(0x0c, 0), (0x22, 0), (0x38, 0), (0x5c, 0), (0x9f, 1), (0xaf, 1), (0xbf, 1), (0xdf, 1)];

/// Two sockets, two nodes, eight accelerators with 256 GiB in one register, each with a ConnectX-7 behind the same switch.
///
/// # Panics
/// When it can't be written.
pub fn mi300x() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: EPYC_9554,
        possible: "0-255",
        threads_apart: Some(128),
        nodes: &[Node { cpus: "0-63,128-191", gib: 1152 }, Node { cpus: "64-127,192-255", gib: 1152 }],
        distances: &[&[10, 32], &[32, 10]],
        iommus: 8,
        product: ("Supermicro", "AS -8125GS-TNMR2"),
        firmware: ("American Megatrends International, LLC.", "3.1", "05/29/2024"),
        release: "6.8.0-60-generic",
        cmdline: "BOOT_IMAGE=/boot/vmlinuz-6.8.0-60-generic root=UUID=0d6e2c41 ro iommu=pt pci=realloc=off",
        os: Os::Ubuntu,
    });
    let mut complexes: Vec<RootComplex> =
        (0..).zip(GPUS).map(|(index, (bus, node))| gpu_complex(index, bus - 6, node)).collect();
    complexes.push(chipset());
    host.pci(&complexes);
    host.mounted_disk("0000:e1:00.0", "nvme0", "/");
    host.default_route("eno1");
    host
}

fn gpu_complex(index: u32, bus: u8, node: i32) -> RootComplex {
    let at = |bus: u8, slot: u8, function: u8| format!("0000:{bus:02x}:{slot:02x}.{function}");
    let full = pcie(5, 16);
    let down = |slot: u8| downstream_port(&at(bus + 2, slot, 0), SWITCH, bus + 3 + slot).link(full, full);
    let nic = endpoint(&at(bus + 3, 0, 0), (0x15b3, 0x1021), 0x02_0000)
        .card((0x15b3, 0x0051), 0)
        .driver("mlx5_core")
        .bar(0, 32 * MIB, BarType::Prefetchable64)
        .link(full, full)
        .reset("flr bus")
        .serial(0xa088_c203_00b0_1021 + (u64::from(index) << 16))
        .virtual_functions(16)
        .node("net", format!("ens{index}np0"))
        .node("infiniband", format!("mlx5_{index}"))
        .aer();
    let switch = upstream_port(&at(bus + 1, 0, 0), SWITCH, bus + 2)
        .link(full, full)
        .with(down(0).with(nic))
        .with(down(3).with(accelerator(&at(bus + 6, 0, 0))));
    root_complex(&format!("0000:{bus:02x}"), node)
        .with(integrated(&at(bus, 0, 2), (0x1022, 0x149e), 0x08_0600).without_group())
        .with(root_port(&at(bus, 1, 1), ROOT_PORT, bus + 1).link(full, full).with(switch))
}

/// MI300X. The sizes of the smaller registers, the reset methods and the number of virtual functions are assumed.
pub(super) fn accelerator(at: &str) -> Function {
    endpoint(at, (0x1002, 0x74a1), 0x12_0000)
        .card((0x1002, 0x74a1), 0)
        .driver("amdgpu")
        .bar(0, 256 * GIB, BarType::Prefetchable64)
        .bar(2, 2 * MIB, BarType::Prefetchable64)
        .bar(5, 512 * KIB, BarType::Memory32)
        .link(pcie(5, 16), pcie(5, 16))
        .reset("flr bus")
        .virtual_functions(8)
        .aer()
}

/// What the host runs on.
fn chipset() -> RootComplex {
    root_complex("0000:e0", 1)
        .with(
            root_port("0000:e0:01.1", ROOT_PORT, 0xe1)
                .link(pcie(4, 4), pcie(5, 4))
                .with(samsung_nvme("0000:e1:00.0", "nvme0")),
        )
        .with(
            root_port("0000:e0:01.2", ROOT_PORT, 0xe2)
                .link(pcie(2, 4), pcie(5, 4))
                .with(i350("0000:e2:00.0", "eno1"))
                .with(i350("0000:e2:00.1", "eno2")),
        )
        .with(
            root_port("0000:e0:05.1", ROOT_PORT, 0xe3).link(pcie(2, 1), pcie(3, 1)).with(
                pcie_to_pci("0000:e3:00.0", (0x1a03, 0x1150), 0xe4)
                    .with(aspeed("0000:e4:00.0").grouped_with("0000:e3:00.0")),
            ),
        )
}
