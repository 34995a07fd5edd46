//! The report, in the shape that goes to the serial console.

use std::time::Duration;

use serde::Serialize;

use crate::edu::{Edu, StrayDma};
use crate::nodes::Node;
use crate::nvme::Nvme;
use crate::pci::Device;

/// Everything the guest saw and did. The field order is the line's: its readers look for `{"gpuvm_guest":1,`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The version of this shape.
    pub(crate) gpuvm_guest: u32,
    /// What started the kernel.
    pub(crate) firmware: Firmware,
    /// CPUs online.
    pub(crate) cpus: usize,
    /// Memory that the guest's kernel has.
    pub(crate) memory_bytes: u64,
    /// All NUMA nodes, in order of number.
    pub(crate) nodes: Vec<Node>,
    /// All PCI functions, in order of address.
    pub(crate) pci: Vec<Device>,
    /// The accelerator, if it is there.
    pub(crate) edu: Option<Edu>,
    /// The first NVMe, if one is there.
    pub(crate) nvme: Option<Nvme>,
    /// The DMA outside the guest's memory, if it was asked for.
    pub(crate) stray_dma: Option<StrayDma>,
    /// What went wrong, in words.
    pub(crate) errors: Vec<String>,
}

/// What a guest's machine began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF; the kernel has its runtime services.
    Uefi,
}

impl Report {
    /// One line of JSON, without a line end.
    pub(crate) fn to_line(&self) -> String {
        // Serializing plain structs of numbers and strings can't fail; if it ever does, the reader sees why.
        serde_json::to_string(self).unwrap_or_else(|error| format!("gpuvm-guest: no report: {error}"))
    }
}

/// A time in ms, to the microsecond.
pub(crate) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Whether what came back equals what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RoundTrip {
    /// Every byte.
    Equal,
    /// At least one byte isn't.
    Differs,
}

impl RoundTrip {
    /// Compares.
    pub(crate) fn of(equal: bool) -> Self {
        if equal { Self::Equal } else { Self::Differs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_begins_as_its_readers_expect() {
        let report = Report {
            gpuvm_guest: 1,
            firmware: Firmware::Uefi,
            cpus: 2,
            memory_bytes: 4096,
            nodes: vec![Node { node: 0, cpus: vec![0, 1], memory_bytes: 4096 }],
            pci: vec![],
            edu: None,
            nvme: None,
            stray_dma: None,
            errors: vec!["a \"quoted\"\nline".into()],
        };
        let line = report.to_line();
        assert!(
            line.starts_with(r#"{"gpuvm_guest":1,"firmware":"uefi","cpus":2,"memory_bytes":4096,"#),
            "{line}"
        );
        let nodes = r#""nodes":[{"node":0,"cpus":[0,1],"memory_bytes":4096}],"pci":[],"edu":null,"#;
        assert!(line.contains(nodes), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn round_trips_are_words() {
        assert_eq!(serde_json::to_string(&RoundTrip::of(true)).unwrap(), r#""equal""#);
        assert_eq!(serde_json::to_string(&RoundTrip::of(false)).unwrap(), r#""differs""#);
    }
}
