//! `gpuvm logs`: what a guest, its QEMU or its gpuvm said, also of a VM that has ended.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use gpuvm_core::profile::VmName;
use gpuvm_core::standing::Standing;
use gpuvm_host::standing;
use gpuvm_run::detach::SUPERVISOR_LOG;
use serde_json::json;

use super::events;
use crate::asked;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::hints;
use crate::out::{self, Reader};

/// The file of what has happened.
pub(crate) const EVENTS: &str = "events.jsonl";
/// Between looks at a file that is followed.
const LOOK: Duration = Duration::from_millis(200);
/// Between looks whether its VM is still up.
const STILL_UP: Duration = Duration::from_secs(1);

/// What `logs` takes.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The VM
    vm: VmName,

    /// Go on with what is said, until the VM is down
    #[arg(short, long)]
    follow: bool,

    /// Which log
    #[arg(long, value_enum, default_value = "console")]
    which: Which,

    /// Only so many of its last lines
    #[arg(long, value_name = "LINES")]
    last: Option<usize>,
}

/// A log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// The guest's serial port
    Console,
    /// QEMU's command line, and what it said
    Qemu,
    /// What has happened
    Events,
    /// What the gpuvm of a detached VM said
    Supervisor,
}

impl Which {
    fn file(self) -> &'static str {
        match self {
            Self::Console => "console.log",
            Self::Qemu => "qemu.log",
            Self::Events => EVENTS,
            Self::Supervisor => SUPERVISOR_LOG,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Qemu => "qemu",
            Self::Events => "events",
            Self::Supervisor => "supervisor",
        }
    }
}

/// Returns the folder of a VM's logs.
///
/// # Errors
/// Returns that there is no such VM, and none of this name has ever run.
pub(super) fn folder(cli: &Cli, vm: &VmName) -> Result<PathBuf, Failure> {
    let folder = cli.places().logs(vm);
    match folder.is_dir() {
        true => Ok(folder),
        false => asked::known(cli, vm).map(|_| folder),
    }
}

/// Says that a log can't be read.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::Permission,
        _ => Exit::Unfit,
    };
    Failure::one(code, format!("read {}: {error}", path.display()), None)
}

pub(super) fn run(cli: &Cli, args: &LogsArgs) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    let path = folder(cli, &args.vm)?.join(args.which.file());
    let failed = |error: io::Error| unreadable(&path, &error);
    let mut log = Followed::open(&path).map_err(failed)?;
    let mut shown = Shown { cli, which: args.which, part: Vec::new() };
    let whole = log.more().map_err(failed)?;
    let reader = shown.add(last(&whole, args.last))?;
    if args.follow && reader == Reader::There {
        let boot_id = gpuvm_host::facts::boot_id(&cli.host_root())?;
        if standing::of(&cli.places(), &boot_id, &args.vm).standing == Standing::Unsupervised {
            out::note(&format!("gpuvm: VM {} has no gpuvm that would write its log", args.vm));
            hints::unsupervised(args.vm.as_str())
                .lines()
                .for_each(|hint| out::note(&format!("  hint: {hint}")));
        }
        let mut looked = Instant::now();
        let mut up = Up::Yes;
        loop {
            let more = log.more().map_err(failed)?;
            if shown.add(&more)? == Reader::Gone {
                return Ok(Exit::Ok);
            }
            match up {
                // What came between the last look and the end is shown by now.
                Up::No if more.is_empty() => break,
                Up::No => continue,
                Up::Yes => {}
            }
            std::thread::sleep(LOOK);
            if looked.elapsed() >= STILL_UP {
                looked = Instant::now();
                let standing = standing::of(&cli.places(), &boot_id, &args.vm).standing;
                let runs = standing.has_supervisor() || standing == Standing::Unsupervised;
                up = if runs { Up::Yes } else { Up::No };
            }
        }
    }
    shown.finish()?;
    Ok(Exit::Ok)
}

/// Whether anybody writes to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Up {
    Yes,
    No,
}

/// Returns the last lines of a text; all of it where none are counted.
fn last(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return text };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let from = match lines {
        0 => text.len(),
        lines => ends.nth(lines - 1).unwrap_or(0),
    };
    text.get(from..).unwrap_or_default()
}

/// A log that is read on, past the point at which it is put aside.
struct Followed {
    path: PathBuf,
    file: Option<File>,
}

impl Followed {
    /// Opens a log; one that isn't there yet may come.
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)? })
    }

    /// Reads what has come since.
    fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            // One that was begun anew in place is shorter than what was read.
            if file.metadata()?.len() < file.stream_position()? {
                file.seek(SeekFrom::Start(0))?;
            }
            file.read_to_end(&mut bytes)?;
        }
        // It is read to its end before that by its name is looked at: nothing is written to it once it was put aside.
        let now = open(&self.path)?;
        let same = match (&self.file, &now) {
            (Some(old), Some(new)) => old.metadata()?.ino() == new.metadata()?.ino(),
            (_, None) => true,
            (None, Some(_)) => false,
        };
        if !same {
            if let Some(old) = &mut self.file {
                old.read_to_end(&mut bytes)?;
            }
            self.file = now;
            if let Some(new) = &mut self.file {
                new.read_to_end(&mut bytes)?;
            }
        }
        Ok(bytes)
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A log on its way to standard output.
struct Shown<'a> {
    cli: &'a Cli,
    which: Which,
    /// A line that has not ended.
    part: Vec<u8>,
}

impl Shown<'_> {
    fn add(&mut self, bytes: &[u8]) -> Result<Reader, Failure> {
        // A guest's bytes are shown as they come, a prompt that ends no line among them.
        if !self.cli.json && self.which != Which::Events {
            return out::stream(bytes);
        }
        let mut lines = String::new();
        self.part.extend_from_slice(bytes);
        let whole = self.part.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in self.part.drain(..whole).collect::<Vec<_>>().split_inclusive(|byte| *byte == b'\n') {
            lines.push_str(&self.line(line));
        }
        out::stream(lines.as_bytes())
    }

    fn finish(&mut self) -> Result<Reader, Failure> {
        let rest = std::mem::take(&mut self.part);
        if rest.is_empty() { Ok(Reader::There) } else { out::stream(self.line(&rest).as_bytes()) }
    }

    fn line(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\n', '\r']);
        match self.which {
            Which::Events => events::shown(self.cli, text),
            which => format!("{}\n", json!({ "log": which.name(), "line": text })),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends at the first thing that goes wrong")]
mod tests {
    use std::fs;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a\nb\nc\n", None, "a\nb\nc\n")]
    #[case("a\nb\nc\n", Some(2), "b\nc\n")]
    #[case("a\nb\nc", Some(2), "b\nc")]
    #[case("a\nb\n", Some(5), "a\nb\n")]
    #[case("a\nb\n", Some(0), "")]
    #[case("", Some(3), "")]
    fn the_last_lines_are_counted_from_the_end(
        #[case] text: &str,
        #[case] lines: Option<usize>,
        #[case] expected: &str,
    ) {
        assert_eq!(last(text.as_bytes(), lines), expected.as_bytes());
    }

    #[test]
    fn a_log_is_followed_past_its_being_put_aside_and_before_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Followed::open(&path).unwrap();
        assert_eq!(log.more().unwrap(), b"");
        fs::write(&path, "one\n").unwrap();
        assert_eq!(log.more().unwrap(), b"one\n");
        let mut old = File::options().append(true).open(&path).unwrap();
        io::Write::write_all(&mut old, b"two\n").unwrap();
        fs::rename(&path, dir.path().join("console.log.1")).unwrap();
        assert_eq!(log.more().unwrap(), b"two\n");
        fs::write(&path, "three\n").unwrap();
        assert_eq!(log.more().unwrap(), b"three\n");
        assert_eq!(log.more().unwrap(), b"");
    }
}
