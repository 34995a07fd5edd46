//! CPUs that are switched off: some cores with both threads, some with one.

use super::{XEON_6254, pcie, root_port, samsung_nvme, tesla_t4};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::root_complex;

/// Of 18 cores, 16 and 17 are off, and of 12 to 15 the second threads.
///
/// # Panics
/// When it can't be written.
pub fn offline_cpus() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: XEON_6254,
        possible: "0-35",
        threads_apart: Some(18),
        nodes: &[Node { cpus: "0-15,18-29", gib: 96 }],
        distances: &[&[10]],
        iommus: 4,
        product: ("Dell Inc.", "PowerEdge R640"),
        firmware: ("Dell Inc.", "2.21.2", "02/19/2024"),
        release: "6.12.22-amd64",
        cmdline: "BOOT_IMAGE=/vmlinuz-6.12.22-amd64 root=/dev/nvme0n1p2 ro intel_iommu=on",
        os: Os::Debian,
    });
    let port = |at, bus| root_port(at, (0x8086, 0x2030), bus).link(pcie(3, 16), pcie(3, 16));
    host.pci(&[
        root_complex("0000:17", 0)
            .with(port("0000:17:00.0", 0x18).with(samsung_nvme("0000:18:00.0", "nvme0"))),
        root_complex("0000:3a", 0).with(port("0000:3a:00.0", 0x3b).with(tesla_t4("0000:3b:00.0"))),
    ]);
    host.mounted_disk("0000:18:00.0", "nvme0", "/");
    host
}
