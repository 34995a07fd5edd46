//! Takes down of this host what gpuvm reads of it, for plans elsewhere: `record-host > host.txt`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use gpuvm_e2e::record::{Scope, record};
use gpuvm_host::root::HostRoot;

const USAGE: &str = "\
usage: record-host [--scoped] [--remark TEXT]... [PROFILE...] > HOST.txt

Writes what gpuvm reads of this host's /sys, /proc and /dev as one text file: PCI devices, IOMMU groups, nodes, CPUs, hugepages,
firmware, and which mounts, swap spaces and routes rest on devices. It changes nothing, and wakes no device. Of files that the profiles
name it notes that they are there, and their size.

  --scoped       only the devices that the profiles concern, their groups and the bridges above them
  --remark TEXT  a line for the head of the file

Neither serial numbers nor network addresses nor the boot's id are in the file; the kernel's command line, mount points and names of
volumes are. Read it before you show it to anybody.
";

fn main() -> ExitCode {
    let mut scope = Scope::Host;
    let mut remarks = Vec::new();
    let mut profiles = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--scoped" => scope = Scope::Profiles,
            "--remark" => remarks.extend(args.next()),
            "-h" | "--help" => return print(USAGE),
            option if option.starts_with('-') => {
                return fail(&format!("unknown option {option}\n{USAGE}"), 64);
            }
            profile => profiles.push(PathBuf::from(profile)),
        }
    }
    match record(&HostRoot::default(), scope, &profiles) {
        Err(error) => fail(&error, 1),
        Ok(mut recording) => {
            recording.remarks = remarks;
            print(&recording.to_string())
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("write: {error}"), 1),
    }
}

fn fail(error: &str, code: u8) -> ExitCode {
    // Nobody is left to be told that standard error is gone.
    writeln!(std::io::stderr(), "record-host: {error}").ok();
    ExitCode::from(code)
}
