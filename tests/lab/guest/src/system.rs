//! What PID 1 does before and after its work, and what it reads from the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;

use crate::report::Firmware;

/// Reads a file of the kernel; the error names it.
pub(crate) fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// Mounts /proc, /sys and /dev.
pub(crate) fn mount_all() -> Result<(), String> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target).map_err(|error| format!("{target}: {error}"))?;
        match mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(format!("mount {target}: {error}")),
        }
    }
    Ok(())
}

/// Keeps the kernel's messages off the console, where they could land inside the report's line; a panic is still shown.
pub(crate) fn quiet_kernel() -> Result<(), String> {
    fs::write("/proc/sys/kernel/printk", "1").map_err(|error| format!("/proc/sys/kernel/printk: {error}"))
}

/// Loads a module of the initramfs with what it depends on: `/deps/NAME` lists the files in `/modules`, in order; none if it is built in.
pub(crate) fn load_modules(name: &str) -> Result<(), String> {
    for file in read(&format!("/deps/{name}"))?.lines() {
        let module =
            File::open(format!("/modules/{file}")).map_err(|error| format!("/modules/{file}: {error}"))?;
        match finit_module(&module, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(format!("module {file}: {error}")),
        }
    }
    Ok(())
}

/// What started the kernel: it has this folder with UEFI only.
pub(crate) fn firmware() -> Firmware {
    if Path::new("/sys/firmware/efi").exists() { Firmware::Uefi } else { Firmware::Bios }
}

/// CPUs online.
pub(crate) fn cpus() -> Result<usize, String> {
    let text = read("/sys/devices/system/cpu/online")?;
    let cpus = parse_cpu_list(&text).ok_or_else(|| format!("CPU list {text:?} isn't understood"))?;
    Ok(cpus.len())
}

/// The CPUs of a kernel list such as `0-3,6`; a node without CPUs has an empty one.
pub(crate) fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(first..=last)
    };
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    Some(ranges?.into_iter().flatten().collect())
}

/// The memory that the kernel has.
pub(crate) fn memory_bytes() -> Result<u64, String> {
    parse_mem_total(&read("/proc/meminfo")?).ok_or_else(|| "/proc/meminfo: no MemTotal".into())
}

/// MemTotal, in bytes.
pub(crate) fn parse_mem_total(text: &str) -> Option<u64> {
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// How long the kernel has been running, in seconds.
pub(crate) fn uptime() -> Result<f64, String> {
    let text = read("/proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|first| first.parse().ok());
    seconds.ok_or_else(|| format!("/proc/uptime: {text:?} isn't understood"))
}

/// The physical address behind a virtual address of this process, from `/proc/self/pagemap`.
pub(crate) fn physical_address(address: usize) -> Result<u64, String> {
    const PAGE: u64 = 4096;
    let address = address as u64;
    let told = |error| format!("/proc/self/pagemap: {error}");
    let mut entry = [0; 8];
    let mut file = File::open("/proc/self/pagemap").map_err(told)?;
    file.seek(SeekFrom::Start(address / PAGE * 8)).map_err(told)?;
    file.read_exact(&mut entry).map_err(told)?;
    let frame =
        page_frame(u64::from_le_bytes(entry)).ok_or("/proc/self/pagemap: the page isn't in memory")?;
    Ok(frame * PAGE + address % PAGE)
}

/// The page frame number of a pagemap entry: bits 0 to 54, valid if bit 63 (present) is set; 0 without the right to see it.
fn page_frame(entry: u64) -> Option<u64> {
    let frame = entry & ((1 << 55) - 1);
    (entry >> 63 == 1 && frame != 0).then_some(frame)
}

/// Ends the machine; returns only if that fails.
pub(crate) fn power_off() -> Result<(), String> {
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => Err(format!("power off: {error}")),
    }
}

/// Reboots the machine; returns only if that fails.
pub(crate) fn restart() -> Result<(), String> {
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(error) => Err(format!("reboot: {error}")),
    }
}

/// The serial console; without one the guest goes on unheard.
pub(crate) struct Console(Option<File>);

impl Console {
    /// Opens what the kernel command line named as console.
    pub(crate) fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/console").ok())
    }

    /// Writes a line and waits until it is out: what the serial port still holds when the machine powers off is lost, and the
    /// kernel's last message would land inside. A console that can't be written to leaves nobody to tell.
    pub(crate) fn line(&mut self, text: &str) {
        if let Some(file) = &mut self.0 {
            let _unheard = file.write_all(format!("{text}\n").as_bytes());
            let _unheard = tcdrain(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpu_list("0\n"), Some(vec![0]));
        assert_eq!(parse_cpu_list("0-3,6,8-9\n"), Some(vec![0, 1, 2, 3, 6, 8, 9]));
        assert_eq!(parse_cpu_list("\n"), Some(vec![]));
        for text in ["a", "3-1", "0-", "0,"] {
            assert_eq!(parse_cpu_list(text), None, "{text}");
        }
    }

    #[test]
    fn mem_total_is_in_bytes() {
        assert_eq!(parse_mem_total("MemTotal:         483060 kB\nMemFree: 1 kB\n"), Some(483_060 * 1024));
        assert_eq!(parse_mem_total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_page_frame_needs_a_present_page() {
        assert_eq!(page_frame(1 << 63 | 0x1234), Some(0x1234));
        assert_eq!(page_frame(0x1234), None);
        assert_eq!(page_frame(1 << 63), None);
    }
}
