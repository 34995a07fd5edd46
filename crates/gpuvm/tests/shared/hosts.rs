//! Fake hosts.

use std::fs;
use std::os::unix::fs::symlink;

use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu, nvme};

/// A file of the kernel that nobody may write to, root included: sysctl looks at the mode alone (fs/proc/proc_sysctl.c).
pub(crate) const NOT_WRITABLE: &str = "/proc/sys/kernel/osrelease";
/// A file of the kernel that nobody may read, root included.
pub(crate) const NOT_READABLE: &str = "/proc/sys/vm/compact_memory";

/// A host laid out as the lab's default one.
pub(crate) fn lab() -> FakeHost {
    let host = FakeHost::new();
    let vga = |bdf, group, node| FakeDevice {
        id: (0x1234, 0x1111),
        class: 0x03_0000,
        driver: Some("bochs-drm"),
        ..gpu(bdf, group, node)
    };
    let audio = |bdf, group, node| FakeDevice {
        id: (0x8086, 0x2668),
        class: 0x04_0300,
        driver: Some("snd_hda_intel"),
        ..gpu(bdf, group, node)
    };
    host.file("/sys/devices/system/node/node1/distance", "21 10\n");
    host.device(&FakeDevice { boot_vga: Some(1), ..vga("0000:00:01.0", 1, -1) });
    host.device(&FakeDevice { class: 0x02_0000, driver: Some("e1000e"), ..gpu("0000:01:00.0", 10, -1) });
    host.device(&nvme("0000:02:00.0", 11, -1));
    let bridge = FakeDevice { class: 0x06_0400, driver: None, ..gpu("0000:03:00.0", 12, -1) };
    host.device(&bridge);
    host.device(&FakeDevice { class: 0x02_0000, driver: Some("e1000"), ..gpu("0000:04:01.0", 12, -1) });
    host.device(&FakeDevice { class: 0x00_ff00, driver: None, ..gpu("0000:04:02.0", 12, -1) });
    host.device(&FakeDevice { boot_vga: Some(0), ..vga("0000:41:00.0", 20, 0) });
    host.device(&audio("0000:41:00.1", 20, 0));
    host.device(&FakeDevice { boot_vga: Some(0), ..vga("0000:81:00.0", 16, 1) });
    host.device(&audio("0000:81:00.1", 16, 1));
    host.device(&FakeDevice {
        id: (0x1234, 0x11e8),
        class: 0x00_ff00,
        driver: None,
        ..gpu("0000:82:00.0", 17, 1)
    });
    host.device(&nvme("0000:83:00.0", 18, 1));
    for file in ["/usr/bin/qemu-system-x86_64", "/lab/guest/initrd"] {
        host.file(file, "x");
    }
    host.file("/lab/guest/kernel", kernel());
    let data = "/sys/bus/pci/devices/0000:02:00.0/nvme/nvme0/nvme0n1";
    host.file(&format!("{data}/size"), "1\n");
    host.link("/sys/class/block/nvme0n1", data);
    host.file("/dev/nvme0n1", "");
    host.file("/proc/self/mountinfo", "36 35 259:1 / /mnt/lab-data rw - ext4 /dev/nvme0n1 rw\n");
    host.link("/sys/class/net/eth0/device", "/sys/bus/pci/devices/0000:01:00.0");
    host.file("/proc/net/route", "Iface Destination\neth0 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n");
    host
}

/// What QEMU takes for a kernel: the header of a bzImage of boot protocol 2.12, and nothing that runs
/// (Documentation/arch/x86/boot.rst).
pub(crate) fn kernel() -> Vec<u8> {
    const SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const INITRD_MAX: usize = 0x22c;
    let mut image = vec![0; 16 << 10];
    image[SECTORS] = 4;
    image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
    image[MAGIC + 4..MAGIC + 6].copy_from_slice(&0x20c_u16.to_le_bytes());
    image[INITRD_MAX..INITRD_MAX + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image
}

/// An empty qcow2 image of 1 MiB: header, refcounts and an L1 table, a cluster each (QEMU docs/interop/qcow2.txt).
pub(crate) fn qcow2() -> Vec<u8> {
    const CLUSTER: u16 = 4096;
    let at = |clusters: u64| (clusters * u64::from(CLUSTER)).to_be_bytes();
    let mut image = vec![0; 4 * usize::from(CLUSTER)];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    // Version, cluster bits, virtual size.
    put(4, &3_u32.to_be_bytes());
    put(20, &CLUSTER.trailing_zeros().to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    // The L1 table's size and place, the refcount table's place and size.
    put(36, &1_u32.to_be_bytes());
    put(40, &at(3));
    put(48, &at(1));
    put(56, &1_u32.to_be_bytes());
    // Refcounts of 16 bits, and the header's length.
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER.into(), &at(2));
    // Each of the four clusters is used once.
    for cluster in 0..4 {
        put(2 * usize::from(CLUSTER) + 2 * cluster, &1_u16.to_be_bytes());
    }
    image
}

/// Adds OVMF as Debian lays it out.
pub(crate) fn with_ovmf(host: FakeHost) -> FakeHost {
    let flash =
        |name: &str| serde_json::json!({"filename": format!("/usr/share/OVMF/{name}.fd"), "format": "raw"});
    let descriptor = serde_json::json!({
        "description": "UEFI firmware for x86_64", "interface-types": ["uefi"], "features": ["acpi-s3"], "tags": [],
        "mapping": {"device": "flash", "executable": flash("OVMF_CODE_4M"), "nvram-template": flash("OVMF_VARS_4M")},
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}]
    });
    host.file("/usr/share/qemu/firmware/60-edk2-x86_64.json", descriptor.to_string());
    for name in ["OVMF_CODE_4M", "OVMF_VARS_4M"] {
        host.file(&format!("/usr/share/OVMF/{name}.fd"), "x");
    }
    host
}

/// Gives node 1 eight CPUs: four cores of two threads.
pub(crate) fn with_smt(host: FakeHost) -> FakeHost {
    host.node(1, "0-7", 64 << 20);
    for core in 0..4 {
        for cpu in [core, core + 4] {
            let siblings = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            host.file(&siblings, format!("{core},{}\n", core + 4));
        }
    }
    host
}

/// Makes CPUs that somebody made and that have so many address bits.
pub(crate) fn with_cpuinfo(host: FakeHost, vendor: &str, bits: u8) -> FakeHost {
    let text = format!("vendor_id\t: {vendor}\naddress sizes\t: {bits} bits physical, 48 bits virtual\n");
    host.file("/proc/cpuinfo", text);
    host
}

/// What the doctor reads beside what a plan rests on: a Debian host on which all is well.
pub(crate) fn with_platform(host: FakeHost) -> FakeHost {
    let host = with_ovmf(host);
    let interrupts =
        "           CPU0       CPU1\n  1:          0          9  IR-IO-APIC   1-edge      i8042\n";
    let cpuinfo = "vendor_id\t: GenuineIntel\nflags\t\t: fpu vmx ept\naddress sizes\t: 46 bits physical, 48 bits virtual\n";
    for (path, text) in [
        ("/etc/os-release", "ID=debian\n"),
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nkim:x:1000:1000::/home/kim:/bin/bash\n"),
        ("/proc/cpuinfo", cpuinfo),
        ("/proc/interrupts", interrupts),
        (
            "/proc/self/limits",
            "Limit Soft Hard Units\nMax locked memory         8388608              8388608              bytes\n",
        ),
        ("/proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n"),
        ("/sys/class/iommu/dmar0/intel-iommu/cap", "8d2078c106f0466\n"),
        ("/sys/class/iommu/dmar0/intel-iommu/ecap", "f020df\n"),
        ("/sys/firmware/acpi/tables/DMAR", ""),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n"),
        ("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n"),
    ] {
        host.file(path, text);
    }
    host.file("/usr/bin/qemu-img", "x");
    host
}

/// Gives a device a 64-bit prefetchable BAR of so many GiB, as BAR 1, below a register bank of 16 MiB.
pub(crate) fn with_large_bar(host: FakeHost, bdf: &str, gib: u64) -> FakeHost {
    let begin = 0x200_0000_0000_u64;
    let end = begin + (gib << 30) - 1;
    let text = format!(
        "0x00000000e0000000 0x00000000e0ffffff 0x0000000000040200\n{begin:#018x} {end:#018x} 0x000000000014220c\n"
    );
    host.file(&format!("/sys/bus/pci/devices/{bdf}/resource"), text);
    host
}

/// Binds a device to another driver than [`lab`] did.
pub(crate) fn with_driver(host: FakeHost, bdf: &str, driver: &str) -> FakeHost {
    let link = format!("/sys/bus/pci/devices/{bdf}/driver");
    if host.path(&link).is_symlink() {
        host.remove(&link);
    }
    host.file(&format!("/sys/bus/pci/drivers/{driver}/bind"), "");
    host.link(&link, &format!("/sys/bus/pci/drivers/{driver}"));
    host
}

/// Makes a path of the host one that nobody may use.
pub(crate) fn forbid(host: &FakeHost, path: &str, stand_in: &str) {
    let path = host.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if path.exists() {
        fs::remove_file(&path).unwrap();
    }
    symlink(stand_in, path).unwrap();
}

/// The lab with more files.
pub(crate) fn with_files(files: &[(&str, &[u8])]) -> FakeHost {
    let host = lab();
    for (path, content) in files {
        host.file(path, content);
    }
    host
}

/// Adds devices.
pub(crate) fn with_slot(host: FakeHost, devices: &[&FakeDevice]) -> FakeHost {
    for device in devices {
        host.device(device);
    }
    host
}

/// Takes node 1's hugepage pools away.
pub(crate) fn without_pools(host: FakeHost) -> FakeHost {
    fs::remove_dir_all(host.path("/sys/devices/system/node/node1/hugepages")).unwrap();
    host
}

/// Leaves 2 MiB of node 1 to whoever asks.
pub(crate) fn with_small_node(host: FakeHost) -> FakeHost {
    let text = "Node 1 MemTotal: 67108864 kB\nNode 1 MemFree: 1024 kB\nNode 1 FilePages: 2048 kB\nNode 1 Shmem: 1024 kB\n";
    host.file("/sys/devices/system/node/node1/meminfo", text);
    host
}
