//! Measures what gpuvm costs; `scripts/bench` builds it and runs it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gpuvm_e2e::bench::figures::Figures;
use gpuvm_e2e::bench::look_time::{self, LookTime};
use gpuvm_e2e::bench::overhead::{self, Overhead, Setup};
use gpuvm_e2e::bench::plan_time::{self, PlanTime, SIZES, Size};
use gpuvm_e2e::bench::{Result, doing};
use serde::Serialize;

/// What `up` may take longer than a bare QEMU, in ms.
const OVERHEAD_MS: f64 = 20.0;
/// What the whole of a plan may take on the largest host, in ms.
const PLAN_MS: f64 = 50.0;
/// What the whole of an examination may take on the largest host, in ms.
const DOCTOR_MS: f64 = 150.0;
/// The guest: no device, under emulation, which runs anywhere.
const GUEST: &str = "profiles/dev.toml";

/// What was asked for.
struct Options {
    gpuvm: PathBuf,
    pairs: usize,
    memory: String,
    json: Option<PathBuf>,
    check: Check,
}

/// Whether a missed target is a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Fail,
    Tell,
}

/// All that was measured.
#[derive(Serialize)]
struct Document {
    machine: Machine,
    /// The guest's memory.
    memory: String,
    overhead: Overhead,
    plan: Vec<PlanTime>,
    looks: Vec<LookTime>,
    binary: Binary,
    missed: Vec<String>,
}

/// What it was measured on.
#[derive(Serialize)]
struct Machine {
    cpu: String,
    cpus: usize,
    kernel: String,
    /// Whether other work could take the CPUs away.
    priority: Priority,
    /// How many processes wanted to run on average in the last minute, at the beginning and at the end.
    load: [String; 2],
}

/// How this program and those that it starts are scheduled.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Priority {
    /// Before all others (SCHED_FIFO, SCHED_RR).
    RealTime,
    /// As any other.
    Ordinary,
}

impl Priority {
    /// Reads the policy of this process (proc_pid_stat(5), field 41).
    fn own() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let policy = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(38));
        match policy {
            Some("1" | "2") => Self::RealTime,
            _ => Self::Ordinary,
        }
    }
}

/// The program itself.
#[derive(Serialize)]
struct Binary {
    bytes: u64,
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        // There is no other place to tell it.
        writeln!(
            std::io::stderr(),
            "usage: bench GPUVM PAIRS [--memory SIZE] [--json FILE] [--check]; see scripts/bench --help"
        )
        .ok();
        return ExitCode::from(64);
    };
    match run(&options) {
        Ok(missed) if options.check == Check::Tell || missed.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            writeln!(std::io::stderr(), "bench: {error}").ok();
            ExitCode::from(70)
        }
    }
}

fn options() -> Option<Options> {
    let mut args = std::env::args().skip(1);
    let (gpuvm, pairs) = (args.next()?.into(), args.next()?.parse().ok()?);
    let memory = "512M".to_owned();
    let mut options = Options { gpuvm, pairs, memory, json: None, check: Check::Tell };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--memory" => options.memory = args.next()?,
            "--json" => options.json = Some(args.next()?.into()),
            "--check" => options.check = Check::Fail,
            _ => return None,
        }
    }
    Some(options)
}

fn run(options: &Options) -> Result<Vec<String>> {
    let before = load();
    // A folder on a disk, as /var is.
    let folder = tempfile::tempdir_in("/var/tmp").map_err(doing("make a folder in /var/tmp"))?;
    let prefix = folder.path();
    let volatile = run_folder(prefix)?;
    let size = format!("memory.size={}", options.memory);
    let profile = [GUEST, "--set", &size];
    let setup = Setup { gpuvm: &options.gpuvm, profile: &profile, prefix, pairs: options.pairs };
    let overhead = overhead::measure(&setup)?;
    drop(volatile);
    let plan = SIZES.iter().map(|size| plan_time::measure(&options.gpuvm, *size, options.pairs));
    let plan = plan.collect::<Result<Vec<_>>>()?;
    let looks = look_time::measure(&options.gpuvm, options.pairs)?;
    let bytes = fs::metadata(&options.gpuvm).map_err(doing("look at gpuvm"))?.len();
    let missed = missed(&overhead, &plan, &looks);
    let machine = machine([before, load()]);
    let memory = options.memory.clone();
    let document = Document { machine, memory, overhead, plan, looks, binary: Binary { bytes }, missed };
    let text = table(&document);
    std::io::stdout().write_all(text.as_bytes()).map_err(doing("write the table"))?;
    if let Some(path) = &options.json {
        let json = serde_json::to_vec_pretty(&document).map_err(doing("spell the JSON"))?;
        fs::write(path, json).map_err(doing("write the JSON"))?;
    }
    Ok(document.missed)
}

/// Puts `run` of the prefix in memory, as `/run` is: the journal is synced there before each change.
fn run_folder(prefix: &Path) -> Result<Option<tempfile::TempDir>> {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return Ok(None);
    }
    let folder = tempfile::tempdir_in(memory).map_err(doing("make a folder in /dev/shm"))?;
    std::os::unix::fs::symlink(folder.path(), prefix.join("run")).map_err(doing("link it"))?;
    Ok(Some(folder))
}

fn missed(overhead: &Overhead, plan: &[PlanTime], looks: &[LookTime]) -> Vec<String> {
    let mut missed = Vec::new();
    if overhead.overhead_ms > OVERHEAD_MS {
        missed.push(format!("overhead to cont: {:.1} ms instead of {OVERHEAD_MS}", overhead.overhead_ms));
    }
    for time in plan {
        let (gpus, vfs) = (time.size.gpus, time.size.vfs);
        for (verb, took, target) in [("plan", &time.process, PLAN_MS), ("doctor", &time.doctor, DOCTOR_MS)] {
            if took.median_ms > target {
                let took = took.median_ms;
                missed
                    .push(format!("{verb} with {gpus} GPUs and {vfs} VFs: {took:.1} ms instead of {target}"));
            }
        }
    }
    for time in looks.iter().filter(|time| time.process.median_ms > time.look.target_ms) {
        let (took, target) = (time.process.median_ms, time.look.target_ms);
        missed.push(format!("{}: {took:.1} ms instead of {target}", time.command()));
    }
    missed
}

fn machine(load: [String; 2]) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        cpuinfo.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1))
    };
    Machine {
        cpu: field("model name").unwrap_or("unknown").to_owned(),
        cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        priority: Priority::own(),
        load,
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { std::fmt::Write::write_fmt($text, format_args!("{}\n", format_args!($($format)*))).ok() };
}

fn table(document: &Document) -> String {
    let mut text = String::new();
    let Document { machine, memory, overhead, plan, looks, binary, missed } = document;
    let [before, after] = &machine.load;
    let priority = match machine.priority {
        Priority::RealTime => "real-time priority",
        Priority::Ordinary => "ordinary priority",
    };
    line!(
        &mut text,
        "{} CPUs {}, Linux {}; {priority}, load {before} to {after}\n",
        machine.cpus,
        machine.cpu,
        machine.kernel
    );
    line!(&mut text, "{:<56} {:>8} {:>8} {:>8}", "ms", "median", "p95", "min");
    line!(&mut text, "A guest of {memory} without devices, TCG, {} runs each way", overhead.up_cont.runs);
    row(&mut text, "  QEMU alone, to its greeting", &overhead.bare_greeting);
    row(&mut text, "  QEMU alone, to the answer to cont", &overhead.bare_cont);
    row(&mut text, "  gpuvm up, to the answer to cont", &overhead.up_cont);
    for stage in &overhead.stages {
        row(&mut text, &format!("    {}", stage.done), &stage.figures);
    }
    line!(&mut text, "  overhead (target {OVERHEAD_MS}){:>41.1}", overhead.overhead_ms);
    line!(&mut text, "  overhead, by pairs of neighbours{:>32.1}", overhead.paired_ms);
    for time in plan {
        line!(&mut text, "A plan for {} GPUs, {} VFs beside them", time.size.gpus, time.size.vfs);
        row(&mut text, "  the facts read", &time.facts);
        row(&mut text, "  the plan made of them", &time.plan);
        row(&mut text, &format!("  gpuvm plan, the whole process (target {PLAN_MS})"), &time.process);
        row(&mut text, &format!("  gpuvm doctor, the whole process (target {DOCTOR_MS})"), &time.doctor);
    }
    if let Some(LookTime { size: Size { gpus, vfs }, .. }) = looks.first() {
        line!(&mut text, "A look at {gpus} GPUs and {vfs} VFs, the whole process");
    }
    for time in looks {
        row(&mut text, &format!("  {} (target {})", time.command(), time.look.target_ms), &time.process);
    }
    line!(&mut text, "The program: {} KiB, stripped", binary.bytes.div_ceil(1024));
    for missed in missed {
        line!(&mut text, "MISSED: {missed}");
    }
    text
}

fn row(text: &mut String, what: &str, figures: &Figures) {
    let Figures { median_ms, p95_ms, min_ms, .. } = figures;
    line!(text, "{what:<56} {median_ms:>8.1} {p95_ms:>8.1} {min_ms:>8.1}");
}
