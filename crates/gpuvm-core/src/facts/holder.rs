//! What of the host sits on a device, and who uses it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A part of the host that sits on a device, or somebody who uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Holder {
    /// A mounted file system.
    Mount {
        /// The block device.
        device: String,
        /// Where it is mounted.
        target: String,
        /// The processes that have files of it open, run from it or stand in it.
        #[serde(default)]
        users: Users,
    },
    /// Swap space.
    Swap {
        /// The block device.
        device: String,
    },
    /// A block device that something else of the host has: a volume, an array, a pool, a mount in another namespace.
    BlockInUse {
        /// The block device.
        device: String,
    },
    /// A network interface that a route goes out by.
    Route {
        /// The interface.
        interface: String,
        /// Where the routes lead; the default route alone, where there is one.
        #[serde(default)]
        destinations: BTreeSet<String>,
    },
    /// A process that has a file of the device open.
    Process {
        /// The process.
        #[serde(flatten)]
        process: ProcessFacts,
        /// The files.
        files: BTreeSet<PathBuf>,
    },
    /// A process that has the device through VFIO: a virtual machine.
    Vfio {
        /// The process.
        #[serde(flatten)]
        process: ProcessFacts,
        /// The files.
        files: BTreeSet<PathBuf>,
        /// The VM of gpuvm's that it runs, where it is one.
        #[serde(default)]
        vm: Option<String>,
    },
    /// The host's text console, which is shown on a framebuffer of the device.
    Console {
        /// The framebuffer, as in `fb0`.
        framebuffer: String,
    },
}

/// What a holder means for whoever wants the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// The host can't do without the device.
    Critical,
    /// Somebody uses it now: taking it would hang until they are done.
    Busy,
    /// It can be taken all the same, and this is lost.
    Note,
}

impl Holder {
    /// Tells what the holder means for whoever wants the device.
    pub fn gravity(&self) -> Gravity {
        match self {
            Self::Mount { .. } | Self::Swap { .. } | Self::BlockInUse { .. } | Self::Route { .. } => {
                Gravity::Critical
            }
            Self::Process { .. } | Self::Vfio { .. } => Gravity::Busy,
            Self::Console { .. } => Gravity::Note,
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mount { device, target, users } => {
                write!(f, "{device} is mounted on {target}")?;
                if users.is_empty() { Ok(()) } else { write!(f, ", which {users}") }
            }
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::BlockInUse { device } => {
                write!(f, "{device} is in use (a volume, an array, a pool or a mount elsewhere)")
            }
            Self::Route { interface, destinations } => {
                write!(f, "{interface} carries {}", routes(destinations))
            }
            Self::Process { process, files } => write!(f, "process {process} has {} open", listed(files)),
            Self::Vfio { process, files, vm: Some(vm) } => {
                write!(f, "VM {vm} has it (process {process}, {})", listed(files))
            }
            Self::Vfio { process, files, vm: None } => {
                write!(f, "process {process} has {} open, as a virtual machine does", listed(files))
            }
            Self::Console { framebuffer } => {
                write!(f, "the host's text console is shown on {framebuffer}, and goes dark")
            }
        }
    }
}

/// The destination of a default route.
pub const DEFAULT_ROUTE: &str = "default";

fn routes(destinations: &BTreeSet<String>) -> String {
    if destinations.is_empty() || destinations.contains(DEFAULT_ROUTE) {
        return "the default route".to_owned();
    }
    let plural = if destinations.len() == 1 { "route" } else { "routes" };
    format!("the {plural} to {}", some_of(destinations.iter().cloned()))
}

fn listed(files: &BTreeSet<PathBuf>) -> String {
    some_of(files.iter().map(|file| file.display().to_string()))
}

/// Lists the first few, and counts the rest.
fn some_of(words: impl ExactSizeIterator<Item = String>) -> String {
    let more = words.len().saturating_sub(SHOWN);
    let shown: Vec<String> = words.take(SHOWN).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// How many of a list are named.
const SHOWN: usize = 4;

/// A process, by its number and its command's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// Its number.
    pub pid: i32,
    /// Its command's name, as the kernel keeps it (`comm`).
    pub command: String,
}

impl std::fmt::Display for ProcessFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.pid, self.command)
    }
}

/// Processes that use something: all are counted, and a few named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Users {
    /// How many there are.
    pub count: usize,
    /// Some of them, by number.
    pub some: Vec<ProcessFacts>,
}

impl Users {
    /// Counts processes and names the first few.
    pub fn of(processes: &BTreeSet<ProcessFacts>) -> Self {
        Self { count: processes.len(), some: processes.iter().take(SHOWN).cloned().collect() }
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl std::fmt::Display for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named: Vec<String> = self.some.iter().map(ToString::to_string).collect();
        let (named, more) = (named.join(", "), self.count.saturating_sub(self.some.len()));
        match (self.count, more) {
            (1, _) => write!(f, "process {named} uses"),
            (count, 0) => write!(f, "{count} processes use: {named}"),
            (count, more) => write!(f, "{count} processes use: {named} and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn process(pid: i32, command: &str) -> ProcessFacts {
        ProcessFacts { pid, command: command.to_owned() }
    }

    fn set<T: Ord + for<'a> From<&'a str>>(words: &[&str]) -> BTreeSet<T> {
        words.iter().map(|word| T::from(word)).collect()
    }

    fn mount(users: &[ProcessFacts]) -> Holder {
        let users = Users::of(&users.iter().cloned().collect());
        Holder::Mount { device: "/dev/sda1".to_owned(), target: "/srv".to_owned(), users }
    }

    fn route(destinations: &[&str]) -> Holder {
        Holder::Route { interface: "eth0".to_owned(), destinations: set(destinations) }
    }

    #[rstest]
    #[case(mount(&[]), "/dev/sda1 is mounted on /srv")]
    #[case(mount(&[process(7, "sh")]), "/dev/sda1 is mounted on /srv, which process 7 (sh) uses")]
    #[case(
        mount(&[process(9, "b"), process(7, "a")]),
        "/dev/sda1 is mounted on /srv, which 2 processes use: 7 (a), 9 (b)"
    )]
    #[case(
        mount(&[process(1, "a"), process(2, "b"), process(3, "c"), process(4, "d"), process(5, "e")]),
        "/dev/sda1 is mounted on /srv, which 5 processes use: 1 (a), 2 (b), 3 (c), 4 (d) and 1 more"
    )]
    #[case(route(&[]), "eth0 carries the default route")]
    #[case(route(&["default", "10.0.0.0/8"]), "eth0 carries the default route")]
    #[case(route(&["10.0.0.0/8"]), "eth0 carries the route to 10.0.0.0/8")]
    #[case(route(&["a", "b", "c", "d", "e", "f"]), "eth0 carries the routes to a, b, c, d and 2 more")]
    #[case(
        Holder::Process { process: process(7, "Xorg"), files: set(&["/dev/dri/card1", "/dev/fb0"]) },
        "process 7 (Xorg) has /dev/dri/card1, /dev/fb0 open"
    )]
    #[case(
        Holder::Vfio { process: process(7, "qemu"), files: set(&["/dev/vfio/16"]), vm: None },
        "process 7 (qemu) has /dev/vfio/16 open, as a virtual machine does"
    )]
    #[case(
        Holder::Vfio { process: process(7, "qemu"), files: set(&["/dev/vfio/16"]), vm: Some("a".to_owned()) },
        "VM a has it (process 7 (qemu), /dev/vfio/16)"
    )]
    fn a_holder_says_who_and_what(#[case] holder: Holder, #[case] words: &str) {
        assert_eq!(holder.to_string(), words);
    }

    #[test]
    fn holders_of_facts_that_were_written_before_users_and_destinations_are_read() {
        let text = r#"[{"kind": "mount", "device": "/dev/sda1", "target": "/srv"}, {"kind": "route", "interface": "eth0"}]"#;
        let holders: Vec<Holder> = serde_json::from_str(text).unwrap();
        assert_eq!(holders, [mount(&[]), route(&[])]);
    }
}
