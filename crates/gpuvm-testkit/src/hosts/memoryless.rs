//! A node without memory, and one without CPUs.

use super::{XEON_6254, pcie, root_port, samsung_nvme, tesla_t4};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::root_complex;

/// Node 1 has the GPU and CPUs, and no memory: its slots are empty. Node 2 is memory on a CXL card.
///
/// # Panics
/// When it can't be written.
pub fn memoryless() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: XEON_6254,
        possible: "0-71",
        threads_apart: Some(36),
        nodes: &[
            Node { cpus: "0-17,36-53", gib: 128 },
            Node { cpus: "18-35,54-71", gib: 0 },
            Node { cpus: "", gib: 256 },
        ],
        distances: &[&[10, 21, 17], &[21, 10, 28], &[17, 28, 10]],
        iommus: 8,
        product: ("Dell Inc.", "PowerEdge R740"),
        firmware: ("Dell Inc.", "2.21.2", "02/19/2024"),
        release: "6.12.22-amd64",
        cmdline: "BOOT_IMAGE=/vmlinuz-6.12.22-amd64 root=/dev/nvme0n1p2 ro intel_iommu=on",
        os: Os::Debian,
    });
    let port = |at, bus| root_port(at, (0x8086, 0x2030), bus).link(pcie(3, 16), pcie(3, 16));
    host.pci(&[
        root_complex("0000:17", 0)
            .with(port("0000:17:00.0", 0x18).with(samsung_nvme("0000:18:00.0", "nvme0"))),
        root_complex("0000:ae", 1).with(port("0000:ae:00.0", 0xaf).with(tesla_t4("0000:af:00.0"))),
    ]);
    host.mounted_disk("0000:18:00.0", "nvme0", "/");
    host
}
