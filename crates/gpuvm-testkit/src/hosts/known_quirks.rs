//! A server that nobody has built: one card each of three kinds that are known not to come back from every reset.

use super::mi300x::accelerator;
use super::{
    BarType, EPYC_9554, Function, GIB, MIB, aspeed, endpoint, geforce, hdmi_audio, i350, pcie, root_port,
    samsung_nvme,
};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{RootComplex, integrated, pcie_to_pci, root_complex};

/// Genoa's GPP bridge.
const ROOT_PORT: (u16, u16) = (0x1022, 0x14ab);
const RTX_5090: &str = "0000:61:00.0";

/// A GH200's GPU (which comes in machines of Arm alone), an RTX 5090 with its audio function, and an MI300X: what is known of them
/// goes by their ids and by nothing else of the host.
///
/// # Panics
/// When it can't be written.
pub fn known_quirks() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: EPYC_9554,
        possible: "0-127",
        threads_apart: Some(64),
        nodes: &[Node { cpus: "0-127", gib: 768 }],
        distances: &[&[10]],
        iommus: 4,
        product: ("Nobody", "Three cards"),
        firmware: ("American Megatrends International, LLC.", "3.1", "05/29/2024"),
        release: "6.12.117+deb13-amd64",
        cmdline: "BOOT_IMAGE=/vmlinuz-6.12.117+deb13-amd64 root=/dev/nvme0n1p2 ro iommu=pt",
        os: Os::Debian,
    });
    let links = [pcie(5, 16), pcie(5, 16)];
    let board = (0x10de, 0x2057);
    let graphics = geforce(RTX_5090, 0x2b85, board, 15, links).reset("flr bus");
    let audio = hdmi_audio("0000:61:00.1", (0x10de, 0x22e8), board, RTX_5090, links);
    host.pci(&[
        chipset(),
        slot(0x40, &[gh200("0000:41:00.0")]),
        slot(0x60, &[graphics, audio]),
        slot(0x80, &[accelerator("0000:81:00.0")]),
    ]);
    host.mounted_disk("0000:01:00.0", "nvme0", "/");
    host.default_route("eno1");
    host
}

/// A root complex with one port, and a card below it.
fn slot(bus: u8, card: &[Function]) -> RootComplex {
    let at = |device: u8, function: u8| format!("0000:{bus:02x}:{device:02x}.{function}");
    let port = root_port(&at(1, 1), ROOT_PORT, bus + 1).link(pcie(5, 16), pcie(5, 16));
    root_complex(&format!("0000:{bus:02x}"), 0)
        .with(integrated(&at(0, 2), (0x1022, 0x149e), 0x08_0600).without_group())
        .with(card.iter().cloned().fold(port, Function::with))
}

/// The GPU of a GH200. The sizes of its registers are assumed; the kernel makes no bus reset of it and lists none.
fn gh200(at: &str) -> Function {
    endpoint(at, (0x10de, 0x2342), 0x03_0200)
        .card((0x10de, 0x16eb), 0xa1)
        .bar(0, 16 * MIB, BarType::Prefetchable64)
        .bar(2, 128 * GIB, BarType::Prefetchable64)
        .bar(4, 32 * MIB, BarType::Prefetchable64)
        .link(pcie(5, 16), pcie(5, 16))
        .reset("flr")
        .aer()
}

/// What the host runs on.
fn chipset() -> RootComplex {
    root_complex("0000:00", 0)
        .with(integrated("0000:00:00.2", (0x1022, 0x149e), 0x08_0600).without_group())
        .with(
            root_port("0000:00:01.1", ROOT_PORT, 0x01)
                .link(pcie(4, 4), pcie(5, 4))
                .with(samsung_nvme("0000:01:00.0", "nvme0")),
        )
        .with(
            root_port("0000:00:01.2", ROOT_PORT, 0x02)
                .link(pcie(2, 4), pcie(5, 4))
                .with(i350("0000:02:00.0", "eno1"))
                .with(i350("0000:02:00.1", "eno2")),
        )
        .with(
            root_port("0000:00:05.1", ROOT_PORT, 0x03).link(pcie(2, 1), pcie(3, 1)).with(
                pcie_to_pci("0000:03:00.0", (0x1a03, 0x1150), 0x04)
                    .with(aspeed("0000:04:00.0").grouped_with("0000:03:00.0")),
            ),
        )
}
