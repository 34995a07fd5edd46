//! Measures what a supervisor costs; `scripts/supervisor-cost` builds it and runs it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use gpuvm_e2e::bench::supervisor::{self, Cost, Setup};
use gpuvm_e2e::bench::{Result, doing};

/// What a supervisor may have of memory, in KiB.
const PSS_KIB: u64 = 8 << 10;
/// What it may use of one processor at rest, in percent.
const CPU_PERCENT: f64 = 0.1;
/// What `down --force` may take longer than a bare `quit`, in ms.
const OVER_MS: f64 = 30.0;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (gpuvm, guest) = (args.next().map(PathBuf::from), args.next().map(PathBuf::from));
    let mut number = || args.next()?.to_str()?.parse::<u64>().ok();
    let (Some(gpuvm), Some(guest), Some(seconds), Some(pairs)) = (gpuvm, guest, number(), number()) else {
        // There is no other place to tell it.
        writeln!(
            std::io::stderr(),
            "usage: supervisor-cost GPUVM GUEST SECONDS PAIRS; see scripts/supervisor-cost --help"
        )
        .ok();
        return ExitCode::from(64);
    };
    match run(&gpuvm, &guest, seconds, pairs) {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            writeln!(std::io::stderr(), "supervisor-cost: {error}").ok();
            ExitCode::from(70)
        }
    }
}

fn run(gpuvm: &Path, guest: &Path, seconds: u64, pairs: u64) -> Result<Vec<String>> {
    // Folders on a disk, as /var is; sockets below a longer path couldn't be bound.
    let folder = tempfile::tempdir_in("/var/tmp").map_err(doing("make a folder in /var/tmp"))?;
    let (rest, end) = (folder.path().join("rest.toml"), folder.path().join("end.toml"));
    let file = |name: &str| guest.join(name).display().to_string();
    let kernel = format!(
        "[kernel]\npath = {:?}\ninitrd = {:?}\ncmdline = \"console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable gpuvm.linger=3600\"\n",
        file("kernel"),
        file("initrd")
    );
    for (path, name, boots) in [(&rest, "rest", kernel.as_str()), (&end, "end", "")] {
        let profile = format!(
            "version = 1\nname = \"{name}\"\naccel = \"tcg\"\nfirmware = \"bios\"\nnetwork = \"none\"\n[memory]\nsize = \"128M\"\n\
             [cpu]\ncount = 1\npin = \"off\"\n{boots}"
        );
        fs::write(path, profile).map_err(doing("write a profile"))?;
    }
    let setup = Setup {
        gpuvm,
        prefix: folder.path(),
        rest: &rest,
        end: &end,
        watched: Duration::from_secs(seconds),
        pairs: usize::try_from(pairs).unwrap_or(usize::MAX),
    };
    let before = load();
    let cost = supervisor::measure(&setup)?;
    let missed = missed(&cost);
    let text = table(&cost, &[before, load()], &missed);
    std::io::stdout().write_all(text.as_bytes()).map_err(doing("write the table"))?;
    Ok(missed)
}

fn missed(cost: &Cost) -> Vec<String> {
    let mut missed = Vec::new();
    let pss = cost.rest.pss_kib.max(cost.rest.pss_after_kib);
    if pss >= PSS_KIB {
        missed.push(format!("memory: {pss} KiB instead of {PSS_KIB}"));
    }
    if cost.rest.cpu_percent >= CPU_PERCENT {
        missed.push(format!("processor at rest: {:.3} % instead of {CPU_PERCENT}", cost.rest.cpu_percent));
    }
    if cost.over_ms > OVER_MS {
        missed.push(format!("down --force: {:.1} ms over a bare quit instead of {OVER_MS}", cost.over_ms));
    }
    missed
}

fn table(cost: &Cost, [before, after]: &[String; 2], missed: &[String]) -> String {
    let Cost { rest, bare_quit, down, over_ms, paired_ms } = cost;
    let mut text = format!("load {before} to {after}\n");
    let mut line = |what: &str, figure: String| text.push_str(&format!("{what:<64} {figure:>12}\n"));
    line(&format!("supervisor, share of memory (PSS; target {PSS_KIB})"), format!("{} KiB", rest.pss_kib));
    line("  at the end of its rest", format!("{} KiB", rest.pss_after_kib));
    line("  of it nobody else's", format!("{} KiB", rest.own_kib));
    line("  threads", rest.threads.to_string());
    let watched = format!("  processor in {:.0} s of rest", rest.seconds);
    line(&watched, format!("{:.2} ms", rest.cpu_ms));
    line("    as utime and stime count it, in ticks", rest.ticks.to_string());
    line(&format!("    part of one processor (target {CPU_PERCENT})"), format!("{:.4} %", rest.cpu_percent));
    line(
        &format!("bare QEMU, from quit until it is gone (median of {})", bare_quit.runs),
        format!("{:.1} ms", bare_quit.median_ms),
    );
    line("gpuvm down --force, the whole process (median)", format!("{:.1} ms", down.median_ms));
    line("  p95", format!("{:.1} ms", down.p95_ms));
    line(&format!("  over the bare quit (target {OVER_MS})"), format!("{over_ms:.1} ms"));
    line("  over it, by pairs of neighbours", format!("{paired_ms:.1} ms"));
    missed.iter().for_each(|missed| text.push_str(&format!("MISSED: {missed}\n")));
    text
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
