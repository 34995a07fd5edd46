//! `gpuvm cleanup`: gives back what killed launchers left behind.

use gpuvm_host::bound::{self, BoundReport, Step};
use gpuvm_host::facts;
use gpuvm_host::kernel::Kernel;
use gpuvm_run::{Cleaned, CleanupReport};
use serde_json::json;

use super::bind;
use super::up::Progress;
use crate::cli::{CleanupArgs, Cli};
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::{came_back, out};

pub(super) fn run(cli: &Cli, args: &CleanupArgs) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    let root = cli.host_root();
    let boot_id = facts::boot_id(&root)?;
    let mut progress = Progress::new(cli);
    let kernel = Kernel::running(root);
    let reports = gpuvm_run::cleanup(&kernel, &cli.places(), &boot_id, args.vm.as_ref(), &mut progress)?;
    let mut told = |step: Step<'_>| bind::tell(&mut progress, step);
    let bound = match &args.vm {
        Some(_) => Vec::new(),
        // What became of the VMs is told all the same.
        None => bound::cleanup(&kernel, &cli.places(), &boot_id, &mut told)
            .unwrap_or_else(|error| vec![BoundReport::failed(error)]),
    };
    let left = reports.iter().any(|report| report.result == Cleaned::Left)
        || bound.iter().any(|report| report.result == bound::Cleaned::Left);
    let sick =
        reports.iter().flat_map(|report| &report.devices).any(|device| device.judgement.verdict.is_bad());
    if cli.json {
        let both: Vec<_> =
            reports.iter().map(|report| json!(report)).chain(bound.iter().map(|r| json!(r))).collect();
        out::told(out::json(&both));
    } else {
        reports.iter().for_each(tell);
        for report in &bound {
            let functions: Vec<String> = report.bind.iter().map(ToString::to_string).collect();
            let result = match report.result {
                bound::Cleaned::Running => "is in the hands of another gpuvm: nothing was touched",
                bound::Cleaned::Done => "is given back",
                bound::Cleaned::Left => "is NOT given back",
            };
            let functions =
                if functions.is_empty() { "what was bound".to_owned() } else { functions.join(", ") };
            out::told(out::text(&format!("{functions} {result}\n")));
            report.cleared.iter().for_each(|what| out::told(out::text(&format!("  removed {what}\n"))));
            report.left.iter().for_each(|error| failure::print_item("error", &failure::left(error)));
        }
        if reports.is_empty() && bound.is_empty() {
            match &args.vm {
                Some(name) => out::told(out::text(&format!(
                    "nothing of a VM `{name}` is left behind; for all VMs: gpuvm cleanup\n"
                ))),
                None => out::told(out::text("nothing is left behind\n")),
            }
        }
    }
    Ok(if left || sick { Exit::NotGivenBack } else { of_unsupervised(&reports) })
}

/// Tells a person what became of a VM's remains.
pub(super) fn tell(report: &CleanupReport) {
    let result = match report.result {
        Cleaned::Running => "is in the hands of another gpuvm: nothing was touched",
        Cleaned::Unsupervised => "is in use, and unsupervised: nothing was touched",
        Cleaned::Done => "is given back",
        Cleaned::Left => "is NOT wholly given back",
    };
    out::told(out::text(&format!("{} {result}\n", report.name)));
    report.cleared.iter().for_each(|what| out::told(out::text(&format!("  removed {what}\n"))));
    came_back::tell(&report.devices);
    let left = report.left.iter().filter(|error| !came_back::is_told(error));
    left.for_each(|error| failure::print_item("error", &failure::left(error)));
}

/// Tells what a guest that runs on without a gpuvm is for the exit code: its VM is in use.
fn of_unsupervised(reports: &[CleanupReport]) -> Exit {
    let in_use = reports.iter().any(|report| report.result == Cleaned::Unsupervised);
    if in_use { Exit::Busy } else { Exit::Ok }
}
