//! `gpuvm report`: one archive with what somebody else needs to see what is wrong.

mod clean;
mod readme;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use gpuvm_core::date;
use gpuvm_core::facts::file::{FORMAT, FactsFile};
use gpuvm_core::facts::{HostFacts, Presence};
use gpuvm_core::plan::{Plan, Refusal, plan};
use gpuvm_core::profile::Profile;
use gpuvm_host::archive::{self, FACTS, Member};
use gpuvm_host::collect::{self, Collected, Consoles};
use gpuvm_host::facts::{Depth, Scope, asked, narrow};
use gpuvm_host::root::read_text;
use serde::Serialize;
use serde_json::json;

use super::{argv, devices, doctor, plan as plan_verb, topology};
use crate::cli::{Cli, ProfileArgs};
use crate::exit::Exit;
use crate::failure::{self, Failure};
use crate::load::{self, Loaded};
use crate::{hints, out};

/// The most virtual functions that are looked at closely.
const VIRTUAL_FUNCTIONS: usize = 256;

/// What `report` takes.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The profile whose plan is in question
    profile: Option<PathBuf>,

    /// Set a key of the profile, as in --set memory.size=8G
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::cli::assignment, requires = "profile")]
    set: Vec<String>,

    /// Write the archive to FILE [default: gpuvm-report-HOST-DATE.tar.gz in the current folder]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace names of hosts, users and disks, addresses, serial numbers, UUIDs and passwords, and leave consoles out
    #[arg(long)]
    redact: bool,
}

pub(super) fn run(cli: &Cli, args: &ReportArgs) -> Result<Exit, Failure> {
    if cli.facts.is_some() {
        return Err(Failure::one(
            Exit::Usage,
            "a report is made of a host, not of another report (--facts)",
            None,
        ));
    }
    let given = match &args.profile {
        Some(profile) => {
            let args = ProfileArgs { profile: profile.clone(), set: args.set.clone() };
            let base = load::folder_of(&args.profile).map_err(|error| {
                Failure::one(Exit::Profile, format!("{}: {error}", profile.display()), None)
            })?;
            Some(Given { loaded: load::profile(cli, &args)?, base, set: args.set })
        }
        None => None,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let host =
        read_text(&cli.host_root().path("/proc/sys/kernel/hostname")).ok().flatten().unwrap_or_default();
    let mut report = collect(cli, args, given.as_ref())?;
    if args.redact {
        clean::clean(&mut report, &host, given.as_ref());
    }
    let (members, unread) = members(report, now, args.redact);
    let folder = folder(if args.redact { "" } else { host.trim() }, now);
    let file = args.output.clone().unwrap_or_else(|| format!("{folder}.tar.gz").into());
    archive::write(&file, &folder, now, &members).map_err(|error| {
        let code = match error.kind() {
            ErrorKind::PermissionDenied => Exit::Permission,
            ErrorKind::StorageFull => Exit::Unfit,
            _ => Exit::Usage,
        };
        Failure::one(code, format!("write {}: {error}", file.display()), hints::unwritable(&file, &error))
    })?;
    print(cli, &file, &members, &unread)?;
    Ok(Exit::Ok)
}

/// A profile that the report is about.
struct Given {
    loaded: Loaded,
    base: PathBuf,
    set: Vec<String>,
}

/// What a report is made of, before anything is taken out of it.
struct Report {
    facts: FactsFile,
    /// What gpuvm makes of the facts, and what it found of its own.
    collected: Collected,
}

fn print(cli: &Cli, file: &std::path::Path, members: &[Member], unread: &[String]) -> Result<(), Failure> {
    if cli.json {
        let names: Vec<_> = members.iter().map(|member| &member.name).collect();
        return out::json(&json!({ "file": file, "members": names, "unread": unread }));
    }
    for what in unread {
        out::note(&format!("gpuvm: not in the report: {what}"));
    }
    out::text(&format!(
        "{}: {} files, for your eyes and those that you send it to\n",
        file.display(),
        members.len()
    ))
}

/// Names the archive, and the folder in it: after the host as far as that makes a file's name.
fn folder(host: &str, now: u64) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '-' };
    let host: String = host.chars().take(40).map(plain).collect();
    let between = if host.is_empty() { "" } else { "-" };
    format!("gpuvm-report{between}{host}-{}", date::compact(now))
}

fn collect(cli: &Cli, args: &ReportArgs, given: Option<&Given>) -> Result<Report, Failure> {
    let mut facts = whole_host(cli, given.map(|given| &given.loaded.profile))?;
    super::doctor::ask(cli, &mut facts);
    let mut collected = Collected::default();
    let mut add = |name: &str, content: String| collected.members.push(Member::new(name, content));
    let (text, document) = doctor::told(&facts, given.map(|given| &given.loaded.profile));
    add("doctor.txt", text);
    add("doctor.json", pretty(&document));
    add("devices.txt", devices::told(&facts));
    add("topology.txt", topology::told(&facts));
    if let Some(given) = given {
        add("profile.toml", given.loaded.text.clone());
        if !given.set.is_empty() {
            add("profile.set", given.set.iter().map(|set| format!("{set}\n")).collect());
        }
        if let Some(lock) = &given.loaded.lock.text {
            add("profile.lock", lock.clone());
        }
        planned(cli, &given.loaded.profile, &facts, &mut add);
    }
    let consoles = if args.redact { Consoles::Left } else { Consoles::Taken };
    collected.extend(collect::vms(&cli.places(), consoles));
    if cli.has_ledger() {
        collected.extend(collect::ledgers(&cli.places(), &facts.devices));
    }
    collected.extend(collect::kernel_log(&cli.host_root()));
    collected.unread.extend(facts.unread.iter().cloned());
    let base = given.map(|given| given.base.clone());
    Ok(Report { facts: FactsFile::new(env!("CARGO_PKG_VERSION"), base, facts), collected })
}

/// Reads the whole host closely; of virtual functions without number, no more than a plan needs.
fn whole_host(cli: &Cli, profile: Option<&Profile>) -> Result<HostFacts, Failure> {
    let thin = load::survey(cli, &Scope::All, Depth::Sysfs, profile)?;
    let virtual_functions =
        thin.devices.values().filter(|device| device.virtual_function == Presence::Present);
    if virtual_functions.count() <= VIRTUAL_FUNCTIONS {
        return load::survey(cli, &Scope::All, Depth::Config, profile);
    }
    let mut facts = load::survey(cli, &Scope::Physical, Depth::Config, profile)?;
    for (bdf, device) in thin.devices {
        facts.devices.entry(bdf).or_insert(device);
    }
    for (group, members) in thin.groups {
        facts.groups.entry(group).or_insert(members);
    }
    let unread: BTreeSet<_> = facts.unread.iter().chain(&thin.unread).cloned().collect();
    facts.unread = unread.into_iter().collect();
    Ok(facts)
}

/// Adds the plan and its command line, or why there is none.
fn planned(cli: &Cli, profile: &Profile, facts: &HostFacts, add: &mut impl FnMut(&str, String)) {
    let facts = narrow(facts.clone(), &Scope::Devices(asked(profile)), Depth::Sysfs);
    match plan(profile, &facts) {
        Ok(plan) => plan_of(cli, &plan, add),
        Err(refusals) => {
            let (kinds, said): (Vec<_>, Vec<_>) = refusals
                .iter()
                .map(|refusal: &Refusal| (failure::kind(refusal), refusal.to_string()))
                .unzip();
            add("refusals.json", pretty(&json!({ "kinds": kinds, "refusals": said })));
        }
    }
}

fn plan_of(cli: &Cli, plan: &Plan, add: &mut impl FnMut(&str, String)) {
    let command = argv::command(plan, &cli.places()).to_string();
    add("plan.json", pretty(plan));
    add("plan.txt", plan_verb::text(plan, &command));
    add("argv.txt", format!("{command}\n"));
}

/// Spells a document; one that can't be spelt says why, as `out::json` does.
fn pretty(document: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(document);
    text.unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string()) + "\n"
}

/// Puts the report's files in order, with what tells of them first.
fn members(report: Report, now: u64, redacted: bool) -> (Vec<Member>, Vec<String>) {
    let Report { facts, collected } = report;
    let mut unread = collected.unread;
    let versions = json!({
        "gpuvm": facts.gpuvm, "facts": FORMAT, "made": date::readable(now), "redacted": redacted,
        "kernel": facts.facts.kernel.release, "distribution": facts.facts.platform.distribution
    });
    let facts = serde_json::to_string_pretty(&facts)
        .map_err(|error| unread.push(format!("{FACTS}: {error}, so this report can't be replayed")));
    let mut members = vec![
        Member::new("README.txt", readme::readme(redacted)),
        Member::new("versions.json", pretty(&versions)),
    ];
    members.extend(facts.ok().map(|facts| Member::new(FACTS, facts + "\n")));
    members.extend(collected.members);
    if !unread.is_empty() {
        let list: String = unread.iter().map(|what| format!("{what}\n")).collect();
        members.push(Member::new("unread.txt", list));
    }
    (members, unread)
}
