//! The kernel as something that is acted upon: the one seam that a test replaces.

use std::fmt;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use gpuvm_core::pci::{Bdf, GroupId};
use gpuvm_sys::reset::{ResetOutcome, Way, reset_watched};
use gpuvm_sys::watched::{WriteOutcome, Writer};

use crate::HostError;
use crate::kernel_log::{About, listening};
use crate::root::HostRoot;

/// Writes an attribute within a deadline.
pub type WriteAttr = dyn Fn(&Path, &[u8], Duration) -> io::Result<WriteOutcome>;
/// Attaches groups to a container, to see whether the kernel lets them be used, and lets go of them again.
pub type CheckGroups = dyn Fn(&HostRoot, &[GroupId], u64) -> Result<(), HostError>;
/// Resets a device within a deadline.
pub type ResetDevice = dyn Fn(&str, Way<'_>, Duration) -> io::Result<ResetOutcome>;

/// The host's kernel: its trees, and the three ways in which it is acted upon.
pub struct Kernel {
    /// Its trees.
    pub root: HostRoot,
    write_attr: Box<WriteAttr>,
    check_groups: Box<CheckGroups>,
    reset_device: Box<ResetDevice>,
    /// What makes the writes, where it is kept from one to the next.
    writer: Option<Rc<Writer>>,
    pauses: Pauses,
}

/// What becomes of the child that makes the writes while there are none for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pauses {
    /// It ends: it holds a copy of this process's memory.
    Rest,
    /// It waits.
    Wait,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Kernel {
    /// The kernel that runs this process, its trees below a prefix.
    pub fn running(root: HostRoot) -> Self {
        let writer = Rc::new(Writer::new());
        let shared = Rc::clone(&writer);
        let write = move |path: &Path, bytes: &[u8], deadline| shared.write(path, bytes, deadline);
        Self { writer: Some(writer), ..Self::new(root, Box::new(write), Box::new(crate::vfio::check_groups)) }
    }

    /// A kernel whose actions are given; it resets as the running one does.
    pub fn new(root: HostRoot, write_attr: Box<WriteAttr>, check_groups: Box<CheckGroups>) -> Self {
        Self {
            root,
            write_attr,
            check_groups,
            reset_device: Box::new(reset_watched),
            writer: None,
            pauses: Pauses::Rest,
        }
    }

    /// Gives it another way to reset devices.
    #[must_use]
    pub fn resetting(mut self, reset_device: Box<ResetDevice>) -> Self {
        self.reset_device = reset_device;
        self
    }

    /// Keeps the child that makes the writes through all pauses: for who runs one guest after the other, since a fork is dear.
    #[must_use]
    pub fn without_rest(self) -> Self {
        Self { pauses: Pauses::Wait, ..self }
    }

    /// Ends the child that makes the writes until there is another one to make: for a time in which there will be none for long.
    pub fn rest(&self) {
        if let (Some(writer), Pauses::Rest) = (&self.writer, self.pauses) {
            writer.rest();
        }
    }

    /// Writes an attribute and waits for the kernel, but no longer than the deadline.
    ///
    /// # Errors
    /// Returns the kernel's refusal, or that the write goes on without us. `doing` is the operation in words.
    pub fn write(&self, doing: &str, path: &Path, value: &str, deadline: Duration) -> Result<(), HostError> {
        let refused = |source| HostError::Refused {
            doing: doing.to_owned(),
            path: path.to_owned(),
            value: value.trim_end().to_owned(),
            source,
            said: Box::default(),
        };
        match (self.write_attr)(path, value.as_bytes(), deadline).map_err(refused)? {
            WriteOutcome::Done => Ok(()),
            WriteOutcome::Failed(failure) => Err(refused(failure.source)),
            WriteOutcome::InFlight { pid } => Err(HostError::InFlight {
                doing: doing.to_owned(),
                path: path.to_owned(),
                value: value.trim_end().to_owned(),
                seconds: deadline.as_secs(),
                pid,
                state: crate::process::describe(pid),
                said: Box::default(),
            }),
        }
    }

    /// Checks that groups can be attached to a container that maps guest addresses up to `top`.
    ///
    /// # Errors
    /// Returns why a group can't be used.
    pub fn check_groups(&self, groups: &[GroupId], top: u64) -> Result<(), HostError> {
        listening(&self.root, About::groups(groups), || (self.check_groups)(&self.root, groups, top))
    }

    /// Resets a device and waits for the kernel, but no longer than the deadline.
    pub(crate) fn reset(&self, bdf: Bdf, way: Way<'_>, deadline: Duration) -> io::Result<ResetOutcome> {
        (self.reset_device)(&bdf.to_string(), way, deadline)
    }
}
