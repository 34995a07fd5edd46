//! `gpuvm reset`: resets devices, and says how they came back.

mod text;

use clap::Args;
use gpuvm_core::facts::HostFacts;
use gpuvm_core::plan::{self, MethodChoice, ResetJob};
use gpuvm_core::reset::repair::{RepairPolicy, Rung};
use gpuvm_core::reset::{Confidence, Quirk, RebootPolicy, ResetWish, quirks_of};
use gpuvm_host::kernel::Kernel;
use gpuvm_host::reset::{self, Event, Report};
use gpuvm_host::{facts, signals};
use serde_json::json;

use super::bind::target::{self, Changed, Named};
use super::bind::tell;
use super::up::Progress;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{self, Failure, Item};
use crate::{hints, load, out};

/// What `reset` takes.
#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// An address (0000:81:00.0), a slot (0000:81:00), or a profile, whose devices are meant
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<Named>,

    /// Reset in this way alone: flr, pm, bus, hot (VFIO's reset of the bus with everything on it), or another of the kernel's names
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    method: MethodChoice,

    /// Where that leaves a device sick, climb the ladder up to this rung: hot (its bus, by VFIO), subordinate (everything below the
    /// bridge above it), rescan (removed, and found anew)
    #[arg(long, value_name = "RUNG")]
    repair: Option<Rung>,

    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(cli: &Cli, args: &ResetArgs) -> Result<Exit, Failure> {
    // What would be done is shown for a host's trees; a report lacks some of what it rests on.
    if !args.dry_run || cli.facts.is_some() {
        super::refuse_recorded(cli)?;
    }
    let (targets, asked) = target::resolve(cli, &args.targets, Changed::Taken)?;
    let host = load::for_reset(cli, &asked)?;
    let repair = args.repair.map_or(RepairPolicy::Never, RepairPolicy::from);
    let job = plan::reset(&targets, args.method, repair, &host)
        .map_err(|refusals| Failure::refused(&refusals, hints::of_reset))?;
    tell_quirks(&job, &host);
    if args.dry_run {
        match cli.json {
            true => out::json(&json!({ "plan": job.resets, "ladders": job.ladders, "bind": job.bind }))?,
            false => out::text(&text::would(&job))?,
        }
        return Ok(Exit::Ok);
    }
    // Cut short, it would leave no verdict and no entry in the ledger. The kernel doesn't let go of the device earlier either way.
    signals::hold_back()
        .map_err(|error| Failure::one(Exit::Internal, format!("hold signals back: {error}"), None))?;
    let stop = || signals::is_waiting().unwrap_or(false);
    let mut progress = Progress::new(cli);
    let mut told = |event: Event<'_>| match event {
        Event::Bound(step) => tell(&mut progress, step),
        Event::Resetting { bdf, step, deadline } => progress.tell(&format!(
            "resetting {bdf} by {} (at most {} s; a Ctrl-C waits for it)",
            step.method,
            deadline.as_secs()
        )),
        Event::Next { error } => progress.tell(&format!("that failed, trying the next way: {error}")),
        Event::Judging => progress.tell("looking at the devices"),
        Event::Climbed { bdf, climbed } => progress.tell(&format!("{bdf}: {climbed}")),
        Event::Repairing { bdf, climb, deadline } => progress.tell(&format!(
            "{bdf} is sick, trying to repair it by {} (at most {} s; a Ctrl-C waits for it)",
            climb.rung,
            deadline.as_secs()
        )),
    };
    let root = cli.host_root();
    let boot_id = facts::boot_id(&root)?;
    let report = reset::run(&Kernel::running(root), &cli.places(), &boot_id, &job, &stop, &mut told)?;
    let code = if report.is_good() { Exit::Ok } else { Exit::NotGivenBack };
    let problems = problems(&report);
    // What was done is done: that it can't be printed changes nothing of the result.
    if cli.json {
        let problems: Vec<_> = problems.iter().map(Item::to_json).collect();
        out::told(out::json(&json!({
            "exit_code": code, "plan": job.resets, "ladders": job.ladders, "attempts": report.attempts, "functions": report.functions,
            "staying": report.staying, "not_given_back": report.not_given_back, "problems": problems,
        })));
    } else {
        out::told(out::text(&text::done(&report)));
        problems.iter().for_each(|item| failure::print_item("error", item));
    }
    Ok(code)
}

/// Says what others have met who have reset the like; what the kernel's source says is in the plan.
fn tell_quirks(job: &ResetJob, host: &HostFacts) {
    for plan in &job.resets {
        let Some(device) = host.devices.get(&plan.bdf) else { continue };
        for found in quirks_of(plan.bdf, host) {
            let Quirk { name, advice, confidence, .. } = found.quirk;
            // There is no guest to reboot.
            let worry = found.worry(device, ResetWish::default(), RebootPolicy::Stop, host);
            if worry.is_some() && *confidence != Confidence::KernelSource {
                out::note(&format!("note: {} ({name}): {}; {advice}", plan.bdf, found.told()));
            }
        }
    }
}

/// Lists what failed, with remedies: the resets that were given up on, and what couldn't be given back.
fn problems(report: &Report) -> Vec<Item> {
    let reset =
        |bdf| report.functions.iter().any(|function| function.bdf == bdf && function.method.is_some());
    let failed = report.attempts.iter().filter(|attempt| !reset(attempt.bdf));
    let failed = failed.filter_map(|attempt| attempt.error.as_ref());
    let mut items: Vec<Item> = failed.chain(&report.left).map(failure::left).collect();
    for function in &report.functions {
        let judgement = &function.judgement;
        if let Some(reason) = judgement.reason().filter(|_| judgement.verdict.is_bad()) {
            let message = format!("{} is sick: {reason}", function.bdf);
            let hint = Some(hints::after_reset(function, report));
            items.push(Item { kind: failure::kind(&reason.check), message, hint });
        }
    }
    items
}
