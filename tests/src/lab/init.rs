//! First profiles and reports on a live host: what can't be passed is refused by name, what is written is taken, and a report
//! is planned on as the host is.

use std::fs;
use std::path::Path;
use std::process::Output;

use super::scenarios::{EDU, GPU, leaving_no_trace};
use super::vm::{PROFILE, gpuvm};
use super::{Outcome, doing, ensure};

const FOLDER: &str = "/tmp/init-scenario";

/// `init` refuses what the host needs, and writes a profile that `check` and `plan` take.
pub(super) fn first_profile() -> Outcome {
    leaving_no_trace(|| {
        for (device, says) in [
            ("0000:02:00.0", ["nvme", "/mnt/lab-data"]),
            ("0000:01:00.0", ["e1000e", "default route"]),
            ("0000:00:01.0", ["bochs-drm", "boot display"]),
        ] {
            let output = gpuvm(&["init", device])?;
            let told = String::from_utf8_lossy(&output.stderr);
            let named = told.contains(device) && says.iter().all(|words| told.contains(words));
            ensure(output.status.code() == Some(69) && output.stdout.is_empty() && named, || {
                format!("init {device}: {output:?}")
            })?;
        }
        let several = gpuvm(&["init"])?;
        ensure(several.status.code() == Some(64), || format!("two GPUs, and one was chosen: {several:?}"))?;
        for device in [GPU, EDU] {
            let profile = written(device)?;
            for verb in ["check", "plan"] {
                succeeded(&gpuvm(&[verb, &profile])?, verb)?;
            }
        }
        Ok(())
    })
}

/// A redacted report, of root and of nobody, is planned on as the host is.
pub(super) fn report() -> Outcome {
    leaving_no_trace(|| {
        let profile = written(GPU)?;
        let file = format!("{FOLDER}/report.tar.gz");
        // Left by a run before, it would not be written over.
        fs::remove_file(&file).ok();
        succeeded(&gpuvm(&["report", "--redact", "-o", &file, &profile])?, "report")?;
        for (verb, profile) in [("plan", profile.as_str()), ("argv", &profile), ("plan", PROFILE)] {
            let (here, there) = (gpuvm(&[verb, profile])?, gpuvm(&[verb, "--facts", &file, profile])?);
            succeeded(&here, verb)?;
            if profile == PROFILE {
                // Its kernel isn't among the files that the report's profile names, and that must be said.
                let told = String::from_utf8_lossy(&there.stderr);
                let said = there.status.code() == Some(64) && told.contains("/lab/guest/kernel");
                ensure(said, || format!("{there:?}"))?;
                continue;
            }
            ensure(here.stdout == there.stdout && there.status.success(), || {
                format!("{verb} of the report is another:\n{here:?}\n{there:?}")
            })?;
        }
        succeeded(&gpuvm(&["devices", "--facts", &file])?, "devices")?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").map_err(doing("the host's name"))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(doing("the boot's id"))?;
        let unpacked =
            std::process::Command::new("tar").args(["-xzOf", &file]).output().map_err(doing("tar"))?;
        let text = String::from_utf8_lossy(&unpacked.stdout);
        ensure(text.contains("gpuvm-facts") && text.contains("DMAR"), || "there is little in it".to_owned())?;
        for secret in [boot.trim(), "lab-data\""] {
            ensure(!text.contains(secret), || {
                format!("{secret} is in a redacted report of {}", host.trim())
            })?;
        }
        Ok(())
    })
}

/// Writes a first profile for a device, and returns where it is.
fn written(device: &str) -> Result<String, String> {
    fs::create_dir_all(FOLDER).map_err(doing("make a folder"))?;
    let path = Path::new(FOLDER).join(format!("{}.toml", device.replace(':', "-"))).display().to_string();
    succeeded(&gpuvm(&["init", device, "-o", &path, "--force"])?, "init")?;
    Ok(path)
}

fn succeeded(output: &Output, what: &str) -> Outcome {
    ensure(output.status.success(), || format!("{what}: {output:?}"))
}
