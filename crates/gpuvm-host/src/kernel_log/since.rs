//! What the kernel has said since a moment that a process of before noted: each record of its log has a number.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use gpuvm_core::pci::Bdf;
use gpuvm_core::reset::Heard;
use gpuvm_sys::access::open_nonblocking;
use serde::{Deserialize, Serialize};

use super::{message, named, path_to, read_on};
use crate::root::HostRoot;

/// A moment in the kernel's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The number of the first record that is said from then on.
    From(u64),
    /// The log couldn't be read then, for this reason.
    Unread(String),
}

/// What the kernel has said since a mark, of all devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since {
    root: HostRoot,
    said: Heard,
}

impl Mark {
    /// Notes this moment.
    pub fn now(root: &HostRoot) -> Self {
        match next_number(root) {
            Ok(number) => Self::From(number),
            Err(why) => Self::Unread(why),
        }
    }
}

/// A log that was read up to its end, and the number that its next record has.
struct Reader {
    path: PathBuf,
    file: File,
    next: u64,
}

/// The log as it was marked last. A record's number is known only by reading it, and the log is read anew record by record, some
/// thousands of them: who marks it again and again goes on where it was.
static LAST: Mutex<Option<Reader>> = Mutex::new(None);

/// Returns the number of the next record.
fn next_number(root: &HostRoot) -> Result<u64, String> {
    let path = root.path("/dev/kmsg");
    let told = |error| format!("{}: {error}", path.display());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reader = match last.take().filter(|reader| reader.path == path) {
        Some(reader) => reader,
        None => Reader { file: open_nonblocking(&path).map_err(told)?, path: path.clone(), next: 0 },
    };
    loop {
        let (text, _) = read_on(&mut reader.file).map_err(told)?;
        let text = String::from_utf8_lossy(&text);
        let Some(number) = text.lines().filter_map(numbered).next_back().map(|(number, _)| number) else {
            break;
        };
        reader.next = number + 1;
    }
    let next = reader.next;
    *last = Some(reader);
    Ok(next)
}

/// Reads a record's line with its number; none for a line of its dictionary.
pub(super) fn numbered(line: &str) -> Option<(u64, &str)> {
    Some((line.split(',').nth(1)?.parse().ok()?, message(line)?))
}

impl Since {
    /// Reads what was said since a mark of this boot, now.
    pub fn read(root: &HostRoot, mark: &Mark) -> Self {
        let said = match mark {
            Mark::From(first) => match records(root) {
                Ok(records) => since(*first, records),
                Err(why) => Heard::Deaf(why),
            },
            Mark::Unread(why) => Heard::Deaf(why.clone()),
        };
        Self { root: root.clone(), said }
    }

    /// Returns what was said of one function and of the bridges above it.
    pub fn of(&self, bdf: Bdf) -> Heard {
        let mut addresses = path_to(&self.root, bdf);
        addresses.push(bdf);
        let own = |lines: &[String]| -> Vec<String> {
            let own = |line: &&String| named(line).any(|found| found.is_any_of(&addresses));
            lines.iter().filter(own).cloned().collect()
        };
        match &self.said {
            Heard::Said(lines) => Heard::Said(own(lines)),
            Heard::Partly { lines, lost } => Heard::Partly { lines: own(lines), lost: lost.clone() },
            Heard::Deaf(why) => Heard::Deaf(why.clone()),
        }
    }
}

fn since(first: u64, records: Vec<(u64, String)>) -> Heard {
    let begins = records.first().map(|(number, _)| *number);
    let lines = records.into_iter().filter(|(number, _)| *number >= first).map(|(_, line)| line).collect();
    match begins {
        Some(begins) if begins > first => {
            let lost = format!("{} records that the kernel has overwritten since", begins - first);
            Heard::Partly { lines, lost }
        }
        _ => Heard::Said(lines),
    }
}

/// Reads the whole log, each record with its number.
fn records(root: &HostRoot) -> Result<Vec<(u64, String)>, String> {
    let path = root.path("/dev/kmsg");
    let told = |error| format!("{}: {error}", path.display());
    let mut file = open_nonblocking(&path).map_err(told)?;
    let (text, _) = read_on(&mut file).map_err(told)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(numbered).map(|(number, line)| (number, line.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kernel_log::KernelLog;

    const LINK: &str = "pcieport 0000:80:01.0: broken device, retraining non-functional downstream link";
    const FLR: &str = "vfio-pci 0000:81:00.0: not ready 1023ms after FLR; waiting";

    /// A host with a device below a port, and a log that begins at record 5.
    fn host() -> (tempfile::TempDir, HostRoot) {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        let device = root.path("/sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(root.path("/sys/bus/pci/devices")).unwrap();
        std::os::unix::fs::symlink(device, root.path("/sys/bus/pci/devices/0000:81:00.0")).unwrap();
        fs::create_dir_all(root.path("/dev")).unwrap();
        fs::write(root.path("/dev/kmsg"), "6,5,100,-;vfio-pci 0000:81:00.0: long before\n SUBSYSTEM=pci\n")
            .unwrap();
        (dir, root)
    }

    fn say(root: &HostRoot, number: u64, line: &str) {
        use std::io::Write;
        let mut file = fs::File::options().append(true).open(root.path("/dev/kmsg")).unwrap();
        writeln!(file, "4,{number},200,-;{line}\n DEVICE=+pci:0000:81:00.0").unwrap();
    }

    #[test]
    fn a_later_process_hears_what_was_said_of_a_device_and_its_port_since_the_mark() {
        let (_dir, root) = host();
        let mark = Mark::now(&root);
        for (number, line) in [(6, FLR), (7, "nvme 0000:02:00.0: resetting"), (8, LINK), (9, "usb 1-1: new")]
        {
            say(&root, number, line);
        }
        // As a file keeps it.
        let mark = serde_json::from_value(serde_json::to_value(mark).unwrap()).unwrap();
        let since = Since::read(&root, &mark);
        assert_eq!(since.of("0000:81:00.0".parse().unwrap()), Heard::Said(vec![FLR.into(), LINK.into()]));
        assert_eq!(since.of("0000:41:00.0".parse().unwrap()), Heard::Said(vec![]));
    }

    #[test]
    fn records_that_were_overwritten_meanwhile_are_said_to_be_lost() {
        let (_dir, root) = host();
        let mark = Mark::now(&root);
        fs::write(root.path("/dev/kmsg"), format!("4,20,300,-;{FLR}\n")).unwrap();
        match Since::read(&root, &mark).of("0000:81:00.0".parse().unwrap()) {
            Heard::Partly { lines, lost } => {
                assert_eq!(lines, [FLR]);
                assert!(lost.contains("14 records"), "{lost}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_log_that_is_taken_from_a_mark_on_hears_what_was_said_before_it_was_opened_and_after() {
        let (_dir, root) = host();
        let bdf = "0000:81:00.0".parse().unwrap();
        let mark = Mark::now(&root);
        say(&root, 6, FLR);
        let mut log = KernelLog::of_functions_since(&root, &[bdf], &mark);
        say(&root, 7, LINK);
        assert_eq!(log.heard(bdf), Heard::Said(vec![FLR.into(), LINK.into()]));
        // What has gone meanwhile is told.
        fs::write(root.path("/dev/kmsg"), format!("4,20,300,-;{FLR}\n")).unwrap();
        let heard = KernelLog::of_functions_since(&root, &[bdf], &mark).heard(bdf);
        assert!(
            matches!(&heard, Heard::Partly { lines, lost } if lines == &[FLR] && lost.contains("14 records")),
            "{heard:?}"
        );
        let deaf = Mark::Unread("no rights".to_owned());
        let heard = KernelLog::of_functions_since(&root, &[bdf], &deaf).heard(bdf);
        assert!(matches!(&heard, Heard::Partly { lost, .. } if lost == "no rights"), "{heard:?}");
    }

    #[test]
    fn a_host_whose_log_cant_be_read_is_deaf_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::new(dir.path());
        let heard = Since::read(&root, &Mark::now(&root)).of("0000:81:00.0".parse().unwrap());
        assert!(matches!(&heard, Heard::Deaf(why) if why.contains("kmsg")), "{heard:?}");
    }
}
