//! Tier 2: a VM without devices on the real QEMU of this machine, from its start to its end.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a VM without devices until something is to be seen, then asks for its end; returns what gpuvm told.
fn run_until(args: &[&str], prefix: &Path, seen: impl Fn(&str) -> bool) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let stderr = prefix.join("told");
    let mut gpuvm = Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .args(["up", "profiles/dev.toml", "--shutdown-timeout", "1"])
        .args(args)
        .arg("--prefix")
        .arg(prefix)
        .current_dir(repository)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let told = || std::fs::read_to_string(&stderr).unwrap();
    let begun = Instant::now();
    while !seen(&told()) {
        let runs = gpuvm.try_wait().unwrap().is_none();
        assert!(begun.elapsed() < Duration::from_secs(90) && runs, "{}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
    let pidfd = gpuvm_sys::process::pidfd_open(i32::try_from(gpuvm.id()).unwrap()).unwrap();
    let pidfd = std::os::fd::AsFd::as_fd(&pidfd);
    gpuvm_sys::process::pidfd_send_signal(pidfd, gpuvm_sys::process::Signal::SIGTERM).unwrap();
    let status = gpuvm.wait().unwrap();
    assert!(status.success(), "{status}: {}", told());
    told()
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_vm_without_devices_comes_up_and_ends_when_told() {
    let prefix = tempfile::tempdir().unwrap();
    let told = run_until(&[], prefix.path(), |told| told.contains("the guest runs"));
    // SeaBIOS without anything to boot doesn't know the power button: it took the monitor's quit.
    assert!(told.contains("telling QEMU to quit") && told.contains("the host is as it was"), "{told}");
    assert!(!prefix.path().join("run/vm/dev").exists());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_uefi_comes_up_from_its_descriptor_with_variables_of_its_own() {
    let prefix = tempfile::tempdir().unwrap();
    let log = prefix.path().join("log/dev/console.log");
    // With nothing to boot, OVMF tries the network: it is through with its own start then.
    let seen = |_: &str| std::fs::read(&log).is_ok_and(|log| String::from_utf8_lossy(&log).contains("PXE"));
    run_until(&["--set", "firmware=uefi", "--set", "memory.size=256M"], prefix.path(), seen);
    let vars = std::fs::read(prefix.path().join("lib/vm/dev/uefi-vars.fd")).unwrap();
    assert!(vars.windows(8).any(|bytes| bytes == "B\0o\0o\0t\0".as_bytes()), "OVMF has stored no boot entry");
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_the_doctor_asks_qemu_once_and_finds_all_that_is_used() {
    let prefix = tempfile::tempdir().unwrap();
    let examine = || {
        let args = ["doctor", "--json", "--prefix"];
        let output =
            Command::new(env!("CARGO_BIN_EXE_gpuvm")).args(args).arg(prefix.path()).output().unwrap();
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = document["checks"].as_array().unwrap().clone();
        let verdict = |name: &str| {
            let check = checks.iter().find(|check| check["name"] == name).unwrap();
            (check["verdict"].as_str().unwrap().to_owned(), check["found"].as_str().unwrap().to_owned())
        };
        (verdict("qemu"), verdict("qemu-abilities"))
    };
    let first = examine();
    assert_eq!((first.0.0.as_str(), first.1.0.as_str()), ("ok", "ok"), "{first:?}");
    let kept = std::fs::read_dir(prefix.path().join("cache/qemu")).unwrap().next().unwrap().unwrap().path();
    // What is kept is what is told: the second time QEMU isn't started.
    let text = std::fs::read_to_string(&kept).unwrap().replace("\"version\":[", "\"version\":[9");
    std::fs::write(&kept, text).unwrap();
    assert!(examine().0.1.starts_with("QEMU 9"), "{first:?}");
}
