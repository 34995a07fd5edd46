//! `gpuvm soak report`: the report of a record.

use std::path::{Path, PathBuf};

use clap::Args;
use gpuvm_core::soak::report;
use gpuvm_host::{lock, soak};

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// The report's name, beside its record.
const REPORT: &str = "report.html";

/// What `soak report` takes.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The folder of a soak, with its record.jsonl
    folder: PathBuf,
}

pub(super) fn run(cli: &Cli, args: &ReportArgs) -> Result<Exit, Failure> {
    let path = write_of(&args.folder)?;
    match cli.json {
        true => out::json(&serde_json::json!({ "report": path }))?,
        false => out::text(&format!("{}\n", path.display()))?,
    }
    Ok(Exit::Ok)
}

/// Writes the report of a record beside it, and returns where it is.
pub(super) fn write_of(folder: &Path) -> Result<PathBuf, Failure> {
    let record = soak::read(folder)?.ok_or_else(|| {
        let message = format!("there is no {} in {}", soak::RECORD, folder.display());
        Failure::one(Exit::Usage, message, None)
    })?;
    let path = folder.join(REPORT);
    lock::replace(&path, report::html(&record.lines).as_bytes())?;
    Ok(path)
}
