//! What can go wrong with the host, with the path, the value and the errno.

use std::io;
use std::path::{Path, PathBuf};

use gpuvm_core::pci::{Bdf, Bus, DriverName, GroupId};
use gpuvm_core::reset::{Method, Verdict};
use gpuvm_core::units::PageSize;

use crate::kernel_log::KernelSaid;
use crate::reservation::{Owner, ProcessRole};

/// How far a reset had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetStage {
    /// It was refused before it was begun: that says nothing of the device.
    Before,
    /// It was begun.
    Begun,
}

/// Something that went wrong while reading or changing the host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file couldn't be read, written, made or removed.
    #[error("{doing} {path}: {source}", path = path.display())]
    File {
        /// What was being done, as in "read".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the kernel holds what gpuvm can't make sense of.
    #[error("{path} holds `{value}`: {problem}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds, shortened.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel refused a write to one of its attributes.
    #[error("{doing}: writing `{value}` to {path}: {source}{said}", path = path.display())]
    Refused {
        /// The operation in words.
        doing: String,
        /// The attribute.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why not.
        source: io::Error,
        /// What the kernel said in its log meanwhile.
        said: Box<KernelSaid>,
    },
    /// A write to an attribute has not come back by its deadline. It goes on in the child, which is never signalled.
    #[error("{doing}: {} in process {pid} ({state}){said}", in_flight_words(path, value, *seconds))]
    InFlight {
        /// The operation in words.
        doing: String,
        /// The attribute.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The deadline that passed; 0 for a write of before, that wasn't waited for again.
        seconds: u64,
        /// The child that waits.
        pid: i32,
        /// The child's state and wait channel, as /proc shows them.
        state: String,
        /// What the kernel said in its log meanwhile.
        said: Box<KernelSaid>,
    },
    /// A device that a write to the kernel has not come back for: looking at it closer would hang too.
    #[error(
        "{bdf} is in the hands of the kernel since a write that has not come back: process {pid} ({state})"
    )]
    Spared {
        /// The device.
        bdf: Bdf,
        /// The child that waits.
        pid: i32,
        /// The child's state and wait channel, as /proc shows them.
        state: String,
    },
    /// A write succeeded and changed nothing.
    #[error("{doing}: the kernel took the write, but {bdf} now has {now}{said}")]
    NoEffect {
        /// The operation in words.
        doing: String,
        /// The device.
        bdf: Bdf,
        /// What it has now, in words.
        now: String,
        /// What the kernel said in its log meanwhile.
        said: Box<KernelSaid>,
    },
    /// A device that was removed, and that the kernel doesn't find again.
    #[error("{bdf} was removed to be found anew, and the kernel doesn't find it by scanning bus {bus}{said}")]
    NotFoundAnew {
        /// The device.
        bdf: Bdf,
        /// Its bus.
        bus: Bus,
        /// What the kernel said in its log meanwhile.
        said: Box<KernelSaid>,
    },
    /// What a repair would reach isn't what was planned.
    #[error("{doing}: {bdf} is reached too, which wasn't there when this was planned")]
    ReachesMore {
        /// The repair in words.
        doing: String,
        /// What is there now.
        bdf: Bdf,
    },
    /// Somebody else has changed what we changed.
    #[error("{doing}: {what} is now {now}, and gpuvm left it as {ours}: somebody else has changed it")]
    ChangedByOthers {
        /// The operation in words.
        doing: String,
        /// What was changed.
        what: String,
        /// What gpuvm left there.
        ours: String,
        /// What is there now.
        now: String,
    },
    /// The kernel found too few hugepages.
    #[error(
        "node {node} can't give {need} hugepages of {page}: the kernel could make the pool {have} pages, {want} are needed"
    )]
    Hugepages {
        /// The node.
        node: u32,
        /// The page size.
        page: PageSize,
        /// Pages that the guest needs.
        need: u64,
        /// The pool's size that was asked for.
        want: u64,
        /// The pool's size that was reached.
        have: u64,
    },
    /// The kernel has not shrunk a pool.
    #[error("node {node}: the pool of {page} hugepages has {have} pages and should be back at {want}")]
    PoolNotRestored {
        /// The node.
        node: u32,
        /// The page size.
        page: PageSize,
        /// The size to come back to.
        want: u64,
        /// The size it has.
        have: u64,
    },
    /// qemu-img made no overlay.
    #[error(
        "make overlay {path} of {backing} by {qemu_img}: {problem}",
        path = path.display(), backing = backing.display(), qemu_img = qemu_img.display()
    )]
    Overlay {
        /// The new image.
        path: PathBuf,
        /// The image behind it.
        backing: PathBuf,
        /// The program.
        qemu_img: PathBuf,
        /// What went wrong, with the program's words where it said any.
        problem: String,
    },
    /// gpuvm's own tables are being edited by another gpuvm for too long.
    #[error("{path} has been locked by another gpuvm for more than {seconds} s", path = path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// A soak, or its record, is in the hands of another gpuvm.
    #[error("{what} is run by another gpuvm already ({owner})")]
    SoakRuns {
        /// What is in question.
        what: String,
        /// Who has it, in words.
        owner: String,
    },
    /// A soak has the VM's name for as long as it runs, also between two of its cycles.
    #[error(
        "VM {vm} is being soaked (gpuvm process {pid}): its name is taken until that soak is over, between its cycles too"
    )]
    Soaked {
        /// The VM.
        vm: String,
        /// The process that soaks it.
        pid: i32,
    },
    /// A device isn't any more as it was when the plan was made.
    #[error("{bdf} has {now} now, and had {planned} when this was planned: somebody else is at it")]
    Stale {
        /// The device.
        bdf: Bdf,
        /// What it had.
        planned: String,
        /// What it has.
        now: String,
    },
    /// QEMU is still there although it was killed.
    #[error(
        "QEMU process {pid} was killed {minutes} minutes ago and the kernel has not let go of it: {state}"
    )]
    QemuStuck {
        /// QEMU.
        pid: i32,
        /// How long ago.
        minutes: u64,
        /// What its threads wait for.
        state: String,
    },
    /// A device doesn't answer, so no driver is asked to take it.
    #[error("{bdf} doesn't answer as it did ({finding}); it stays on vfio-pci, so that no driver touches it")]
    NotAnswering {
        /// The device.
        bdf: Bdf,
        /// What its config space says.
        finding: String,
    },
    /// A device that a run left sick is kept from everybody.
    #[error(
        "{bdf} came back {verdict} ({finding}); it stays on vfio-pci and reserved, so that nobody touches it"
    )]
    Sick {
        /// The device.
        bdf: Bdf,
        /// The verdict.
        verdict: Verdict,
        /// What it rests on.
        finding: String,
    },
    /// A group is not viable although all that gpuvm knows of was bound.
    #[error("IOMMU group {group} is not viable: {members}")]
    NotViable {
        /// The group.
        group: GroupId,
        /// Its members with their drivers, in words.
        members: String,
    },
    /// The group is open in another process.
    #[error("IOMMU group {group} (/dev/vfio/{group}) is in use by another process: {holder}")]
    GroupBusy {
        /// The group.
        group: GroupId,
        /// Who has it open.
        holder: String,
    },
    /// A VFIO call failed.
    #[error("IOMMU group {group}: {call}: {source}{said}")]
    Vfio {
        /// The group.
        group: GroupId,
        /// The call, under the kernel's name.
        call: &'static str,
        /// Why.
        source: io::Error,
        /// What the kernel said in its log meanwhile.
        said: Box<KernelSaid>,
    },
    /// The kernel has not reset a device.
    #[error("reset {bdf} by {}: {call}: {source}{}{said}", method.name(), behind_colon(meaning))]
    Reset {
        /// The device.
        bdf: Bdf,
        /// How it was to be reset.
        method: Method,
        /// How far it had come.
        stage: ResetStage,
        /// What failed: the call under the kernel's name, or the attribute.
        call: String,
        /// Why.
        source: io::Error,
        /// What that means; empty where it isn't known.
        meaning: String,
        /// What the kernel said in its log meanwhile.
        said: Box<KernelSaid>,
    },
    /// The IOMMU can't remap interrupts, so a guest could forge them.
    #[error(
        "IOMMU group {group}: VFIO_SET_IOMMU: {source}; the IOMMU has no interrupt remapping, so a device's guest could \
         send interrupts to the host"
    )]
    NoInterruptRemapping {
        /// The group.
        group: GroupId,
        /// The kernel's refusal.
        source: io::Error,
    },
    /// The IOMMU can't map all of the guest's memory.
    #[error("IOMMU group {group}: guest memory up to {top:#x} isn't inside the IOMMU's ranges ({ranges})")]
    Aperture {
        /// The group.
        group: GroupId,
        /// The last guest address.
        top: u64,
        /// What the IOMMU can map.
        ranges: String,
    },
    /// Another VM has one of the devices.
    #[error("{what} is reserved by {owner} ({state})")]
    Reserved {
        /// What is reserved.
        what: String,
        /// Who has it.
        owner: Owner,
        /// Whether that one runs, in words.
        state: String,
    },
    /// A VM of this name runs already.
    #[error("VM {vm} is already up ({role} process {pid})")]
    AlreadyUp {
        /// The VM.
        vm: String,
        /// What of it is alive.
        role: ProcessRole,
        /// That process.
        pid: i32,
    },
    /// The guest of a VM that runs detached goes on though its launcher is dead.
    #[error("VM {vm} is unsupervised: its gpuvm is gone, and its guest runs on (QEMU process {pid})")]
    Unsupervised {
        /// The VM.
        vm: String,
        /// Its QEMU.
        pid: i32,
    },
    /// A VM of this name ended without giving the host back.
    #[error("VM {vm} has ended without giving the host back")]
    LeftBehind {
        /// The VM.
        vm: String,
    },
    /// Somebody else's override keeps a device from the driver that it is to be given back to.
    #[error("{bdf} can't be given back to {driver}: somebody else has set its driver_override to {set}")]
    KeptOff {
        /// The device.
        bdf: Bdf,
        /// The driver it had.
        driver: DriverName,
        /// The override.
        set: DriverName,
    },
    /// A driver that a device is to be given back to is gone.
    #[error("{bdf} can't be given back to {driver}: that driver isn't loaded any more")]
    DriverGone {
        /// The device.
        bdf: Bdf,
        /// The driver it had.
        driver: DriverName,
    },
}

impl HostError {
    /// Wraps an I/O error with what was being done to which file.
    pub fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    /// Makes an error about a file's content, showing no more than a line's worth of it.
    pub fn content(path: &Path, value: &str, problem: impl ToString) -> Self {
        let value = value.trim().chars().take(60).collect();
        Self::Content { path: path.to_owned(), value, problem: problem.to_string() }
    }

    /// Makes an error about a device's folder that lacks what every device has.
    pub(crate) fn nameless(folder: &Path) -> Self {
        Self::content(folder, "", "vendor, device or class is missing")
    }

    /// Makes the error for a write that the kernel took and that changed nothing.
    pub(crate) fn no_effect(doing: &str, bdf: Bdf, now: String) -> Self {
        Self::NoEffect { doing: doing.to_owned(), bdf, now, said: Box::default() }
    }

    /// Adds what the kernel said, to an error that has a place for it and knows nothing yet.
    #[must_use]
    pub fn with_said(mut self, hear: impl FnOnce() -> KernelSaid) -> Self {
        if let Self::Refused { said, .. }
        | Self::InFlight { said, .. }
        | Self::NoEffect { said, .. }
        | Self::Reset { said, .. }
        | Self::NotFoundAnew { said, .. }
        | Self::Vfio { said, .. } = &mut self
            && said.0.is_empty()
        {
            **said = hear();
        }
        self
    }

    /// Returns what the kernel said meanwhile, as far as it was heard.
    pub fn said(&self) -> &[String] {
        match self {
            Self::Refused { said, .. }
            | Self::InFlight { said, .. }
            | Self::NoEffect { said, .. }
            | Self::Reset { said, .. }
            | Self::NotFoundAnew { said, .. }
            | Self::Vfio { said, .. } => &said.0,
            _ => &[],
        }
    }

    /// Returns the errno, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { source, .. }
            | Self::Refused { source, .. }
            | Self::Vfio { source, .. }
            | Self::Reset { source, .. }
            | Self::NoInterruptRemapping { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

fn behind_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn in_flight_words(path: &Path, value: &str, seconds: u64) -> String {
    match seconds {
        1.. if value.contains("VFIO_") || value.contains(' ') => {
            format!("`{value}` of {} has not come back after {seconds} s and goes on", path.display())
        }
        0 => "a write of before has not come back yet, and goes on".to_owned(),
        _ => {
            format!("writing `{value}` to {} has not come back after {seconds} s and goes on", path.display())
        }
    }
}
