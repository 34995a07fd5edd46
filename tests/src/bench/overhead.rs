//! How much longer a guest takes to start by `gpuvm up` than by QEMU alone.
//!
//! Both ways are measured by one clock, this program's, from the moment before the process is made to the moment at which the answer to
//! `cont` is known outside: of the bare QEMU, when the answer comes from its monitor; of gpuvm, when its line "the guest runs" comes
//! through the pipe, which it writes after the answer. So the pipe and the writing count against gpuvm. What it says is not taken on
//! trust: after each run QEMU is looked at from outside, by the processor time that its threads use, which a paused one doesn't.
//!
//! The bare QEMU gets the words of `gpuvm argv` and `-S`, as `up` does, and a client that does no more than it must: greeting,
//! `qmp_capabilities`, `cont`. The ways alternate, and so does which one goes first, so that a machine that gets busier or warmer
//! treats both alike.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gpuvm_sys::process::{Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde_json::Value;

use super::figures::{Figures, median, ms};
use super::{Result, doing};

/// How often a socket that isn't there yet is tried again: the most by which a bare start seems longer than it is.
const TRY_AGAIN: Duration = Duration::from_micros(100);
/// How long any one step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a guest under emulation uses of 10 ms at least while its firmware works; a paused QEMU uses some 0.1 ms.
const RUNS: Duration = Duration::from_millis(2);
/// The lines of `gpuvm up` that are timed, each by a part of it, and what has been done when it comes.
const STAGES: [(&str, &str); 4] = [
    ("reserving the devices", "process up, host read, plan made"),
    ("starting QEMU", "reserved, journal open, host prepared"),
    ("vCPUs", "QEMU started and greeted, its CPUs asked for"),
    ("the guest runs", "threads pinned, cont answered"),
];

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The gpuvm to be measured.
    pub gpuvm: &'a Path,
    /// The profile and its changes, as gpuvm takes them.
    pub profile: &'a [&'a str],
    /// A folder for gpuvm's own files.
    pub prefix: &'a Path,
    /// How many pairs of runs.
    pub pairs: usize,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Overhead {
    /// The bare QEMU, to its greeting.
    pub bare_greeting: Figures,
    /// The bare QEMU, to the answer to `cont`.
    pub bare_cont: Figures,
    /// `gpuvm up`, to the answer to `cont`.
    pub up_cont: Figures,
    /// `gpuvm up`, to each line on its way.
    pub stages: Vec<StageFigures>,
    /// The difference of the medians to `cont`.
    pub overhead_ms: f64,
    /// The median of the differences within each pair: on a busy machine neighbours in time are more alike than all runs.
    pub paired_ms: f64,
}

/// `gpuvm up`, to one of its lines.
#[derive(Debug, Serialize)]
pub struct StageFigures {
    /// What has been done then.
    pub done: &'static str,
    /// The time since the process was started.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Runs the pairs, and one before them that doesn't count.
///
/// # Errors
/// What went wrong in a run; a QEMU whose guest doesn't run after `cont`.
pub fn measure(setup: &Setup<'_>) -> Result<Overhead> {
    let words = words(setup)?;
    check_witness(setup, &words)?;
    let (mut greetings, mut conts) = (Vec::new(), Vec::new());
    let mut stages: [Vec<Duration>; STAGES.len()] = Default::default();
    for pair in 0..=setup.pairs {
        let (mut bare, mut up) = (None, None);
        for way in [pair % 2, (pair + 1) % 2] {
            match way {
                0 => bare = Some(run_bare(setup, &words)?),
                _ => up = Some(run_up(setup)?),
            }
        }
        let ((greeting, cont), times) = bare.zip(up).ok_or("a pair without one of its runs")?;
        // The first pair fills the caches.
        if pair > 0 {
            greetings.push(greeting);
            conts.push(cont);
            stages.iter_mut().zip(times).for_each(|(stage, time)| stage.push(time));
        }
    }
    let [.., last] = &stages;
    let mut differences: Vec<f64> = last.iter().zip(&conts).map(|(up, bare)| ms(*up) - ms(*bare)).collect();
    let paired_ms = median(&mut differences);
    let (bare_cont, up_cont) = (Figures::of(&conts), Figures::of(last));
    let stages = STAGES.iter().zip(&stages);
    Ok(Overhead {
        bare_greeting: Figures::of(&greetings),
        overhead_ms: up_cont.median_ms - bare_cont.median_ms,
        paired_ms,
        bare_cont,
        up_cont,
        stages: stages.map(|((_, done), times)| StageFigures { done, figures: Figures::of(times) }).collect(),
    })
}

/// Asks gpuvm for the command line, and adds the pause.
pub(super) fn words(setup: &Setup<'_>) -> Result<Vec<String>> {
    let output = Command::new(setup.gpuvm)
        .args(["argv", "--json", "--prefix"])
        .arg(setup.prefix)
        .args(setup.profile)
        .output()
        .map_err(doing("start gpuvm argv"))?;
    let document: Value = serde_json::from_slice(&output.stdout).map_err(doing("read gpuvm argv"))?;
    let words = document["argv"].as_array().ok_or_else(|| format!("gpuvm argv: {document}"))?;
    let mut words: Vec<String> = words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
    words.push("-S".to_owned());
    Ok(words)
}

/// A QEMU or gpuvm that is killed if its run fails.
pub(super) struct Process(pub(super) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It has mostly ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A bare QEMU, paused, and its monitor.
pub(super) struct Bare {
    process: Process,
    monitor: BufReader<UnixStream>,
    begun: Instant,
    greeting: Duration,
}

impl Bare {
    /// Starts QEMU and waits for its greeting.
    pub(super) fn start(setup: &Setup<'_>, words: &[String]) -> Result<Self> {
        let socket =
            words.iter().find_map(|word| word.split("path=").nth(1).filter(|path| path.contains("qmp.sock")));
        let socket = socket.and_then(|path| path.split(',').next()).ok_or("no monitor in gpuvm argv")?;
        let socket = PathBuf::from(socket);
        fs::create_dir_all(socket.parent().unwrap_or(setup.prefix))
            .map_err(doing("make the socket's folder"))?;
        fs::remove_file(&socket).ok();
        let begun = Instant::now();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(doing("start QEMU"))?;
        let process = Process(child);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > PATIENCE => {
                    return Err(format!("{}: {error}", socket.display()));
                }
                Err(_) => sleep(TRY_AGAIN),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).map_err(doing("set a deadline"))?;
        let mut bare = Self { process, monitor: BufReader::new(stream), begun, greeting: Duration::ZERO };
        bare.line()?;
        bare.greeting = begun.elapsed();
        bare.ask("qmp_capabilities")?;
        Ok(bare)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.monitor.read_line(&mut line).map_err(doing("read the monitor"))?;
        Ok(line)
    }

    /// Sends a command and waits for its answer, over events.
    pub(super) fn ask(&mut self, command: &str) -> Result<()> {
        let request = format!("{{\"execute\":\"{command}\"}}\n");
        self.monitor.get_mut().write_all(request.as_bytes()).map_err(doing(command))?;
        loop {
            match self.line()? {
                line if line.starts_with("{\"return\"") => return Ok(()),
                line if line.contains("\"event\"") => {}
                line => return Err(format!("{command}: {line:?}")),
            }
        }
    }

    /// Has it quit, and waits until it is gone.
    pub(super) fn quit(mut self) -> Result<()> {
        self.ask("quit")?;
        self.process.0.wait().map_err(doing("wait for QEMU")).map(drop)
    }
}

/// Runs QEMU without gpuvm; returns the times to its greeting and to the answer to `cont`.
fn run_bare(setup: &Setup<'_>, words: &[String]) -> Result<(Duration, Duration)> {
    let mut bare = Bare::start(setup, words)?;
    bare.ask("cont")?;
    let cont = bare.begun.elapsed();
    ensure_runs(bare.process.0.id())?;
    let greeting = bare.greeting;
    bare.quit()?;
    Ok((greeting, cont))
}

/// Runs `gpuvm up`; returns the times to its lines.
fn run_up(setup: &Setup<'_>) -> Result<[Duration; STAGES.len()]> {
    let mut command = Command::new(setup.gpuvm);
    command.args(["up", "--shutdown-timeout", "0", "--prefix"]).arg(setup.prefix).args(setup.profile);
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut process = Process(child.map_err(doing("start gpuvm up"))?);
    let stderr = process.0.stderr.take().ok_or("no pipe to gpuvm")?;
    let mut lines = BufReader::new(stderr).lines();
    let mut told = String::new();
    let mut times = [Duration::ZERO; STAGES.len()];
    for (time, (part, _)) in times.iter_mut().zip(STAGES) {
        *time = loop {
            let line = lines.next().ok_or_else(|| format!("gpuvm up ended early:\n{told}"))?;
            let now = begun.elapsed();
            let line = line.map_err(doing("read what gpuvm tells"))?;
            let found = line.contains(part);
            told.push_str(&line);
            told.push('\n');
            if found {
                break now;
            }
        };
    }
    let pid = told.rsplit("process ").next().and_then(|rest| rest.trim_end().strip_suffix(')'));
    let pid = pid.and_then(|pid| pid.parse().ok()).ok_or_else(|| format!("which process? {told}"))?;
    ensure_runs(pid)?;
    let gpuvm = i32::try_from(process.0.id()).map_err(doing("name gpuvm's process"))?;
    let pidfd = pidfd_open(gpuvm).map_err(doing("open gpuvm's process"))?;
    pidfd_send_signal(pidfd.as_fd(), Signal::SIGTERM).map_err(doing("end gpuvm"))?;
    for line in lines.map_while(std::result::Result::ok) {
        told.push_str(&line);
        told.push('\n');
    }
    let status = process.0.wait().map_err(doing("wait for gpuvm"))?;
    if status.success() { Ok(times) } else { Err(format!("gpuvm up ended with {status}:\n{told}")) }
}

/// Shows that the witness can tell: a QEMU that is paused must not seem to run.
fn check_witness(setup: &Setup<'_>, words: &[String]) -> Result<()> {
    let bare = Bare::start(setup, words)?;
    match used_in_a_while(bare.process.0.id())? {
        used if used < RUNS => bare.quit(),
        used => Err(format!(
            "a paused QEMU used {used:?} of processor time: its use doesn't tell whether a guest runs"
        )),
    }
}

/// Looks from outside whether a guest runs.
fn ensure_runs(qemu: u32) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if used_in_a_while(qemu)? >= RUNS {
            return Ok(());
        }
    }
    Err(format!("the guest of QEMU {qemu} doesn't run"))
}

/// Measures the processor time of a process in the next 10 ms.
fn used_in_a_while(pid: u32) -> Result<Duration> {
    let before = used(pid)?;
    sleep(Duration::from_millis(10));
    Ok(used(pid)?.saturating_sub(before))
}

/// Sums up the processor time of a process's threads (Documentation/scheduler/sched-stats.rst: the first field of schedstat, in ns).
pub(super) fn used(pid: u32) -> Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(doing("list a process's threads"))?;
    // A thread that has ended meanwhile used nothing since.
    let texts = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    let ns = texts.filter_map(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok());
    Ok(Duration::from_nanos(ns.sum()))
}
