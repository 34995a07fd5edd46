//! Why a VM didn't come up, or didn't go down as it should.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gpuvm_core::lifecycle::Exit;
use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::Finding;
use gpuvm_host::HostError;
use gpuvm_host::kernel_log::KernelSaid;

use crate::report::DeviceReport;

/// What went wrong with QEMU between its start and the guest's first instruction.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// QEMU couldn't be started.
    #[error("QEMU {qemu} could not be started: {source}", qemu = qemu.display())]
    Spawn {
        /// The binary.
        qemu: PathBuf,
        /// The step and the errno.
        source: gpuvm_sys::process::SpawnError,
    },
    /// A socket or a file that QEMU needs couldn't be made.
    #[error("{doing} {path}: {source}", path = path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// QEMU ended before the guest ran.
    #[error("QEMU ended before the guest ran ({exit}){words}", words = quoted(stderr, said))]
    Died {
        /// How it ended.
        exit: Exit,
        /// The end of what it said.
        stderr: String,
        /// What the kernel said in its log since QEMU was started.
        said: Box<KernelSaid>,
    },
    /// QEMU doesn't speak.
    #[error("QEMU has not greeted within {} s{words}", after.as_secs(), words = quoted(stderr, said))]
    Silent {
        /// The deadline.
        after: Duration,
        /// The end of what it said on stderr.
        stderr: String,
        /// What the kernel said in its log since QEMU was started.
        said: Box<KernelSaid>,
    },
    /// QEMU refused a command.
    #[error(transparent)]
    Qmp(#[from] gpuvm_qmp::Error),
    /// QEMU is too old.
    #[error("{qemu} is QEMU {version}; gpuvm needs 7.2 or later", qemu = qemu.display())]
    TooOld {
        /// The binary.
        qemu: PathBuf,
        /// Its version.
        version: String,
    },
    /// QEMU has another number of vCPUs than planned.
    #[error("QEMU has {found} vCPU threads, and {planned} were planned")]
    Vcpus {
        /// Threads found.
        found: usize,
        /// vCPUs planned.
        planned: usize,
    },
    /// A thread couldn't be pinned.
    #[error("{what} (thread {tid}) can't be pinned to CPU {cpus}: {source}")]
    Pin {
        /// Which thread.
        what: String,
        /// Its number.
        tid: i32,
        /// The CPUs.
        cpus: String,
        /// Why not.
        source: io::Error,
    },
    /// A thread runs elsewhere than it was told to.
    #[error("{what} (thread {tid}) was pinned to CPU {cpus} and may run on {now}")]
    NotPinned {
        /// Which thread.
        what: String,
        /// Its number.
        tid: i32,
        /// The CPUs asked for.
        cpus: String,
        /// Where it may run.
        now: String,
    },
}

fn quoted(stderr: &str, said: &KernelSaid) -> String {
    match stderr.trim() {
        "" => said.to_string(),
        text => format!("; it said:\n{text}{}", below(said)),
    }
}

/// Spells what the kernel said, below what QEMU said.
pub(crate) fn below(said: &KernelSaid) -> String {
    if said.0.is_empty() { String::new() } else { format!("\nthe kernel said:\n{}", said.0.join("\n")) }
}

/// Why a VM didn't come up.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The host couldn't be prepared.
    #[error(transparent)]
    Host(#[from] HostError),
    /// QEMU couldn't be brought to run the guest.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A device was sick before anything was done.
    #[error("{bdf} can't be used: {finding}")]
    SickBefore {
        /// The device.
        bdf: Bdf,
        /// What is wrong with it.
        finding: Box<Finding>,
    },
    /// A guest that goes on without its gpuvm couldn't be taken over; it goes on.
    #[error("the guest of VM {vm} goes on, and its QEMU (process {pid}) can't be got hold of: {source}")]
    NotAdopted {
        /// The VM.
        vm: String,
        /// QEMU's process.
        pid: i32,
        /// Why not.
        source: Box<Cause>,
    },
    /// A signal came before the guest ran.
    #[error("interrupted by {signal} before the guest ran")]
    Interrupted {
        /// The signal.
        signal: &'static str,
    },
}

/// A VM that didn't come up, and what of the host could not be given back.
#[derive(Debug)]
pub struct UpError {
    /// Why it didn't come up.
    pub cause: Box<Cause>,
    /// How each device came back, as far as they were looked at.
    pub devices: Vec<DeviceReport>,
    /// What is not as it was.
    pub left: Vec<HostError>,
}
