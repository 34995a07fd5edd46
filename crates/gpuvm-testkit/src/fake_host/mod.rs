//! FakeHost: a temporary tree that looks like a host's /sys, /proc and /dev, and behaves like its kernel where it is written to.
//!
//! A `bind` moves the driver link, a `nr_hugepages` changes the pool; and each write can be told to hang, fail or lie. What
//! the real kernel does is settled in the lab; the fake is for the faults that a kernel doesn't show on demand.
//!
//! All that the kernel knows is in the tree, what sysfs doesn't show below `/fake-kernel`: [`kernel_at`] acts on a tree
//! that another process has built.

mod anew;
mod behave;
mod build;
mod config;
mod lay_out;
pub mod machine;
pub mod tree;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;

use gpuvm_core::pci::GroupId;
use gpuvm_host::HostError;
use gpuvm_host::kernel::{CheckGroups, Kernel, WriteAttr};
use gpuvm_host::root::HostRoot;
use gpuvm_sys::reset::Way;
use tempfile::TempDir;

pub use anew::Cure;
pub use build::{FakeDevice, KILL_PARENT, PowerAttributes, gpu, nvme};

/// What happens to a write instead of its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this errno.
    Errno(i32),
    /// It doesn't come back; [`FakeHost::release`] lets it.
    Hang,
    /// It returns success and changes nothing.
    Lie,
    /// The device falls off the bus while it takes effect.
    KillsDevice,
}

/// The kernel's log.
const KERNEL_LOG: &str = "/dev/kmsg";

/// A host made of files.
#[derive(Debug)]
pub struct FakeHost {
    dir: TempDir,
    state: Rc<RefCell<State>>,
}

/// What is between a test and its kernel.
#[derive(Debug, Default)]
struct State {
    /// Faults by a part of the attribute's path.
    faults: Vec<(String, Fault)>,
    /// Every write, in order, as `path=value`.
    writes: Vec<String>,
    /// Processes that stand for writes that hang.
    hanging: Vec<Child>,
    /// What the kernel logs when an attribute is written, by a part of its path.
    sayings: Vec<(String, String)>,
    /// Groups that the kernel refuses to attach, by errno.
    group_faults: BTreeMap<u32, GroupFault>,
}

/// How the kernel refuses a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupFault {
    /// No interrupt remapping.
    NoInterruptRemapping,
    /// Somebody has it open.
    Busy,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// Returns the prefix below which the host lies.
    pub fn root(&self) -> HostRoot {
        HostRoot::new(self.dir.path())
    }

    /// Returns a folder for gpuvm's own files.
    pub fn prefix(&self) -> PathBuf {
        self.dir.path().join("gpuvm")
    }

    /// Leaves the host's files where they are, for somebody to look at, and returns the folder.
    pub fn keep(mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }

    /// Returns the path of a file of the host.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root().path(absolute)
    }

    /// Returns a kernel whose actions change this tree.
    pub fn kernel(&self) -> Kernel {
        let (write, check) = actions(self.root(), &self.state);
        let (root, state) = (self.root(), Rc::clone(&self.state));
        let reset = move |bdf: &str, way: Way<'_>, _| behave::reset(&root, &state, bdf, way);
        Kernel::new(self.root(), write, check).resetting(Box::new(reset))
    }

    /// Makes the next write to an attribute whose path holds this text go wrong; each fault is used once.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.state.borrow_mut().faults.push((part.to_owned(), fault));
    }

    /// Makes the kernel say a line in its log (`/dev/kmsg`, a plain file here) whenever an attribute is written whose path holds this text.
    ///
    /// # Errors
    /// Returns that the log can't be made.
    pub fn says(&self, part: &str, line: &str) -> std::io::Result<()> {
        self.kernel_log()?;
        self.state.borrow_mut().sayings.push((part.to_owned(), line.to_owned()));
        Ok(())
    }

    /// Says a line in the kernel's log now.
    ///
    /// # Errors
    /// Returns that the log can't be written.
    pub fn says_now(&self, line: &str) -> std::io::Result<()> {
        self.kernel_log()?;
        behave::say(&self.path(KERNEL_LOG), line)
    }

    /// Says a line in the kernel's log that bears this time, in us since boot.
    ///
    /// # Errors
    /// Returns that the log can't be written.
    pub fn says_at(&self, at: u64, line: &str) -> std::io::Result<()> {
        self.kernel_log()?;
        behave::say_at(&self.path(KERNEL_LOG), at, line)
    }

    /// Opens the kernel's log, and makes it first on a host that has none.
    fn kernel_log(&self) -> std::io::Result<fs::File> {
        fs::create_dir_all(self.path("/dev"))?;
        fs::File::options().create(true).append(true).open(self.path(KERNEL_LOG))
    }

    /// Makes the kernel refuse a group from now on.
    pub fn refuse_group(&self, group: u32, fault: GroupFault) {
        self.state.borrow_mut().group_faults.insert(group, fault);
    }

    /// Lets every write that hangs come to its end, without the effect.
    pub fn release(&self) {
        for mut child in self.state.borrow_mut().hanging.drain(..) {
            // A child that has ended by itself is as good.
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Returns every write so far, as `path=value`, the path from the root on.
    pub fn writes(&self) -> Vec<String> {
        self.state.borrow().writes.clone()
    }

    /// Returns the driver of a device.
    ///
    /// # Errors
    /// Returns failures to read the tree.
    pub fn driver(&self, bdf: &str) -> Result<Option<String>, HostError> {
        let link = self.path(&format!("/sys/bus/pci/devices/{bdf}/driver"));
        Ok(gpuvm_host::root::link_name(&link)?.map(|name| name.to_string_lossy().into_owned()))
    }

    /// Takes down the whole tree, gpuvm's own run folder included.
    ///
    /// Left out is what is meant to stay: gpuvm's locks, a VM's state and logs; a fake QEMU's recordings; and the kernel's log.
    ///
    /// # Errors
    /// Returns failures to read the tree.
    pub fn snapshot(&self) -> std::io::Result<Snapshot> {
        let mut files = BTreeMap::new();
        take_down(self.dir.path(), self.dir.path(), &mut files)?;
        Ok(Snapshot { files })
    }
}

/// All files and links of a host, by path. Compare two with [`Snapshot::differences`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    files: BTreeMap<String, String>,
}

impl Snapshot {
    /// Lists what differs, as `path: before -> after`; nothing for an equal host.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let paths: BTreeSet<_> = self.files.keys().chain(after.files.keys()).collect();
        let of = |path: &String| (self.files.get(path), after.files.get(path));
        let changed =
            paths.into_iter().map(|path| (path, of(path))).filter(|(_, (before, now))| before != now);
        changed.map(|(path, (before, now))| format!("{path}: {before:?} -> {now:?}")).collect()
    }

    /// Leaves gpuvm's own files out.
    pub fn of_host(mut self) -> Self {
        self.files.retain(|path, _| !path.starts_with("gpuvm/"));
        self
    }
}

fn take_down(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type()))?;
        let (kind, shown) = (kind?, path.strip_prefix(root).unwrap_or(&path).display().to_string());
        let stays = [
            "gpuvm/lib",
            "gpuvm/log",
            "fake-qemu",
            "gpuvm/run/lock",
            "dev/kmsg",
            // What the fake remembers of a list before the first write to it.
            "fake-kernel/reset-methods",
        ]
        .contains(&shown.as_str());
        if stays || shown.ends_with(".lock") {
            continue;
        }
        if kind.is_dir() {
            take_down(root, &path, files)?;
        } else if kind.is_symlink() {
            files.insert(shown, format!("link to {}", fs::read_link(&path)?.display()));
        } else {
            files.insert(shown, String::from_utf8_lossy(&fs::read(&path)?).into_owned());
        }
    }
    Ok(())
}

/// Returns how the kernel of the tree below a folder takes writes and groups, as [`FakeHost::kernel`] does without faults.
pub fn kernel_at(root: &Path) -> (Box<WriteAttr>, Box<CheckGroups>) {
    actions(HostRoot::new(root), &Rc::default())
}

fn actions(root: HostRoot, state: &Rc<RefCell<State>>) -> (Box<WriteAttr>, Box<CheckGroups>) {
    let (writes, groups) = (Rc::clone(state), Rc::clone(state));
    let write =
        move |path: &Path, bytes: &[u8], deadline| behave::write(&root, &writes, path, bytes, deadline);
    let check = move |root: &HostRoot, ids: &[GroupId], _top: u64| {
        ids.iter().try_for_each(|id| behave::check_group(root, &groups, *id))
    };
    (Box::new(write), Box::new(check))
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.release();
    }
}
