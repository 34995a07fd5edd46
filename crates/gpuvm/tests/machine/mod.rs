//! VMs by this machine's QEMU, without devices, in a folder of their own; whatever a test comes to, they end with it.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod tmux;

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use gpuvm_host::process::ProcessId;
use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// How long anything may take on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What the lab's guest says once it listens to its power button.
pub(crate) const LINGERS: &str = "gpuvm-guest: lingering";

/// Without a check of the timer, which a busy machine's emulation fails now and then.
const CMDLINE: &str = "console=ttyS0 panic=-1 no_timer_check tsc=reliable gpuvm.linger=600 gpuvm.talk";

/// A folder with profiles and what gpuvm keeps of their VMs.
pub(crate) struct Bench(tempfile::TempDir);

/// What came of a gpuvm.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) told: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or_else(|| panic!("{output:?}"));
        Self { code, out: text(&output.stdout), told: text(&output.stderr) }
    }

    /// What it printed, where all went well.
    pub(crate) fn well(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// The document that it printed.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a profile of a small VM that only shows that it has no disk.
    pub(crate) fn idle(&self, name: &str) {
        self.write(name, "64M", "", "");
    }

    /// Writes a profile of the lab's Linux guest, which lingers and answers at its console.
    pub(crate) fn linux(&self, name: &str, cmdline: &str) {
        self.write(name, "128M", "", &kernel("kernel", &format!("{cmdline} quiet")));
    }

    /// The same with a virtual display, on which its kernel tells how it boots.
    pub(crate) fn linux_with_display(&self, name: &str) {
        // The ELF file is started without the BIOS, and knows nothing of a screen.
        let boot = kernel("bzImage", "console=tty0 ignore_loglevel");
        self.write(name, "128M", "display = \"virtual\"", &boot);
    }

    fn write(&self, name: &str, memory: &str, keys: &str, tables: &str) {
        let text = format!(
            "version = 1\nname = \"{name}\"\naccel = \"tcg\"\nfirmware = \"bios\"\nnetwork = \"none\"\n{keys}\n\
             [memory]\nsize = \"{memory}\"\n[cpu]\ncount = 1\npin = \"off\"\n{tables}"
        );
        fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    /// A gpuvm that keeps its files here.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut gpuvm = Command::new(env!("CARGO_BIN_EXE_gpuvm"));
        gpuvm.arg("--prefix").arg(self.0.path()).args(words).current_dir(self.0.path()).stdin(Stdio::null());
        gpuvm
    }

    pub(crate) fn gpuvm(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).output().unwrap())
    }

    /// What a verb says that is to succeed.
    pub(crate) fn says(&self, words: &[&str]) -> String {
        self.gpuvm(words).well()
    }

    /// The document of a verb that is to succeed.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let ran = self.gpuvm(&[&["--json"], words].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()
    }

    /// Starts a VM and returns what `up` says, as a document.
    pub(crate) fn up(&self, name: &str, more: &[&str]) -> Value {
        self.json(&[&["up", "--detach", &format!("{name}.toml")], more].concat())
    }

    /// Starts the lab's guest and returns once it lingers.
    pub(crate) fn up_linux(&self, name: &str) -> Value {
        self.up(name, &["--wait", &format!("console:{LINGERS}$"), "--wait-timeout", "60s"])
    }

    /// What a VM's supervisor says of it.
    pub(crate) fn live(&self, name: &str) -> Value {
        self.json(&["status", name])["live"].clone()
    }

    /// Waits until a VM is in a state.
    pub(crate) fn until(&self, name: &str, state: &str) {
        until(state, || self.live(name)["state"] == state);
    }

    /// A VM's console, as it is on disk.
    pub(crate) fn console(&self, name: &str) -> String {
        let bytes = fs::read(self.path(&format!("log/{name}/console.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until a VM's console has said something so many times.
    pub(crate) fn until_said(&self, name: &str, what: &str, times: usize) {
        until(what, || self.console(name).matches(what).count() >= times);
    }

    /// Panics unless nothing of any VM is left but its logs.
    pub(crate) fn assert_nothing_left(&self) {
        for folder in ["run/reservations", "run/vm"] {
            let left: Vec<_> = fs::read_dir(self.path(folder)).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(self.says(&["list"]), "no VM is up\n");
    }

    /// The processes on record: supervisors and QEMUs.
    fn processes(&self) -> Vec<ProcessId> {
        let records = fs::read_dir(self.path("run/reservations")).into_iter().flatten().flatten();
        let read = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok();
        let both = |record: Value| [record["supervisor"].clone(), record["qemu"].clone()];
        let values = records.filter_map(|entry| read(entry.path())).flat_map(both);
        values.filter_map(|process| serde_json::from_value(process).ok()).collect()
    }
}

/// The table of a profile that starts the lab's guest.
fn kernel(file: &str, cmdline: &str) -> String {
    let guest = |file: &str| {
        let path = repository().join("target/lab/guest").join(file);
        assert!(path.exists(), "no {}: scripts/lab prepare makes it", path.display());
        path.display().to_string()
    };
    let (kernel, initrd) = (guest(file), guest("initrd"));
    format!("[kernel]\npath = {kernel:?}\ninitrd = {initrd:?}\ncmdline = \"{cmdline} {CMDLINE}\"\n")
}

impl Drop for Bench {
    fn drop(&mut self) {
        // By pid and start time: no other process is meant.
        for process in self.processes().into_iter().filter(|process| process.is_alive()) {
            send(process.pid, Signal::SIGKILL);
        }
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < LONG, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until no thread of a process is left.
pub(crate) fn until_gone(pid: i32) {
    until(&format!("the end of process {pid}"), || !ProcessId::of(pid).is_some_and(ProcessId::is_alive));
}

pub(crate) fn send(pid: i32, signal: Signal) {
    if let Ok(fd) = pidfd_open(pid) {
        pidfd_send_signal(fd.as_fd(), signal).ok();
    }
}

/// Reads a number of a document that is a process.
pub(crate) fn pid(value: &Value) -> i32 {
    value.as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_else(|| panic!("no process: {value}"))
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}
