//! The doctor's word on hosts as a whole, against what the kernel does: IOMMU, interrupt remapping, hugepages, rights.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::scenarios::{EDU, check_group_of, leaving_no_trace, write};
use super::vm::{PROFILE, gpuvm};
use super::{Outcome, doing, ensure};

/// What the doctor found.
struct Examination {
    code: Option<i32>,
    document: Value,
}

impl Examination {
    /// Asks about a profile or devices, as root.
    fn of(words: &[&str]) -> Result<Self, String> {
        Self::read(gpuvm(&[&["doctor", "--json"], words].concat())?)
    }

    /// Asks as somebody who may nothing.
    fn by_nobody(words: &[&str]) -> Result<Self, String> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "gpuvm", "doctor", "--json"]);
        let output = command.args(words).stdin(Stdio::null()).output().map_err(doing("start gpuvm"))?;
        Self::read(output)
    }

    fn read(output: Output) -> Result<Self, String> {
        let document = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("gpuvm doctor: {error}: {output:?}"))?;
        Ok(Self { code: output.status.code(), document })
    }

    /// Checks that all findings of a check have a verdict, and that one holds these words.
    fn says(&self, name: &str, verdict: &str, words: &str) -> Outcome {
        let checks = self.document["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found: Vec<&Value> = checks.iter().filter(|check| check["name"] == name).collect();
        let has_words = |check: &&Value| check["found"].as_str().is_some_and(|found| found.contains(words));
        let all = found.iter().all(|check| check["verdict"] == verdict);
        ensure(all && found.iter().any(has_words), || {
            format!("{name} isn't {verdict} with `{words}`: {found:?}")
        })
    }

    fn ends_with(&self, code: i32) -> Outcome {
        let fit = self.document["fit"] == (code == 0);
        ensure(fit && self.code == Some(code), || {
            format!("exit code {:?}, not {code}; it found {}", self.code, self.document)
        })
    }
}

/// The usual host is fit for the usual profile; what it is not fit for, `up` refuses; and who may nothing is told so.
pub(super) fn doctor_host() -> Outcome {
    leaving_no_trace(|| {
        let fit = Examination::of(&[PROFILE])?;
        fit.ends_with(0)?;
        fit.says("iommu-tables", "ok", "VT-d")?;
        fit.says("iommu-options", "ok", "intel_iommu=on")?;
        fit.says("iommu-active", "ok", "dmar0")?;
        fit.says("iommu-groups", "ok", "")?;
        fit.says("interrupt-remapping", "ok", "")?;
        fit.says("iommu-width", "ok", "48 address bits")?;
        fit.says("kvm", "ok", "")?;
        fit.says("qemu", "ok", "QEMU")?;
        fit.says("qemu-abilities", "ok", "")?;
        fit.says("hugepages", "ok", "256 2M pages are needed")?;
        fit.says("memory-lock", "ok", "root")?;
        fit.says("plan", "ok", "")?;
        // What a whole host is asked about counts its boot display as a warning at most: nobody wants it yet.
        let host = Examination::of(&[])?;
        host.ends_with(0)?;
        host.says("device-present", "ok", "VGA controller")
    })?;
    leaving_no_trace(|| {
        // More 2 MiB pages than the node has memory left for: the plan lets it pass, and only claiming them would show it.
        let kib = super::scenarios::node_kib(1)?;
        let size = format!("memory.size={}M", kib / 2048 * 2);
        let unfit = Examination::of(&[PROFILE, "--set", &size])?;
        unfit.says("hugepages", "failed", "can't become")?;
        unfit.ends_with(69)?;
        let up = gpuvm(&["up", PROFILE, "--set", &size])?;
        ensure(up.status.code() == Some(69), || format!("up with {size}: {up:?}"))?;
        let nobody = Examination::by_nobody(&[PROFILE])?;
        nobody.ends_with(69)?;
        nobody.says("kvm", "failed", "not for this user")?;
        nobody.says("memory-lock", "failed", "the guest needs 1536 MiB")
    })
}

/// A host without an IOMMU: the tables, the kernel and the plan say so alike.
pub(super) fn doctor_no_iommu() -> Outcome {
    leaving_no_trace(|| {
        let unfit = Examination::of(&[PROFILE])?;
        unfit.ends_with(69)?;
        unfit.says("iommu-tables", "failed", "describes no IOMMU")?;
        unfit.says("iommu-active", "failed", "no IOMMU")?;
        unfit.says("iommu-groups", "not-applicable", "")?;
        unfit.says("interrupt-remapping", "not-applicable", "")?;
        unfit.says("plan", "failed", "no IOMMU is active")?;
        Examination::of(&[])?.ends_with(69)?;
        // A guest without devices needs none.
        Examination::of(&["profiles/dev.toml"])?.ends_with(0)
    })
}

/// A host whose IOMMU can't remap interrupts: failed, and the kernel refuses; told to do without, both go along.
pub(super) fn doctor_no_intremap() -> Outcome {
    const ALLOW: &str = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    leaving_no_trace(|| {
        let unfit = Examination::of(&[PROFILE])?;
        unfit.ends_with(69)?;
        unfit.says("iommu-active", "ok", "dmar0")?;
        unfit.says("interrupt-remapping", "failed", "EPERM")?;
        let attribute = format!("/sys/bus/pci/devices/{EDU}/driver_override");
        write(&attribute, "vfio-pci")?;
        write("/sys/bus/pci/drivers/vfio-pci/bind", EDU)?;
        let refused = check_group_of(EDU, 0xfff_ffff);
        let before = fs::read_to_string(ALLOW).map_err(doing(ALLOW))?;
        write(ALLOW, "1")?;
        let (allowed, attached) = (Examination::of(&[EDU]), check_group_of(EDU, 0xfff_ffff));
        write(ALLOW, before.trim())?;
        write("/sys/bus/pci/drivers/vfio-pci/unbind", EDU)?;
        write(&attribute, "\n")?;
        ensure(matches!(&refused, Ok(Err(_))), || format!("without interrupt remapping: {refused:?}"))?;
        allowed?.says("interrupt-remapping", "warning", "told to do without")?;
        ensure(matches!(attached, Ok(Ok(()))), || format!("told to do without: {attached:?}"))
    })
}
