//! Tier 3: scenarios on a real kernel's VFIO, in the lab. One boot of a lab host per test.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::path::{Path, PathBuf};
use std::process::Command;

use rstest::rstest;

/// A scenario that only `scripts/test --all` runs: the kernel's resets of a dead card take five minutes.
#[test]
#[ignore = "tier 3: boots the lab; scripts/test --all runs it"]
fn tier3_slow_lab_host_survives_a_fallen_card() {
    scenarios_hold("default", &["fallen-card"]);
}

/// Boots a lab host and runs scenarios in it, one after the other.
#[rstest]
#[case::compute("default", &["compute", "deviations"])]
#[case::isolation("default", &["isolation"])]
#[case::endings("default", &["sigterm", "sigkill", "panic"])]
#[case::relaunch("default", &["relaunch"])]
#[case::refusals("default", &["refusals", "native-driver", "aperture", "first-profile", "report"])]
#[case::bad_hosts("default", &["bad-hosts", "prefer"])]
#[case::kill_matrix("default", &["kill-matrix"])]
#[case::two_vms("switch", &["two-vms"])]
#[case::uefi("default", &["uefi"])]
#[case::two_gpus("default", &["two-gpus", "boot-display"])]
#[case::bind("default", &["bind", "bind-holders", "bind-hangs", "bind-stranded", "bind-killed"])]
#[case::lock("default", &["lock-same"])]
#[case::lock_moved("moved", &["lock-moved"])]
#[case::lock_grown("grown", &["lock-grown"])]
#[case::reset_policy("default", &["reset-policy"])]
#[case::reset("default", &["reset"])]
#[case::sick("default", &["sick-before-start", "sick-at-greeting", "sick-while-running", "sick-during-down", "sick-after-exit", "link-error"])]
#[case::repair("default", &["repair"])]
#[case::gave_up("default", &["sick-gave-up"])]
#[case::refused_reset("slow-link", &["refused-reset"])]
#[case::slow_to_return("root-bus", &["slow-to-return"])]
#[case::soak("default", &["soak"])]
#[case::soak_fault("default", &["soak-fault"])]
#[case::life("default", &["life"])]
#[case::deaths("default", &["deaths"])]
#[case::messages("default", &["messages"])]
#[case::doctor("default", &["doctor-host", "doctor-card", "doctor-refusals", "doctor-boot", "doctor-errors"])]
#[case::no_iommu("no-iommu", &["no-iommu", "messages-no-iommu", "doctor-no-iommu"])]
#[case::no_intremap("no-intremap", &["no-intremap", "messages-intremap", "doctor-no-intremap"])]
#[ignore = "tier 3: boots the lab; scripts/test runs it"]
fn tier3_lab_host_holds(#[case] host: &str, #[case] scenarios: &[&str]) {
    scenarios_hold(host, scenarios);
}

/// The host that is installed on a disk, over several boots.
#[rstest]
#[case::reboot("reboot-in-a-run")]
#[case::service("service")]
#[ignore = "tier 3: boots the installed lab host; scripts/test runs it"]
fn tier3_installed_host_holds(#[case] scenario: &str) {
    scenarios_hold("installed", &[scenario]);
}

fn scenarios_hold(host: &str, scenarios: &[&str]) {
    let program = env!("CARGO_BIN_EXE_lab-scenarios");
    let run = || {
        let mut lab = Command::new(repository().join("scripts/lab"));
        lab.args(["run", "--host", host, "--timeout", "600", "--", program]).args(scenarios).output().unwrap()
    };
    let mut output = run();
    // 125 is the lab's own failure: the emulated kernel died under the scenarios of a fault of the emulation, or the emulator itself did (139: it accessed
    // memory that isn't its own). No scenario is asked twice that gave an answer.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let of_the_emulation = ["Oops: int3", "QEMU ended with 139"].iter().any(|words| stderr.contains(words));
    if output.status.code() == Some(125) && of_the_emulation {
        output = run();
    }
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for scenario in scenarios {
        let held = stdout.lines().any(|line| line.starts_with(&format!("ok {scenario} (")));
        assert!(held, "{scenario} did not hold ({}):\n{stdout}\n{stderr}", output.status);
    }
    assert!(output.status.success(), "{}:\n{stdout}\n{stderr}", output.status);
}

/// What a command in the lab host prints and returns comes out as it went in.
#[test]
#[ignore = "tier 3: boots the lab; scripts/test runs it"]
fn tier3_lab_run_passes_words_streams_and_status() {
    let script = r#"printf '%s|' "$@"; echo told >&2; touch /etc/gpuvm-was-here; exit 42"#;
    let output = Command::new(repository().join("scripts/lab"))
        .args(["run", "--", "bash", "-c", script, "x", "a b", "c\"d", "e\nf", ""])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|c\"d|e\nf||");
    assert!(String::from_utf8_lossy(&output.stderr).contains("told"));
    assert_eq!(output.status.code(), Some(42));
    assert!(!Path::new("/etc/gpuvm-was-here").exists(), "a change in the lab host has reached this machine");
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
