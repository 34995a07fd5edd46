//! Makes faults in the lab host and takes down the devices before and after: `record-snapshots > LINES`.
//!
//! Prints one line of JSON for each. What is in the lab host is lost, so the lines are made files outside of it:
//! `record-snapshots --into FOLDER < LINES`.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use gpuvm_e2e::lab::recordings::{Named, record};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => in_the_lab(),
        ["--into", folder] => into(&PathBuf::from(folder)),
        _ => Err("usage: record-snapshots > LINES, in the lab host; record-snapshots --into FOLDER < LINES"
            .to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told that standard error is gone.
            writeln!(std::io::stderr(), "record-snapshots: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn in_the_lab() -> Result<(), String> {
    let host = std::env::var("GPUVM_LAB_HOST").map_err(|_| "this isn't a lab host".to_owned())?;
    let mut stdout = std::io::stdout();
    let mut tell = |named: Named| {
        let line = serde_json::to_string(&named).map_err(|error| error.to_string())?;
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(|error| error.to_string())
    };
    record(&host, &mut tell)
}

fn into(folder: &std::path::Path) -> Result<(), String> {
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let named: Named = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        let text = serde_json::to_string_pretty(&named.recording).map_err(|error| error.to_string())?;
        let path = folder.join(format!("{}.json", named.name));
        std::fs::write(&path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
