//! `gpuvm quarantine`: the devices that nobody may have, and the way out.

use clap::{Args, Subcommand};
use gpuvm_core::date;
use gpuvm_core::pci::Bdf;
use gpuvm_core::plan::Refusal;
use gpuvm_core::reset::{Grounds, Identity, Quarantine, Snapshot, quarantine};
use gpuvm_host::ledger::{self, Acceptance, Clearing, Ledger};
use gpuvm_host::{HostError, snapshot};
use serde_json::json;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, load, out};

/// What `quarantine` takes.
#[derive(Debug, Args)]
pub(crate) struct QuarantineArgs {
    #[command(subcommand)]
    command: Option<QuarantineCommand>,
}

/// What can be done about it.
#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// Give a device free that was reset since and came back well
    Clear {
        /// The function
        bdf: Bdf,

        /// Take it as it is, though no reset has shown that it is well
        #[arg(long)]
        accept: bool,
    },
}

pub(super) fn run(cli: &Cli, args: &QuarantineArgs) -> Result<Exit, Failure> {
    match &args.command {
        None => list(cli),
        Some(QuarantineCommand::Clear { bdf, accept }) => {
            clear(cli, *bdf, if *accept { Acceptance::AsItIs } else { Acceptance::AfterReset })
        }
    }
}

/// Takes a look at whatever sits at a place, and finds the files of the ledger that tell of it.
pub(super) fn told_of(cli: &Cli, bdf: Bdf) -> Result<(Snapshot, Vec<Ledger>), HostError> {
    let snapshot = snapshot::take(&load::host_root(cli), bdf);
    let present = ledger::identity(&snapshot);
    let ledgers = ledger::at(&cli.places(), bdf, present.as_ref())?;
    Ok((snapshot, ledgers))
}

/// Refuses what needs the ledger where there is none: a recorded host's is somewhere else.
pub(super) fn needs_ledger(cli: &Cli) -> Result<(), Failure> {
    if cli.has_ledger() {
        return Ok(());
    }
    let option = if cli.facts.is_some() { "--facts" } else { "--host-root" };
    let message = format!("the ledger of a recorded host ({option}) isn't here");
    Err(Failure::one(Exit::Usage, message, Some(hints::ledger_elsewhere(cli.facts.is_some()))))
}

fn list(cli: &Cli) -> Result<Exit, Failure> {
    let (held, damaged) = match load::recorded(cli)? {
        Some(recorded) => {
            let unread = recorded.facts.ledgers_unread.into_values().collect();
            (recorded.facts.quarantined.into_iter().collect(), unread)
        }
        None => {
            needs_ledger(cli)?;
            in_ledger(&ledger::all(&cli.places())?)
        }
    };
    if cli.json {
        let rows: Vec<_> = held.iter().map(|(bdf, held)| row(*bdf, held)).collect();
        out::json(&json!({ "quarantined": rows, "unreadable": damaged }))?;
        return Ok(Exit::Ok);
    }
    for (bdf, held) in &held {
        out::text(&format!(
            "{bdf}  {}  in quarantine since {}\n  {}\n  hint: {}\n",
            held.device.id,
            date::readable(held.since),
            held.finding,
            hints::quarantined(*bdf, held.reset_since)
        ))?;
    }
    if held.is_empty() {
        out::text("no device is in quarantine\n")?;
    }
    for problem in &damaged {
        out::note(&format!(
            "note: its device counts as one in quarantine: {problem}\n  hint: {}",
            hints::damaged_ledger()
        ));
    }
    Ok(Exit::Ok)
}

/// Lists what is held, by place, and the files that can't be read.
fn in_ledger(ledgers: &[Ledger]) -> (Vec<(Bdf, Quarantine)>, Vec<String>) {
    let mut held: Vec<(Bdf, Quarantine)> = Vec::new();
    for ledger in ledgers {
        let Some(device) = &ledger.device else { continue };
        let Some(found) = quarantine(&ledger.entries) else { continue };
        // Two files can be of one device.
        if !held.iter().any(|(bdf, other)| *bdf == device.bdf && other.device.is_same(&found.device)) {
            held.push((device.bdf, found));
        }
    }
    held.sort_by_key(|(bdf, _)| *bdf);
    (held, ledgers.iter().filter_map(Ledger::problem).collect())
}

fn row(bdf: Bdf, held: &Quarantine) -> serde_json::Value {
    json!({
        "bdf": bdf,
        "device": held.device,
        "since": date::readable(held.since),
        "verdict": held.verdict,
        "finding": held.finding,
        "reset_since": held.reset_since,
        "hint": hints::quarantined(bdf, held.reset_since),
    })
}

fn clear(cli: &Cli, bdf: Bdf, acceptance: Acceptance) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    let (snapshot, ledgers) = told_of(cli, bdf)?;
    let known = ledgers.iter().find_map(|ledger| ledger.device.clone());
    let device = match (ledger::identity(&snapshot), known) {
        // Its own numbers, where it tells them; a card of another kind in the place of a lost one isn't meant.
        (Some(present), Some(known)) if present.is_same(&known) => present,
        (_, Some(known)) => known,
        (Some(_), None) => {
            return said(cli, bdf, "none", "isn't in quarantine: nothing is written down of it");
        }
        (None, None) => return Err(vec![Refusal::UnknownDevice { bdf }].into()),
    };
    match ledger::clear(&cli.places(), &load::host_root(cli), &snapshot, &device, acceptance)? {
        Clearing::Free => said(cli, bdf, "none", "isn't in quarantine"),
        Clearing::Cleared { grounds: Grounds::GoodReset, .. } => {
            said(cli, bdf, "good-reset", "is cleared: it was reset and came back well")
        }
        Clearing::Cleared { was, grounds: Grounds::Accepted } => {
            let words = format!("is cleared: it is accepted as it is, though {}", was.finding);
            said(cli, bdf, "accepted", &words)
        }
        Clearing::Held(held) => {
            let since = date::readable(held.since);
            let message = format!("{bdf} hasn't come back well from a reset since {since}: {}", held.finding);
            Err(Failure::one(Exit::Unfit, message, Some(hints::not_cleared(bdf))))
        }
        Clearing::Unreadable(problem) => {
            let message = format!("{bdf} can't be cleared: {problem}");
            Err(Failure::one(Exit::Unfit, message, Some(hints::damaged_ledger())))
        }
    }
}

fn said(cli: &Cli, bdf: Bdf, grounds: &str, words: &str) -> Result<Exit, Failure> {
    if cli.json {
        out::json(&json!({ "bdf": bdf, "cleared": grounds != "none", "grounds": grounds }))?;
    } else {
        out::text(&format!("{bdf} {words}\n"))?;
    }
    Ok(Exit::Ok)
}

/// Returns the device that files of the ledger tell of together.
pub(super) fn device_of(ledgers: &[Ledger]) -> Option<Identity> {
    let mut known = ledgers.iter().filter_map(|ledger| ledger.device.clone());
    let first = known.next()?;
    Some(known.fold(first, |mut device, other| {
        device.learn(&other);
        device
    }))
}
