//! Recorded hosts: what gpuvm reads of a host in one text file, and laid out again below a temporary folder.
//!
//! They are in `tests/recorded-hosts`, taken down by `record-host`. A file holds remarks, then folders with what is in them:
//!
//! ```text
//! # An emulated host.
//!
//! [/sys/devices/pci0000:40/0000:40:00.0/0000:41:00.0]
//! class = 0x030000
//! driver -> ../../../../bus/pci/drivers/bochs-drm
//! resource:
//!     0x00000000c0000000 0x00000000c0ffffff 0x0000000000042208
//!     0x0000000000000000 0x0000000000000000 0x0000000000000000
//!
//! [/dev]
//! kvm (0 bytes)
//! ```
//!
//! `NAME = LINE` and `NAME:` with indented lines are text files, `->` is a link, and of a file in bytes only the size is kept: so
//! is a device node, with 0 bytes. A folder without entries is empty.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gpuvm_host::root::HostRoot;
use tempfile::TempDir;

/// What the lines of a text begin with.
const INDENT: &str = "    ";

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder.
    Folder,
    /// A file of whole lines.
    Text(String),
    /// A link with its target, relative or from the host's root on.
    Link(String),
    /// Something that is only known to be there, with its size.
    Bytes(u64),
}

/// A recorded host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recording {
    /// What a reader should know about the host, in lines.
    pub remarks: Vec<String>,
    /// What it holds, by folder and name.
    folders: BTreeMap<String, BTreeMap<String, Entry>>,
}

/// A recorded host that is laid out in files, until it is dropped.
#[derive(Debug)]
pub struct TempHost {
    dir: TempDir,
}

impl TempHost {
    /// Returns the prefix below which the host lies, as `--host-root` takes it.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the host.
    pub fn root(&self) -> HostRoot {
        HostRoot::new(self.dir.path())
    }

    /// Adds what the recording lacks, such as the disk that a profile names.
    ///
    /// # Errors
    /// Returns failures to write.
    pub fn put(&self, absolute: &str, entry: &Entry) -> io::Result<()> {
        let path = self.root().path(absolute);
        fs::create_dir_all(path.parent().unwrap_or(self.path()))?;
        entry.write(&self.root(), &path)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recorded-hosts")
}

/// Lists the recorded hosts in order.
///
/// # Errors
/// Returns failures to list their folder.
pub fn names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".txt").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Lays a recorded host out in files.
///
/// # Errors
/// Returns a name that none has, what is wrong with the recording, and failures to write.
pub fn lay_out(name: &str) -> io::Result<TempHost> {
    let path = folder().join(format!("{name}.txt"));
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("read {}: {error}", path.display())))?;
    let recording: Recording =
        text.parse().map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    recording.lay_out()
}

impl Recording {
    /// Adds what is at an absolute path of the host. A folder keeps what it holds.
    pub fn insert(&mut self, path: &str, entry: Entry) {
        let path = path.trim_end_matches('/');
        if entry == Entry::Folder {
            self.folders.entry(path.to_owned()).or_default();
            return;
        }
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.folders.entry(folder.to_owned()).or_default().insert(name.to_owned(), entry);
    }

    /// Writes the host below a temporary folder.
    ///
    /// # Errors
    /// Returns failures to write, with the path.
    pub fn lay_out(&self) -> io::Result<TempHost> {
        let host = TempHost { dir: tempfile::tempdir()? };
        let root = host.root();
        for (folder, entries) in &self.folders {
            let at = root.path(folder);
            let failed = |path: &Path, error: io::Error| {
                io::Error::new(error.kind(), format!("make {}: {error}", path.display()))
            };
            fs::create_dir_all(&at).map_err(|error| failed(&at, error))?;
            for (name, entry) in entries {
                let path = at.join(name);
                entry.write(&root, &path).map_err(|error| failed(&path, error))?;
            }
        }
        Ok(host)
    }
}

impl Entry {
    fn write(&self, root: &HostRoot, path: &Path) -> io::Result<()> {
        match self {
            Self::Folder => fs::create_dir_all(path),
            Self::Text(text) => fs::write(path, text),
            Self::Link(target) if target.starts_with('/') => symlink(root.path(target), path),
            Self::Link(target) => symlink(target, path),
            // Sparse: firmware images take no room.
            Self::Bytes(bytes) => fs::File::create(path)?.set_len(*bytes),
        }
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for remark in &self.remarks {
            writeln!(f, "# {remark}")?;
        }
        for (folder, entries) in &self.folders {
            writeln!(f, "\n[{folder}]")?;
            for (name, entry) in entries {
                match entry {
                    Entry::Folder => {}
                    Entry::Link(target) => writeln!(f, "{name} -> {target}")?,
                    Entry::Bytes(bytes) => writeln!(f, "{name} ({bytes} bytes)")?,
                    Entry::Text(text) => match one_line(text) {
                        Some(line) => writeln!(f, "{name} = {line}")?,
                        None => {
                            writeln!(f, "{name}:")?;
                            text.lines().try_for_each(|line| writeln!(f, "{INDENT}{line}"))?;
                        }
                    },
                }
            }
        }
        Ok(())
    }
}

/// Returns the only line of a text that has one.
fn one_line(text: &str) -> Option<&str> {
    text.strip_suffix('\n').filter(|line| !line.contains('\n'))
}

impl FromStr for Recording {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut recording = Self::default();
        let mut folder = None;
        let mut lines = (1..).zip(text.lines()).peekable();
        while let Some((number, line)) = lines.next() {
            if let Some(remark) = line.strip_prefix('#') {
                recording.remarks.push(remark.trim().to_owned());
            } else if let Some(path) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                recording.insert(path, Entry::Folder);
                folder = Some(path);
            } else if !line.is_empty() {
                let mut behind = String::new();
                while let Some((_, more)) = lines.next_if(|(_, line)| line.starts_with(INDENT)) {
                    behind.push_str(&more[INDENT.len()..]);
                    behind.push('\n');
                }
                let entry = entry(line, behind);
                let (folder, (name, entry)) = folder.zip(entry).ok_or(format!("line {number}: {line:?}"))?;
                recording.insert(&format!("{folder}/{name}"), entry);
            }
        }
        Ok(recording)
    }
}

/// Reads a line with the indented ones that follow it.
fn entry(line: &str, behind: String) -> Option<(&str, Entry)> {
    let size = |line: &str| line.strip_suffix(" bytes)")?.rsplit_once('(')?.1.parse().ok();
    let (link, text) = (line.find(" -> "), line.find(" = "));
    if let Some(at) = link.filter(|at| text.is_none_or(|text| *at < text)) {
        return Some((&line[..at], Entry::Link(line[at + 4..].to_owned())));
    }
    if let Some(at) = text {
        return Some((&line[..at], Entry::Text(format!("{}\n", &line[at + 3..]))));
    }
    if let Some(bytes) = size(line) {
        return Some((line.rsplit_once(" (")?.0, Entry::Bytes(bytes)));
    }
    Some((line.strip_suffix(':')?, Entry::Text(behind)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one_line(Entry::Text("0x030000\n".into()))]
    #[case::empty_line(Entry::Text("\n".into()))]
    #[case::no_line(Entry::Text(String::new()))]
    #[case::lines(Entry::Text("a = b\n\n\t-> c\n[d]\n# e\n".into()))]
    #[case::text_with_an_arrow(Entry::Text("a -> b (3 bytes)\n".into()))]
    #[case::link(Entry::Link("../../x = y".into()))]
    #[case::bytes(Entry::Bytes(3_653_632))]
    fn what_is_written_is_read_again(#[case] entry: Entry) {
        let mut recording = Recording { remarks: vec!["a remark".into()], ..Recording::default() };
        recording.insert("/sys/bus/pci/devices/0000:41:00.0/x", entry);
        recording.insert("/sys/empty", Entry::Folder);
        recording.insert("/sys/z", Entry::Bytes(0));
        assert_eq!(recording.to_string().parse(), Ok(recording));
    }

    #[rstest]
    #[case::no_folder("x = 1\n", "line 1")]
    #[case::no_entry("[/sys]\nx\n", "line 2")]
    #[case::no_size("[/sys]\nx (some bytes)\n", "line 2")]
    fn a_line_that_makes_no_sense_is_named(#[case] text: &str, #[case] place: &str) {
        let error = text.parse::<Recording>().unwrap_err();
        assert!(error.contains(place), "{error}");
    }

    #[test]
    fn links_lead_to_where_they_led_on_the_host() {
        let mut recording = Recording::default();
        recording.insert("/sys/devices/a/class", Entry::Text("1\n".into()));
        recording.insert("/sys/bus/a", Entry::Link("../devices/a".into()));
        recording.insert("/dev/b", Entry::Link("/sys/devices/a".into()));
        let host = recording.lay_out().unwrap();
        for link in ["/sys/bus/a/class", "/dev/b/class"] {
            assert_eq!(fs::read_to_string(host.root().path(link)).unwrap(), "1\n");
        }
    }
}
