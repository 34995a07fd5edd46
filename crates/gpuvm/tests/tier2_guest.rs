//! Tier 2: Linux boots through OVMF on this machine, without VFIO. Kernel, guest and disk are the lab's (`scripts/lab prepare`).

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};
use rstest::rstest;
use serde_json::Value;

/// Below nextest's limit, so that the console is shown: 9 to 13 s on an idle machine.
const DEADLINE: Duration = Duration::from_secs(100);
const PROFILE: &str = "version = 1\nname = \"linux\"\naccel = \"tcg\"\nfirmware = \"uefi\"\nnetwork = \"none\"\n\
                       [memory]\nsize = \"512M\"\n[cpu]\ncount = 2\npin = \"off\"\n";

/// Without a check of the timer, which a busy machine's emulation fails now and then ("8254 timer not connected to IO-APIC").
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable";

/// How OVMF comes by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    /// From a FAT disk, by a script of its shell that stands for a boot loader.
    Disk,
    /// From QEMU, as the profile's `[kernel]` says.
    Direct,
}

impl Boot {
    /// Returns the part of the profile that says so. A disk is copied first: a guest may write to it.
    fn profile(self, folder: &Path) -> String {
        let guest = |name: &str| {
            let path = repository().join("target/lab/guest").join(name);
            assert!(path.exists(), "no {}: scripts/lab prepare makes it", path.display());
            path
        };
        match self {
            Self::Disk => {
                let disk = folder.join("disk.img");
                fs::copy(guest("uefi-linux.img"), &disk).unwrap();
                format!("[[disk]]\npath = {:?}\n", disk.display().to_string())
            }
            Self::Direct => format!(
                "[kernel]\npath = {:?}\ninitrd = {:?}\ncmdline = \"{CMDLINE}\"\n",
                guest("bzImage").display().to_string(),
                guest("initrd").display().to_string()
            ),
        }
    }
}

#[rstest]
#[case::from_a_disk(Boot::Disk)]
#[case::given_by_qemu(Boot::Direct)]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_linux_boots_through_uefi(#[case] boot: Boot) {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("linux.toml");
    fs::write(&profile, format!("{PROFILE}{}", boot.profile(folder.path()))).unwrap();
    let console = up(&profile, folder.path(), |_, _| ());

    // The firmware clears its screen by a line without an end, and the report comes after it.
    let line = console.lines().find_map(|line| Some(&line[line.find("{\"gpuvm_guest\":1,")?..]));
    let report: Value =
        serde_json::from_str(line.unwrap_or_else(|| panic!("no report in:\n{console}"))).unwrap();
    assert_eq!(report["firmware"], "uefi", "{report}");
    assert_eq!(report["cpus"], 2, "{report}");
    assert!(report["memory_bytes"].as_u64().unwrap() > 400 << 20, "{report}");
    assert_eq!(report["errors"], Value::Array(vec![]), "{report}");
    assert_eq!(console.contains("EFI Internal Shell"), boot == Boot::Disk, "{console}");
    let vars = fs::read(folder.path().join("lib/vm/linux/uefi-vars.fd")).unwrap();
    assert!(vars.windows(8).any(|bytes| bytes == "B\0o\0o\0t\0".as_bytes()), "OVMF has stored no boot entry");
}

/// OVMF gives up on a serial port that takes nothing for 190 us: a launcher that is late must not be the reason.
#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_firmware_does_not_wait_for_a_launcher_that_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("linux.toml");
    fs::write(&profile, format!("{PROFILE}{}", Boot::Disk.profile(folder.path()))).unwrap();
    let mut stood = false;
    let console = up(&profile, folder.path(), |gpuvm, told| {
        if !stood && told.contains("the guest runs") {
            signal(gpuvm, Signal::SIGSTOP);
            // Until OVMF and its shell have printed what they have to say.
            std::thread::sleep(Duration::from_secs(20));
            signal(gpuvm, Signal::SIGCONT);
            stood = true;
        }
    });
    assert!(stood && console.contains("{\"gpuvm_guest\":1,"), "{console}");
}

/// Runs `gpuvm up` until the guest ends by itself, showing it and what it has told to a watcher; returns its console.
fn up(profile: &Path, prefix: &Path, mut watch: impl FnMut(&Child, &str)) -> String {
    let (console, told) = (prefix.join("console"), prefix.join("told"));
    let mut gpuvm = Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .arg("up")
        .arg(profile)
        .arg("--prefix")
        .arg(prefix)
        .args(["--shutdown-timeout", "1"])
        .stdin(Stdio::null())
        .stdout(File::create(&console).unwrap())
        .stderr(File::create(&told).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while gpuvm.try_wait().unwrap().is_none() {
        if begun.elapsed() > DEADLINE {
            // So that no QEMU is left behind.
            signal(&gpuvm, Signal::SIGTERM);
            break;
        }
        watch(&gpuvm, &fs::read_to_string(&told).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = gpuvm.wait().unwrap();
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let (console, told) = (read(&console), read(&told));
    let by_itself = told.contains("the guest powered itself off");
    assert!(status.success() && by_itself, "{status} after {:?}:\n{told}\n{console}", begun.elapsed());
    console
}

fn signal(gpuvm: &Child, signal: Signal) {
    let pidfd = pidfd_open(i32::try_from(gpuvm.id()).unwrap()).unwrap();
    pidfd_send_signal(pidfd.as_fd(), signal).unwrap();
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}
