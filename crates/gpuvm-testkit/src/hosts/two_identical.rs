//! A desktop with two cards of one kind, and a rule that means one and catches both.

use super::{Function, LinkSide, RYZEN_5950X, geforce, hdmi_audio, pcie, root_port, x570};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};

const BOARD: (u16, u16) = (0x1462, 0x3892);

/// Two RTX 3080: the first is the boot display. `options vfio-pci ids=` takes both at the next boot.
///
/// # Panics
/// When it can't be written.
pub fn two_identical() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: RYZEN_5950X,
        possible: "0-31",
        threads_apart: Some(16),
        nodes: &[Node { cpus: "0-31", gib: 64 }],
        distances: &[&[10]],
        iommus: 1,
        product: ("ASUS", "ROG CROSSHAIR VIII DARK HERO"),
        firmware: ("American Megatrends Inc.", "4805", "03/25/2024"),
        release: "6.12.22-amd64",
        cmdline: "BOOT_IMAGE=/vmlinuz-6.12.22-amd64 root=/dev/nvme0n1p2 ro quiet",
        os: Os::Debian,
    });
    let links = [pcie(4, 8), pcie(4, 16)];
    let [graphics, audio] = card("0b", links);
    let first = [graphics.boot_vga(1).framebuffer(1, "BOOTFB").node("drm", "card0"), audio];
    let [graphics, audio] = card("0c", links);
    let second = [graphics.node("drm", "card1"), audio];
    let port = |at, bus, functions: [Function; 2]| {
        let port = root_port(at, (0x1022, 0x1483), bus).link(links[0], links[1]);
        functions.into_iter().fold(port, Function::with)
    };
    let tree = x570().with(port("0000:00:03.1", 0x0b, first)).with(port("0000:00:03.2", 0x0c, second));
    host.pci(&[tree]);
    host.mounted_disk("0000:01:00.0", "nvme0", "/");
    host.default_route("enp4s0");
    host.file(
        "/etc/modprobe.d/vfio.conf",
        "# the second card is for the guest\noptions vfio-pci ids=10de:2206,10de:1aef\nsoftdep nvidia pre: vfio-pci\n",
    );
    host
}

fn card(bus: &str, links: [LinkSide; 2]) -> [Function; 2] {
    let graphics = format!("0000:{bus}:00.0");
    let audio = format!("0000:{bus}:00.1");
    [
        geforce(&graphics, 0x2206, BOARD, 8, links),
        hdmi_audio(&audio, (0x10de, 0x1aef), BOARD, &graphics, links),
    ]
}
