//! Tier 2: what a service manager hears of `gpuvm up`, from its first word to its last, with this machine's QEMU and no device.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};

const PROFILE: &str = "version = 1\nname = \"unit\"\naccel = \"tcg\"\nfirmware = \"bios\"\nnetwork = \"none\"\nshutdown-timeout = 1\n\
                       [memory]\nsize = \"64M\"\n[cpu]\ncount = 1\npin = \"off\"\n";
const LONG: Duration = Duration::from_secs(60);

/// A gpuvm that a manager has started.
struct Unit {
    folder: tempfile::TempDir,
    manager: UnixDatagram,
    gpuvm: Child,
    lines: Vec<String>,
}

impl Unit {
    fn start(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("unit.toml"), PROFILE).unwrap();
        let socket = folder.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut gpuvm = Command::new(env!("CARGO_BIN_EXE_gpuvm"));
        gpuvm.arg("--prefix").arg(folder.path()).args(["up", "unit.toml"]).args(settings);
        gpuvm.current_dir(folder.path()).env("NOTIFY_SOCKET", &socket);
        let gpuvm = gpuvm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { folder, manager, gpuvm, lines: Vec::new() }
    }

    /// Takes what is there.
    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(count) = self.manager.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..count].to_vec()).unwrap();
            self.lines.extend(text.lines().map(str::to_owned));
        }
    }

    fn stop(&self) {
        let pid = i32::try_from(self.gpuvm.id()).unwrap();
        pidfd_send_signal(pidfd_open(pid).unwrap().as_fd(), Signal::SIGTERM).unwrap();
    }

    fn until(&mut self, line: &str) {
        let begun = Instant::now();
        while !self.lines.iter().any(|heard| heard == line) {
            assert!(begun.elapsed() < LONG, "no {line} in {:#?}", self.lines);
            self.hear();
        }
    }

    /// Waits for its end and returns its exit code.
    fn ended(&mut self) -> Option<i32> {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.gpuvm.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < LONG, "it goes on: {:#?}", self.lines);
            self.hear();
        };
        self.hear();
        status.code()
    }

    fn at(&self, line: &str) -> usize {
        self.lines
            .iter()
            .position(|heard| heard.starts_with(line))
            .unwrap_or_else(|| panic!("no {line} in {:#?}", self.lines))
    }
}

impl Drop for Unit {
    /// QEMU dies with its gpuvm.
    fn drop(&mut self) {
        self.gpuvm.kill().ok();
        self.gpuvm.wait().ok();
        assert!(self.folder.path().exists());
    }
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_manager_hears_of_each_step_and_stops_the_guest_by_sigterm() {
    let mut unit = Unit::start(&[]);
    unit.until("READY=1");
    unit.stop();
    assert_eq!(unit.ended(), Some(0));
    let order = [
        "STATUS=reserving",
        "STATUS=starting QEMU",
        "STATUS=the guest runs (QEMU",
        "READY=1",
        "STATUS=pressing the guest's power button",
        "STATUS=telling QEMU to quit",
        "STOPPING=1",
        "STATUS=the guest was ended by telling QEMU to quit",
    ];
    let places: Vec<usize> = order.iter().map(|line| unit.at(line)).collect();
    assert!(places.is_sorted(), "{:#?}", unit.lines);
    let steps = unit.lines.iter().filter(|line| line.starts_with("EXTEND_TIMEOUT_USEC=")).count();
    assert!(steps > 5, "{:#?}", unit.lines);
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_manager_hears_what_keeps_a_vm_from_coming_up() {
    let mut unit = Unit::start(&["--set", "memory.size=60T"]);
    assert_eq!(unit.ended(), Some(69));
    assert!(unit.lines.last().unwrap().contains("memory"), "{:#?}", unit.lines);
    assert!(!unit.lines.iter().any(|line| line == "READY=1"), "{:#?}", unit.lines);
    let mut unit = Unit::start(&["--set", "ready=console:("]);
    assert_eq!(unit.ended(), Some(78));
    assert_eq!(unit.lines, ["STATUS=the profile is wrong"]);
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_unit_that_is_stopped_while_it_starts_has_not_failed() {
    let mut unit = Unit::start(&[]);
    unit.until("STATUS=reserving the devices");
    unit.stop();
    assert_eq!(unit.ended(), Some(0), "{:#?}", unit.lines);
    // A machine that was quicker than the signal has stopped a guest that ran.
    if !unit.lines.iter().any(|line| line == "READY=1") {
        assert_eq!(unit.lines.last().unwrap(), "STATUS=interrupted by SIGTERM before the guest ran");
    }
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_guest_that_says_nothing_is_not_up_by_its_console() {
    let mut unit = Unit::start(&["--set", "ready=console:login"]);
    // The time that it has from its start on.
    unit.until("EXTEND_TIMEOUT_USEC=300000000");
    std::thread::sleep(Duration::from_secs(1));
    unit.stop();
    assert_eq!(unit.ended(), Some(0));
    // It is called up at its good end alone: a service that never was would count as failed.
    let (last, before) = unit.lines.split_last().unwrap();
    assert_eq!(last, "READY=1");
    assert!(!before.iter().any(|line| line.ends_with("=1") || line == "STATUS="), "{:#?}", unit.lines);
}
