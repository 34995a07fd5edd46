//! QEMU's firmware descriptors (docs/interop/firmware.json) and the choice among them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::facts::FirmwareFacts;

/// A descriptor, as far as gpuvm reads it; members that newer QEMUs add are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Descriptor {
    /// What the firmware is, in words.
    pub description: String,
    /// `uefi`, `bios`, ...
    pub interface_types: Vec<String>,
    /// How it is loaded.
    pub mapping: Mapping,
    /// The machines that it runs on.
    pub targets: Vec<Target>,
    /// What it can do and what it needs.
    pub features: Vec<String>,
}

/// How a firmware is loaded. Only flash with separate variables can keep a guest's boot entries apart from the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mapping {
    /// `flash`, `kernel` or `memory`.
    pub device: String,
    /// For flash: `split`, `combined` or `stateless`; split where it isn't said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<FlashFile>,
    /// The variables that a new guest starts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvram_template: Option<FlashFile>,
}

/// A file that becomes a flash chip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlashFile {
    /// Where it is.
    pub filename: PathBuf,
    /// Its image format.
    pub format: String,
}

/// Machines that a firmware runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The architecture, in QEMU's spelling.
    pub architecture: String,
    /// Globs of machine types.
    pub machines: Vec<String>,
}

/// A firmware that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UefiFirmware {
    /// The descriptor that named it.
    pub descriptor: PathBuf,
    /// The code, read-only.
    pub code: PathBuf,
    /// The variables that a new guest starts with.
    pub vars_template: PathBuf,
}

/// A machine type that every Q35 glob must match.
const MACHINE: &str = "pc-q35-7.2";

/// Chooses the first UEFI that runs on Q35 without SMM, in the order of the descriptors.
pub fn choose_uefi(descriptors: &[FirmwareFacts]) -> Option<UefiFirmware> {
    descriptors.iter().find_map(|FirmwareFacts { descriptor, content }| {
        let raw = |file: &Option<FlashFile>| {
            file.as_ref().filter(|file| file.format == "raw").map(|file| file.filename.clone())
        };
        let split = content.mapping.device == "flash"
            && content.mapping.mode.as_deref().is_none_or(|mode| mode == "split");
        let uefi = content.interface_types.iter().any(|kind| kind == "uefi");
        let q35 = content.targets.iter().any(|target| {
            target.architecture == "x86_64" && target.machines.iter().any(|glob| matches(glob, MACHINE))
        });
        // SMM costs exits on every variable write, and secure boot would refuse unsigned kernels: opt-in, later.
        let plain = !content.features.iter().any(|f| f == "requires-smm" || f == "enrolled-keys");
        if !(split && uefi && q35 && plain) {
            return None;
        }
        Some(UefiFirmware {
            descriptor: descriptor.clone(),
            code: raw(&content.mapping.executable)?,
            vars_template: raw(&content.mapping.nvram_template)?,
        })
    })
}

/// Matches a glob of the kind descriptors use: `*` stands for any text.
fn matches(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|i| rest.is_char_boundary(i) && matches(tail, &rest[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn descriptor(name: &str, json: &serde_json::Value) -> FirmwareFacts {
        FirmwareFacts {
            descriptor: PathBuf::from(name),
            content: serde_json::from_value(json.clone()).unwrap(),
        }
    }

    fn ovmf(features: &[&str], machine: &str, device: &str) -> serde_json::Value {
        serde_json::json!({
            "description": "UEFI", "interface-types": ["uefi"],
            "mapping": {"device": device,
                "executable": {"filename": "/f/CODE.fd", "format": "raw"},
                "nvram-template": {"filename": "/f/VARS.fd", "format": "raw"}},
            "targets": [{"architecture": "x86_64", "machines": [machine]}],
            "features": features, "tags": []
        })
    }

    #[test]
    fn choice_skips_secure_boot_and_takes_the_first_plain_one() {
        let found = choose_uefi(&[
            descriptor("40-secure.json", &ovmf(&["requires-smm", "secure-boot"], "pc-q35-*", "flash")),
            descriptor("50-amdsev.json", &ovmf(&["amd-sev"], "pc-q35-*", "memory")),
            descriptor("60-plain.json", &ovmf(&["acpi-s3", "verbose-dynamic"], "pc-q35-*", "flash")),
            descriptor("70-also.json", &ovmf(&[], "pc-q35-*", "flash")),
        ]);
        assert_eq!(found.unwrap().descriptor, PathBuf::from("60-plain.json"));
    }

    #[rstest]
    #[case("pc-i440fx-*", "flash")]
    #[case("virt-*", "flash")]
    #[case("pc-q35-*", "memory")]
    fn choice_refuses_what_does_not_run_on_q35_flash(#[case] machine: &str, #[case] device: &str) {
        assert_eq!(choose_uefi(&[descriptor("x.json", &ovmf(&[], machine, device))]), None);
    }

    #[rstest]
    #[case("pc-q35-*", "pc-q35-7.2", true)]
    #[case("*", "", true)]
    #[case("a*b*c", "axxbyyc", true)]
    #[case("a*b", "axx", false)]
    #[case("pc-q35-7.2", "pc-q35-7.2", true)]
    fn globs_match(#[case] glob: &str, #[case] text: &str, #[case] expected: bool) {
        assert_eq!(matches(glob, text), expected);
    }
}
