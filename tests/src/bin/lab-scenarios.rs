//! Runs scenarios inside the lab host: `lab-scenarios NAME...`; without a name it lists them.
//!
//! Prints one line per scenario and ends with status 1 if any did not hold.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use gpuvm_e2e::lab::scenarios;

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let mut out = std::io::stdout().lock();
    if names.is_empty() {
        for (name, _) in scenarios::ALL {
            writeln!(out, "{name}").ok();
        }
        return ExitCode::SUCCESS;
    }
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let begun = Instant::now();
        let result = match scenarios::ALL.iter().find(|(known, _)| *known == name) {
            Some((_, scenario)) => scenario(),
            None => Err("there is no such scenario".to_owned()),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let line = match result {
            Ok(()) => format!("ok {name} ({seconds:.1} s)"),
            Err(error) => {
                code = ExitCode::FAILURE;
                format!("FAILED {name} ({seconds:.1} s): {error}")
            }
        };
        writeln!(out, "{line}").and_then(|()| out.flush()).ok();
    }
    code
}
