//! What `soak` takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use gpuvm_core::soak::{Mix, StopOn};
use regex::Regex;

use super::compare::CompareArgs;
use super::report::ReportArgs;
use crate::cli::{ProfileArgs, assignment, whole_seconds};
use crate::locked::OnChanges;

/// What `soak` takes.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct SoakArgs {
    #[command(subcommand)]
    pub(super) command: Option<SoakCommand>,

    #[command(flatten)]
    pub(super) run: RunArgs,
}

/// What can be done with records.
#[derive(Debug, Subcommand)]
pub(super) enum SoakCommand {
    /// Write the report of a record anew
    Report(ReportArgs),
    /// Hold two records against each other, as of a kernel before and after its upgrade: exit 1 if the second is worse
    Compare(CompareArgs),
}

/// What a soak is run by.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The profile, in TOML
    #[arg(required = true)]
    profile: Option<PathBuf>,

    /// Set a key of the profile, as in --set memory.size=8G; a value that is no TOML is taken as a string
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<String>,

    /// End after so many cycles, those before a --resume counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) cycles: Option<u32>,

    /// End after so long, as in 8h or 90s; the cycle that runs then is the last
    #[arg(long = "for", value_name = "TIME", value_parser = at_least_a_second)]
    pub(super) time: Option<Duration>,

    /// How guests end, and how often each way comes: the guest powers off, QEMU is killed, the guest is reset first [default: clean:1]
    #[arg(long, value_name = "clean:N,kill:N,reboot:N")]
    pub(super) mix: Option<Mix>,

    /// A guest is ready when a line of its console matches
    #[arg(long, value_name = "REGEX", value_parser = expression)]
    pub(super) expect: Option<String>,

    /// A guest is ready when it has printed `gpuvm-job: {"exit":0}`; another exit makes the cycle a failed one
    #[arg(long)]
    pub(super) job: bool,

    /// A guest is ready so long after the above, or after its start; one that powers itself off until then isn't asked to
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) after: Option<Duration>,

    /// A guest that doesn't get ready within this has failed [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = at_least_a_second)]
    pub(super) ready_timeout: Option<Duration>,

    /// Run a command of this host (by sh -c) once a second all the while; that it fails or hangs is told, and is no fault of a cycle
    #[arg(long, value_name = "CMD")]
    pub(super) poll: Option<String>,

    /// Stop at the first cycle that isn't healthy, or at a sick device, a host not given back and 3 guests in a row that failed [default: bad]
    #[arg(long, value_name = "degraded|bad", value_parser = stop_on)]
    pub(super) stop_on: Option<StopOn>,

    /// Keep record and report in DIR [default: the VM's folder soak/TIME in /var/log/gpuvm]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,

    /// Go on with the newest soak of this VM, or with the one in DIR, as it was asked for then
    #[arg(long)]
    pub(super) resume: bool,

    /// Give a guest so long to power off when asked to, before QEMU is told to quit [default: the profile's shutdown-timeout]
    #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
    pub(super) shutdown_timeout: Option<u32>,

    /// Go on although this host has changed since it was locked, and lock it as it is now
    #[arg(long)]
    pub(super) accept_changes: bool,
}

impl RunArgs {
    /// Returns the profile and what is set beside it.
    pub(super) fn profile(&self) -> ProfileArgs {
        ProfileArgs { profile: self.profile.clone().unwrap_or_default(), set: self.set.clone() }
    }

    /// Returns what to do about a host that has changed since it was locked.
    pub(super) fn on_changes(&self) -> OnChanges {
        if self.accept_changes { OnChanges::Accept } else { OnChanges::Refuse }
    }
}

fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time < Duration::from_secs(1) { Err("it is less than a second".to_owned()) } else { Ok(time) }
}

fn expression(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty expression matches any line, the first of the firmware too".to_owned());
    }
    Regex::new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn stop_on(text: &str) -> Result<StopOn, String> {
    match text {
        "degraded" => Ok(StopOn::Degraded),
        "bad" => Ok(StopOn::Bad),
        _ => Err("expected degraded or bad".to_owned()),
    }
}
