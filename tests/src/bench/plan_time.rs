//! How long a plan takes: reading the host and deciding, on hosts of files.
//!
//! A file system answers faster than sysfs, whose attributes are made when they are read; so the number of system calls matters more than
//! the time, and what must not happen is that it grows with devices that the profile doesn't name.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gpuvm_core::plan::plan;
use gpuvm_core::profile::{Profile, Sources, parse};
use gpuvm_host::facts;
use gpuvm_testkit::fake_host::{FakeDevice, FakeHost, gpu};
use serde::Serialize;

use super::figures::Figures;
use super::{Result, doing};

/// The cards, four a node, each with its audio function in a group of its own.
const CARDS: [[&str; 2]; 8] = [
    ["0000:41:00.0", "0000:41:00.1"],
    ["0000:42:00.0", "0000:42:00.1"],
    ["0000:43:00.0", "0000:43:00.1"],
    ["0000:44:00.0", "0000:44:00.1"],
    ["0000:81:00.0", "0000:81:00.1"],
    ["0000:82:00.0", "0000:82:00.1"],
    ["0000:83:00.0", "0000:83:00.1"],
    ["0000:84:00.0", "0000:84:00.1"],
];
/// The network card whose virtual functions there are.
const PHYSICAL: &str = "0000:a1:00.0";
/// The first group of the virtual functions.
const FIRST_GROUP: u32 = 100;

/// A host to plan on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// How many cards it has and the profile asks for, at most 8.
    pub gpus: usize,
    /// How many virtual functions of a network card it has.
    pub vfs: usize,
}

/// The hosts that are measured.
pub const SIZES: [Size; 3] =
    [Size { gpus: 1, vfs: 0 }, Size { gpus: 8, vfs: 0 }, Size { gpus: 8, vfs: 10_000 }];

/// What a plan took.
#[derive(Debug, Serialize)]
pub struct PlanTime {
    /// The host.
    #[serde(flatten)]
    pub size: Size,
    /// Reading the facts.
    pub facts: Figures,
    /// Deciding.
    pub plan: Figures,
    /// The whole of `gpuvm plan`, from the start of the process to its end.
    pub process: Figures,
    /// The whole of `gpuvm doctor` for the same profile.
    pub doctor: Figures,
}

/// Makes a host of files.
pub fn host(size: Size) -> FakeHost {
    let host = FakeHost::new();
    for (group, [card, audio]) in (1..).zip(CARDS.into_iter().take(size.gpus)) {
        let node = i32::from(group > 4);
        host.device(&gpu(card, group, node));
        host.device(&FakeDevice { class: 0x04_0300, ..gpu(audio, group, node) });
    }
    host.file("/usr/bin/qemu-system-x86_64", "");
    if size.vfs > 0 {
        host.device(&FakeDevice { class: 0x02_0000, driver: Some("mlx5_core"), ..gpu(PHYSICAL, 99, 1) });
        host.file(&format!("/sys/bus/pci/devices/{PHYSICAL}/sriov_numvfs"), format!("{}\n", size.vfs));
    }
    for index in 0..size.vfs {
        virtual_function(&host, index);
    }
    host
}

/// Adds a virtual function, in a group of its own, as a driver of a network card makes them.
fn virtual_function(host: &FakeHost, index: usize) {
    let (bus, slot, function) = (index / 256, index / 8 % 32, index % 8);
    let bdf = format!("0001:{bus:02x}:{slot:02x}.{function}");
    let group = FIRST_GROUP as usize + index;
    let real = format!("/sys/devices/pci0001:00/{bdf}");
    for (name, text) in [
        ("vendor", "0x15b3\n"),
        ("device", "0x101e\n"),
        ("class", "0x020000\n"),
        ("numa_node", "1\n"),
        ("driver_override", "(null)\n"),
        ("reset_method", "flr\n"),
        ("resource", "0x0000020000000000 0x00000200000fffff 0x000000000014220c\n"),
        ("revision", "0x00\n"),
        ("subsystem_device", "0x0058\n"),
        ("subsystem_vendor", "0x15b3\n"),
    ] {
        host.file(&format!("{real}/{name}"), text);
    }
    host.link(&format!("{real}/driver"), "/sys/bus/pci/drivers/mlx5_core");
    host.link(&format!("{real}/physfn"), &format!("/sys/bus/pci/devices/{PHYSICAL}"));
    host.link(&format!("/sys/bus/pci/devices/{bdf}"), &real);
    host.link(&format!("/sys/kernel/iommu_groups/{group}/devices/{bdf}"), &real);
    host.link(&format!("{real}/iommu_group"), &format!("/sys/kernel/iommu_groups/{group}"));
}

/// Spells a profile that asks for the host's cards, without pinning: that wouldn't take cards of two nodes.
pub fn profile_text(size: Size) -> String {
    let mut text = String::from(
        "version = 1\nname = \"bench\"\nfirmware = \"bios\"\n[memory]\nsize = \"1G\"\n[cpu]\ncount = 2\npin = \"off\"\n",
    );
    for [card, _] in CARDS.into_iter().take(size.gpus) {
        text.push_str(&format!("[[device]]\nbdf = \"{card}\"\n"));
    }
    text
}

/// Parses such a profile.
///
/// # Errors
/// What is wrong with it.
pub fn profile(size: Size) -> Result<Profile> {
    parse(&Sources::new("bench.toml", profile_text(size)), Path::new("/"))
        .map_err(|problems| format!("{problems:?}"))
}

/// Plans many times on a host.
///
/// # Errors
/// A host that can't be read, and a plan that is refused.
pub fn measure(gpuvm: &Path, size: Size, runs: usize) -> Result<PlanTime> {
    let host = host(size);
    let profile = profile(size)?;
    let file = host.path("/bench.toml");
    std::fs::write(&file, profile_text(size)).map_err(doing("write the profile"))?;
    let [mut reading, mut deciding, mut processes, mut examining] = [const { Vec::new() }; 4];
    // The first of each fills the caches and doesn't count.
    for run in 0..=runs {
        let begun = Instant::now();
        let facts = facts::read(&host.root(), &profile).map_err(|error| error.to_string())?;
        let read = begun.elapsed();
        let begun = Instant::now();
        plan(&profile, &facts).map_err(|refusals| format!("{refusals:?}"))?;
        let decided = begun.elapsed();
        // A host of files has no firmware and no memory to speak of, so that the doctor finds it unfit: EX_UNAVAILABLE.
        let process = run_verb(gpuvm, "plan", &host, &file, &[0])?;
        let doctor = run_verb(gpuvm, "doctor", &host, &file, &[0, 69])?;
        if run > 0 {
            reading.push(read);
            deciding.push(decided);
            processes.push(process);
            examining.push(doctor);
        }
    }
    let figures = [reading, deciding, processes, examining].map(|times| Figures::of(&times));
    let [facts, plan, process, doctor] = figures;
    Ok(PlanTime { size, facts, plan, process, doctor })
}

fn run_verb(gpuvm: &Path, verb: &str, host: &FakeHost, profile: &Path, codes: &[i32]) -> Result<Duration> {
    let mut command = Command::new(gpuvm);
    command.args([verb, "--host-root"]).arg(host.path("/")).arg(profile).env("PATH", "/usr/bin:/bin");
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.map_err(doing("start gpuvm"))?;
    let took = begun.elapsed();
    let ended = status.code().is_some_and(|code| codes.contains(&code));
    if ended { Ok(took) } else { Err(format!("gpuvm {verb} ended with {status}")) }
}
