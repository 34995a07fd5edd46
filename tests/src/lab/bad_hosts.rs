//! Hosts that can't: no room on a disk, no right, a file that can't be read, a QEMU that isn't one. Each is named, has its exit
//! code, and leaves the host as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;

use super::scenarios::leaving_no_trace;
use super::vm::{PROFILE, Vm, gpuvm};
use super::{Outcome, doing, ensure};

/// One device, so that there is something to give back.
const ONE_DEVICE: &str = r#"device=[{bdf="0000:82:00.0"}]"#;
const PATIENCE: Duration = Duration::from_secs(150);

/// A way to be unable, and what must be said about it.
struct Case<'a> {
    name: &'a str,
    args: &'a [&'a str],
    /// Folders before PATH, where another program is to be found.
    path: Option<&'a Path>,
    /// The user to run as.
    user: User,
    code: i32,
    says: &'a [&'a str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    Root,
    Nobody,
}

impl Case<'_> {
    fn holds(&self) -> Outcome {
        leaving_no_trace(|| {
            let mut command = match self.user {
                User::Root => Command::new("gpuvm"),
                User::Nobody => {
                    let mut command = Command::new("setpriv");
                    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "gpuvm"]);
                    command
                }
            };
            if let Some(folder) = self.path {
                let path = std::env::var("PATH").unwrap_or_default();
                command.env("PATH", format!("{}:{path}", folder.display()));
            }
            let all = [&["up", PROFILE, "--set", ONE_DEVICE], self.args].concat();
            let output = command.args(all).stdin(Stdio::null()).output().map_err(doing("start gpuvm"))?;
            let told = String::from_utf8_lossy(&output.stderr);
            ensure(output.status.code() == Some(self.code), || {
                format!("{}: {}, not {}:\n{told}", self.name, output.status, self.code)
            })?;
            let missing: Vec<_> = self.says.iter().filter(|words| !told.contains(**words)).collect();
            ensure(missing.is_empty(), || format!("{}: {missing:?} isn't said in:\n{told}", self.name))
        })
    }
}

/// A file system that is full.
struct Full(PathBuf);

impl Full {
    fn on(folder: &str) -> Result<Self, String> {
        let path = PathBuf::from(folder);
        fs::create_dir_all(&path).map_err(doing(folder))?;
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &path, tmpfs, MsFlags::empty(), Some("size=64k"))
            .map_err(doing("mount a small tmpfs"))?;
        // Half of it is left for folders and links, which cost nothing there; files find no page.
        let full = Self(path);
        let filler = full.0.join("filler");
        let mut bytes = vec![0u8; 64 << 10];
        while !bytes.is_empty() && fs::write(&filler, &bytes).is_err() {
            bytes.truncate(bytes.len().saturating_sub(4096));
        }
        Ok(full)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // What is left mounted shows in the snapshot, which has the mounts.
        umount(&self.0).ok();
    }
}

/// What can't be is said, with its code, and the host is as before.
pub fn bad_hosts() -> Outcome {
    let folder = Path::new("/tmp/bad-hosts");
    fs::create_dir_all(folder).map_err(doing("make a folder"))?;
    let program = |name: &str, script: &str| -> Result<PathBuf, String> {
        let bin = folder.join(name);
        fs::create_dir_all(&bin).map_err(doing("make a folder"))?;
        let path = bin.join("qemu-system-x86_64");
        fs::write(&path, script).map_err(doing("write a script"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(doing("chmod"))?;
        Ok(bin)
    };
    let dies = program("dies", "#!/bin/sh\necho 'qemu: this machine has no bread' >&2\nexit 3\n")?;
    let disk = folder.join("disk.img");
    fs::write(&disk, [0; 1 << 20]).map_err(doing("write a disk"))?;
    let overlay = format!("disk=[{{path=\"{}\", mode=\"overlay\"}}]", disk.display());
    let sealed = folder.join("sealed.img");
    fs::write(&sealed, [0; 512]).map_err(doing("write a disk"))?;
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o000)).map_err(doing("chmod"))?;
    let sealed = format!("disk=[{{path=\"{}\"}}]", sealed.display());
    let overlay = ["--set", overlay.as_str()];
    let case = |name, args, code, says| Case { name, args, path: None, user: User::Root, code, says };
    Case {
        path: Some(&dies),
        ..case("QEMU dies", &[], 1, &["QEMU ended before the guest ran (status 3)", "no bread"])
    }
    .holds()?;
    Case {
        user: User::Nobody,
        ..case("no right to /dev/kvm", &[], 77, &["/dev/kvm: permission denied", "hint"])
    }
    .holds()?;
    let tcg = ["--set", "accel=tcg"];
    Case { user: User::Nobody, ..case("no right to /run", &tcg, 77, &["/run/gpuvm", "Permission denied"]) }
        .holds()?;
    let args = ["--set", sealed.as_str(), "--set", "device=[]", "--set", "accel=tcg"];
    Case { user: User::Nobody, ..case("sealed disk", &args, 77, &["sealed.img", "Permission denied"]) }
        .holds()?;
    {
        let _full = Full::on("/var/log/gpuvm")?;
        case("no room for logs", &[], 69, &["/var/log/gpuvm", "No space left on device"]).holds()?;
    }
    {
        let _full = Full::on("/var/lib/gpuvm")?;
        case("no room for an overlay", &overlay, 69, &["/var/lib/gpuvm", "No space left on device"])
            .holds()?;
    }
    case("an overlay that fits", &overlay, 0, &["make overlay", "the host is as it was"]).holds()?;
    let left: Vec<_> =
        fs::read_dir("/var/lib/gpuvm/vm/lab-compute/overlays").map_err(doing("list"))?.flatten().collect();
    ensure(left.is_empty(), || format!("the overlay is left: {left:?}"))?;
    second_up()
}

/// A second `up` of a VM that runs, and one of another that wants its device.
fn second_up() -> Outcome {
    leaving_no_trace(|| {
        let mut vm = Vm::start("gpuvm.linger=120")?;
        vm.printed("gpuvm-guest: lingering", PATIENCE)?;
        let same = gpuvm(&["up", PROFILE])?;
        let told = String::from_utf8_lossy(&same.stderr);
        ensure(same.status.code() == Some(75) && told.contains("VM lab-compute has it"), || {
            format!("{same:?}")
        })?;
        let other = gpuvm(&["up", PROFILE, "--set", "name=other", "--set", "cpu.count=1"])?;
        let told = String::from_utf8_lossy(&other.stderr);
        ensure(other.status.code() == Some(75) && told.contains("VM lab-compute has it"), || {
            format!("{other:?}")
        })?;
        vm.signal(Signal::SIGTERM)?;
        let ended = vm.ended(PATIENCE)?;
        ensure(ended.code == Some(0), || format!("{ended:?}"))
    })
}

/// Preferred hugepages that the kernel doesn't find after all: ordinary pages, from where there are some, and a warning.
pub fn prefer() -> Outcome {
    let size = "memory.size=3000M";
    let prefer = ["--set", size, "--set", "memory.hugepages-policy=prefer"];
    leaving_no_trace(|| {
        let output = gpuvm(&[&["up", PROFILE, "--set", ONE_DEVICE], prefer.as_slice()].concat())?;
        let told = String::from_utf8_lossy(&output.stderr);
        // Neither kind of pages: the node is too small, and that is not preferred but strict.
        ensure(output.status.code() == Some(69) && told.contains("trying again with ordinary pages"), || {
            format!("{output:?}")
        })
    })?;
    leaving_no_trace(|| {
        let rest = ["--set", "memory.node-policy=prefer"];
        let output = gpuvm(&[&["up", PROFILE, "--set", ONE_DEVICE], prefer.as_slice(), &rest].concat())?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure(output.status.success(), || format!("{output:?}"))?;
        let warned = ["warning: hugepages: node 1 can't give", "warning: node: memory.size is 3000M"];
        let missing: Vec<_> = warned.iter().filter(|words| !told.contains(**words)).collect();
        ensure(missing.is_empty(), || format!("{missing:?} isn't said in:\n{told}"))
    })
}
