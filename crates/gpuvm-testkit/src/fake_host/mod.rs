//! FakeHost: a temporary tree that looks like a host's /sys, /proc and /dev, and behaves like its kernel where it is written to.
//!
//! A `bind` moves the driver link, a `nr_hugepages` changes the pool; and each write can be told to hang, fail or lie. What
//! the real kernel does is settled in the lab; the fake is for the faults that a kernel doesn't show on demand.

mod behave;
mod build;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;

use gpuvm_core::pci::Bdf;
use gpuvm_host::HostError;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::root::HostRoot;
use tempfile::TempDir;

pub use build::{FakeDevice, gpu, nvme};

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

/// A host made of files.
#[derive(Debug)]
pub struct FakeHost {
    dir: TempDir,
    state: Rc<RefCell<State>>,
}

/// What the files alone don't tell.
#[derive(Debug, Default)]
struct State {
    /// The driver that takes each device without an override.
    native: BTreeMap<Bdf, String>,
    /// The most hugepages that each node can give, by pool folder.
    pool_limit: BTreeMap<PathBuf, u64>,
    /// Faults by a part of the attribute's path.
    faults: Vec<(String, Fault)>,
    /// Every write, in order, as `path=value`.
    writes: Vec<String>,
    /// Processes that stand for writes that hang.
    hanging: Vec<Child>,
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

    /// Returns the path of a file of the host.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root().path(absolute)
    }

    /// Returns a kernel whose actions change this tree.
    pub fn kernel(&self) -> Kernel {
        let (writes, groups) = (Rc::clone(&self.state), Rc::clone(&self.state));
        let root = self.root();
        let write =
            move |path: &Path, bytes: &[u8], deadline| behave::write(&root, &writes, path, bytes, deadline);
        let check = move |root: &HostRoot, ids: &[gpuvm_core::pci::GroupId], _top: u64| {
            ids.iter().try_for_each(|id| behave::check_group(root, &groups, *id))
        };
        Kernel::new(self.root(), Box::new(write), Box::new(check))
    }

    /// Makes the next write to an attribute whose path holds this text go wrong; each fault is used once.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.state.borrow_mut().faults.push((part.to_owned(), fault));
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

    /// Takes down everything that gpuvm may change: drivers, overrides, pools. Two equal snapshots are an equal host.
    ///
    /// # Errors
    /// Returns failures to read the tree.
    pub fn snapshot(&self) -> std::io::Result<Vec<String>> {
        let mut lines = Vec::new();
        for device in fs::read_dir(self.path("/sys/bus/pci/devices"))?.flatten() {
            let driver = fs::read_link(device.path().join("driver")).ok();
            let set = fs::read_to_string(device.path().join("driver_override"))?;
            lines.push(format!("{} {:?} {}", device.file_name().display(), driver, set.trim()));
        }
        for pool in self.state.borrow().pool_limit.keys() {
            lines.push(format!(
                "{} {}",
                pool.display(),
                fs::read_to_string(pool.join("nr_hugepages"))?.trim()
            ));
        }
        lines.sort();
        Ok(lines)
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.release();
    }
}
