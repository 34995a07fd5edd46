//! Recomputes what gpuvm adds to the cycles of a soak, from a trace and the kernel's log: see `gpuvm_e2e::bench::soak_cost`.
//!
//! `scripts/soak-overhead` makes both and runs this.

use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use gpuvm_e2e::bench::figures::Figures;
use gpuvm_e2e::bench::soak_cost::{Cost, Tolerance, Tracer, account, check_log, check_record};
use gpuvm_e2e::bench::soak_trace::{Micros, Trace, kernel_log};
use gpuvm_e2e::bench::{Result, doing};

/// What gpuvm may add to a cycle, as the median.
const TARGET: Duration = Duration::from_millis(150);
const USAGE: &str = "usage: soak-overhead TRACE KERNEL-LOG RECORD TRACER AFTER-MS BDF...";
/// The kernel's stamps and strace's are of two clocks, and a write is stamped before it is in the kernel.
const TOLERANCE: Tolerance = Tolerance { log: 30_000, record: 100_000 };
const MISSED: u8 = 1;
const USAGE_ERROR: u8 = 64;
const DISAGREES: u8 = 70;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [trace, log, record, tracer, after, devices @ ..] = args.as_slice() else {
        return told(USAGE, USAGE_ERROR);
    };
    let Ok(after) = after.parse::<Micros>() else { return told(USAGE, USAGE_ERROR) };
    match measure([trace, log, record, tracer], after * 1000, devices) {
        Ok(own) if own.median_ms > ms(TARGET) => told("MISSED: the median is over the target", MISSED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => told(&error, DISAGREES),
    }
}

fn measure([trace, log, record, tracer]: [&str; 4], after: Micros, devices: &[String]) -> Result<Figures> {
    let read = |path: &str| {
        fs::read(path).map_err(doing(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let trace = Trace::parse(&read(trace)?)?;
    let told = read(tracer)?;
    let costs = account(&trace, after, cost_of_tracing(&told).ok_or_else(|| format!("{tracer}: {told}"))?)?;
    let said = kernel_log(&read(log)?)?;
    let own = print(&costs);
    let heard = check_log(&trace, &said, devices, TOLERANCE)?;
    let unrecorded = check_record(&costs, &read(record)?, TOLERANCE)?;
    let rest = Figures::of(&unrecorded.iter().map(|rest| time(*rest)).collect::<Vec<_>>());
    let mut out = std::io::stdout().lock();
    let agreed = format!(
        "The kernel's log agrees ({heard} lines of the devices), and so do the record's phases (without a phase: median {:.1} ms)",
        rest.median_ms
    );
    writeln!(out, "{agreed}").map_err(doing("print"))?;
    Ok(own)
}

/// Reads what a traced call and a traced child cost more than untraced ones, in µs.
fn cost_of_tracing(text: &str) -> Option<Tracer> {
    let (call, child) = text.trim().split_once(' ')?;
    Some(Tracer { call: call.parse().ok()?, child: child.parse().ok()? })
}

/// Prints the table, and returns what is gpuvm's.
fn print(costs: &[Cost]) -> Figures {
    let mut text = format!(
        "{:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  ms\n",
        "cycle", "wall", "QEMU", "kernel", "between", "tracing", "answer", "own"
    );
    for cost in costs {
        let Cost { number, wall, life, kernel, between, tracing, answer } = cost;
        let columns = [*wall, *life, *kernel, *between, *tracing, *answer, cost.own()];
        let columns: Vec<String> =
            columns.iter().map(|micros| format!("{:>9.1}", ms(time(*micros)))).collect();
        text.push_str(&format!("{number:>5} {}\n", columns.join(" ")));
    }
    let own = Figures::of(&costs.iter().map(|cost| time(cost.own())).collect::<Vec<_>>());
    text.push_str(&format!(
        "gpuvm's own, {} cycles: median {:.1} ms (target {:.0}), p95 {:.1}, least {:.1}\n",
        own.runs,
        own.median_ms,
        ms(TARGET),
        own.p95_ms,
        own.min_ms
    ));
    std::io::stdout().write_all(text.as_bytes()).ok();
    own
}

fn time(micros: Micros) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn told(text: &str, code: u8) -> ExitCode {
    writeln!(std::io::stderr(), "soak-overhead: {text}").ok();
    ExitCode::from(code)
}
