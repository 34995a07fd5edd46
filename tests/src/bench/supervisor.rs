//! What a supervisor takes while its guest runs, and how long `down --force` takes over a bare `quit`.
//!
//! Memory and processor time are read from `/proc`, of the supervisor alone, after it has been asked for what people ask it for: what it keeps for
//! that counts. `down --force` is the whole process, from the moment before it is made to its end, the host given back; of the bare QEMU, with the words of
//! `gpuvm argv`, it is the time from sending `quit` until it is gone. The ways alternate, and so does which one goes first.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::figures::{Figures, median, ms};
use super::overhead::{self, Bare, used};
use super::{Result, doing};

/// For how long a guest has run when it is ended.
const RUNS: Duration = Duration::from_millis(400);
/// For how long nobody has asked a supervisor anything when its rest begins.
const CALM: Duration = Duration::from_secs(3);

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The gpuvm to be measured.
    pub gpuvm: &'a Path,
    /// A folder for gpuvm's own files.
    pub prefix: &'a Path,
    /// The profile whose guest is left to run; its VM is called `rest`, and it says "lingering" once it has booted.
    pub rest: &'a Path,
    /// The profile whose guest is ended; its VM is called `end`.
    pub end: &'a Path,
    /// For how long the supervisor's rest is watched.
    pub watched: Duration,
    /// How many pairs of ends.
    pub pairs: usize,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// The supervisor while its guest runs.
    pub rest: Rest,
    /// The bare QEMU, from `quit` until it is gone.
    pub bare_quit: Figures,
    /// `gpuvm down --force`, the whole process.
    pub down: Figures,
    /// The difference of the medians.
    pub over_ms: f64,
    /// The median of the differences within each pair.
    pub paired_ms: f64,
}

/// A supervisor at rest.
#[derive(Debug, Serialize)]
pub struct Rest {
    /// Its share of memory that it has together with others, and all of its own (`Pss` of smaps_rollup).
    pub pss_kib: u64,
    /// The same at the end of its rest.
    pub pss_after_kib: u64,
    /// What of it is nobody else's.
    pub own_kib: u64,
    /// Its threads.
    pub threads: usize,
    /// For how long it was watched.
    pub seconds: f64,
    /// What of that it has used of a processor, user and system.
    pub cpu_ms: f64,
    /// The same as the kernel counts it for everybody, in ticks of 10 ms.
    pub ticks: u64,
    /// Its part of one processor.
    pub cpu_percent: f64,
}

/// Measures all.
///
/// # Errors
/// What went wrong in a run.
pub fn measure(setup: &Setup<'_>) -> Result<Cost> {
    let rest = measure_rest(setup)?;
    let profile = setup.end.display().to_string();
    let bare = overhead::Setup {
        gpuvm: setup.gpuvm,
        profile: &[&profile],
        prefix: setup.prefix,
        pairs: setup.pairs,
    };
    let words = overhead::words(&bare)?;
    let (mut quits, mut downs) = (Vec::new(), Vec::new());
    for pair in 0..=setup.pairs {
        for way in [pair % 2, (pair + 1) % 2] {
            let (times, time) = match way {
                0 => (&mut quits, bare_quit(&bare, &words)?),
                _ => (&mut downs, down(setup, &profile)?),
            };
            // The first pair fills the caches.
            if pair > 0 {
                times.push(time);
            }
        }
    }
    let mut differences: Vec<f64> =
        downs.iter().zip(&quits).map(|(down, quit)| ms(*down) - ms(*quit)).collect();
    let (bare_quit, down) = (Figures::of(&quits), Figures::of(&downs));
    let over_ms = down.median_ms - bare_quit.median_ms;
    Ok(Cost { rest, bare_quit, down, over_ms, paired_ms: median(&mut differences) })
}

/// A VM that is ended if its measurement fails.
struct Vm<'a> {
    setup: &'a Setup<'a>,
    name: &'static str,
    supervisor: u32,
}

impl<'a> Vm<'a> {
    fn up(setup: &'a Setup<'a>, profile: &str, name: &'static str, wait: &str) -> Result<Self> {
        let told = gpuvm(setup, &["--json", "up", "--detach", profile, "--wait", wait])?;
        let told: Value = serde_json::from_str(&told).map_err(doing("read what up tells"))?;
        let supervisor = told["supervisor"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let supervisor = supervisor.ok_or_else(|| format!("which process? {told}"))?;
        Ok(Self { setup, name, supervisor })
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // It has mostly ended.
        gpuvm(self.setup, &["down", self.name, "--force"]).ok();
    }
}

/// Runs gpuvm to its end, and returns what it prints.
fn gpuvm(setup: &Setup<'_>, words: &[&str]) -> Result<String> {
    let mut command = Command::new(setup.gpuvm);
    command.arg("--prefix").arg(setup.prefix).args(words).stdin(Stdio::null());
    let output = command.output().map_err(doing("start gpuvm"))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("gpuvm {} ended with {}: {told}", words.join(" "), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Watches a supervisor that has been asked for this and that, and is left alone then.
fn measure_rest(setup: &Setup<'_>) -> Result<Rest> {
    let vm = Vm::up(setup, &setup.rest.display().to_string(), "rest", "console:lingering")?;
    for words in [
        &["status", "rest"][..],
        &["list"],
        &["pause", "rest"],
        &["resume", "rest"],
        &["qmp", "rest", "query-status"],
        &["qmp", "rest", "query-qmp-schema"],
    ] {
        gpuvm(setup, words)?;
    }
    sleep(CALM);
    let pid = vm.supervisor;
    let (pss_kib, own_kib) = memory(pid)?;
    let (begun, before, ticks_before) = (Instant::now(), used(pid)?, ticks(pid)?);
    sleep(setup.watched);
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), used(pid)?.saturating_sub(before));
    let ticks = ticks(pid)?.saturating_sub(ticks_before);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_err(doing("count its threads"))?.count();
    let (pss_after_kib, _) = memory(pid)?;
    let cpu_percent = cpu.as_secs_f64() / seconds * 100.0;
    Ok(Rest { pss_kib, pss_after_kib, own_kib, threads, seconds, cpu_ms: ms(cpu), ticks, cpu_percent })
}

/// Reads a process's share of memory, and what is its own, in KiB.
fn memory(pid: u32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).map_err(doing("read its memory"))?;
    memory_of(&text).ok_or_else(|| format!("/proc/{pid}/smaps_rollup isn't understood: {text}"))
}

fn memory_of(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((field("Pss")?, field("Private_Clean")? + field("Private_Dirty")?))
}

/// Reads what a process has used of a processor, in ticks (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(doing("read its stat"))?;
    ticks_of(&text).ok_or_else(|| format!("/proc/{pid}/stat isn't understood: {text}"))
}

fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_ascii_whitespace().skip(11);
    Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
}

/// Runs QEMU without gpuvm, and returns the time from `quit` until it is gone.
fn bare_quit(setup: &overhead::Setup<'_>, words: &[String]) -> Result<Duration> {
    let mut bare = Bare::start(setup, words)?;
    bare.ask("cont")?;
    sleep(RUNS);
    let begun = Instant::now();
    bare.quit()?;
    Ok(begun.elapsed())
}

/// Runs a VM, and returns the time that `down --force` takes.
fn down(setup: &Setup<'_>, profile: &str) -> Result<Duration> {
    let vm = Vm::up(setup, profile, "end", "running")?;
    sleep(RUNS);
    let begun = Instant::now();
    let told = gpuvm(setup, &["--json", "down", "end", "--force"])?;
    let took = begun.elapsed();
    let told: Value = serde_json::from_str(&told).map_err(doing("read what down tells"))?;
    if told["stage"] != "quit" {
        return Err(format!("down --force has ended the guest otherwise: {told}"));
    }
    // Nobody is to meet the last moments of the supervisor.
    while Path::new(&format!("/proc/{}", vm.supervisor)).exists() {
        sleep(Duration::from_millis(1));
    }
    std::mem::forget(vm);
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "00400000-7ffd0000 ---p 00000000 00:00 0 [rollup]\nRss: 9000 kB\nPss:                4321 kB\nPss_Dirty: 7 kB\n\
                    Private_Clean:       100 kB\nPrivate_Dirty:       23 kB\n";
        assert_eq!(memory_of(text), Some((4321, 123)));
        assert_eq!(memory_of("Pss_Dirty: 7 kB\n"), None);
    }

    #[test]
    fn processor_time_is_read_past_a_name_with_blanks() {
        assert_eq!(ticks_of("7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 3 0"), Some(42));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }
}
