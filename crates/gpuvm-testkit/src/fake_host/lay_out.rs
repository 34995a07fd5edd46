//! Writes a PCI tree as sysfs shows it.

use std::collections::BTreeMap;

use gpuvm_core::pci::Bdf;

use super::FakeHost;
use super::config::{self, Place};
use super::tree::{Bar, BarType, Function, Grouping, RootComplex};

/// Where the kernel has placed what, so far.
struct Layout {
    /// The next address for each kind of window.
    io: u64,
    low: u64,
    high: u64,
    groups: BTreeMap<Bdf, usize>,
    /// /proc/iomem, from the first address on: begin, end, depth and name.
    iomem: Vec<(u64, u64, usize, String)>,
}

/// What a window holds: first and last address.
type Range = (u64, u64);

/// The lines of `resource` behind the six registers: the ROM, and four windows of a bridge, virtual functions between.
const ROM_AND_VIRTUAL: usize = 7;
const MIB: u64 = 1 << 20;

impl FakeHost {
    /// Adds PCI trees: functions with all that gpuvm reads of them, their groups, and /proc/iomem.
    ///
    /// # Panics
    /// When the tree can't be written.
    pub fn pci(&self, complexes: &[RootComplex]) {
        let mut layout = Layout {
            io: 0x3000,
            low: 0x8000_0000,
            high: 0x2000_0000_0000,
            groups: BTreeMap::new(),
            iomem: vec![
                (0x0, 0xfff, 0, "Reserved".to_owned()),
                (0x1000, 0x9_ffff, 0, "System RAM".to_owned()),
                (0x10_0000, 0x7fff_ffff, 0, "System RAM".to_owned()),
                (0x1_0000_0000, 0x40_0000_0000 - 1, 0, "System RAM".to_owned()),
            ],
        };
        for complex in complexes {
            let begins = (layout.low, layout.high);
            let folder = format!("/sys/devices/{}", complex.name);
            self.functions(&complex.functions, &folder, complex.node, &mut layout);
            let name = complex.name.replacen("pci", "PCI Bus ", 1);
            for (begin, end) in [(begins.0, layout.low), (begins.1, layout.high)] {
                if end > begin {
                    layout.iomem.push((begin, end - 1, 0, name.clone()));
                }
            }
        }
        layout.iomem.sort_by_key(|(begin, end, depth, _)| (*begin, std::cmp::Reverse(*end), *depth));
        let line = |(begin, end, depth, name): &(u64, u64, usize, String)| {
            format!("{}{begin:08x}-{end:08x} : {name}\n", "  ".repeat(*depth))
        };
        self.file("/proc/iomem", layout.iomem.iter().map(line).collect::<String>());
    }

    /// Writes the functions of one bus, and all below them.
    fn functions(&self, functions: &[Function], folder: &str, node: i32, layout: &mut Layout) {
        for function in functions {
            let real = format!("{folder}/{}", function.at);
            let multifunction =
                functions.iter().filter(|other| other.at.slot() == function.at.slot()).count() > 1;
            self.link(&format!("/sys/bus/pci/devices/{}", function.at), &real);
            let registers = layout.place(function);
            let begins = layout.window_begins();
            self.functions(&function.below, &below(function, &real), node, layout);
            let windows = layout.windows(begins);
            self.function(function, &real, node);
            self.topology(function, &real, multifunction, &registers);
            self.file(&format!("{real}/resource"), resource(function, &registers, windows));
            self.group(function, &real, layout);
        }
    }

    /// Writes what a function is, and who has it.
    fn function(&self, function: &Function, real: &str, node: i32) {
        let attribute = |name: &str, text: String| self.file(&format!("{real}/{name}"), text);
        let (vendor, device) = function.id;
        let (sub_vendor, sub_device) = function.subsystem.unwrap_or_default();
        attribute("vendor", format!("{vendor:#06x}\n"));
        attribute("device", format!("{device:#06x}\n"));
        attribute("subsystem_vendor", format!("{sub_vendor:#06x}\n"));
        attribute("subsystem_device", format!("{sub_device:#06x}\n"));
        attribute("class", format!("{:#08x}\n", function.class));
        attribute("revision", format!("{:#04x}\n", function.revision));
        attribute("numa_node", format!("{node}\n"));
        attribute("irq", "0\n".to_owned());
        attribute("enable", format!("{}\n", u8::from(function.driver.is_some())));
        attribute("driver_override", "(null)\n".to_owned());
        attribute("power/control", format!("{}\n", function.control));
        attribute("power/runtime_status", format!("{}\n", function.runtime));
        attribute("power_state", format!("{}\n", function.power_state));
        attribute("d3cold_allowed", "1\n".to_owned());
        let [_, base, sub, interface] = function.class.to_be_bytes();
        attribute(
            "modalias",
            format!(
                "pci:v{vendor:08X}d{device:08X}sv{sub_vendor:08X}sd{sub_device:08X}bc{base:02X}sc{sub:02X}i{interface:02X}\n"
            ),
        );
        if !function.reset.is_empty() {
            attribute("reset_method", format!("{}\n", function.reset));
        }
        if let Some(boot_vga) = function.boot_vga {
            attribute("boot_vga", format!("{boot_vga}\n"));
        }
        for (index, sizes) in &function.resizable {
            let mask = sizes.iter().fold(0u64, |mask, bit| mask | 1 << bit);
            attribute(&format!("resource{index}_resize"), format!("{mask:016x}\n"));
        }
        for (class, name) in &function.nodes {
            self.folder(&format!("{real}/{class}/{name}"));
            self.link(&format!("/sys/class/{class}/{name}"), &format!("{real}/{class}/{name}"));
            self.link(&format!("{real}/{class}/{name}/device"), real);
        }
        if let Some(driver) = function.driver {
            self.driver_dir(driver);
            self.link(&format!("{real}/driver"), &format!("/sys/bus/pci/drivers/{driver}"));
            self.file(&format!("/fake-kernel/native/{}", function.at), driver);
        }
    }

    /// Writes how a function is connected: link, buses, virtual functions, power; and its config space.
    fn topology(&self, function: &Function, real: &str, multifunction: bool, registers: &[(Bar, Range)]) {
        let attribute = |name: &str, text: String| self.file(&format!("{real}/{name}"), text);
        if let Some(link) = function.link {
            for (end, side) in [("current", link.now), ("max", link.max)] {
                attribute(&format!("{end}_link_speed"), format!("{}\n", side.words()));
                attribute(&format!("{end}_link_width"), format!("{}\n", side.width));
            }
        }
        let buses = function.secondary.zip(function.subordinate());
        if let Some((secondary, subordinate)) = buses {
            attribute("secondary_bus_number", format!("{secondary}\n"));
            attribute("subordinate_bus_number", format!("{subordinate}\n"));
        }
        if function.virtual_functions_total > 0 {
            attribute("sriov_totalvfs", format!("{}\n", function.virtual_functions_total));
            attribute("sriov_drivers_autoprobe", "1\n".to_owned());
            if !self.path(&format!("{real}/sriov_numvfs")).exists() {
                attribute("sriov_numvfs", "0\n".to_owned());
            }
        }
        let device = |bdf: Bdf| format!("/sys/bus/pci/devices/{bdf}");
        if let Some((physical, n)) = function.physical {
            self.link(&format!("{real}/physfn"), &device(physical));
            self.link(&format!("{}/virtfn{n}", device(physical)), real);
            self.file(&format!("{}/sriov_numvfs", device(physical)), format!("{}\n", n + 1));
        }
        if let Some(supplier) = function.supplier {
            let link = format!("/sys/devices/virtual/devlink/pci:{supplier}--pci:{}", function.at);
            self.folder(&link);
            self.link(&format!("{}/consumer:pci:{}", device(supplier), function.at), &link);
            self.link(&format!("{real}/supplier:pci:{supplier}"), &link);
        }
        let primary = bus_number(function.at);
        let buses = buses.map(|(secondary, subordinate)| (primary, secondary, subordinate));
        let placed = registers.iter().filter(|(bar, _)| bar.placed);
        let bars = placed.map(|(bar, (begin, _))| (bar.index, begin | bar.kind.flags() & 0xf)).collect();
        self.file(&format!("{real}/config"), config::bytes(function, &Place { multifunction, buses, bars }));
    }

    fn group(&self, function: &Function, real: &str, layout: &mut Layout) {
        let Some(group) = layout.group(function) else { return };
        let folder = format!("/sys/kernel/iommu_groups/{group}");
        self.file(&format!("{folder}/type"), "DMA-FQ\n");
        self.link(&format!("{folder}/devices/{}", function.at), real);
        self.link(&format!("{real}/iommu_group"), &folder);
        if function.driver == Some("vfio-pci") {
            self.file(&format!("/dev/vfio/{group}"), "");
        }
    }
}

/// Returns the folder of what is below a function: a controller like VMD has a root bus of another domain below it.
fn below(function: &Function, real: &str) -> String {
    let text = |bdf: Bdf| bdf.to_string();
    let domain = |bdf: Bdf| text(bdf).split(':').next().map(str::to_owned).unwrap_or_default();
    match function.below.first() {
        Some(first) if domain(first.at) != domain(function.at) => {
            format!("{real}/pci{}", first.at.bus())
        }
        _ => real.to_owned(),
    }
}

fn bus_number(bdf: Bdf) -> u8 {
    let text = bdf.bus().to_string();
    text.rsplit_once(':').and_then(|(_, bus)| u8::from_str_radix(bus, 16).ok()).unwrap_or(0)
}

impl Layout {
    /// Finds room for each register, at a multiple of its size.
    fn place(&mut self, function: &Function) -> Vec<(Bar, Range)> {
        let mut placed = Vec::new();
        for bar in &function.bars {
            if !bar.placed {
                placed.push((*bar, (0, bar.size - 1)));
                continue;
            }
            let next = match bar.kind {
                BarType::Io => &mut self.io,
                BarType::Memory32 | BarType::Memory64 => &mut self.low,
                BarType::Prefetchable64 => &mut self.high,
            };
            let begin = next.next_multiple_of(bar.size);
            *next = begin + bar.size;
            let range = (begin, begin + bar.size - 1);
            if bar.kind != BarType::Io {
                self.iomem.push((range.0, range.1, 1, function.at.to_string()));
            }
            if let Some((_, name)) = function.framebuffer.filter(|(index, _)| *index == bar.index) {
                // 1920 x 1080 with 4 bytes for each point.
                self.iomem.push((begin, begin + 1920 * 1080 * 4 - 1, 2, name.to_owned()));
            }
            placed.push((*bar, range));
        }
        placed
    }

    /// Begins the windows of a bridge: of 4 KiB for ports, of 1 MiB for memory.
    fn window_begins(&mut self) -> [u64; 3] {
        self.io = self.io.next_multiple_of(0x1000);
        self.low = self.low.next_multiple_of(MIB);
        self.high = self.high.next_multiple_of(MIB);
        [self.io, self.low, self.high]
    }

    /// Ends them; empty ones are closed.
    fn windows(&mut self, begins: [u64; 3]) -> [Option<Range>; 3] {
        let ends = self.window_begins();
        std::array::from_fn(|at| (ends[at] > begins[at]).then(|| (begins[at], ends[at] - 1)))
    }

    /// Numbers the groups as the functions come.
    fn group(&mut self, function: &Function) -> Option<usize> {
        let (at, next) = match function.grouping {
            Grouping::Own => (function.at, self.groups.len()),
            Grouping::With(other) => (other, self.groups.len()),
            Grouping::None => return None,
        };
        Some(*self.groups.entry(at).or_insert(next))
    }
}

/// Writes `resource`: 13 lines, and 17 for a bridge (DEVICE_COUNT_RESOURCE of include/linux/pci.h, with CONFIG_PCI_IOV).
fn resource(function: &Function, registers: &[(Bar, Range)], windows: [Option<Range>; 3]) -> String {
    const UNSET: u64 = 0x2000_0000;
    const NONE: (u64, u64, u64) = (0, 0, 0);
    let mut lines = vec![NONE; if function.secondary.is_some() { 17 } else { 13 }];
    for (bar, (begin, end)) in registers {
        let unset = if bar.placed { 0 } else { UNSET };
        lines[usize::from(bar.index)] = (*begin, *end, bar.kind.flags() | unset);
    }
    if function.secondary.is_some() {
        // IORESOURCE_WINDOW is 0x200000; the ranges of ports, of memory, and of prefetchable 64-bit memory.
        for (at, (window, flags)) in windows.into_iter().zip([0x20_0101, 0x20_0200, 0x30_2201]).enumerate() {
            if let Some((begin, end)) = window {
                lines[ROM_AND_VIRTUAL + 6 + at] = (begin, end, flags);
            }
        }
    }
    let line = |(begin, end, flags): (u64, u64, u64)| format!("{begin:#018x} {end:#018x} {flags:#018x}\n");
    lines.into_iter().map(line).collect()
}

impl FakeHost {
    /// Gives an NVMe controller a disk of one partition that is mounted somewhere.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn mounted_disk(&self, bdf: &str, controller: &str, target: &str) {
        let (disk, partition) = (format!("{controller}n1"), format!("{controller}n1p1"));
        let folder = format!("/sys/bus/pci/devices/{bdf}/nvme/{controller}/{disk}");
        self.file(&format!("{folder}/size"), "7501476528\n");
        self.file(&format!("{folder}/{partition}/partition"), "1\n");
        self.link(&format!("/sys/class/block/{disk}"), &folder);
        self.link(&format!("/sys/class/block/{partition}"), &format!("{folder}/{partition}"));
        self.link("/sys/dev/block/259:1", &format!("{folder}/{partition}"));
        for node in [&disk, &partition] {
            self.file(&format!("/dev/{node}"), "");
        }
        self.file(
            "/proc/self/mountinfo",
            format!("26 1 259:1 / {target} rw,relatime shared:1 - ext4 /dev/{partition} rw\n"),
        );
    }

    /// Sends the default route out by an interface.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn default_route(&self, interface: &str) {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let line = format!("{interface}\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n");
        self.file("/proc/net/route", format!("{head}{line}"));
        self.file(&format!("/sys/class/net/{interface}/operstate"), "up\n");
    }
}
