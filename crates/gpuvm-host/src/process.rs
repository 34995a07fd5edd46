//! Processes by number and start time: numbers are used again.
//!
//! Always those of the machine that gpuvm runs on, even where the host's trees are below a prefix.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::HostError;

/// A process that can be told from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessId {
    /// Looks a process of this machine up, or returns `None` where there is none of that number.
    pub fn of(pid: i32) -> Option<Self> {
        let (_, start_time) = stat(&Path::new("/proc").join(pid.to_string()).join("stat"))?;
        Some(Self { pid, start_time })
    }

    /// Reads a process from what was its `/proc/PID/stat`; nothing from what is none, or only the beginning of one.
    pub fn from_stat(text: &str) -> Option<Self> {
        let pid = text.split_ascii_whitespace().next()?.parse().ok()?;
        // A number that was cut short would be another one.
        let (_, start_time) = state_and_start(text.strip_suffix('\n')?)?;
        Some(Self { pid, start_time })
    }

    /// Returns this process.
    pub fn own() -> Self {
        let pid = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        Self::of(pid).unwrap_or(Self { pid, start_time: 0 })
    }

    /// Tells whether the process is there, and not on its way out: one that was killed may hold its devices for long, but nothing goes on in it.
    pub fn goes_on(self) -> bool {
        let folder = Path::new("/proc").join(self.pid.to_string());
        let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        self.is_alive() && !is_ending(&stat, &status)
    }

    /// Tells whether the process still holds anything.
    ///
    /// After a SIGKILL the leader may be a zombie while another thread sits in the kernel and holds the VFIO group, so a
    /// process counts as gone only when no thread of it is left that isn't dead.
    pub fn is_alive(self) -> bool {
        let tasks = Path::new("/proc").join(self.pid.to_string());
        match stat(&tasks.join("stat")) {
            Some((_, start_time)) if start_time == self.start_time => {}
            _ => return false,
        }
        let Ok(tasks) = fs::read_dir(tasks.join("task")) else { return false };
        tasks
            .flatten()
            .filter_map(|task| stat(&task.path().join("stat")))
            .any(|(state, _)| !matches!(state, 'Z' | 'X'))
    }
}

/// Tells from `/proc/PID/stat` and `/proc/PID/status` whether a process is on its way out.
fn is_ending(stat: &str, status: &str) -> bool {
    /// `PF_EXITING` (include/linux/sched.h): do_exit has begun.
    const EXITING: u64 = 4;
    const SIGKILL: u64 = 1 << 8;
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or(0);
    let dead = matches!(fields.first(), Some(&("Z" | "X")));
    let pending = status.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    dead || flags & EXITING != 0 || pending.fold(0, |all, mask| all | mask) & SIGKILL != 0
}

/// Tells whether a thread of a process waits in the kernel in a way that no signal ends, as in a reset.
pub fn waits_in_kernel(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")) else { return false };
    tasks.flatten().filter_map(|task| stat(&task.path().join("stat"))).any(|(state, _)| state == 'D')
}

/// Describes a process of ours that hangs: its state and where in the kernel it waits.
pub fn describe(pid: i32) -> String {
    describe_task(&Path::new("/proc").join(pid.to_string()))
}

/// Describes the threads of a process that are left, zombies aside: after a SIGKILL the leader is one at once, while others
/// may sit in the kernel.
pub fn describe_threads(pid: i32) -> String {
    let Ok(tasks) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")) else {
        return "it is gone".to_owned();
    };
    let alive = |task: &std::path::PathBuf| stat(&task.join("stat")).is_some_and(|(state, _)| state != 'Z');
    let words: Vec<String> =
        tasks.flatten().map(|task| task.path()).filter(alive).map(|t| describe_task(&t)).collect();
    words.join("; ")
}

fn describe_task(folder: &Path) -> String {
    let state = stat(&folder.join("stat")).map_or('?', |(state, _)| state);
    let wchan = fs::read_to_string(folder.join("wchan")).unwrap_or_default();
    match wchan.trim() {
        "" | "0" => format!("state {state}"),
        wchan => format!("state {state}, waiting in {wchan}"),
    }
}

/// A process that has a file open.
#[derive(Debug)]
pub(crate) struct Opener {
    /// Its number.
    pub(crate) pid: i32,
    /// Its folder below /proc.
    folder: PathBuf,
}

impl Opener {
    /// Reads its command's name; empty once it has ended.
    pub(crate) fn name(&self) -> String {
        fs::read_to_string(self.folder.join("comm")).unwrap_or_default().trim().to_owned()
    }
}

/// Reads the name of a process's command; empty once it has ended.
pub(crate) fn name(pid: i32) -> String {
    Opener { pid, folder: Path::new("/proc").join(pid.to_string()) }.name()
}

/// Shows each file that a process of this machine has open, of those that can be seen from here, and returns the first
/// answer.
///
/// # Errors
/// Returns that the processes can't be listed: then it isn't known that nobody has a file open.
pub(crate) fn find_open<T>(answer: impl Fn(&Opener, &Path) -> Option<T>) -> Result<Option<T>, HostError> {
    find_open_below(Path::new("/proc"), answer)
}

/// Shows each file that processes of some names have open, and returns all answers: only the names of the others are looked at.
///
/// # Errors
/// Returns that the processes can't be listed.
pub(crate) fn all_open<N, T>(
    named: impl Fn(&str) -> Option<N>,
    answer: impl Fn(&Opener, &N, &Path) -> Option<T>,
) -> Result<Vec<T>, HostError> {
    let proc = Path::new("/proc");
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(HostError::file("list", proc))? {
        let folder = entry.map_err(HostError::file("list", proc))?.path();
        let number = folder.file_name().and_then(OsStr::to_str).and_then(|name| name.parse().ok());
        let Some(opener) = number.map(|pid| Opener { pid, folder }) else { continue };
        let Some(name) = named(&opener.name()) else { continue };
        let Ok(fds) = fs::read_dir(opener.folder.join("fd")) else { continue };
        let files = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        found.extend(files.filter_map(|file| answer(&opener, &name, &file)));
    }
    Ok(found)
}

fn find_open_below<T>(
    proc: &Path,
    answer: impl Fn(&Opener, &Path) -> Option<T>,
) -> Result<Option<T>, HostError> {
    for entry in fs::read_dir(proc).map_err(HostError::file("list", proc))? {
        let folder = entry.map_err(HostError::file("list", proc))?.path();
        let name = folder.file_name().and_then(OsStr::to_str);
        let Some(pid) = name.and_then(|name| name.parse().ok()) else { continue };
        let opener = Opener { pid, folder };
        // A process that ends while it is looked at has nothing open.
        let Ok(fds) = fs::read_dir(opener.folder.join("fd")) else { continue };
        let mut files = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        if let Some(found) = files.find_map(|file| answer(&opener, &file)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Reads state and start time. The command's name, in parentheses, may hold spaces and parentheses itself.
fn stat(path: &Path) -> Option<(char, u64)> {
    state_and_start(&fs::read_to_string(path).ok()?)
}

fn state_and_start(text: &str) -> Option<(char, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Looks who has a device open among the processes below a folder.
    fn opener(proc: &Path) -> Result<Option<(i32, String)>, HostError> {
        let of = |opener: &Opener, file: &Path| {
            (file == Path::new("/dev/vfio/7")).then(|| (opener.pid, opener.name()))
        };
        find_open_below(proc, of)
    }

    #[test]
    fn who_has_a_file_open_is_found_past_processes_that_vanish() {
        let proc = tempfile::tempdir().unwrap();
        for folder in ["self/fd", "5", "6/fd", "7/fd"] {
            fs::create_dir_all(proc.path().join(folder)).unwrap();
        }
        symlink("/dev/vfio/7", proc.path().join("self/fd/3")).unwrap();
        symlink("/dev/vfio/8", proc.path().join("6/fd/3")).unwrap();
        assert_eq!(opener(proc.path()).unwrap(), None);
        symlink("/dev/vfio/7", proc.path().join("7/fd/3")).unwrap();
        fs::write(proc.path().join("7/comm"), "qemu\n").unwrap();
        assert_eq!(opener(proc.path()).unwrap(), Some((7, "qemu".to_owned())));
    }

    #[test]
    fn processes_that_cannot_be_listed_are_not_taken_for_none() {
        let proc = tempfile::tempdir().unwrap().path().join("gone");
        let error = opener(&proc).unwrap_err();
        assert!(matches!(&error, HostError::File { doing: "list", path, .. } if *path == proc), "{error}");
    }

    #[test]
    fn a_process_that_was_killed_or_has_begun_to_exit_is_on_its_way_out() {
        let stat = |state: &str, flags: u32| format!("7 (q) e) {state} 1 7 7 0 -1 {flags} 0 0");
        let status =
            |own: &str, shared: &str| format!("Name:\tq\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t100\n");
        let (none, kill) = ("0000000000000000", "0000000000000100");
        assert!(!is_ending(&stat("S", 4_194_560), &status(none, none)));
        assert!(!is_ending(&stat("D", 4_194_560), &status(none, "0000000000004000")));
        assert!(is_ending(&stat("D", 4_194_564), &status(none, none)));
        assert!(is_ending(&stat("Z", 4_194_560), &status(none, none)));
        assert!(is_ending(&stat("D", 4_194_560), &status(kill, none)));
        assert!(is_ending(&stat("R", 4_194_560), &status(none, kill)));
        assert!(ProcessId::own().goes_on());
    }

    #[test]
    fn this_process_is_alive_and_one_with_another_start_time_is_not() {
        let own = ProcessId::own();
        assert!(own.is_alive());
        assert!(!ProcessId { start_time: own.start_time + 1, ..own }.is_alive());
    }

    #[test]
    fn a_process_is_read_from_the_record_that_it_has_written_of_itself() {
        let own = ProcessId::own();
        let text = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(ProcessId::from_stat(&text), Some(own));
        for cut in ["", "17", "17 (gpuvm) S 1", text.trim_end()] {
            assert_eq!(ProcessId::from_stat(cut), None, "{cut}");
        }
    }

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        let numbers: Vec<String> = (4..=30).map(|n| n.to_string()).collect();
        fs::write(&path, format!("7 (a) b) S {}", numbers.join(" "))).unwrap();
        assert_eq!(stat(&path), Some(('S', 22)));
    }
}
