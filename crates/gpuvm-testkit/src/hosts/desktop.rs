//! A desktop with integrated graphics for the host and a four-function card for the guest.

use super::{
    BarType, CORE_9900K, Function, GIB, KIB, MIB, geforce, hdmi_audio, integrated, pcie, root_port,
    samsung_nvme,
};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{RootComplex, endpoint, root_complex};

/// A reference board of NVIDIA.
const BOARD: (u16, u16) = (0x10de, 0x12a4);
const GPU: &str = "0000:01:00.0";
const PORT: &str = "0000:00:01.0";

/// A Core i9-9900K with an RTX 2080: graphics, audio, USB and UCSI, in one group with the port above, which has no ACS.
///
/// # Panics
/// When it can't be written.
pub fn desktop() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: CORE_9900K,
        possible: "0-15",
        threads_apart: Some(8),
        nodes: &[Node { cpus: "0-15", gib: 32 }],
        distances: &[&[10]],
        iommus: 2,
        product: ("Gigabyte Technology Co., Ltd.", "Z390 AORUS PRO"),
        firmware: ("American Megatrends Inc.", "F12", "11/05/2021"),
        release: "6.14.5-300.fc42.x86_64",
        cmdline: "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.14.5-300.fc42.x86_64 root=/dev/nvme0n1p3 ro intel_iommu=on rhgb quiet",
        os: Os::Fedora,
    });
    host.pci(&[tree()]);
    host.mounted_disk("0000:02:00.0", "nvme0", "/");
    host.default_route("eno1");
    host
}

fn tree() -> RootComplex {
    let x16 = pcie(3, 16);
    let links = [pcie(1, 16), x16];
    let gpu = geforce(GPU, 0x1e87, BOARD, 8, links).node("drm", "card1");
    let usb = endpoint("0000:01:00.2", (0x10de, 0x1ad8), 0x0c_0330)
        .card(BOARD, 0xa1)
        .driver("xhci_hcd")
        .bar(0, 256 * KIB, BarType::Prefetchable64)
        .bar(3, 64 * KIB, BarType::Prefetchable64);
    let ucsi = endpoint("0000:01:00.3", (0x10de, 0x1ad9), 0x0c_8000)
        .card(BOARD, 0xa1)
        .driver("nvidia-gpu")
        .bar(0, 4 * KIB, BarType::Memory32);
    let of_card = |function: Function| {
        function.link(links[0], links[1]).supplied_by(GPU).grouped_with(PORT).no_soft_reset(Some(false))
    };
    root_complex("0000:00", -1)
        .with(integrated("0000:00:00.0", (0x8086, 0x3e30), 0x06_0000))
        .with(
            root_port(PORT, (0x8086, 0x1901), 0x01)
                .without_acs()
                .link(links[0], x16)
                .with(gpu.grouped_with(PORT))
                .with(
                    hdmi_audio("0000:01:00.1", (0x10de, 0x10f8), BOARD, GPU, links)
                        .grouped_with(PORT)
                        .node("sound", "card1"),
                )
                .with(of_card(usb.reset("bus")))
                .with(of_card(ucsi.reset("pm bus"))),
        )
        .with(
            integrated("0000:00:02.0", (0x8086, 0x3e98), 0x03_0000)
                .card((0x1458, 0xd000), 0x02)
                .driver("i915")
                .bar(0, 16 * MIB, BarType::Memory64)
                .bar(2, GIB / 4, BarType::Prefetchable64)
                .bar(4, 64, BarType::Io)
                .boot_vga(1)
                .framebuffer(2, "BOOTFB")
                .node("drm", "card0"),
        )
        .with(integrated("0000:00:14.0", (0x8086, 0xa36d), 0x0c_0330).driver("xhci_hcd").bar(
            0,
            64 * KIB,
            BarType::Memory64,
        ))
        .with(
            root_port("0000:00:1b.0", (0x8086, 0xa340), 0x02)
                .link(pcie(3, 4), pcie(3, 4))
                .with(samsung_nvme("0000:02:00.0", "nvme0").link(pcie(3, 4), pcie(4, 4))),
        )
        .with(integrated("0000:00:1f.0", (0x8086, 0xa305), 0x06_0100))
        .with(chipset("0000:00:1f.3", 0xa348, 0x04_0300, "snd_hda_intel"))
        .with(chipset("0000:00:1f.4", 0xa323, 0x0c_0500, "i801_smbus"))
        .with(chipset("0000:00:1f.5", 0xa324, 0x0c_8000, "intel-spi"))
        .with(chipset("0000:00:1f.6", 0x15bc, 0x02_0000, "e1000e").node("net", "eno1"))
}

/// A function of the chipset's slot, all of which are one group.
fn chipset(at: &str, device: u16, class: u32, driver: &'static str) -> Function {
    integrated(at, (0x8086, device), class)
        .driver(driver)
        .bar(0, 16 * KIB, BarType::Memory32)
        .grouped_with("0000:00:1f.0")
}
