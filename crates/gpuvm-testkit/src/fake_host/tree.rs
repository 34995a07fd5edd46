//! The PCI tree of a made-up host: root complexes, ports, switches and devices, written as they nest.
//!
//! Bus numbers, sizes and ids are given; addresses, groups and the windows of bridges follow from the tree.

use gpuvm_core::config_space::{Acs, PortType};
use gpuvm_core::pci::Bdf;

/// A root complex: the buses below one host bridge.
#[derive(Debug, Clone)]
pub struct RootComplex {
    /// Its folder, as `pci0000:15`.
    pub(super) name: String,
    /// Its node; -1 for none.
    pub(super) node: i32,
    /// What sits on its root bus.
    pub(super) functions: Vec<Function>,
}

/// Begins a root complex, by domain and bus as in `0000:15`.
pub fn root_complex(bus: &str, node: i32) -> RootComplex {
    RootComplex { name: format!("pci{bus}"), node, functions: Vec::new() }
}

impl RootComplex {
    /// Adds a function to the root bus.
    #[must_use]
    pub fn with(mut self, function: Function) -> Self {
        self.functions.push(function);
        self
    }
}

/// A PCI function of a made-up host, with what is behind it.
#[derive(Debug, Clone)]
pub struct Function {
    pub(super) at: Bdf,
    pub(super) id: (u16, u16),
    pub(super) class: u32,
    pub(super) port: Option<PortType>,
    pub(super) subsystem: Option<(u16, u16)>,
    pub(super) revision: u8,
    pub(super) driver: Option<&'static str>,
    pub(super) grouping: Grouping,
    pub(super) bars: Vec<Bar>,
    pub(super) link: Option<Link>,
    pub(super) reset: &'static str,
    pub(super) boot_vga: Option<u8>,
    /// Registers that can be resized, with the sizes as powers of two of MiB.
    pub(super) resizable: Vec<(u8, Vec<u8>)>,
    pub(super) serial: Option<u64>,
    pub(super) flr: bool,
    pub(super) aer: bool,
    pub(super) acs: Option<Acs>,
    /// Whether it keeps its state over D3hot; nothing without power management.
    pub(super) no_soft_reset: Option<bool>,
    pub(super) control: &'static str,
    pub(super) power_state: &'static str,
    pub(super) runtime: &'static str,
    pub(super) nodes: Vec<(&'static str, String)>,
    pub(super) virtual_functions_total: u32,
    /// The physical function of a virtual one, and which of its functions it is.
    pub(super) physical: Option<(Bdf, u32)>,
    /// What sleeps and wakes only after this function does: device links of the kernel.
    pub(super) supplier: Option<Bdf>,
    /// The register that the boot framebuffer lies in, and its name in /proc/iomem.
    pub(super) framebuffer: Option<(u8, &'static str)>,
    /// The bus behind a bridge.
    pub(super) secondary: Option<u8>,
    pub(super) below: Vec<Function>,
}

/// Which IOMMU group a function is in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Grouping {
    /// One of its own, as far as no other joins it.
    Own,
    /// That of another function.
    With(Bdf),
    /// None.
    None,
}

/// A base address register.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bar {
    pub(super) index: u8,
    pub(super) size: u64,
    pub(super) kind: BarType,
    pub(super) placed: bool,
}

/// What a register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarType {
    /// I/O ports.
    Io,
    /// 32-bit memory.
    Memory32,
    /// 64-bit memory that isn't prefetchable: below 4 GiB all the same, behind a bridge.
    Memory64,
    /// 64-bit prefetchable memory.
    Prefetchable64,
}

impl BarType {
    /// The kernel's flags: kind, IORESOURCE_SIZEALIGN, and the register's own low bits (include/linux/ioport.h).
    pub(super) fn flags(self) -> u64 {
        match self {
            Self::Io => 0x4_0101,
            Self::Memory32 => 0x4_0200,
            Self::Memory64 => 0x14_0204,
            Self::Prefetchable64 => 0x14_220c,
        }
    }
}

/// A link: what it runs at, and what this end can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) now: LinkSide,
    pub(super) max: LinkSide,
}

/// Speed and width.
#[derive(Debug, Clone, Copy)]
pub struct LinkSide {
    /// The generation of PCI Express, 1 to 6.
    pub(super) speed: u8,
    /// Lanes.
    pub(super) width: u8,
}

/// Names a link's speed by its generation, with its lanes: `gen(5, 16)`.
pub fn pcie(generation: u8, width: u8) -> LinkSide {
    LinkSide { speed: generation, width }
}

impl LinkSide {
    pub(super) fn generation(self) -> u8 {
        self.speed
    }

    /// The kernel's words (pci_speed_string of drivers/pci/probe.c).
    pub(super) fn words(self) -> &'static str {
        match self.speed {
            1 => "2.5 GT/s PCIe",
            2 => "5.0 GT/s PCIe",
            3 => "8.0 GT/s PCIe",
            4 => "16.0 GT/s PCIe",
            5 => "32.0 GT/s PCIe",
            6 => "64.0 GT/s PCIe",
            _ => "Unknown",
        }
    }
}

/// An endpoint on PCI Express, with a group of its own.
///
/// # Panics
/// When its address is none.
pub fn endpoint(at: &str, id: (u16, u16), class: u32) -> Function {
    Function {
        at: at.parse().unwrap_or_else(|error| panic!("{error}")),
        id,
        class,
        port: Some(PortType::Endpoint),
        subsystem: Some(id),
        revision: 0,
        driver: None,
        grouping: Grouping::Own,
        bars: Vec::new(),
        link: None,
        reset: "",
        boot_vga: None,
        resizable: Vec::new(),
        serial: None,
        flr: false,
        aer: false,
        acs: None,
        no_soft_reset: Some(true),
        control: "on",
        power_state: "D0",
        runtime: "active",
        nodes: Vec::new(),
        virtual_functions_total: 0,
        physical: None,
        supplier: None,
        framebuffer: None,
        secondary: None,
        below: Vec::new(),
    }
}

/// A function on conventional PCI, without a link and with 256 bytes of config space.
pub fn conventional(at: &str, id: (u16, u16), class: u32) -> Function {
    Function { port: None, no_soft_reset: None, ..endpoint(at, id, class) }
}

/// A function inside the root complex: host bridges, chipset functions, integrated graphics.
pub fn integrated(at: &str, id: (u16, u16), class: u32) -> Function {
    Function { port: Some(PortType::RootComplexEndpoint), ..endpoint(at, id, class) }
}

/// What Access Control Services of a port that can do all look like, switched on as the kernel does.
const ISOLATES: Acs = Acs { capability: 0x5f, control: 0x1d };

fn port(at: &str, id: (u16, u16), kind: PortType, secondary: u8) -> Function {
    Function {
        port: Some(kind),
        subsystem: Some((0, 0)),
        driver: Some("pcieport"),
        control: "auto",
        aer: true,
        secondary: Some(secondary),
        ..endpoint(at, id, 0x06_0400)
    }
}

/// A root port that keeps its devices apart, with the bus behind it.
pub fn root_port(at: &str, id: (u16, u16), secondary: u8) -> Function {
    Function { acs: Some(ISOLATES), ..port(at, id, PortType::RootPort, secondary) }
}

/// A switch's port towards the root; what keeps devices apart is in the others.
pub fn upstream_port(at: &str, id: (u16, u16), secondary: u8) -> Function {
    port(at, id, PortType::UpstreamPort, secondary)
}

/// A switch's port towards a device, which keeps that apart.
pub fn downstream_port(at: &str, id: (u16, u16), secondary: u8) -> Function {
    Function { acs: Some(ISOLATES), ..port(at, id, PortType::DownstreamPort, secondary) }
}

/// A bridge from PCI Express to PCI: what is behind it shares its group.
pub fn pcie_to_pci(at: &str, id: (u16, u16), secondary: u8) -> Function {
    Function { driver: None, aer: false, ..port(at, id, PortType::PcieToPci, secondary) }
}

/// The `n`th virtual function of a physical one, which has the same driver-visible form and no ids in its config space.
pub fn virtual_function(at: &str, id: (u16, u16), physical: &Function, n: u32) -> Function {
    let class = physical.class;
    Function {
        physical: Some((physical.at, n)),
        flr: true,
        no_soft_reset: None,
        ..endpoint(at, id, class).reset("flr bus")
    }
}

impl Function {
    /// Puts a function behind this bridge.
    #[must_use]
    pub fn with(mut self, function: Function) -> Self {
        self.below.push(function);
        self
    }

    /// Sets the driver that has it, and takes it back.
    #[must_use]
    pub fn driver(self, driver: &'static str) -> Self {
        Self { driver: Some(driver), ..self }
    }

    /// Sets who built the card, and the revision.
    #[must_use]
    pub fn card(self, subsystem: (u16, u16), revision: u8) -> Self {
        Self { subsystem: Some(subsystem), revision, ..self }
    }

    /// Adds a register of this size.
    #[must_use]
    pub fn bar(mut self, index: u8, size: u64, kind: BarType) -> Self {
        self.bars.push(Bar { index, size, kind, placed: true });
        self
    }

    /// Adds a register that the kernel found no room for.
    #[must_use]
    pub fn unplaced_bar(mut self, index: u8, size: u64, kind: BarType) -> Self {
        self.bars.push(Bar { index, size, kind, placed: false });
        self
    }

    /// Lets a register have sizes from one power of two of MiB to another.
    #[must_use]
    pub fn resizable(mut self, index: u8, sizes: std::ops::RangeInclusive<u8>) -> Self {
        self.resizable.push((index, sizes.collect()));
        self
    }

    /// Sets what its link runs at, and what it can do.
    #[must_use]
    pub fn link(self, now: LinkSide, max: LinkSide) -> Self {
        Self { link: Some(Link { now, max }), ..self }
    }

    /// Sets the reset methods that the kernel lists; FLR is in the config space too then.
    #[must_use]
    pub fn reset(self, methods: &'static str) -> Self {
        Self { reset: methods, flr: methods.split(' ').any(|method| method == "flr"), ..self }
    }

    /// Says that D3hot resets it (no No_Soft_Reset), or that it hasn't any power management.
    #[must_use]
    pub fn no_soft_reset(self, no_soft_reset: Option<bool>) -> Self {
        Self { no_soft_reset, ..self }
    }

    /// Says that the kernel knows whether it is the boot display.
    #[must_use]
    pub fn boot_vga(self, boot_vga: u8) -> Self {
        Self { boot_vga: Some(boot_vga), ..self }
    }

    /// Lets the boot framebuffer lie in a register, under the name that /proc/iomem has for it.
    #[must_use]
    pub fn framebuffer(self, bar: u8, name: &'static str) -> Self {
        Self { framebuffer: Some((bar, name)), ..self }
    }

    /// Puts it into the group of another function.
    ///
    /// # Panics
    /// When the address is none.
    #[must_use]
    pub fn grouped_with(self, other: &str) -> Self {
        Self { grouping: Grouping::With(other.parse().unwrap_or_else(|error| panic!("{error}"))), ..self }
    }

    /// Keeps it out of all groups, as an IOMMU itself is.
    #[must_use]
    pub fn without_group(self) -> Self {
        Self { grouping: Grouping::None, ..self }
    }

    /// Takes the port's Access Control Services away.
    #[must_use]
    pub fn without_acs(self) -> Self {
        Self { acs: None, ..self }
    }

    /// Adds error reporting.
    #[must_use]
    pub fn aer(self) -> Self {
        Self { aer: true, ..self }
    }

    /// Gives it a Device Serial Number.
    #[must_use]
    pub fn serial(self, serial: u64) -> Self {
        Self { serial: Some(serial), ..self }
    }

    /// Names what the host calls it, as `net`, `eth0`.
    #[must_use]
    pub fn node(mut self, class: &'static str, name: impl Into<String>) -> Self {
        self.nodes.push((class, name.into()));
        self
    }

    /// Lets it have so many virtual functions; those that it has are functions of their own.
    #[must_use]
    pub fn virtual_functions(self, total: u32) -> Self {
        Self { virtual_functions_total: total, ..self }
    }

    /// Makes it depend on another function's power, as the functions of a display card do.
    ///
    /// # Panics
    /// When the address is none.
    #[must_use]
    pub fn supplied_by(self, supplier: &str) -> Self {
        Self { supplier: Some(supplier.parse().unwrap_or_else(|error| panic!("{error}"))), ..self }
    }

    /// Sets `power/control`, `power_state` and `power/runtime_status`.
    #[must_use]
    pub fn power(self, control: &'static str, state: &'static str, runtime: &'static str) -> Self {
        Self { control, power_state: state, runtime, ..self }
    }

    /// Returns the last bus behind it.
    pub(super) fn subordinate(&self) -> Option<u8> {
        let own = self.secondary?;
        Some(self.below.iter().filter_map(Self::subordinate).fold(own, u8::max))
    }
}
