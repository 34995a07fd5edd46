//! The init of the lab guest: PID 1 of the machine that `gpuvm up` starts in the lab.
//!
//! It reports what it sees and what the devices passed through to it do, as one JSON line on the serial console, and powers off. Nothing in the
//! report is canned: each number is read from a device or the kernel. The kernel command line steers it (see [`cmdline`]).

mod button;
mod cmdline;
mod edu;
mod job;
mod nodes;
mod nvme;
mod pci;
mod report;
mod system;
mod talk;

use cmdline::Options;
use report::Report;
use system::Console;

fn main() {
    let mut errors = Vec::new();
    let note = |errors: &mut Vec<String>, result: Result<(), String>| errors.extend(result.err());
    note(&mut errors, system::mount_all());
    note(&mut errors, system::quiet_kernel());
    let (options, unknown) = cmdline::parse(&system::read("/proc/cmdline").unwrap_or_default());
    errors.extend(unknown);
    let mut console = Console::open();

    note(&mut errors, system::load_modules("nvme"));
    let report = examine(&options, errors);
    console.line(&report.to_line());
    if options.reboot_once {
        match nvme::was_here(&report.pci) {
            Ok(true) => console.line("gpuvm-guest: second boot"),
            Ok(false) => {
                console.line("gpuvm-guest: rebooting");
                if let Err(error) = system::restart() {
                    console.line(&format!("gpuvm-guest: {error}"));
                }
            }
            Err(error) => console.line(&format!("gpuvm-guest: {error}")),
        }
    }
    let job = options.job.then(|| job::of(&report, system::uptime()).to_line());
    if options.talk
        && let Err(error) = talk::begin()
    {
        console.line(&format!("gpuvm-guest: {error}"));
    }
    if let Some(time) = options.linger {
        let lingering = || {
            console.line("gpuvm-guest: lingering");
            // Whoever waits for the job presses the button next.
            job.iter().for_each(|line| console.line(line));
        };
        match button::linger(time, options.ignore_power_button, lingering) {
            Ok(true) => console.line("gpuvm-guest: power button"),
            Ok(false) => {}
            Err(error) => console.line(&format!("gpuvm-guest: {error}")),
        }
    } else {
        job.iter().for_each(|line| console.line(line));
    }
    if options.panic {
        // With the driver of the panic device, which tells the host, the end of PID 1 is a panic that is noticed.
        if let Err(error) = system::load_modules("pvpanic-pci") {
            console.line(&format!("gpuvm-guest: {error}"));
        }
        return;
    }
    if let Err(error) = system::power_off() {
        console.line(&format!("gpuvm-guest: {error}"));
    }
}

/// Looks at the machine and works with its devices; what goes wrong is told in the report.
fn examine(options: &Options, mut errors: Vec<String>) -> Report {
    let pci = pci::devices().unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    let mut keep = |error: String| errors.push(error);
    let (edu, stray_dma) = edu::examine(&pci, options, &mut keep);
    let nvme = nvme::examine(&pci, &mut keep);
    let cpus = system::cpus().unwrap_or_else(|error| {
        keep(error);
        0
    });
    let memory_bytes = system::memory_bytes().unwrap_or_else(|error| {
        keep(error);
        0
    });
    let nodes = nodes::nodes().unwrap_or_else(|error| {
        keep(error);
        Vec::new()
    });
    let firmware = system::firmware();
    Report { gpuvm_guest: 1, firmware, cpus, memory_bytes, nodes, pci, edu, nvme, stray_dma, errors }
}
