//! Faults made for real: a card off the bus, without power, with lost registers, with errors on its link.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Outcome, doing, ensure};

/// PCI-to-PCI Bridge Architecture Specification, 3.2.5.4.
const SECONDARY_BUS: u64 = 0x19;

/// A card that has fallen off the bus, until it is put back: all reads of its config space become ones.
///
/// The number by which the port above finds the bus is rewritten. The card itself goes on, and what doesn't go by that number
/// still reaches it: the port's own reset of the bus, and interrupts, which come with a wrong sender.
#[derive(Debug)]
pub struct OffTheBus {
    port: String,
    bus: Option<u8>,
    way: Way,
}

/// How a port's bus number is written.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// By sysfs. The kernel keeps that to itself while it resets what is below the port, and whoever writes waits for as long.
    Sysfs,
    /// By port I/O, without the kernel's leave, on bus 0 only (CONFIG_ADDRESS, by setpci).
    PortIo,
}

impl OffTheBus {
    /// Takes what is below a port off the bus.
    ///
    /// # Errors
    /// That the port's config space can't be written.
    pub fn below(port: &str) -> Result<Self, String> {
        Self::by(port, Way::Sysfs)
    }

    /// The same for a port on bus 0, in such a way that it can be put back while the kernel waits for the card.
    ///
    /// # Errors
    /// That the port's registers can't be written.
    pub fn past_the_kernel(port: &str) -> Result<Self, String> {
        Self::by(port, Way::PortIo)
    }

    fn by(port: &str, way: Way) -> Result<Self, String> {
        let bus = bus_below(port)?;
        let fallen = Self { port: port.to_owned(), bus: Some(bus), way };
        fallen.set(0xff)?;
        Ok(fallen)
    }

    /// Puts it back.
    ///
    /// # Errors
    /// That the port's config space can't be written.
    pub fn put_back(mut self) -> Outcome {
        self.restore()
    }

    fn restore(&mut self) -> Outcome {
        match self.bus.take() {
            Some(bus) => self.set(bus),
            None => Ok(()),
        }
    }

    fn set(&self, bus: u8) -> Outcome {
        match self.way {
            Way::Sysfs => write_config(&self.port, SECONDARY_BUS, &[bus]),
            Way::PortIo => {
                let value = format!("SECONDARY_BUS={bus:02x}");
                run("setpci", &["-A", "intel-conf1", "-s", self.port.trim_start_matches("0000:"), &value])
            }
        }
    }
}

impl Drop for OffTheBus {
    /// Puts it back after a scenario that failed, so that the next one finds the host whole.
    fn drop(&mut self) {
        self.restore().ok();
    }
}

/// Finds the bus below a port without asking the port, which the kernel keeps to itself during a reset.
fn bus_below(port: &str) -> Result<u8, String> {
    let folder = attribute(port, "pci_bus");
    let names = super::snapshot::names(Path::new(&folder));
    let bus = names.first().and_then(|name| u8::from_str_radix(name.rsplit(':').next()?, 16).ok());
    bus.ok_or_else(|| format!("{folder}: {names:?}"))
}

/// Takes the power from the slot below a port, or gives it back: the cards in it lose everything.
///
/// The slot's power indicator stays on. Once it is off too, the emulation takes the card out for good.
///
/// # Errors
/// That the port has no slot, or that its config space can't be written.
pub fn set_slot_power(port: &str, on: bool) -> Outcome {
    const EXPRESS: u8 = 0x10;
    const SLOT_CONTROL: u64 = 0x18; // PCI Express Base Specification 7.5.3.10
    const POWER_OFF: u8 = 1 << 2; // bit 10: in the second byte
    let register = capability(port, EXPRESS)? + SLOT_CONTROL + 1;
    let [control] = read_config::<1>(port, register)?;
    write_config(port, register, &[if on { control & !POWER_OFF } else { control | POWER_OFF }])
}

/// Finds a capability of a function.
///
/// # Errors
/// That it has none of this id.
pub fn capability(bdf: &str, wanted: u8) -> Result<u64, String> {
    let [mut at] = read_config::<1>(bdf, 0x34)?;
    for _ in 0..48 {
        if at < 0x40 {
            break;
        }
        let [id, next] = read_config::<2>(bdf, u64::from(at))?;
        if id == wanted {
            return Ok(u64::from(at));
        }
        at = next & 0xfc;
    }
    Err(format!("{bdf} has no capability {wanted:#04x}"))
}

fn config_of(bdf: &str) -> Result<(fs::File, String), String> {
    let path = attribute(bdf, "config");
    let file = fs::File::options().read(true).write(true).open(&path).map_err(doing(&path))?;
    Ok((file, path))
}

/// Reads some bytes of a function's config space.
///
/// # Errors
/// That it can't be read.
pub fn read_config<const N: usize>(bdf: &str, at: u64) -> Result<[u8; N], String> {
    let (file, path) = config_of(bdf)?;
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).map_err(doing(&path))?;
    Ok(bytes)
}

/// Writes some bytes into a function's config space, behind the kernel's back.
///
/// # Errors
/// That it can't be written.
pub fn write_config(bdf: &str, at: u64, bytes: &[u8]) -> Outcome {
    let (file, path) = config_of(bdf)?;
    file.write_all_at(bytes, at).map_err(doing(&path))
}

/// An error that a function reports on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkError {
    /// A receiver error, which the link repairs.
    Correctable,
    /// A completion timeout: a transaction is lost.
    Nonfatal,
    /// A data link protocol error: the link is lost.
    Fatal,
}

/// Loads the module by which errors are injected, if it isn't there.
///
/// # Errors
/// That there is no such module.
pub fn load_injector() -> Outcome {
    if Path::new("/dev/aer_inject").exists() {
        return Ok(());
    }
    run("modprobe", &["aer_inject", "aer_mask_override=1"])
}

/// Has the kernel believe that a function has reported an error (`aer_inject`). The function needs Advanced Error Reporting.
///
/// # Errors
/// That the module isn't there, or the kernel refuses the error.
pub fn inject(bdf: &str, error: LinkError) -> Outcome {
    let node = "/dev/aer_inject";
    load_injector()?;
    let (uncorrectable, correctable): (u32, u32) = match error {
        LinkError::Correctable => (0, 1),
        LinkError::Nonfatal => (0x4000, 0),
        LinkError::Fatal => (0x10, 0),
    };
    let [domain, bus, device, function] = address(bdf).ok_or_else(|| format!("{bdf} is no address"))?;
    // struct aer_error_inj of drivers/pci/pcie/aer_inject.c; the four words are a packet's header.
    let mut record = Vec::new();
    for byte in [bus, device, function, 0] {
        record.push(u8::try_from(byte).map_err(doing(bdf))?);
    }
    for word in [uncorrectable, correctable, 0, 0, 0, 0, domain] {
        record.extend(word.to_ne_bytes());
    }
    let injected = fs::File::options().write(true).open(node).and_then(|mut node| node.write_all(&record));
    injected.map_err(doing(&format!("inject an error of {bdf}")))
}

fn address(bdf: &str) -> Option<[u32; 4]> {
    let (rest, function) = bdf.split_once('.')?;
    let mut parts = rest.split(':').map(|part| u32::from_str_radix(part, 16).ok());
    Some([parts.next()??, parts.next()??, parts.next()??, function.parse().ok()?])
}

/// Takes functions out of the kernel's sight and has them found anew, which gives them their registers back.
///
/// All functions of a card together: what is found while another is there already has other ways to be reset.
///
/// # Errors
/// That they aren't found.
pub fn found_anew(functions: &[&str]) -> Outcome {
    for bdf in functions {
        set(bdf, "remove", "1")?;
    }
    fs::write("/sys/bus/pci/rescan", "1").map_err(doing("rescan"))?;
    for bdf in functions {
        wait_until(&format!("{bdf} is found anew"), Duration::from_secs(5), || {
            Path::new(&attribute(bdf, "driver_override")).exists()
        })?;
    }
    Ok(())
}

/// Runs a program to its end.
///
/// # Errors
/// That it could not be started, or failed.
pub fn run(program: &str, args: &[&str]) -> Outcome {
    let output = std::process::Command::new(program).args(args).output().map_err(doing(program))?;
    ensure(output.status.success(), || format!("{program} {args:?}: {output:?}"))
}

/// Waits until something holds.
///
/// # Errors
/// That it doesn't within the time, with what was waited for.
pub fn wait_until(what: &str, within: Duration, holds: impl Fn() -> bool) -> Outcome {
    let begun = Instant::now();
    while !holds() {
        ensure(begun.elapsed() < within, || format!("{what}: not within {within:?}"))?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Returns the path of a function's attribute.
pub fn attribute(bdf: &str, name: &str) -> String {
    format!("/sys/bus/pci/devices/{bdf}/{name}")
}

/// Writes a function's attribute.
///
/// # Errors
/// What the kernel says against it.
pub fn set(bdf: &str, name: &str, value: &str) -> Outcome {
    let path = attribute(bdf, name);
    fs::write(&path, value).map_err(doing(&format!("write {value:?} to {path}")))
}

/// Reads a function's attribute.
///
/// # Errors
/// That there is none.
pub fn get(bdf: &str, name: &str) -> Result<String, String> {
    let path = attribute(bdf, name);
    Ok(fs::read_to_string(&path).map_err(doing(&path))?.trim().to_owned())
}
