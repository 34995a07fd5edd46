//! A network card of two ports, one of which has virtual functions.

use super::{BarType, Function, KIB, MIB, XEON_6254, endpoint, integrated, pcie, root_port, samsung_nvme};
use crate::fake_host::FakeHost;
use crate::fake_host::machine::{Machine, Node, Os};
use crate::fake_host::tree::{root_complex, virtual_function};

/// An E810-C: four virtual functions of the first port, one with `vfio-pci` already and one with no driver.
///
/// # Panics
/// When it can't be written.
pub fn sriov() -> FakeHost {
    let host = FakeHost::machine(&Machine {
        cpu: XEON_6254,
        possible: "0-71",
        threads_apart: Some(36),
        nodes: &[Node { cpus: "0-17,36-53", gib: 192 }, Node { cpus: "18-35,54-71", gib: 192 }],
        distances: &[&[10, 21], &[21, 10]],
        iommus: 8,
        product: ("Dell Inc.", "PowerEdge R740"),
        firmware: ("Dell Inc.", "2.21.2", "02/19/2024"),
        release: "6.12.22-amd64",
        cmdline: "BOOT_IMAGE=/vmlinuz-6.12.22-amd64 root=/dev/nvme0n1p2 ro intel_iommu=on iommu=pt",
        os: Os::Debian,
    });
    let first = port("0000:3b:00.0", "ens1f0");
    let drivers = [Some("iavf"), Some("iavf"), Some("vfio-pci"), None];
    let virtual_functions = (0..).zip(drivers).map(|(n, driver)| {
        let function = virtual_function(&format!("0000:3b:01.{n}"), (0x8086, 0x1889), &first, n)
            .card((0x8086, 0x0000), 0x02)
            .bar(0, 128 * KIB, BarType::Prefetchable64)
            .bar(3, 16 * KIB, BarType::Prefetchable64);
        driver.into_iter().fold(function, Function::driver)
    });
    let above = root_port("0000:3a:00.0", (0x8086, 0x2030), 0x3b).link(pcie(3, 16), pcie(3, 16));
    let above = above.with(first.clone()).with(port("0000:3b:00.1", "ens1f1"));
    let card = root_complex("0000:3a", 0).with(virtual_functions.fold(above, Function::with));
    let disk = root_complex("0000:17", 0).with(integrated("0000:17:05.0", (0x8086, 0x2034), 0x08_8000)).with(
        root_port("0000:17:00.0", (0x8086, 0x2030), 0x18)
            .link(pcie(3, 4), pcie(3, 16))
            .with(samsung_nvme("0000:18:00.0", "nvme0").link(pcie(3, 4), pcie(4, 4))),
    );
    host.pci(&[disk, card]);
    host.mounted_disk("0000:18:00.0", "nvme0", "/");
    host.default_route("ens1f1");
    host
}

/// One port: a physical function.
fn port(at: &str, interface: &str) -> Function {
    endpoint(at, (0x8086, 0x1592), 0x02_0000)
        .card((0x8086, 0x0002), 0x02)
        .driver("ice")
        .bar(0, 32 * MIB, BarType::Prefetchable64)
        .bar(3, 64 * KIB, BarType::Prefetchable64)
        .link(pcie(3, 16), pcie(4, 16))
        .reset("flr bus")
        .serial(0xb496_91ff_ffc0_1592)
        .virtual_functions(128)
        .node("net", interface)
        .aer()
}
