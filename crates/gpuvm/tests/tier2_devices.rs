//! Tier 2: what a profile gives a guest beside passed-through devices, seen from outside: display, forwarded ports, overlay, and
//! a second `up` beside the first.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]

use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};
use rstest::rstest;

const DEADLINE: Duration = Duration::from_secs(100);
const PROFILE: &str =
    "version = 1\nname = \"devices\"\naccel = \"tcg\"\nfirmware = \"bios\"\nserial = \"log\"\n";
const SIZES: &str = "[memory]\nsize = \"64M\"\n[cpu]\ncount = 1\npin = \"off\"\n";

/// A running `gpuvm up`, ended with the test.
struct Up {
    child: Child,
    folder: PathBuf,
}

impl Up {
    /// Starts a VM and waits until its guest runs.
    fn start(folder: &Path, top: &str, tables: &str) -> Self {
        let child = command(folder, top, tables)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("told")).unwrap())
            .spawn()
            .unwrap();
        let mut up = Self { child, folder: folder.to_owned() };
        let begun = Instant::now();
        while !up.told().contains("the guest runs") {
            let runs = up.child.try_wait().unwrap().is_none();
            assert!(runs && begun.elapsed() < DEADLINE, "{}", up.told());
            std::thread::sleep(Duration::from_millis(20));
        }
        up
    }

    fn told(&self) -> String {
        fs::read_to_string(self.folder.join("told")).unwrap()
    }

    /// Asks for the guest's end and waits for it.
    fn stop(&mut self) -> ExitStatus {
        let pidfd = pidfd_open(i32::try_from(self.child.id()).unwrap()).unwrap();
        pidfd_send_signal(pidfd.as_fd(), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

fn command(folder: &Path, top: &str, tables: &str) -> Command {
    let profile = folder.join("devices.toml");
    fs::write(&profile, format!("{PROFILE}{top}\n{SIZES}{tables}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpuvm"));
    command.arg("up").arg(&profile).args(["--shutdown-timeout", "1"]).arg("--prefix").arg(folder);
    command
}

/// Reads what a VNC server says first (RFC 6143, 7.1.1).
fn greeting(mut stream: impl Read) -> String {
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A port that nobody listens on now.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_virtual_display_is_shown_on_a_socket_for_its_owner_alone() {
    let folder = tempfile::Builder::new().prefix("a=b, c").tempdir().unwrap();
    let mut up = Up::start(folder.path(), "display = \"virtual\"", "");
    let vm = folder.path().join("run/vm/devices");
    assert_eq!(greeting(UnixStream::connect(vm.join("vnc.sock")).unwrap()), "RFB 003.008\n");
    assert_eq!(fs::metadata(&vm).unwrap().permissions().mode() & 0o077, 0, "others can reach the socket");
    assert!(up.stop().success(), "{}", up.told());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_virtual_display_is_shown_on_a_loopback_port() {
    let folder = tempfile::tempdir().unwrap();
    let address = loop {
        let address = free_port();
        if address.port() >= 5900 {
            break address;
        }
    };
    let top = format!("display = \"virtual\"\ndisplay-listen = \"{address}\"");
    let mut up = Up::start(folder.path(), &top, "");
    assert_eq!(greeting(TcpStream::connect(address).unwrap()), "RFB 003.008\n");
    assert!(up.stop().success(), "{}", up.told());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_forwarded_port_is_listened_on_and_a_taken_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_port();
    let forward = |port: u16| format!("[[forward]]\nhost-port = {port}\nguest-port = 22\n");
    let mut up = Up::start(folder.path(), "", &forward(address.port()));
    TcpStream::connect(address).unwrap();
    assert!(up.stop().success(), "{}", up.told());

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = command(folder.path(), "", &forward(port)).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("QEMU ended before the guest ran") && told.contains(&port.to_string()), "{told}");
    assert!(told.contains("the host is as it was"), "{told}");
}

#[rstest]
#[case::raw("raw")]
#[case::qcow2("qcow2")]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_an_overlay_lives_as_long_as_its_guest_and_the_image_stays_as_it_is(#[case] format: &str) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("a, \"b\" 'c'\n.img");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&image).arg("8M").status();
    assert!(made.unwrap().success());
    let before = fs::read(&image).unwrap();
    let path = image.display().to_string().replace('"', "\\\"").replace('\n', "\\n");
    let disk = format!("[[disk]]\npath = \"{path}\"\nformat = \"{format}\"\nmode = \"overlay\"\n");
    let mut up = Up::start(folder.path(), "", &disk);
    let overlay = folder.path().join("lib/vm/devices/overlays/disk0.qcow2");
    assert!(overlay.exists(), "{}", up.told());
    assert!(up.stop().success(), "{}", up.told());
    assert!(!overlay.exists(), "the overlay is still there");
    assert_eq!(fs::read(&image).unwrap(), before, "the image has changed");
}

/// /run is empty after a reboot, so that nothing but the file tells of the run that made it.
#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_an_overlay_that_a_power_failure_left_is_removed_by_cleanup_or_the_next_up() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, [0; 4096]).unwrap();
    let overlays = folder.path().join("lib/vm/devices/overlays");
    fs::create_dir_all(&overlays).unwrap();
    let lose_power = || fs::write(overlays.join("disk0.qcow2"), "half").unwrap();
    lose_power();
    let cleanup = || {
        Command::new(env!("CARGO_BIN_EXE_gpuvm")).arg("cleanup").arg("--prefix").arg(folder.path()).output()
    };
    let told = String::from_utf8_lossy(&cleanup().unwrap().stdout).into_owned();
    assert!(told.contains("removed overlay") && told.contains("disk0.qcow2"), "{told}");
    assert!(!overlays.join("disk0.qcow2").exists());
    assert_eq!(String::from_utf8_lossy(&cleanup().unwrap().stdout), "nothing is left behind\n");

    lose_power();
    let disk = format!("[[disk]]\npath = \"{}\"\nmode = \"overlay\"\n", image.display());
    let mut up = Up::start(folder.path(), "", &disk);
    let told = String::from_utf8_lossy(&cleanup().unwrap().stdout).into_owned();
    assert!(told.contains("another gpuvm") && overlays.join("disk0.qcow2").exists(), "{told}");
    assert!(up.stop().success(), "{}", up.told());
}

#[test]
#[ignore = "tier 2: needs QEMU; scripts/test runs it"]
fn tier2_a_second_up_of_a_running_vm_is_busy() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(folder.path(), "", "");
    let Output { status, stderr, .. } = command(folder.path(), "", "").output().unwrap();
    let told = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(75), "{told}");
    assert!(told.contains("VM devices is already up"), "{told}");
    assert!(up.stop().success(), "{}", up.told());
}

#[rstest]
#[case::none("", 69, "qemu-system-x86_64 was not found in PATH")]
#[case::dying("#!/bin/sh\necho 'no bread here' >&2\nexit 3\n", 1, "no bread here")]
#[case::no_program("#!/nonexistent\n", 69, "could not be started")]
fn a_qemu_that_is_none_is_named(#[case] script: &str, #[case] code: i32, #[case] says: &str) {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    if !script.is_empty() {
        let path = bin.join("qemu-system-x86_64");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = command(folder.path(), "", "").env("PATH", &bin).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert!(told.contains(says), "{told}");
    assert!(!folder.path().join("run/vm/devices").exists(), "something is left");
}
