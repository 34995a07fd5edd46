//! Starts QEMU paused and brings it to where the guest can run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use gpuvm_core::lifecycle::Exit;
use gpuvm_core::plan::{Firmware, Plan};
use gpuvm_core::qemu::abilities::OLDEST;
use gpuvm_core::qemu::cmdline::{Start, quote};
use gpuvm_core::qemu::{Handle, Handles, argv};
use gpuvm_core::reset::wait;
use gpuvm_host::kernel_log::{About, KernelLog};
use gpuvm_host::process::ProcessId;
use gpuvm_host::root::HostRoot;
use gpuvm_qmp::{Events, Qmp};
use gpuvm_sys::process::{self, Child, Signal, SpawnSpec};
use gpuvm_sys::socket::{listen_unix, stream_pair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};

use crate::control::Launched;
use crate::error::LaunchError;
use crate::report::LastWords;

/// How long a command may take that QEMU answers from its main loop.
pub(crate) const COMMAND: Duration = Duration::from_secs(30);
/// The file of a VM's firmware variables, in its state folder.
pub const UEFI_VARS: &str = "uefi-vars.fd";
/// The socket of a virtual display, in the VM's folder.
pub const VNC_SOCKET: &str = "vnc.sock";

/// The socket of QEMU's monitor, in the VM's folder.
const MONITOR_SOCKET: &str = "qmp.sock";

/// Where QEMU's sockets and logs are.
#[derive(Debug)]
pub(crate) struct Paths {
    pub(crate) run: PathBuf,
    /// Where QEMU puts itself on record.
    pub(crate) record: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) logs: PathBuf,
}

/// A QEMU that was started and not yet collected.
pub(crate) struct Process {
    source: Source,
    words: Words,
    /// What the kernel says about the VM's devices since before QEMU was started.
    kernel_log: KernelLog,
}

/// Whose child a QEMU is.
enum Source {
    /// Ours.
    Child {
        child: Child,
        /// SIGCHLD, caught since before the child was made, so that no end is missed.
        ends: UnixSignal,
    },
    /// A dead gpuvm's: its end can be seen, but not how.
    Adopted { pid: i32, pidfd: AsyncFd<OwnedFd> },
}

/// Where what a QEMU says on stderr goes.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    path: PathBuf,
    /// Where in that file its own words begin.
    from: u64,
}

impl Words {
    /// Puts aside what has been said, where that is a lot: QEMU goes on below, as it appends.
    pub(crate) fn keep_small(&self) {
        if let Err(error) = crate::log::cut(&self.path) {
            tracing::warn!("{} grows: {error}", self.path.display());
        }
    }

    /// Returns the end of what it said.
    pub(crate) fn end(&self) -> String {
        const LINES: usize = 20;
        let text = end_of(&self.path, self.from).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// A QEMU that has greeted.
pub(crate) struct Greeted {
    pub(crate) qmp: Qmp,
    pub(crate) events: Events,
}

/// Starts QEMU. To be called on the main thread: QEMU dies with the thread that started it.
pub(crate) fn spawn(
    root: &HostRoot,
    plan: &Plan,
    paths: &Paths,
    sockets: Sockets,
    which: Which,
    launched: Launched,
) -> Result<Process, LaunchError> {
    let vars = paths.state.join(UEFI_VARS);
    if let Firmware::Uefi(firmware) = &plan.firmware {
        copy_vars(&firmware.vars_template, &vars)?;
    }
    let handles = Handles {
        monitor: Handle::Fd(sockets.monitor.as_raw_fd()),
        serial: Handle::Fd(sockets.serial.as_raw_fd()),
        vars: Handle::Path(vars),
        disks: BTreeMap::new(),
        display: paths.run.join(VNC_SOCKET),
        start: Start::Paused,
    };
    let mut command = vec![plan.qemu.clone().into_os_string()];
    command.extend(argv(plan, &handles));
    let stderr_path = paths.logs.join("qemu.log");
    if which == Which::First {
        // What QEMU said in the run before may be what somebody looks for now.
        crate::log::put_aside(&stderr_path).map_err(file("put aside", &stderr_path))?;
    }
    let stderr = File::options().append(true).create(true).open(&stderr_path);
    let stderr = stderr.map_err(file("make", &stderr_path))?;
    let said_from = log_command(&stderr, &command).map_err(file("write", &stderr_path))?;
    let stdout = stderr.try_clone().map_err(file("make", &stderr_path))?;
    tracing::debug!(?command, "starting QEMU");
    let record = File::create(&paths.record).map_err(file("make", &paths.record))?;
    let ends = signal(SignalKind::child()).map_err(file("catch SIGCHLD for", &stderr_path))?;
    let kernel_log = KernelLog::from_now(root, about(plan));
    let child = process::spawn(SpawnSpec {
        argv: command,
        env: Vec::new(),
        fds: vec![sockets.monitor, sockets.serial],
        stdout: stdout.into(),
        stderr: stderr.into(),
        death_signal: match launched {
            // Without a launcher nobody would give the host back: QEMU flushes its disks and ends.
            Launched::Foreground => Some(Signal::SIGTERM),
            // Its guest is not to suffer from what becomes of gpuvm.
            Launched::Detached => None,
        },
        memlock: None,
        // It is on record before it is QEMU, whatever becomes of us.
        record: Some(record.into()),
    })
    .map_err(|source| LaunchError::Spawn { qemu: plan.qemu.clone(), source })?;
    let words = Words { path: stderr_path, from: said_from };
    Ok(Process { source: Source::Child { child, ends }, words, kernel_log })
}

/// Takes over a QEMU that a gpuvm has started which is dead; nothing of one that has ended.
///
/// # Errors
/// Returns failures to get hold of it.
pub(crate) fn adopt(
    root: &HostRoot,
    plan: &Plan,
    paths: &Paths,
    qemu: ProcessId,
) -> Result<Option<Process>, LaunchError> {
    let place = Path::new("/proc").join(qemu.pid.to_string());
    let pidfd = match process::pidfd_open(qemu.pid) {
        Ok(pidfd) => pidfd,
        Err(_) if !qemu.is_alive() => return Ok(None),
        Err(error) => return Err(file("watch", &place)(error)),
    };
    // The pidfd first, then the look whether it is the recorded one: it can't come to mean another process after that.
    if !qemu.is_alive() {
        return Ok(None);
    }
    #[expect(
        deprecated,
        reason = "its heir is unsafe, for types that change their descriptor; an OwnedFd doesn't"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE);
    let pidfd = pidfd.map_err(file("watch", &place))?;
    let path = paths.logs.join("qemu.log");
    let from = end_of_last_command(&path).unwrap_or(0);
    Ok(Some(Process {
        source: Source::Adopted { pid: qemu.pid, pidfd },
        words: Words { path, from },
        kernel_log: KernelLog::from_now(root, about(plan)),
    }))
}

/// Finds where the words of the last QEMU begin in a log, behind its command line.
fn end_of_last_command(path: &Path) -> io::Result<u64> {
    let (mut at, mut end) = (0, 0);
    for line in std::fs::read(path)?.split_inclusive(|byte| *byte == b'\n') {
        at += u64::try_from(line.len()).unwrap_or(0);
        if line.starts_with(RUNS.as_bytes()) {
            end = at;
        }
    }
    Ok(end)
}

/// Returns whose lines in the kernel's log are a plan's.
fn about(plan: &Plan) -> About {
    About {
        devices: plan.owned().map(|device| device.bdf).collect(),
        groups: plan.groups.iter().map(|group| group.id).collect(),
    }
}

/// Which QEMU of a run one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Its first.
    First,
    /// One after a reboot: what it says goes below what the former ones said.
    Again,
}

/// What the line of QEMU's log begins with that has its command line.
const RUNS: &str = "gpuvm runs: ";

/// Writes the command line into QEMU's log before its words, for whoever reads it later; a disk without room for it shows here, before a
/// guest runs that can't be followed. Returns where QEMU's own words begin.
fn log_command(mut log: &File, command: &[OsString]) -> io::Result<u64> {
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    let line = format!("{RUNS}{}\n", words.join(" "));
    log.write_all(line.as_bytes())?;
    Ok(log.metadata()?.len())
}

/// QEMU's ends of the sockets: the monitor's listens, the serial port's is connected.
pub(crate) struct Sockets {
    monitor: OwnedFd,
    serial: OwnedFd,
}

/// Our ends of them.
pub(crate) struct Connections {
    pub(crate) monitor: UnixStream,
    pub(crate) serial: UnixStream,
}

/// How much the guest may print that was not read yet: QEMU writes each character apart, and this holds some 20,000 of them. A serial port that is
/// held up for longer than 190 us makes OVMF's boot options fail.
const SERIAL_BYTES: usize = 8 << 20;

/// Makes the sockets of monitor and serial port, and connects to them before QEMU is there: it accepts when it gets to it, and if it
/// dies before, the connections end.
pub(crate) fn sockets(paths: &Paths) -> Result<(Sockets, Connections), LaunchError> {
    let path = paths.run.join(MONITOR_SOCKET);
    // That of this run's QEMU before a reboot, which is gone.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file("remove", &path)(error));
        }
        _ => {}
    }
    let monitor_listener = listen_unix(&path).map_err(file("listen on", &path))?;
    let monitor = std::os::unix::net::UnixStream::connect(&path).and_then(async_stream);
    let monitor = monitor.map_err(file("connect to", &path))?;
    let (serial, serial_end) = serial_pair(paths)?;
    Ok((Sockets { monitor: monitor_listener, serial: serial_end }, Connections { monitor, serial }))
}

/// Makes the two ends of a serial port: ours, and QEMU's.
pub(crate) fn serial_pair(paths: &Paths) -> Result<(UnixStream, OwnedFd), LaunchError> {
    let path = paths.run.join("serial.sock");
    stream_pair(SERIAL_BYTES)
        .and_then(|(near, far)| Ok((async_stream(near)?, far)))
        .map_err(file("make a socket for", &path))
}

/// Connects to the monitor of a QEMU that another gpuvm has started.
pub(crate) fn connect_again(paths: &Paths) -> Result<UnixStream, LaunchError> {
    let path = paths.run.join(MONITOR_SOCKET);
    std::os::unix::net::UnixStream::connect(&path).and_then(async_stream).map_err(file("connect to", &path))
}

fn async_stream(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::File { doing, path, source }
}

/// Gives the guest variables of its own, once: they hold its boot entries from then on.
fn copy_vars(template: &Path, vars: &Path) -> Result<(), LaunchError> {
    if vars.exists() {
        return Ok(());
    }
    // By a temporary name and synced, so that neither a full disk nor a power failure leaves half of a variable store behind.
    let partial = vars.with_extension("partial");
    let copy = || {
        let bytes = std::fs::read(template)?;
        // The template is often read-only, and whoever runs QEMU must write.
        let mut to = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        to.write_all(&bytes)?;
        to.sync_all()
    };
    copy().map_err(file("copy the UEFI variables to", &partial))?;
    let name = || {
        std::fs::rename(&partial, vars)?;
        File::open(vars.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    name().map_err(file("make", vars))
}

/// Returns how long QEMU may take to greet: it does so only once its memory is allocated and mapped for DMA.
///
/// Zeroing takes 0.02 s per GiB with many threads on a server and 1 s with one thread on a slow machine; devices that don't answer
/// are reset before it, one after the other; the rest is reserve for an emulated host.
pub(crate) fn greeting_deadline(plan: &Plan) -> Duration {
    let mib: u64 = plan.memory.iter().map(|cell| cell.size.as_mib_ceil()).sum();
    let resets = wait::at_start(plan.owned().count());
    Duration::from_secs(120) + Duration::from_millis(mib * 5) + resets
}

/// Waits for the greeting.
pub(crate) async fn greet(plan: &Plan, monitor: UnixStream) -> Result<Greeted, LaunchError> {
    greet_within(plan, monitor, greeting_deadline(plan)).await
}

/// Waits for the greeting, for so long.
pub(crate) async fn greet_within(
    plan: &Plan,
    monitor: UnixStream,
    within: Duration,
) -> Result<Greeted, LaunchError> {
    let (qmp, events) = Qmp::handshake(monitor, within).await?;
    let version = qmp.version();
    if (version.major, version.minor) < OLDEST {
        return Err(LaunchError::TooOld { qemu: plan.qemu.clone(), version: version.to_string() });
    }
    Ok(Greeted { qmp, events })
}

impl Process {
    /// Returns QEMU's process number.
    pub(crate) fn pid(&self) -> i32 {
        match &self.source {
            Source::Child { child, .. } => child.pid(),
            Source::Adopted { pid, .. } => *pid,
        }
    }

    /// Waits for the end of all of its threads and collects it. May be dropped and called again.
    pub(crate) async fn exited(&mut self) -> Exit {
        let (child, ends) = match &mut self.source {
            Source::Child { child, ends } => (child, ends),
            Source::Adopted { pidfd, .. } => {
                // Readable once no thread of it is left (kernel/fork.c, pidfd_poll).
                if let Err(error) = pidfd.readable().await.map(drop) {
                    tracing::error!("waiting for QEMU: {error}");
                }
                return Exit::Unseen;
            }
        };
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return exit_of(status),
                Ok(None) => {}
                // Nobody else collects our children, so this doesn't come; a status that is lost is no success.
                Err(error) => {
                    tracing::error!("waiting for QEMU: {error}");
                    return Exit::Code(127);
                }
            }
            // Ends of other children wake it too, and then it looks again.
            ends.recv().await;
        }
    }

    /// Kills QEMU.
    pub(crate) fn kill_now(&self) {
        let killed = match &self.source {
            Source::Child { child, .. } => child.kill(Signal::SIGKILL),
            Source::Adopted { pidfd, .. } => process::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL),
        };
        if let Err(error) = killed {
            tracing::debug!("killing QEMU: {error}");
        }
    }

    /// Looks behind an error of the monitor: one that closes is a QEMU that ends, and its status and words tell more.
    pub(crate) async fn explain(&mut self, error: LaunchError) -> LaunchError {
        match error {
            LaunchError::Qmp(gpuvm_qmp::Error::Timeout { command, after }) if command == "greeting" => {
                LaunchError::Silent { after, stderr: self.stderr(), said: Box::new(self.kernel_log.said()) }
            }
            LaunchError::Qmp(error) if error.is_final() => {
                match tokio::time::timeout(COMMAND, self.exited()).await {
                    Ok(exit) => self.died(exit),
                    Err(_) => error.into(),
                }
            }
            error => error,
        }
    }

    /// Makes the error of an early end.
    pub(crate) fn died(&mut self, exit: Exit) -> LaunchError {
        LaunchError::Died { exit, stderr: self.stderr(), said: Box::new(self.kernel_log.said()) }
    }

    /// Returns the end of what QEMU and the kernel said.
    pub(crate) fn last_words(&mut self) -> LastWords {
        LastWords { qemu: self.stderr(), kernel: self.kernel_log.said() }
    }

    /// Returns the end of what QEMU said on stderr.
    pub(crate) fn stderr(&self) -> String {
        self.words.end()
    }

    /// Returns where they are, for whoever reads them elsewhere.
    pub(crate) fn words(&self) -> &Words {
        &self.words
    }
}

/// Reads the last bytes of a file that may have grown large, but none before `from`.
fn end_of(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    const BYTES: u64 = 16 << 10;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // What was said before is put aside where there is less than that.
    let from = if length < from { 0 } else { from };
    file.seek(SeekFrom::Start(length.saturating_sub(BYTES).max(from)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}
