//! `gpuvm argv`: the command line, to be run by hand.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

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
    let loaded = load::profile(args)?;
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
    let run = places.vm(&plan.name);
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

/// Names the VM's own copy of the firmware's variables.
fn vars(plan: &Plan, places: &Places) -> PathBuf {
    places.state(&plan.name).join(gpuvm_run::UEFI_VARS)
}

/// Says, as shell comments, what the command line takes for granted.
fn presumes(plan: &Plan, places: &Places) -> String {
    let mut folders = vec![places.vm(&plan.name)];
    let overlays = plan.disks.iter().filter_map(|disk| disk.overlay.as_deref()?.parent());
    folders.extend(overlays.take(1).map(Path::to_owned));
    let mut presumed: Vec<String> = plan.operations.iter().map(|planned| planned.op.to_string()).collect();
    if let Firmware::Uefi(uefi) = &plan.firmware {
        let vars = vars(plan, places);
        folders.push(places.state(&plan.name));
        presumed.push(format!("copy {} to {}", uefi.vars_template.display(), vars.display()));
    }
    presumed.splice(0..0, folders.iter().map(|folder| format!("make the folder {}", folder.display())));
    let mut text = String::from("# This presumes, in this order:\n");
    // A path may hold a newline, and what comes after that must not become a command.
    for line in presumed.iter().flat_map(|what| what.split('\n')) {
        text.push_str(&format!("#   {line}\n"));
    }
    text
}
