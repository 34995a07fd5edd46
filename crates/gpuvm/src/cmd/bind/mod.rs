//! `gpuvm bind`: gives devices to VFIO, by whole groups, without a VM.

pub(super) mod target;
mod unbind;

use std::fmt::Write;

use clap::Args;
use gpuvm_core::plan::{self, BindPlan, BoundDevice, InUse, Ownership, Refusal};
use gpuvm_host::bound::{self, BindError, Step};
use gpuvm_host::facts;
use gpuvm_host::kernel::Kernel;
use serde_json::json;

use self::target::{Changed, Named};
use super::up::Progress;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{self, Failure, Item};
use crate::{hints, load, out};

pub(super) use unbind::run as run_unbind;

/// What `bind` and `unbind` take.
#[derive(Debug, Args)]
pub(crate) struct BindArgs {
    /// An address (0000:81:00.0), a slot (0000:81:00), or a profile, whose devices are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<Named>,

    /// Go on in spite of those who use the devices: they are listed first
    #[arg(long)]
    force: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

impl BindArgs {
    fn in_use(&self) -> InUse {
        if self.force { InUse::Overruled } else { InUse::Refused }
    }

    fn refused(&self, refusals: &[Refusal]) -> Failure {
        let by_profile = self.targets.iter().any(|target| matches!(target, Named::Profile(_)));
        Failure::refused(refusals, if by_profile { hints::refusal } else { hints::of_bind })
    }
}

/// Writing to a `String` can't fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { writeln!($text, $($format)*).ok() };
}
use line;

pub(super) fn run(cli: &Cli, args: &BindArgs) -> Result<Exit, Failure> {
    // What would be done is shown for a host's trees; a report lacks some of what it rests on.
    if !args.dry_run || cli.facts.is_some() {
        super::refuse_recorded(cli)?;
    }
    let (targets, asked) = target::resolve(cli, &args.targets, Changed::Refused)?;
    let facts = load::devices(cli, asked)?;
    let plan = plan::bind(&targets, args.in_use(), &facts).map_err(|refusals| args.refused(&refusals))?;
    tell_overruled(cli, &plan.overruled, "taken");
    if args.dry_run {
        if cli.json {
            out::json(&json!({ "plan": plan, "overruled": items(&plan.overruled) }))?;
        } else {
            out::text(&would(&plan))?;
        }
        return Ok(Exit::Ok);
    }
    let root = cli.host_root();
    let boot_id = facts::boot_id(&root)?;
    let mut progress = Progress::new(cli);
    let mut told = |step: Step<'_>| tell(&mut progress, step);
    bound::bind(&Kernel::running(root), &cli.places(), &boot_id, &plan, &mut told)?;
    let changed = plan.sets.iter().any(|set| !set.devices.is_empty());
    if cli.json {
        let overruled = items(&plan.overruled);
        out::json(
            &json!({ "changed": changed, "devices": plan.devices, "groups": plan.groups, "overruled": overruled }),
        )?;
    } else {
        out::text(&done(&plan))?;
    }
    Ok(Exit::Ok)
}

/// Tells, before anything is touched, who uses what is taken all the same.
fn tell_overruled(cli: &Cli, overruled: &[Refusal], taken: &str) {
    if cli.json {
        return;
    }
    for refusal in overruled {
        out::note(&format!("WARNING: {refusal}; it is {taken} all the same (--force)"));
    }
}

pub(super) fn items(refusals: &[Refusal]) -> Vec<serde_json::Value> {
    let item = |refusal: &Refusal| json!({ "kind": failure::kind(refusal), "message": refusal.to_string() });
    refusals.iter().map(item).collect()
}

pub(super) fn tell(progress: &mut Progress, step: Step<'_>) {
    match step {
        Step::Apply(op) => progress.tell(&op.to_string()),
        Step::Undo(op) => progress.tell(&format!("undo: {op}")),
        Step::Release => progress.tell("done"),
    }
}

/// Says what is bound.
fn done(plan: &BindPlan) -> String {
    let mut text = String::new();
    for device in &plan.devices {
        line!(text, "{} {}", device.bdf, state(device));
    }
    groups(plan, &mut text);
    text
}

fn state(device: &BoundDevice) -> String {
    let driver = &device.driver;
    match &device.ownership {
        Ownership::BoundByUs { was: Some(was) } => format!("is on {driver}, taken from {was}"),
        Ownership::BoundByUs { was: None } => format!("is on {driver}; it had no driver"),
        Ownership::WasVfio | Ownership::KeepDriver { .. } => format!("is on {driver} already"),
    }
}

fn groups(plan: &BindPlan, text: &mut String) {
    for group in &plan.groups {
        let members: Vec<String> = group.members.iter().map(|member| member.bdf.to_string()).collect();
        line!(text, "IOMMU group {} is whole: {}", group.id, members.join(", "));
    }
}

/// Says what would be done, and why.
fn would(plan: &BindPlan) -> String {
    let mut text = String::new();
    for device in &plan.devices {
        let class = device.class.name();
        line!(text, "{} ({class} {}): {}", device.bdf, device.id, device.reason);
        let state = match &device.ownership {
            Ownership::BoundByUs { .. } => state(device).replacen("is on", "would be on", 1),
            _ => state(device),
        };
        line!(text, "  {state}");
    }
    for warning in &plan.warnings {
        line!(text, "warning: {}: {}", warning.about, warning.message);
    }
    groups(plan, &mut text);
    let operations: Vec<_> = plan.sets.iter().flat_map(|set| &set.operations).collect();
    if operations.is_empty() {
        line!(text, "Nothing would be changed.");
    } else {
        line!(text, "Changes to the host, in this order (`gpuvm unbind` undoes them):");
    }
    for (number, planned) in (1..).zip(operations) {
        line!(text, "  {number}. {}\n     {}", planned.op, planned.reason);
    }
    text
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let mut failure = Self::from(*error.cause);
        if !error.left.is_empty() {
            failure.code = Exit::NotGivenBack;
        }
        failure.and(error.left.iter().map(failure::left).collect())
    }
}

/// What could not be given back, with the remedy.
fn left_items(left: &[gpuvm_host::HostError]) -> Vec<Item> {
    left.iter().map(|error| Item::new(error, hints::host(error))).collect()
}
