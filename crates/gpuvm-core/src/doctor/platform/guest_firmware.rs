//! Whether firmware for UEFI guests is there.

use std::path::Path;

use crate::doctor::{Case, Definition, Judgement, Layer, Package, Remedy, Verdict};
use crate::facts::FileFacts;
use crate::firmware::choose_uefi;
use crate::profile::FirmwareKind;

pub(super) const CHECK: Definition = Definition {
    name: "guest-firmware",
    layer: Layer::Platform,
    why: "a guest with firmware = \"uefi\" starts with OVMF, which is found by QEMU's firmware descriptors",
    judge,
};

fn judge(case: &Case<'_>) -> Vec<Judgement> {
    let facts = case.facts;
    if case.profile.is_some_and(|profile| profile.firmware == FirmwareKind::Bios) {
        return Judgement::not_applicable("the profile asks for SeaBIOS, which comes with QEMU");
    }
    let install = || {
        let remedy = Remedy::new("install OVMF; or write firmware = \"bios\" in the profile");
        remedy.commands(case.distribution().install(Package::Ovmf))
    };
    let read = |found: Judgement| {
        let folders = "/etc/qemu/firmware, /usr/share/qemu/firmware";
        found.read(format!("{folders}: {} descriptors", facts.firmware.len()))
    };
    let Some(uefi) = choose_uefi(&facts.firmware) else {
        let verdict = if case.profile.is_some() { Verdict::Failed } else { Verdict::Warning };
        let found = "no UEFI firmware for Q35 without secure boot is described";
        return vec![read(Judgement::of_host(verdict, found)).remedy(install())];
    };
    let unusable = |path: &&Path| {
        // Files are looked at for a profile only.
        facts.file(path).is_some_and(|file| !matches!(file, FileFacts::Usable { .. }))
    };
    let judgement = match [uefi.code.as_path(), &uefi.vars_template].iter().find(|path| unusable(path)) {
        Some(path) => {
            let found =
                format!("{} names {}, which can't be used", uefi.descriptor.display(), path.display());
            Judgement::of_host(Verdict::Failed, found).remedy(install())
        }
        None => Judgement::of_host(Verdict::Ok, format!("{}", uefi.code.display())).read(format!(
            "{}: {}",
            uefi.descriptor.display(),
            uefi.code.display()
        )),
    };
    vec![read(judgement)]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::doctor::testing::{profile, verdict};
    use crate::facts::{FirmwareFacts, HostFacts};

    fn host(described: bool, file: Option<FileFacts>) -> HostFacts {
        let mut facts = HostFacts::default();
        let descriptor = serde_json::json!({
            "description": "UEFI", "interface-types": ["uefi"], "features": [],
            "mapping": {"device": "flash", "executable": {"filename": "/f/CODE.fd", "format": "raw"},
                "nvram-template": {"filename": "/f/VARS.fd", "format": "raw"}},
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]
        });
        let content = serde_json::from_value(descriptor).unwrap();
        facts.firmware = described
            .then_some(FirmwareFacts { descriptor: "/d.json".into(), content })
            .into_iter()
            .collect();
        facts.files.extend(file.map(|file| ("/f/VARS.fd".into(), file)));
        facts
    }

    #[rstest]
    #[case::there(true, None, Verdict::Ok)]
    #[case::none(false, None, Verdict::Failed)]
    #[case::a_file_is_gone(true, Some(FileFacts::Unusable { errno: 2 }), Verdict::Failed)]
    fn a_uefi_guest_needs_firmware_whose_files_are_there(
        #[case] described: bool,
        #[case] file: Option<FileFacts>,
        #[case] expected: Verdict,
    ) {
        let mut profile = profile("");
        profile.firmware = FirmwareKind::Uefi;
        assert_eq!(verdict(CHECK.name, &host(described, file), Some(&profile)), expected);
    }

    #[test]
    fn a_bios_guest_needs_none_and_a_host_without_is_warned_about() {
        assert_eq!(verdict(CHECK.name, &host(false, None), Some(&profile(""))), Verdict::NotApplicable);
        assert_eq!(verdict(CHECK.name, &host(false, None), None), Verdict::Warning);
    }
}
