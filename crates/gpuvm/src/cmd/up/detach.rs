//! `gpuvm up --detach`: starts a gpuvm that goes on by itself, and returns with what it says.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuvm_core::profile::VmName;
use gpuvm_host::lock;
use gpuvm_run::detach::{Detached, Heard, SUPERVISOR_LOG};
use serde::Serialize;

use super::word::Word;
use crate::cli::{Cli, UpArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, load, out};

/// How many lines of its log are shown of a gpuvm that ended without a word.
const LINES: usize = 15;

/// A VM that has a gpuvm which goes on by itself, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Ready {
    pub(crate) name: VmName,
    pub(crate) supervisor: u32,
    pub(crate) qemu: Option<i32>,
    pub(crate) log: PathBuf,
}

/// What a gpuvm that goes on by itself has said.
#[derive(Debug)]
pub(crate) enum Said {
    /// What was waited for is there.
    Ready(Ready),
    /// The guest has ended before, with the exit code that a gpuvm in the foreground had ended with.
    Ended(Exit),
}

impl Ready {
    /// Names its processes.
    pub(crate) fn processes(&self) -> String {
        let qemu = self.qemu.map(|pid| format!(", QEMU process {pid}")).unwrap_or_default();
        format!("{}{qemu}", self.supervisor)
    }
}

pub(super) fn run(cli: &Cli, args: &UpArgs) -> Result<Exit, Failure> {
    // A profile that is wrong is told here, with its lines.
    let loaded = load::profile(cli, &args.profile)?;
    let name = &loaded.profile.name;
    let shutdown =
        Duration::from_secs(args.shutdown_timeout.unwrap_or(loaded.profile.shutdown_timeout).into());
    let arguments = |fd| arguments(std::env::args_os(), fd);
    match start(cli, name, (args.wait_timeout, shutdown), arguments)? {
        Said::Ready(ready) if cli.json => out::json(&ready)?,
        Said::Ready(ready) => out::text(&format!("{name} is up (gpuvm process {})\n", ready.processes()))?,
        Said::Ended(exit) => {
            let code = if exit == Exit::Ok { Exit::Guest } else { exit };
            let log = last(&cli.places().logs(name).join(SUPERVISOR_LOG));
            let message = format!("the guest of VM {name} has ended before it was ready{log}");
            return Err(Failure::one(code, message, Some(hints::without_a_word(name))));
        }
    }
    Ok(Exit::Ok)
}

/// Starts a gpuvm for a VM with arguments that are made of the number of its socket, and waits so long for its word. The second time is how long
/// the guest may take to power off.
pub(crate) fn start(
    cli: &Cli,
    name: &VmName,
    (within, shutdown): (Duration, Duration),
    arguments: impl FnOnce(i32) -> Vec<OsString>,
) -> Result<Said, Failure> {
    let folder = cli.places().logs(name);
    lock::make_dir(&folder)?;
    let log = folder.join(SUPERVISOR_LOG);
    let failed = |error: std::io::Error| {
        Failure::one(Exit::Internal, format!("start a gpuvm that goes on by itself: {error}"), None)
    };
    let detached = Detached::start(name, shutdown, &log, arguments).map_err(failed)?;
    let pid = detached.pid();
    match detached.hear(within).map_err(failed)? {
        Heard::Word(word) => heard(name, log, &word),
        Heard::Ended(status) => {
            let how = status.map_or("hung up".to_owned(), |status| format!("ended with {status}"));
            let message =
                format!("the gpuvm of VM {name} (process {pid}) {how} without a word{}", last(&log));
            Err(Failure::one(Exit::Internal, message, Some(hints::without_a_word(name))))
        }
        Heard::Nothing => {
            let seconds = within.as_secs();
            let message = format!(
                "VM {name} is not ready after {seconds} s; it goes on by itself (gpuvm process {pid})"
            );
            Err(Failure::one(Exit::Timeout, message, Some(hints::not_ready(name, &log))))
        }
    }
}

fn heard(name: &VmName, log: PathBuf, word: &str) -> Result<Said, Failure> {
    match serde_json::from_str(word) {
        Ok(Word::Ready { supervisor, qemu }) => {
            Ok(Said::Ready(Ready { name: name.clone(), supervisor, qemu, log }))
        }
        Ok(Word::Failed { exit_code, items }) => {
            Err(Failure::of(Exit::of(exit_code).unwrap_or(Exit::Internal), items))
        }
        Ok(Word::Ended { exit_code }) => Ok(Said::Ended(Exit::of(exit_code).unwrap_or(Exit::Internal))),
        Err(error) => Err(Failure::one(
            Exit::Internal,
            format!("the gpuvm of VM {name} says an odd word: {error}"),
            None,
        )),
    }
}

/// Returns the words of the command line for the one that goes on: its log is for people.
fn arguments(own: impl IntoIterator<Item = OsString>, fd: i32) -> Vec<OsString> {
    let mut words: Vec<OsString> = own.into_iter().skip(1).filter(|word| word != "--json").collect();
    // Before the profile's path, which may come after `--`.
    let at = words.iter().position(|word| word == "--detach").unwrap_or(words.len());
    words.insert(at, OsString::from(format!("--word-fd={fd}")));
    words
}

/// Returns the end of a log, as lines below others.
fn last(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let lines = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_goes_on_is_told_its_socket_and_speaks_to_people() {
        let words = ["gpuvm", "--json", "up", "--detach", "--wait", "none", "--", "a b.toml"];
        let words = arguments(words.map(OsString::from), 7);
        assert_eq!(words, ["up", "--word-fd=7", "--detach", "--wait", "none", "--", "a b.toml"]);
    }
}
