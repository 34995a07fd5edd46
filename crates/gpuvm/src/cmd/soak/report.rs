//! `gpuvm soak report`: the report of a record.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use gpuvm_core::soak::{BadRecord, Line, report};
use gpuvm_host::{HostError, lock, soak};

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, out};

/// The report's name, beside its record.
const REPORT: &str = "report.html";
/// How long a report that is being drawn is waited for: of 10,000 cycles it takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `soak report` takes.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The folder of a soak, or the record.jsonl in it
    record: PathBuf,

    /// Write the report to FILE [default: report.html beside the record]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(cli: &Cli, args: &ReportArgs) -> Result<Exit, Failure> {
    let lines = lines_of(&args.record)?;
    let path = args.out.clone().unwrap_or_else(|| match args.record.is_dir() {
        true => args.record.join(REPORT),
        false => args.record.with_file_name(REPORT),
    });
    // Not as the soak itself writes it: a file that the user names has the rights that the user's files have.
    std::fs::write(&path, report::html(&lines)).map_err(|error| {
        let code = match error.kind() {
            ErrorKind::PermissionDenied => Exit::Permission,
            ErrorKind::StorageFull => Exit::Unfit,
            _ => Exit::Usage,
        };
        Failure::one(code, format!("write {}: {error}", path.display()), hints::unwritable(&path, &error))
    })?;
    match cli.json {
        true => out::json(&serde_json::json!({ "report": path }))?,
        false => out::text(&format!("{}\n", path.display()))?,
    }
    Ok(Exit::Ok)
}

/// Reads the record in a folder, or in a file of any name.
pub(super) fn lines_of(path: &Path) -> Result<Vec<Line>, Failure> {
    let file = if path.is_dir() { path.join(soak::RECORD) } else { path.to_owned() };
    let no_record = |problem: String| {
        let message = format!("{} is no record of a soak: {problem}", file.display());
        Failure::one(Exit::Usage, message, Some(hints::no_record()))
    };
    match soak::read_file(&file) {
        Ok(Some(written)) if !written.lines.is_empty() => Ok(written.lines),
        // What a crash may have torn is left out, be it all that there is.
        Ok(Some(written)) if written.torn > 0 => Err(no_record(BadRecord::NoBeginning.to_string())),
        Ok(Some(_)) => Err(no_record(BadRecord::Empty.to_string())),
        Ok(None) => Err(no_record("there is no such file".to_owned())),
        Err(HostError::Content { problem, .. }) => Err(no_record(problem)),
        Err(error) => Err(error.into()),
    }
}

/// Writes the report of a soak's record beside it, and returns where it is.
pub(super) fn write_of(folder: &Path) -> Result<PathBuf, Failure> {
    let lines = lines_of(folder)?;
    let path = folder.join(REPORT);
    lock::replace(&path, report::html(&lines).as_bytes())?;
    Ok(path)
}

/// The report of a soak that goes on, drawn by a process of its own: no cycle waits for it, and what it takes of memory, which grows with the
/// cycles, is none of the soak's.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    child: Option<Child>,
}

impl Drawing {
    /// Begins to draw it anew, unless the last one is still being drawn.
    ///
    /// # Errors
    /// Returns in words why it can't be drawn, or why it couldn't the last time.
    pub(super) fn begin(&mut self, folder: &Path) -> Result<(), String> {
        let failed = |why: String| format!("the report could not be drawn: {why}");
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => return Ok(()),
                Ok(Some(_)) => {}
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        let last = self.child.take().map(Child::wait_with_output);
        let child = Command::new("/proc/self/exe")
            .args([OsStr::new("soak"), OsStr::new("report"), OsStr::new("--out")])
            // Absolute: a name that begins with a dash is no option.
            .args([absolute(folder).join(REPORT), absolute(folder)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Away from a Ctrl-C, which is for the soak.
            .process_group(0)
            .spawn();
        self.child = Some(child.map_err(|error| failed(format!("start gpuvm: {error}")))?);
        match last {
            Some(Ok(output)) if !output.status.success() => {
                Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
            }
            Some(Err(error)) => Err(failed(error.to_string())),
            _ => Ok(()),
        }
    }
}

impl Drop for Drawing {
    /// Waits for it, so that it doesn't write over the last report, which the soak draws itself; not for one that hangs, on a file server that is gone.
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let begun = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                tracing::warn!("process {} goes on drawing a report of the soak", child.id());
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
