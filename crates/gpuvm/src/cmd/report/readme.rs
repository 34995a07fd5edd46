//! What a report says of itself.

/// Writes the README of a report.
pub(super) fn readme(redacted: bool) -> String {
    let taken_out = if redacted { REDACTED } else { WHOLE };
    format!("{CONTENT}\n{taken_out}\n{REPLAY}")
}

const CONTENT: &str = "\
A report of gpuvm: what it saw of one host. Nothing in it was changed for it.

versions.json   gpuvm, the form of the facts, the kernel, when it was made
facts.json      everything that gpuvm decides by: devices, groups, nodes, drivers, files that the profile names
doctor.*        what gpuvm doctor finds in these facts
devices.txt     what can be passed of this host, and why what can't, can't
topology.txt    nodes, ports, groups and devices as a tree
profile.toml    the profile that the report was asked for; profile.set: what was set beside it; profile.lock: its lock
plan.*          what would be done for it, or refusals.json: why not
argv.txt        the command line of QEMU for it
gpuvm/          journals, reservations, claims and kept plans of the VMs that run, or were left behind; ledger/: what was
                done with each device and how it came back
logs/           the ends of QEMU's messages and of consoles, of the last two runs of each VM
kernel.log      the kernel's lines about VFIO, IOMMUs, errors of PCI Express and PCI functions
unread.txt      what couldn't be read, and why
Where a file isn't there, there was nothing to put in it.
";

const WHOLE: &str = "\
Nothing was taken out: it holds the host's name, paths, serial numbers, and whatever guests have printed. Read it before you
make it public, or make another: gpuvm report --redact.
";

const REDACTED: &str = "\
Names of hosts, of users and their home folders, of disks and of folders that the profile and mounts name, addresses of networks, serial
numbers, UUIDs, ids of the machine and the boot, and values of passwords and keys were replaced. The same thing has the same
stand-in in all files. Consoles were left out. What has no form to be known by, such as a name in a log, is still there: read it
before you make it public.
";

const REPLAY: &str = "\
To see on any machine what gpuvm says on that one:

    gpuvm doctor --facts REPORT.tar.gz
    gpuvm devices --facts REPORT.tar.gz
    gpuvm topology --facts REPORT.tar.gz
    gpuvm plan --facts REPORT.tar.gz profile.toml
";
