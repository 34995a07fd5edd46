//! `gpuvm argv`: the command line, to be run by hand.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use gpuvm_core::host_ops::HostOp;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{Firmware, Plan};
use gpuvm_core::qemu::cmdline::{Start, args, quote};
use gpuvm_core::qemu::{Handle, Handles};
use gpuvm_host::places::Places;
use serde_json::json;

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{load, out};

pub(super) fn run(cli: &Cli, args: &ProfileArgs) -> Result<Exit, Failure> {
    let loaded = load::profile(cli, args)?;
    let (plan, _) = load::planned(cli, &loaded.profile)?;
    let places = cli.places();
    let command = command(&plan, &places);
    if cli.json {
        let words: Vec<_> = command.words.iter().map(|word| word.to_string_lossy()).collect();
        out::json(&json!({ "argv": words }))?;
    } else {
        out::text(&format!("{}{command}\n", presumes(&plan, &places)))?;
    }
    Ok(Exit::Ok)
}

/// A command line that a person can run.
pub(super) struct CommandLine {
    pub(super) words: Vec<OsString>,
    /// Where each switch begins, to break lines there.
    switches: Vec<usize>,
}

/// Renders a plan with unix sockets instead of inherited ones, and without the pause at the start.
pub(super) fn command(plan: &Plan, places: &Places) -> CommandLine {
    let run = places.by_hand(&plan.name);
    let handles = Handles {
        monitor: Handle::Path(run.join("qmp.sock")),
        serial: Handle::Path(run.join("serial.sock")),
        vars: Handle::Path(vars(plan, places)),
        disks: BTreeMap::new(),
        display: run.join(gpuvm_run::VNC_SOCKET),
        start: Start::Running,
    };
    let mut words = vec![plan.qemu.clone().into_os_string()];
    let mut switches = Vec::new();
    for arg in args(plan, &handles) {
        switches.push(words.len());
        arg.render_to(&mut words);
    }
    CommandLine { words, switches }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, word) in self.words.iter().enumerate() {
            let separator = match (at, self.switches.contains(&at)) {
                (0, _) => "",
                (_, true) => " \\\n  ",
                (_, false) => " ",
            };
            write!(f, "{separator}{}", quote(word))?;
        }
        Ok(())
    }
}

/// Spells a change to the host as a shell command.
fn by_hand(op: &HostOp) -> String {
    let device = |bdf: &Bdf| format!("/sys/bus/pci/devices/{bdf}");
    let awake = |bdf: &Bdf| {
        let device = device(bdf);
        format!("echo on > {device}/power/control; echo 0 > {device}/d3cold_allowed")
    };
    match op {
        HostOp::ClaimHugepages { node, page, pages } => {
            let kib = page.as_bytes() >> 10;
            let pool =
                format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages");
            format!("echo $(($(cat {pool}) + {pages})) > {pool}")
        }
        HostOp::ClaimAwake { port: bdf } | HostOp::KeepAwake { bdf } => awake(bdf),
        HostOp::CreateOverlay { path, backing, format, qemu_img } => {
            let [qemu_img, backing, path] = [qemu_img, backing, path].map(|path| quote(path.as_ref()));
            format!("{qemu_img} create -q -f qcow2 -b {backing} -F {format} {path}")
        }
        HostOp::SetResetMethods { bdf, methods } => {
            let names: Vec<_> = methods.iter().map(|method| method.name()).collect();
            format!("echo \"{}\" > {}/reset_method", names.join(" "), device(bdf))
        }
        HostOp::Adopt { bdf } => format!("# {bdf} is on a VFIO driver already"),
        HostOp::Unbind { bdf, driver } => format!("echo {bdf} > /sys/bus/pci/drivers/{driver}/unbind"),
        HostOp::SetDriverOverride { bdf, driver } => {
            format!("echo {driver} > {}/driver_override", device(bdf))
        }
        HostOp::Bind { bdf, driver } => format!("echo {bdf} > /sys/bus/pci/drivers/{driver}/bind"),
        HostOp::HoldAutoprobe => "echo 0 > /sys/bus/pci/drivers_autoprobe".to_owned(),
        HostOp::Remove { bdf, .. } => format!("echo 1 > {}/remove", device(bdf)),
    }
}

/// Names the VM's own copy of the firmware's variables.
fn vars(plan: &Plan, places: &Places) -> PathBuf {
    places.state(&plan.name).join(gpuvm_run::UEFI_VARS)
}

/// Says, as shell commands in comments, what the command line takes for granted.
fn presumes(plan: &Plan, places: &Places) -> String {
    let mut folders = vec![places.by_hand(&plan.name)];
    let overlays = plan.disks.iter().filter_map(|disk| disk.overlay.as_deref()?.parent());
    folders.extend(overlays.take(1).map(Path::to_owned));
    let mut presumed: Vec<String> = plan.operations.iter().map(|planned| by_hand(&planned.op)).collect();
    if let Firmware::Uefi(uefi) = &plan.firmware {
        let vars = vars(plan, places);
        folders.push(places.state(&plan.name));
        let (template, vars) = (quote(uefi.vars_template.as_ref()), quote(vars.as_ref()));
        presumed.push(format!("cp -n {template} {vars}"));
    }
    presumed.splice(0..0, folders.iter().map(|folder| format!("mkdir -p {}", quote(folder.as_ref()))));
    let mut text = String::from("# This presumes, in this order; gpuvm does it by itself, and undoes it:\n");
    // A path may hold a newline, and what comes after that must not become a command.
    for line in presumed.iter().flat_map(|what| what.split('\n')) {
        text.push_str(&format!("#   {line}\n"));
    }
    text
}
