//! Hosts that nobody here owns, as trees of files: servers and desktops on which passthrough has something to trip over.
//!
//! Vendor, device and class codes are from pci.ids and PCI Code and ID Assignment; sizes of registers, link widths and bus numbers
//! of the cards are as their owners' `lspci -vv` and `nvidia-smi topo` show them in public. What is assumed says so where it stands.

mod acs_override;
mod desktop;
mod domain32;
mod hgx_h100;
mod known_quirks;
mod memoryless;
mod mi300x;
mod nps4;
mod offline_cpus;
mod pci_bridge;
mod sriov;
mod two_identical;

use crate::fake_host::FakeHost;
use crate::fake_host::machine::{CpuMaker, IommuRegisters, Processor};
use crate::fake_host::tree::{
    BarType, Function, LinkSide, RootComplex, conventional, downstream_port, endpoint, integrated, pcie,
    root_complex, root_port, upstream_port,
};

pub use acs_override::acs_override;
pub use desktop::desktop;
pub use domain32::domain32;
pub use hgx_h100::hgx_h100;
pub use known_quirks::known_quirks;
pub use memoryless::memoryless;
pub use mi300x::mi300x;
pub use nps4::nps4;
pub use offline_cpus::offline_cpus;
pub use pci_bridge::pci_bridge;
pub use sriov::sriov;
pub use two_identical::two_identical;

/// What lays a host out in files.
pub type MakeHost = fn() -> FakeHost;

/// All hosts, by name.
pub const ALL: &[(&str, MakeHost)] = &[
    ("acs_override", acs_override),
    ("desktop", desktop),
    ("domain32", domain32),
    ("hgx_h100", hgx_h100),
    ("known_quirks", known_quirks),
    ("memoryless", memoryless),
    ("mi300x", mi300x),
    ("nps4", nps4),
    ("offline_cpus", offline_cpus),
    ("pci_bridge", pci_bridge),
    ("sriov", sriov),
    ("two_identical", two_identical),
];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Sapphire Rapids. The registers of its IOMMU are typed from public boot logs: 57 bits, with interrupt remapping.
const XEON_8480: Processor = Processor {
    vendor: CpuMaker::Intel,
    name: "Intel(R) Xeon(R) Platinum 8480C",
    phys_bits: 52,
    iommu: IommuRegisters::Vtd { cap: "19ed008c40780c66", ecap: "3ee9e86f050df" },
};

/// Skylake-SP; `8d2078c106f0466` is in many public boot logs: 48 bits.
const XEON_6254: Processor = Processor {
    vendor: CpuMaker::Intel,
    name: "Intel(R) Xeon(R) Gold 6254 CPU @ 3.10GHz",
    phys_bits: 46,
    iommu: IommuRegisters::Vtd { cap: "8d2078c106f0466", ecap: "f020df" },
};

/// Coffee Lake; `d2008c40660462` is that of most Intel desktops of its time: 39 bits.
const CORE_9900K: Processor = Processor {
    vendor: CpuMaker::Intel,
    name: "Intel(R) Core(TM) i9-9900K CPU @ 3.60GHz",
    phys_bits: 39,
    iommu: IommuRegisters::Vtd { cap: "d2008c40660462", ecap: "f050da" },
};

/// Genoa; the features are typed from public boot logs.
const EPYC_9554: Processor = Processor {
    vendor: CpuMaker::Amd,
    name: "AMD EPYC 9554 64-Core Processor",
    phys_bits: 52,
    iommu: IommuRegisters::AmdVi { features: "246577efa2254afa:0" },
};

/// Milan.
const EPYC_7763: Processor = Processor {
    vendor: CpuMaker::Amd,
    name: "AMD EPYC 7763 64-Core Processor",
    phys_bits: 48,
    iommu: IommuRegisters::AmdVi { features: "58f77ef22294ade:0" },
};

/// Vermeer.
const RYZEN_5950X: Processor = Processor {
    vendor: CpuMaker::Amd,
    name: "AMD Ryzen 9 5950X 16-Core Processor",
    phys_bits: 48,
    iommu: IommuRegisters::AmdVi { features: "58f77ef22294a5a:0" },
};

/// A GeForce card's graphics function: registers and ROM of all generations are alike but for the size of the second, in MiB as a
/// power of two.
fn geforce(at: &str, device: u16, board: (u16, u16), memory_bar: u8, links: [LinkSide; 2]) -> Function {
    endpoint(at, (0x10de, device), 0x03_0000)
        .card(board, 0xa1)
        .driver("nvidia")
        .bar(0, 16 * MIB, BarType::Memory32)
        .bar(1, MIB << memory_bar, BarType::Prefetchable64)
        .bar(3, 32 * MIB, BarType::Prefetchable64)
        .bar(5, 128, BarType::Io)
        .link(links[0], links[1])
        .reset("bus")
        .boot_vga(0)
        .aer()
}

/// The audio function of a card, which sleeps only while the graphics function does.
fn hdmi_audio(at: &str, id: (u16, u16), board: (u16, u16), graphics: &str, links: [LinkSide; 2]) -> Function {
    endpoint(at, id, 0x04_0300)
        .card(board, 0xa1)
        .driver("snd_hda_intel")
        .bar(0, 16 * KIB, BarType::Memory32)
        .link(links[0], links[1])
        .reset("bus")
        .supplied_by(graphics)
        .grouped_with(graphics)
        .aer()
}

/// An NVMe disk of Samsung (PM9A1, PM9A3, 980 PRO).
fn samsung_nvme(at: &str, name: &str) -> Function {
    endpoint(at, (0x144d, 0xa80a), 0x01_0802)
        .card((0x144d, 0xa801), 0)
        .driver("nvme")
        .bar(0, 16 * KIB, BarType::Memory64)
        .link(pcie(4, 4), pcie(4, 4))
        .reset("flr bus")
        .node("nvme", name)
        .aer()
}

/// An Intel I350 port, in the group of its first one or its own.
fn i350(at: &str, interface: &str) -> Function {
    endpoint(at, (0x8086, 0x1521), 0x02_0000)
        .card((0x8086, 0x0001), 1)
        .driver("igb")
        .bar(0, 128 * KIB, BarType::Memory32)
        .bar(3, 16 * KIB, BarType::Memory32)
        .link(pcie(2, 4), pcie(2, 4))
        .reset("flr bus")
        .virtual_functions(7)
        .node("net", interface)
        .aer()
}

/// The graphics of a server's management controller (ASPEED), which is the boot display.
fn aspeed(at: &str) -> Function {
    conventional(at, (0x1a03, 0x2000), 0x03_0000)
        .card((0x1a03, 0x2000), 0x52)
        .driver("ast")
        .bar(0, 16 * MIB, BarType::Memory32)
        .bar(1, 256 * KIB, BarType::Memory32)
        .bar(2, 128, BarType::Io)
        .boot_vga(1)
        .framebuffer(0, "BOOTFB")
        .node("drm", "card0")
        .node("graphics", "fb0")
}

/// A Tesla T4, which nothing drives.
fn tesla_t4(at: &str) -> Function {
    endpoint(at, (0x10de, 0x1eb8), 0x03_0200)
        .card((0x10de, 0x12a2), 0xa1)
        .bar(0, 16 * MIB, BarType::Memory32)
        .bar(1, GIB / 4, BarType::Prefetchable64)
        .bar(3, 32 * MIB, BarType::Prefetchable64)
        .link(pcie(1, 16), pcie(3, 16))
        .reset("flr bus")
        .virtual_functions(16)
        .aer()
}

/// A Ryzen's root complex with an X570 chipset, without graphics.
fn x570() -> RootComplex {
    x570_ports(
        downstream_port("0000:03:08.0", (0x1022, 0x57a3), 0x05).without_acs().link(pcie(1, 0), pcie(4, 4)),
    )
}

/// The same with something in the chipset's slot.
fn x570_ports(slot: Function) -> RootComplex {
    let nic = endpoint("0000:04:00.0", (0x8086, 0x1539), 0x02_0000)
        .card((0x1462, 0x7c37), 0x03)
        .driver("igb")
        .bar(0, 128 * KIB, BarType::Memory32)
        .link(pcie(1, 1), pcie(1, 1))
        .reset("flr bus")
        .node("net", "enp4s0")
        .aer();
    let down =
        downstream_port("0000:03:04.0", (0x1022, 0x57a3), 0x04).without_acs().link(pcie(1, 1), pcie(4, 1));
    let chipset = upstream_port("0000:02:00.0", (0x1022, 0x57ad), 0x03).link(pcie(4, 4), pcie(4, 4));
    root_complex("0000:00", -1)
        .with(integrated("0000:00:00.0", (0x1022, 0x1480), 0x06_0000))
        .with(integrated("0000:00:00.2", (0x1022, 0x1481), 0x08_0600).without_group())
        .with(
            root_port("0000:00:01.1", (0x1022, 0x1483), 0x01)
                .link(pcie(4, 4), pcie(4, 4))
                .with(samsung_nvme("0000:01:00.0", "nvme0")),
        )
        .with(
            root_port("0000:00:01.2", (0x1022, 0x1483), 0x02)
                .link(pcie(4, 4), pcie(4, 4))
                .with(chipset.with(down.with(nic)).with(slot)),
        )
        .with(integrated("0000:00:14.0", (0x1022, 0x790b), 0x0c_0500).driver("piix4_smbus"))
        .with(integrated("0000:00:14.3", (0x1022, 0x790e), 0x06_0100).grouped_with("0000:00:14.0"))
}
