//! `gpuvm devices`: what can be passed, and why what can't, can't.

mod detail;
mod history;
mod row;
mod table;

use std::collections::BTreeSet;
use std::path::Path;

use clap::Args;
use gpuvm_core::facts::HostFacts;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::{Refusal, host_refusals};
use gpuvm_host::facts::{Depth, Scope, narrow};
use serde_json::json;

use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::{hints, load, out};
use row::Row;

/// What `devices` takes.
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// A PCI address: everything about that function; or a profile: its devices
    #[arg(value_name = "BDF|PROFILE")]
    what: Option<String>,

    /// List every function: bridges, virtual functions and parts of the machine too
    #[arg(long, conflicts_with = "what")]
    all: bool,

    /// Show what was done with the function BDF and how it came back, run by run and reset by reset
    #[arg(long, requires = "what")]
    history: bool,
}

pub(super) fn run(cli: &Cli, args: &DevicesArgs) -> Result<Exit, Failure> {
    match args.what.as_deref().map(|what| (what, what.parse::<Bdf>())) {
        Some((_, Ok(bdf))) if args.history => history::run(cli, bdf),
        Some((what, Err(_))) if args.history => {
            let message = format!("--history is of one function: `{what}` is no PCI address");
            Err(Failure::one(Exit::Usage, message, None))
        }
        Some((_, Ok(bdf))) => one(cli, bdf),
        Some((profile, Err(_))) => of_profile(cli, profile),
        None if args.all => {
            let facts = load::survey(cli, &Scope::All, Depth::Sysfs, None)?;
            list(cli, &facts, &facts.devices.keys().copied().collect(), table::Fold::Nothing)
        }
        None => {
            let facts = load::survey(cli, &Scope::Passable, Depth::Sysfs, None)?;
            list(cli, &facts, &facts.devices.keys().copied().collect(), table::Fold::Machine)
        }
    }
}

/// Lists what `devices` does without more words, of facts of a whole host.
pub(super) fn told(facts: &HostFacts) -> String {
    let facts = narrow(facts.clone(), &Scope::Passable, Depth::Sysfs);
    let rows = facts.devices.keys().filter_map(|bdf| Row::of(*bdf, &facts)).collect();
    table::text(rows, &[], table::Fold::Machine)
}

fn one(cli: &Cli, bdf: Bdf) -> Result<Exit, Failure> {
    let facts = load::survey(cli, &Scope::Devices(BTreeSet::from([bdf])), Depth::Config, None)?;
    let Some(detail) = detail::Detail::of(bdf, &facts) else {
        return Err(vec![Refusal::UnknownDevice { bdf }].into());
    };
    if cli.json {
        out::json(&detail)?;
    } else {
        out::text(&detail::text(&detail))?;
        tell(&facts);
    }
    Ok(Exit::Ok)
}

/// Lists the devices that a profile names, with their cards and groups.
fn of_profile(cli: &Cli, profile: &str) -> Result<Exit, Failure> {
    if !Path::new(profile).exists() {
        let message =
            format!("`{profile}` is neither a PCI address, like 0000:81:00.0, nor a profile that is there");
        return Err(Failure::one(Exit::Usage, message, None));
    }
    let loaded = load::profile(cli, &ProfileArgs { profile: profile.into(), set: Vec::new() })?;
    let named = loaded.profile.devices.iter().flat_map(|device| [&[device.bdf], &device.hold[..]].concat());
    let asked: BTreeSet<Bdf> = named.collect();
    let facts = load::survey(cli, &Scope::Devices(asked.clone()), Depth::Sysfs, Some(&loaded.profile))?;
    let mut wanted: BTreeSet<Bdf> = facts.devices.keys().copied().collect();
    wanted.extend(asked);
    list(cli, &facts, &wanted, table::Fold::Nothing)
}

fn list(cli: &Cli, facts: &HostFacts, wanted: &BTreeSet<Bdf>, fold: table::Fold) -> Result<Exit, Failure> {
    let rows: Vec<Row> = wanted.iter().filter_map(|bdf| Row::of(*bdf, facts)).collect();
    let missing: Vec<Bdf> = wanted.iter().copied().filter(|bdf| !facts.devices.contains_key(bdf)).collect();
    if cli.json {
        let host: Vec<_> = host_refusals(facts).iter().map(row::Reason::of).collect();
        let rows: Vec<&Row> = rows.iter().filter(|row| fold.keeps(row)).collect();
        let document = json!({ "devices": rows, "missing": missing, "host": host, "unread": facts.unread,
            "quirk_problems": facts.quirks.problems });
        out::json(&document)?;
    } else {
        out::text(&table::text(rows, &missing, fold))?;
        tell(facts);
    }
    Ok(Exit::Ok)
}

/// Says what keeps every device from being passed for now, and what couldn't be read.
fn tell(facts: &HostFacts) {
    for refusal in host_refusals(facts) {
        let hint = hints::refusal(&refusal).map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        out::note(&format!("note: no device can be passed now: {refusal}{hint}"));
    }
    for problem in &facts.quirks.problems {
        let mut item = load::quirk_problem(problem);
        item.message = format!("this host's own quirks are left out: {}", item.message);
        failure::print_item("note", &item);
    }
    for unread in &facts.unread {
        out::note(&format!("note: couldn't be read, so it is left out: {unread}"));
    }
}

/// Names the kind of a refusal, as programs tell it from others.
fn kind(refusal: &Refusal) -> String {
    failure::kind(refusal)
}
