//! A desktop whose groups are split by a patched kernel, not by what its ports do.

use super::{
    BarType, Function, GIB, KIB, MIB, RYZEN_5950X, endpoint, geforce, hdmi_audio, pcie, root_port, x570_ports,
};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{RootComplex, downstream_port, upstream_port};

const BOARD: (u16, u16) = (0x1043, 0x889a);
const GPU: &str = "0000:05:00.0";

/// An RTX 4090 behind the chipset, whose ports have no ACS; `pcie_acs_override` gives each function a group of its own.
///
/// # Panics
/// When it can't be written.
pub fn acs_override() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: RYZEN_5950X,
        possible: "0-31",
        threads_apart: Some(16),
        nodes: &[Node { cpus: "0-31", gib: 64 }],
        distances: &[&[10]],
        iommus: 1,
        product: ("Micro-Star International Co., Ltd.", "MS-7C37"),
        firmware: ("American Megatrends International, LLC.", "A.L0", "01/23/2024"),
        release: "6.12.10-zen1-1-zen",
        cmdline: "BOOT_IMAGE=/vmlinuz-linux-zen root=/dev/nvme0n1p2 rw pcie_acs_override=downstream,multifunction",
        os: Os::Arch,
    });
    host.pci(&[tree()]);
    host.mounted_disk("0000:01:00.0", "nvme0", "/");
    host.default_route("enp4s0");
    host
}

fn tree() -> RootComplex {
    let links = [pcie(4, 4), pcie(4, 16)];
    let gpu = geforce(GPU, 0x2684, BOARD, 15, links).resizable(1, 6..=15).reset("flr bus");
    let audio = hdmi_audio("0000:05:00.1", (0x10de, 0x22ba), BOARD, GPU, links).grouped_with("0000:05:00.1");
    let slot = downstream_port("0000:03:08.0", (0x1022, 0x57a3), 0x05).without_acs();
    let slot = slot.link(links[0], pcie(4, 4)).with(gpu.node("drm", "card1")).with(audio);
    x570_ports(slot).with(radeon())
}

/// An RX 6600 for the host: these cards have a switch of their own.
fn radeon() -> Function {
    let links = [pcie(4, 8), pcie(4, 8)];
    let graphics = endpoint("0000:0b:00.0", (0x1002, 0x73ff), 0x03_0000)
        .card((0x1da2, 0xe447), 0xc7)
        .driver("amdgpu")
        .bar(0, 8 * GIB, BarType::Prefetchable64)
        .bar(2, 2 * MIB, BarType::Prefetchable64)
        .bar(4, 256, BarType::Io)
        .bar(5, MIB, BarType::Memory32)
        .resizable(0, 8..=13)
        .link(links[0], pcie(4, 16))
        .reset("bus")
        .boot_vga(1)
        .framebuffer(0, "BOOTFB")
        .node("drm", "card0")
        .aer();
    let audio = endpoint("0000:0b:00.1", (0x1002, 0xab28), 0x04_0300)
        .card((0x1002, 0xab28), 0)
        .driver("snd_hda_intel")
        .bar(0, 16 * KIB, BarType::Memory32)
        .link(links[0], pcie(4, 16))
        .reset("bus")
        .supplied_by("0000:0b:00.0");
    let down =
        downstream_port("0000:0a:00.0", (0x1002, 0x1479), 0x0b).without_acs().link(links[0], pcie(4, 16));
    let up = upstream_port("0000:09:00.0", (0x1002, 0x1478), 0x0a).link(links[0], links[1]);
    root_port("0000:00:03.1", (0x1022, 0x1483), 0x09)
        .link(links[0], pcie(4, 16))
        .with(up.with(down.with(graphics).with(audio)))
}
