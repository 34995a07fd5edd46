//! A card for conventional PCI behind a bridge, with neighbours: all of them are one requester to the IOMMU.

use super::{BarType, CORE_9900K, GIB, KIB, conventional, integrated, pcie, root_port, samsung_nvme};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{Function, RootComplex, pcie_to_pci, root_complex};

const BRIDGE: &str = "0000:03:00.0";

/// A Radeon HD 5450 for PCI, a Sound Blaster and a network card behind an ASM1083.
///
/// # Panics
/// When it can't be written.
pub fn pci_bridge() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: CORE_9900K,
        possible: "0-15",
        threads_apart: Some(8),
        nodes: &[Node { cpus: "0-15", gib: 32 }],
        distances: &[&[10]],
        iommus: 2,
        product: ("Gigabyte Technology Co., Ltd.", "Z390 UD"),
        firmware: ("American Megatrends Inc.", "F10", "11/05/2021"),
        release: "6.12.22-amd64",
        cmdline: "BOOT_IMAGE=/vmlinuz-6.12.22-amd64 root=/dev/nvme0n1p2 ro intel_iommu=on",
        os: Os::Debian,
    });
    host.pci(&[tree()]);
    host.mounted_disk("0000:02:00.0", "nvme0", "/");
    host.default_route("enp4s2");
    host
}

fn tree() -> RootComplex {
    let x1 = pcie(1, 1);
    let bridge = pcie_to_pci(BRIDGE, (0x1b21, 0x1080), 0x04)
        .link(x1, x1)
        .with(behind("0000:04:00.0", (0x1002, 0x68f9), 0x03_0000, "radeon").boot_vga(0).node("drm", "card1"))
        .with(
            behind("0000:04:00.1", (0x1002, 0xaa68), 0x04_0300, "snd_hda_intel").supplied_by("0000:04:00.0"),
        )
        .with(behind("0000:04:01.0", (0x1102, 0x0002), 0x04_0100, "snd_emu10k1"))
        .with(behind("0000:04:02.0", (0x10ec, 0x8139), 0x02_0000, "8139too").node("net", "enp4s2"));
    root_complex("0000:00", -1)
        .with(
            integrated("0000:00:02.0", (0x8086, 0x3e98), 0x03_0000)
                .driver("i915")
                .bar(2, GIB / 4, BarType::Prefetchable64)
                .boot_vga(1)
                .framebuffer(2, "BOOTFB")
                .node("drm", "card0"),
        )
        .with(
            root_port("0000:00:1b.0", (0x8086, 0xa340), 0x02)
                .link(pcie(3, 4), pcie(3, 4))
                .with(samsung_nvme("0000:02:00.0", "nvme0").link(pcie(3, 4), pcie(4, 4))),
        )
        .with(root_port("0000:00:1c.0", (0x8086, 0xa338), 0x03).link(x1, pcie(3, 1)).with(bridge))
}

fn behind(at: &str, id: (u16, u16), class: u32, driver: &'static str) -> Function {
    conventional(at, id, class)
        .driver(driver)
        .bar(0, 128 * KIB, BarType::Memory32)
        .reset("bus")
        .grouped_with(BRIDGE)
}
