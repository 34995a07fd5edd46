//! UEFI as a guest: firmware drives a passed-through device before any operating system does.

use std::fs;
use std::path::Path;

use gpuvm_core::plan::Firmware;

use super::placement::Placed;
use super::scenarios::{CYCLE, EDU, leaving_no_trace};
use super::vm::Vm;
use super::{Outcome, doing, ensure};

/// The lab prepares it (`scripts/lib/lab-prepare.sh`); its script is `tests/lab/uefi/read-device.nsh`.
const SHELL_DISK: &str = "/lab/guest/uefi-device.img";
const PROFILE: &str = "/tmp/uefi.toml";
/// The VM's own variables.
const VARS: &str = "/var/lib/gpuvm/vm/uefi/uefi-vars.fd";
/// What `edu` holds at the start of its BAR (QEMU docs/specs/edu.rst): version 1.0 and a fixed number.
const IDENTIFICATION: &str = "0x010000ED";

/// TCG, because OVMF under KVM stops the machine that emulates the lab host (`tests/lab/README.md`, "Findings").
fn profile(disk: &str) -> String {
    format!(
        "version = 1\nname = \"uefi\"\naccel = \"tcg\"\nfirmware = \"uefi\"\nnetwork = \"none\"\n\
         [memory]\nsize = \"128M\"\n[cpu]\ncount = 1\npin = \"off\"\n\
         [[device]]\nbdf = \"{EDU}\"\n[[disk]]\npath = \"{disk}\"\n"
    )
}

/// A UEFI shell reads the accelerator's ids, its BAR and a register through the BAR; the VM's variables are its own.
pub(super) fn uefi() -> Outcome {
    leaving_no_trace(|| {
        let disk = "/tmp/uefi.img";
        fs::copy(SHELL_DISK, disk).map_err(doing(SHELL_DISK))?;
        fs::write(PROFILE, profile(disk)).map_err(doing(PROFILE))?;
        let Firmware::Uefi(firmware) = Placed::planned(PROFILE)?.firmware else {
            return Err("the plan has no UEFI".to_owned());
        };
        let read = |path: &Path| fs::read(path).map_err(doing(&path.display().to_string()));
        let template = read(&firmware.vars_template)?;

        let ended = Vm::up(&[PROFILE])?.ended(CYCLE)?;
        ensure(ended.code == Some(0), || {
            format!("exit code {:?}; gpuvm told:\n{}\n{}", ended.code, ended.told, ended.console)
        })?;
        check_device(&ended.console)?;

        ensure(read(&firmware.vars_template)? == template, || {
            format!("{}: the guest has written to the template", firmware.vars_template.display())
        })?;
        let stored = utf16("BootOrder");
        let holds = |bytes: &[u8]| bytes.windows(stored.len()).any(|part| part == stored);
        ensure(!holds(&template) && holds(&read(Path::new(VARS))?), || {
            format!("{VARS}: no boot order that the template lacks")
        })
    })
}

/// Checks the line that the shell's script printed.
fn check_device(console: &str) -> Outcome {
    let line = console.lines().find_map(|line| line.split_once("gpuvm-uefi: "));
    let (_, line) = line.ok_or_else(|| format!("the firmware read no device; its console:\n{console}"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["id", id, "bar0", bar, "register", register] = words[..] else {
        return Err(format!("the firmware's words: {line}"));
    };
    let read = |name| {
        let path = format!("/sys/bus/pci/devices/{EDU}/{name}");
        fs::read_to_string(&path).map_err(doing(&path))
    };
    let (vendor, device) = (read("vendor")?, read("device")?);
    let expected = format!("{}{}", device.trim(), vendor.trim().trim_start_matches("0x"));
    ensure(id.eq_ignore_ascii_case(&expected), || format!("the firmware read id {id}, the host {expected}"))?;
    let address = bar.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    ensure(address.is_some_and(|address| address & !0xf != 0), || {
        format!("the firmware gave BAR 0 no address: {line}")
    })?;
    ensure(register == IDENTIFICATION, || {
        format!("the register at {bar} holds {register}, not {IDENTIFICATION}")
    })
}

/// How UEFI spells a variable's name in its store.
fn utf16(name: &str) -> Vec<u8> {
    name.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables_are_two_bytes_a_letter() {
        assert_eq!(utf16("Bo"), b"B\0o\0");
    }
}
