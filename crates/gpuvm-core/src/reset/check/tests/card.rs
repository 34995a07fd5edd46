//! A card as it is when it is well: a GPU of a data centre below a root port, in the layout of those in facts A10.

use super::super::super::{ConfigSpace, Heard, PortSnapshot, Reading, Snapshot};
use crate::facts::{BarFacts, BarKind, ErrorCounters, Presence};
use crate::host_ops::{D3cold, PowerControl, PowerPolicy};
use crate::pci::DriverName;
use crate::units::ByteSize;

/// The registers that the cases change.
pub(super) const COMMAND: usize = 0x04;
pub(super) const BAR_0: usize = 0x10;
pub(super) const PMCSR: usize = 0x64;
pub(super) const DEVSTA: usize = 0x82;
pub(super) const LNKCAP: usize = 0x84;
pub(super) const LNKSTA: usize = 0x8a;
pub(super) const AER: usize = 0x100;
pub(super) const SERIAL: usize = 0x148;

/// Two snapshots of the card, and what the kernel has said between.
pub(super) struct Pair {
    pub(super) before: Snapshot,
    pub(super) after: Snapshot,
    pub(super) heard: Heard,
}

/// The card before and after a run of which it knows nothing.
pub(super) fn pair() -> Pair {
    Pair { before: gpu(), after: gpu(), heard: Heard::Said(Vec::new()) }
}

impl Pair {
    /// Makes the kernel say lines.
    pub(super) fn said(&mut self, lines: &[&str]) {
        self.heard = Heard::Said(lines.iter().map(|line| (*line).to_owned()).collect());
    }

    /// Changes both snapshots.
    pub(super) fn both(&mut self, change: impl Fn(&mut Snapshot)) {
        change(&mut self.before);
        change(&mut self.after);
    }
}

impl Snapshot {
    /// Changes bytes of the function's config space.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.config = changed(&self.config, at, bytes);
    }

    /// Changes a 16-bit register.
    pub(super) fn put_word(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    /// Changes a 32-bit register.
    pub(super) fn put_dword(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    /// Changes bytes of its port's config space.
    pub(super) fn put_port(&mut self, at: usize, bytes: &[u8]) {
        let port = self.port.as_mut().unwrap();
        port.config = changed(&port.config, at, bytes);
    }

    /// Makes the whole config space read one byte.
    pub(super) fn fill(&mut self, byte: u8) {
        let length = self.config.read().map_or(0, |config| config.bytes().len());
        self.put(0, &vec![byte; length]);
    }

    /// Leaves only the first bytes.
    pub(super) fn cut(&mut self, length: usize) {
        let bytes = self.config.read().unwrap().bytes()[..length].to_vec();
        self.config = Reading::Read(ConfigSpace::new(&bytes));
    }

    /// Sets its counters.
    pub(super) fn counted(&mut self, correctable: u64, nonfatal: u64, fatal: u64) {
        self.errors = Reading::Read(ErrorCounters { correctable, nonfatal, fatal });
    }

    /// Sets its root port's counters.
    pub(super) fn root_counted(&mut self, correctable: u64, nonfatal: u64, fatal: u64) {
        let counters = ErrorCounters { correctable, nonfatal, fatal };
        self.port.as_mut().unwrap().root_errors = Reading::Read(counters);
    }

    /// Sets what may put it to sleep.
    pub(super) fn power(&mut self, control: PowerControl, d3cold: D3cold) {
        self.power = Reading::Read(PowerPolicy { control: Some(control), d3cold: Some(d3cold) });
    }

    /// Puts it to sleep: the register, and the kernel's word.
    pub(super) fn sleeps(&mut self) {
        self.put(PMCSR, &[0x0b]);
        self.power_state = Reading::Read("D3hot".to_owned());
    }

    /// Hangs it below a switch: the root port isn't right above.
    pub(super) fn behind_a_switch(&mut self) {
        let port = self.port.as_mut().unwrap();
        port.bdf = "0000:7f:00.0".parse().unwrap();
        // A switch's port towards the devices.
        self.put_port(0x7a, &[0x62]);
    }

    /// Makes it a virtual function: no ids, no registers, no interrupt pin, no link of its own.
    pub(super) fn is_virtual(&mut self) {
        self.virtual_function = Presence::Present;
        self.put(0, &[0xff; 4]);
        self.put(BAR_0, &[0; 24]);
        self.put(0x3d, &[0]);
        self.put_word(LNKSTA, 0);
    }

    /// Gives it to a driver.
    pub(super) fn driven_by(&mut self, driver: &str) {
        self.driver = DriverName::new(driver);
    }
}

fn changed(config: &Reading<ConfigSpace>, at: usize, bytes: &[u8]) -> Reading<ConfigSpace> {
    let mut config = config.read().unwrap().bytes().to_vec();
    config[at..at + bytes.len()].copy_from_slice(bytes);
    Reading::Read(ConfigSpace::new(&config))
}

fn gpu() -> Snapshot {
    let bar = |index, size, address, kind| BarFacts {
        index,
        size: ByteSize::bytes(size),
        address: Some(address),
        kind,
    };
    let bdf = "0000:81:00.0".parse().unwrap();
    let mut gpu = Snapshot::of(bdf, "10de:2330".parse().unwrap(), &gpu_config());
    gpu.driver = Some(DriverName::vfio_pci());
    gpu.bars = Reading::Read(vec![
        bar(0, 16 << 20, 0xe000_0000, BarKind::Low),
        bar(1, 64 << 30, 0x3800_0000_0000, BarKind::High),
        bar(3, 32 << 20, 0x3810_0000_0000, BarKind::High),
        bar(5, 128, 0xe000, BarKind::Io),
    ]);
    gpu.power_state = Reading::Read("D0".to_owned());
    gpu.power(PowerControl::On, D3cold::Forbidden);
    gpu.counted(3, 0, 0);
    gpu.reset_methods = Reading::Read(vec!["flr".to_owned(), "bus".to_owned()]);
    let port = "0000:80:01.0".parse().unwrap();
    gpu.port = Some(PortSnapshot {
        bdf: port,
        config: Reading::Read(ConfigSpace::new(&port_config())),
        root_port: port,
        root_errors: Reading::Read(ErrorCounters { correctable: 4, nonfatal: 0, fatal: 0 }),
    });
    gpu
}

/// As much of the config space as anything is in.
const LENGTH: usize = 512;

fn laid_out(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut config = vec![0; LENGTH];
    for (at, bytes) in parts {
        config[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    config
}

fn gpu_config() -> Vec<u8> {
    laid_out(&[
        (0x00, &[0xde, 0x10, 0x30, 0x23, 0x06, 0x04, 0x10, 0x00, 0xa1, 0x00, 0x02, 0x03]),
        // 32-bit memory, two of 64-bit prefetchable memory, ports.
        (BAR_0, &[0x00, 0x00, 0x00, 0xe0]),
        (0x14, &[0x0c, 0, 0, 0, 0x00, 0x38, 0, 0]),
        (0x1c, &[0x0c, 0, 0, 0, 0x10, 0x38, 0, 0]),
        (0x24, &[0x01, 0xe0, 0, 0]),
        (0x2c, &[0xde, 0x10, 0xc1, 0x16]),
        (0x34, &[0x60]),
        (0x3d, &[0x01]),
        // Power management that keeps its state, MSI, PCI Express: FLR, 32 GT/s, x16.
        (0x60, &[0x01, 0x68, 0x03, 0xc8, 0x08, 0x00]),
        (0x68, &[0x05, 0x78, 0x80, 0x00]),
        (0x78, &[0x10, 0x00, 0x02, 0x00, 0x01, 0x80, 0x00, 0x10]),
        (LNKCAP, &[0x05, 0x01, 0x00, 0x00]),
        (LNKSTA, &[0x05, 0x11]),
        // Advanced Error Reporting: an unsupported request from when the device was found, severities by default; a serial number.
        (AER, &[0x01, 0x00, 0x82, 0x14, 0x00, 0x00, 0x10, 0x00]),
        (AER + 0x0c, &[0x30, 0x20, 0x46, 0x00]),
        (SERIAL, &[0x03, 0x00, 0x01, 0x00, 8, 7, 6, 5, 4, 3, 2, 1]),
    ])
}

fn port_config() -> Vec<u8> {
    laid_out(&[
        (0x00, &[0x86, 0x80, 0x2a, 0x35, 0x07, 0x04, 0x10, 0x00, 0x11, 0x00, 0x04, 0x06, 0, 0, 0x01]),
        (0x18, &[0x80, 0x81, 0x81]),
        (0x34, &[0x60]),
        (0x3d, &[0x01]),
        (0x60, &[0x01, 0x78, 0x03, 0xc8, 0x08, 0x00]),
        (0x78, &[0x10, 0x00, 0x42, 0x01]),
        (LNKCAP, &[0x05, 0x01, 0x10, 0x00]),
        (LNKSTA, &[0x05, 0x31]),
        (AER, &[0x01, 0x00, 0x02, 0x00]),
        (AER + 0x0c, &[0x30, 0x20, 0x46, 0x00]),
    ])
}
