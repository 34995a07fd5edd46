//! `gpuvm plan`: what would be done, and why.

mod text;

use gpuvm_core::facts::HostFacts;
use gpuvm_core::plan::Plan;
use gpuvm_host::HostError;
use gpuvm_host::reservation::{self, Reservation};
use serde_json::json;

pub(super) use text::text;

use super::argv;
use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::{load, locked, out};

pub(super) fn run(cli: &Cli, args: &ProfileArgs) -> Result<Exit, Failure> {
    let loaded = load::profile(cli, args)?;
    let changes = locked::changes(cli, &loaded.profile, loaded.lock.lock.as_ref())?;
    let planned = load::planned(cli, &loaded.profile);
    let (mut plan, facts) =
        planned.map_err(|failure| failure.and(locked::items(&loaded.lock, args, &changes)))?;
    plan.warnings.extend(locked::warnings(&changes));
    let busy = busy(cli, &plan, &facts);
    let command = argv::command(&plan, &cli.places());
    if cli.json {
        let words: Vec<_> = command.words.iter().map(|word| word.to_string_lossy()).collect();
        out::json(&json!({ "plan": plan, "argv": words, "busy": busy.map(|error| error.to_string()) }))?;
    } else {
        out::text(&text(&plan, &command.to_string()))?;
        if let Some(error) = busy {
            failure::print_item("note: `up` would refuse this now", &failure::left(&error));
        }
    }
    Ok(Exit::Ok)
}

/// Looks whether `up` could reserve what the plan needs. It is no part of the plan: it may be otherwise in a minute.
fn busy(cli: &Cli, plan: &Plan, facts: &HostFacts) -> Option<HostError> {
    if cli.is_recorded() {
        return None;
    }
    let wanted = Reservation::new(plan, &facts.kernel.boot_id);
    reservation::check(&cli.places(), &wanted).err().filter(|error| error.errno().is_none())
}
