//! What of a made-up host isn't PCI: processors, nodes, firmware, IOMMU, kernel, distribution and programs.

use std::collections::BTreeSet;

use gpuvm_core::cpulist::CpuSet;

use super::FakeHost;

/// A machine without its devices.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// The processors.
    pub cpu: Processor,
    /// The CPUs that could be there, as the kernel lists them; those that are online are the nodes'.
    pub possible: &'static str,
    /// The distance between the numbers of two threads of a core; none for one thread per core.
    pub threads_apart: Option<u32>,
    /// The nodes, by number.
    pub nodes: &'static [Node],
    /// How far each is from each, row by row.
    pub distances: &'static [&'static [u8]],
    /// IOMMU units.
    pub iommus: u32,
    /// Who built the machine, and what it is called.
    pub product: (&'static str, &'static str),
    /// Whose firmware it has, its version and its date.
    pub firmware: (&'static str, &'static str, &'static str),
    /// The kernel's release.
    pub release: &'static str,
    /// The kernel's command line.
    pub cmdline: &'static str,
    /// Its distribution.
    pub os: Os,
}

/// A family of processors.
#[derive(Debug, Clone, Copy)]
pub struct Processor {
    /// Who made it.
    pub vendor: CpuMaker,
    /// Its name.
    pub name: &'static str,
    /// The width of physical addresses.
    pub phys_bits: u8,
    /// Its IOMMU's registers: `cap` and `ecap` of VT-d, or `features` of AMD-Vi.
    pub iommu: IommuRegisters,
}

/// Who made a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuMaker {
    /// Intel, with VT-d.
    Intel,
    /// AMD, with AMD-Vi.
    Amd,
}

/// What an IOMMU says that it can do, in hex.
#[derive(Debug, Clone, Copy)]
pub enum IommuRegisters {
    /// VT-d.
    Vtd {
        /// The capability register.
        cap: &'static str,
        /// The extended capability register.
        ecap: &'static str,
    },
    /// AMD-Vi's extended features, both registers.
    AmdVi {
        /// They.
        features: &'static str,
    },
}

/// A node.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// Its CPUs that are online.
    pub cpus: &'static str,
    /// Its memory in GiB.
    pub gib: u64,
}

/// A distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Os {
    /// Debian 12.
    Debian,
    /// Ubuntu 24.04.
    Ubuntu,
    /// Fedora 42.
    Fedora,
    /// Arch.
    Arch,
}

impl Os {
    fn release(self) -> &'static str {
        match self {
            Self::Debian => "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n",
            Self::Ubuntu => {
                "PRETTY_NAME=\"Ubuntu 24.04.2 LTS\"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n"
            }
            Self::Fedora => "PRETTY_NAME=\"Fedora Linux 42 (Server Edition)\"\nID=fedora\nVERSION_ID=42\n",
            Self::Arch => "PRETTY_NAME=\"Arch Linux\"\nID=arch\nBUILD_ID=rolling\n",
        }
    }
}

impl FakeHost {
    /// Makes a host with all but devices: VFIO and KVM, QEMU and OVMF, and nothing mounted.
    ///
    /// # Panics
    /// When the temporary folder can't be filled: a test can't go on without.
    pub fn machine(machine: &Machine) -> Self {
        let host = Self::bare();
        host.kernel_of(machine);
        host.processors(machine);
        for (id, node) in (0..).zip(machine.nodes) {
            host.node(id, node.cpus, node.gib << 20);
        }
        for (id, row) in machine.distances.iter().enumerate() {
            let row: Vec<String> = row.iter().map(u8::to_string).collect();
            host.file(&format!("/sys/devices/system/node/node{id}/distance"), row.join(" ") + "\n");
        }
        let total: u64 = machine.nodes.iter().map(|node| node.gib << 20).sum();
        host.file(
            "/proc/meminfo",
            format!("MemTotal: {total:>15} kB\nMemFree: {total:>16} kB\nMemAvailable: {total:>11} kB\nSwapTotal: {:>14} kB\nSwapFree: {:>15} kB\n", 0, 0),
        );
        host.firmware_of(machine);
        host.iommus(machine);
        host.programs();
        host
    }

    fn kernel_of(&self, machine: &Machine) {
        self.file("/proc/sys/kernel/osrelease", format!("{}\n", machine.release));
        self.file("/proc/cmdline", format!("{}\n", machine.cmdline));
        self.file("/etc/os-release", machine.os.release());
        let kvm = match machine.cpu.vendor {
            CpuMaker::Intel => "kvm_intel",
            CpuMaker::Amd => "kvm_amd",
        };
        for module in ["vfio", "vfio_iommu_type1", "vfio_pci", "vfio_pci_core", "iommufd", "kvm", kvm] {
            self.file(&format!("/sys/module/{module}/initstate"), "live\n");
        }
        self.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
        self.file("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n");
        self.file("/etc/modules-load.d/vfio.conf", "vfio-pci\n");
        self.file("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        self.file("/proc/sys/vm/swappiness", "60\n");
    }

    fn processors(&self, machine: &Machine) {
        let parse = |list: &str| list.parse::<CpuSet>().unwrap_or_else(|error| panic!("{list}: {error}"));
        let online: CpuSet =
            machine.nodes.iter().flat_map(|node| parse(node.cpus).iter().collect::<Vec<_>>()).collect();
        let folder = "/sys/devices/system/cpu";
        let possible = parse(machine.possible);
        let offline: CpuSet = possible.iter().filter(|cpu| !online.contains(*cpu)).collect();
        self.cpus(&online.to_string());
        self.file(&format!("{folder}/offline"), format!("{offline}\n"));
        for name in ["possible", "present"] {
            self.file(&format!("{folder}/{name}"), format!("{}\n", machine.possible));
        }
        self.file(&format!("{folder}/isolated"), "\n");
        let (vendor, flag) = match machine.cpu.vendor {
            CpuMaker::Intel => ("GenuineIntel", "vmx"),
            CpuMaker::Amd => ("AuthenticAMD", "svm"),
        };
        let mut cpuinfo = String::new();
        for cpu in online.iter() {
            let first = machine.threads_apart.map_or(cpu, |apart| cpu % apart);
            let core: BTreeSet<u32> = machine.threads_apart.map_or_else(
                || BTreeSet::from([cpu]),
                |apart| [first, first + apart].into_iter().filter(|cpu| online.contains(*cpu)).collect(),
            );
            let siblings: CpuSet = core.into_iter().collect();
            self.file(&format!("{folder}/cpu{cpu}/topology/thread_siblings_list"), format!("{siblings}\n"));
            cpuinfo.push_str(&format!(
                "processor\t: {cpu}\nvendor_id\t: {vendor}\nmodel name\t: {}\nflags\t\t: fpu pse pdpe1gb lm {flag}\n\
                 address sizes\t: {} bits physical, 48 bits virtual\n\n",
                machine.cpu.name, machine.cpu.phys_bits
            ));
        }
        self.file("/proc/cpuinfo", cpuinfo);
        self.file("/proc/interrupts", interrupts(&online, machine));
    }

    fn firmware_of(&self, machine: &Machine) {
        let (sys_vendor, product_name) = machine.product;
        let (bios_vendor, bios_version, bios_date) = machine.firmware;
        let fields = [
            ("sys_vendor", sys_vendor),
            ("product_name", product_name),
            ("board_vendor", sys_vendor),
            ("board_name", product_name),
            ("bios_vendor", bios_vendor),
            ("bios_version", bios_version),
            ("bios_date", bios_date),
        ];
        for (name, value) in fields {
            self.file(&format!("/sys/class/dmi/id/{name}"), format!("{value}\n"));
        }
        let table = match machine.cpu.vendor {
            CpuMaker::Intel => "DMAR",
            CpuMaker::Amd => "IVRS",
        };
        for signature in ["FACP", "APIC", "MCFG", "SRAT", "SLIT", table] {
            self.file(&format!("/sys/firmware/acpi/tables/{signature}"), acpi_table(signature));
        }
        self.file("/sys/firmware/efi/fw_platform_size", "64\n");
    }

    /// Writes the IOMMU's units; a folder of /sys/class is one of links.
    fn iommus(&self, machine: &Machine) {
        for unit in 0..machine.iommus {
            let (name, folder) = match machine.cpu.iommu {
                IommuRegisters::Vtd { .. } => (format!("dmar{unit}"), "intel-iommu"),
                IommuRegisters::AmdVi { .. } => (format!("ivhd{unit}"), "amd-iommu"),
            };
            let real = format!("/sys/devices/virtual/iommu/{name}");
            match machine.cpu.iommu {
                IommuRegisters::Vtd { cap, ecap } => {
                    self.file(&format!("{real}/{folder}/cap"), format!("{cap}\n"));
                    self.file(&format!("{real}/{folder}/ecap"), format!("{ecap}\n"));
                    self.file(&format!("{real}/{folder}/version"), "5:0\n");
                    self.file(
                        &format!("{real}/{folder}/address"),
                        format!("{:x}\n", 0xd000_0000u64 + u64::from(unit) * 0x1000),
                    );
                }
                IommuRegisters::AmdVi { features } => {
                    self.file(&format!("{real}/{folder}/features"), format!("{features}\n"));
                    self.file(&format!("{real}/{folder}/cap"), "190b640f\n");
                }
            }
            self.link(&format!("/sys/class/iommu/{name}"), &real);
        }
    }

    /// Installs QEMU and OVMF, as Debian places them.
    fn programs(&self) {
        for program in ["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-img"] {
            self.script(program, "");
        }
        self.file("/usr/share/qemu/firmware/60-edk2-x86_64.json", OVMF);
        for name in ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"] {
            self.file(&format!("/usr/share/OVMF/{name}"), "x");
        }
        self.file("/dev/iommu", "");
    }
}

/// Debian's descriptor of its OVMF.
const OVMF: &str = r#"{
    "description": "UEFI firmware for x86_64",
    "interface-types": ["uefi"],
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/usr/share/OVMF/OVMF_CODE_4M.fd", "format": "raw"},
        "nvram-template": {"filename": "/usr/share/OVMF/OVMF_VARS_4M.fd", "format": "raw"}
    },
    "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
    "features": ["acpi-s3", "amd-sev", "verbose-dynamic"],
    "tags": []
}
"#;

/// An ACPI table of which only the header's signature and length are right (ACPI 6.5, 5.2.6).
fn acpi_table(signature: &str) -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(signature.as_bytes());
    table[4] = 48;
    table
}

/// Interrupts that go through remapping, as `IR-` before the chip's name says.
fn interrupts(online: &CpuSet, machine: &Machine) -> String {
    let iommu = match machine.cpu.vendor {
        CpuMaker::Intel => "DMAR-MSI    0-edge      dmar0",
        CpuMaker::Amd => "PCI-MSI-0000:c0:00.2    0-edge      AMD-Vi",
    };
    let counts: String = online.iter().map(|_| "          0").collect();
    let head: String = online.iter().map(|cpu| format!("{:>11}", format!("CPU{cpu}"))).collect();
    format!(
        "    {head}\n   0:{counts}  IR-IO-APIC    2-edge      timer\n  24:{counts}  {iommu}\n\
         \x20 40:{counts}  IR-PCI-MSIX-0000:01:00.0    0-edge      nvme0q0\n NMI:{counts}   Non-maskable interrupts\n"
    )
}
