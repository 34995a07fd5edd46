//! What the lab's guest reports on its console, in one JSON line.

use serde::Deserialize;

/// The guest's report. Its fields are documented in `tests/lab/guest`.
#[derive(Debug, Clone, Deserialize)]
pub struct GuestReport {
    /// CPUs online.
    pub cpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// NUMA nodes, in order of number.
    pub nodes: Vec<GuestNode>,
    /// PCI functions.
    pub pci: Vec<GuestFunction>,
    /// What the accelerator did.
    pub edu: Option<Edu>,
    /// What the disk did.
    pub nvme: Option<Nvme>,
    /// What became of a DMA to where there is no memory.
    pub stray_dma: Option<StrayDma>,
    /// What went wrong in the guest.
    pub errors: Vec<String>,
}

/// A NUMA node as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GuestNode {
    /// Its number.
    pub node: u32,
    /// Its CPUs that are online.
    pub cpus: Vec<u32>,
    /// Its memory.
    pub memory_bytes: u64,
}

/// A PCI function as the guest sees it.
#[derive(Debug, Clone, Deserialize)]
pub struct GuestFunction {
    /// Its address in the guest.
    pub bdf: String,
    /// Vendor id, as sysfs spells it.
    pub vendor: String,
    /// Device id.
    pub device: String,
    /// Class.
    pub class: String,
    /// Its NUMA node; -1 for none.
    pub numa_node: i32,
}

/// The accelerator's work.
#[derive(Debug, Clone, Deserialize)]
pub struct Edu {
    /// The number asked about.
    pub factorial_of: u32,
    /// Its factorial, by the device, modulo 2^32.
    pub factorial: u32,
    /// The buffer that went out and back.
    pub dma: RoundTrip,
}

/// The disk's work.
#[derive(Debug, Clone, Deserialize)]
pub struct Nvme {
    /// Its serial number.
    pub serial: String,
    /// Whether what was written was read.
    pub round_trip: String,
}

/// Data that went out and came back.
#[derive(Debug, Clone, Deserialize)]
pub struct RoundTrip {
    /// `equal` or `differs`.
    pub round_trip: String,
}

/// A DMA to where there is no memory of the guest's.
#[derive(Debug, Clone, Deserialize)]
pub struct StrayDma {
    /// Whether the device says that it is done.
    pub done: bool,
}

impl GuestReport {
    /// Finds the report in a console's output.
    ///
    /// # Errors
    /// That there is none, with the output, or that it makes no sense.
    pub fn find(console: &str) -> Result<Self, String> {
        // UEFI clears its screen by a line without an end, and the report comes after it.
        let line = console.lines().find_map(|line| Some(&line[line.find("{\"gpuvm_guest\":1,")?..]));
        let line = line.ok_or_else(|| format!("the guest reported nothing; its console:\n{console}"))?;
        serde_json::from_str(line).map_err(|error| format!("the guest's report: {error}\n{line}"))
    }

    /// Returns the classes of the functions of a slot, like `0000:01:00`, by function number.
    pub fn classes_in(&self, slot: &str) -> Vec<(String, String)> {
        let in_slot = |f: &&GuestFunction| f.bdf.starts_with(slot);
        self.pci.iter().filter(in_slot).map(|f| (f.bdf.clone(), f.class.clone())).collect()
    }
}
