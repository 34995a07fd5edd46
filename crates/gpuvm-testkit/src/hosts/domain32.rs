//! Intel's Volume Management Device: disks behind it are in a domain above ffff.

use super::{BarType, Function, MIB, XEON_6254, integrated, pcie, root_port, samsung_nvme, tesla_t4};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::root_complex;

const VMD: &str = "0000:64:05.5";

/// Two disks in domain 10000, which share the requester id of the controller, and so its group; a T4 in domain 0.
///
/// # Panics
/// When it can't be written.
pub fn domain32() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: XEON_6254,
        possible: "0-35",
        threads_apart: Some(18),
        nodes: &[Node { cpus: "0-35", gib: 192 }],
        distances: &[&[10]],
        iommus: 4,
        product: ("Lenovo", "ThinkSystem SR650 -[7X06CTO1WW]-"),
        firmware: ("Lenovo", "-[IVE190E-4.21]-", "01/12/2024"),
        release: "6.14.5-300.fc42.x86_64",
        cmdline: "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.14.5-300.fc42.x86_64 root=/dev/nvme0n1p3 ro intel_iommu=on",
        os: Os::Fedora,
    });
    let volume = integrated(VMD, (0x8086, 0x28c0), 0x01_0400)
        .driver("vmd")
        .bar(0, 32 * MIB, BarType::Prefetchable64)
        .bar(2, 32 * MIB, BarType::Memory32)
        .bar(4, MIB, BarType::Prefetchable64)
        .with(disk(2, 1, "nvme0"))
        .with(disk(3, 2, "nvme1"));
    let gpu = root_port("0000:3a:00.0", (0x8086, 0x2030), 0x3b).link(pcie(3, 16), pcie(3, 16));
    host.pci(&[
        root_complex("0000:3a", 0).with(gpu.with(tesla_t4("0000:3b:00.0"))),
        root_complex("0000:64", 0).with(volume),
    ]);
    host.mounted_disk("10000:01:00.0", "nvme0", "/");
    host
}

/// A port of the controller's own domain, and the disk behind it.
fn disk(slot: u8, bus: u8, name: &str) -> Function {
    let link = pcie(3, 4);
    root_port(&format!("10000:00:{slot:02x}.0"), (0x8086, 0x2030), bus)
        .link(link, link)
        .grouped_with(VMD)
        .with(samsung_nvme(&format!("10000:{bus:02x}:00.0"), name).link(link, pcie(4, 4)).grouped_with(VMD))
}
