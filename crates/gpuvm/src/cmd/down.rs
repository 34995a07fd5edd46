//! `gpuvm down`: ends a guest, and waits until the host is given back.

use std::time::Duration;

use clap::Args;
use gpuvm_core::control::{Do, Finale, Live, State, Told, Why};
use gpuvm_core::lifecycle::{Outcome, Patience, Stage};
use gpuvm_core::profile::VmName;
use gpuvm_core::standing::Standing;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::standing::{self, Known};
use gpuvm_run::client::{Client, ClientError};
use gpuvm_run::{Cleaned, CleanupReport, end_unsupervised};
use serde::Serialize;
use serde_json::Value;

use super::up::Progress;
use super::{cleanup, events};
use crate::asked::{self, COMMAND};
use crate::cli::{Cli, whole_seconds};
use crate::exit::Exit;
use crate::failure::{Failure, Item};
use crate::{hints, out};

/// What `down` takes.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The VM
    vm: VmName,

    /// Have the guest off after so long: three quarters of it to power off when asked to, the rest for QEMU to quit, then SIGKILL [default: the
    /// profile's shutdown-timeout to power off, 15s to quit]
    #[arg(long, value_name = "TIME", value_parser = whole_seconds, conflicts_with = "force")]
    timeout: Option<u32>,

    /// Don't ask the guest: tell QEMU to quit, as pulling its plug
    #[arg(long)]
    force: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    name: &'a VmName,
    /// What was needed: the power button, QEMU's `quit`, or SIGKILL; nothing where it ended by itself, or had never run.
    stage: Option<Stage>,
    #[serde(flatten)]
    finale: &'a Finale,
}

/// What it prints of a VM that had no supervisor.
#[derive(Serialize)]
struct Alone<'a> {
    name: &'a VmName,
    stage: Option<Stage>,
    exit_code: Exit,
    report: &'a CleanupReport,
}

pub(super) fn run(cli: &Cli, args: &DownArgs) -> Result<Exit, Failure> {
    if args.force {
        let known = asked::known(cli, &args.vm)?;
        if known.standing == Standing::Unsupervised {
            return alone(cli, &known);
        }
    }
    asked::runtime()?.block_on(async {
        let (known, mut client) = asked::connect(cli, &args.vm).await?;
        let patience = patience(&known, args.timeout);
        let progress = match cli.json {
            true => None,
            // Before the end is asked for: its first step is told too.
            false => watch(&asked::socket(&cli.places(), &args.vm)).await.ok(),
        };
        let progress = progress.map(|client| tokio::spawn(tell(client)));
        let ended = end(&mut client, args, patience).await;
        if let Some(progress) = progress {
            progress.abort();
        }
        match ended {
            Ok(finale) => told(cli, &args.vm, &finale),
            Err(ClientError::Closed { .. }) => without_a_word(cli, &known),
            Err(error) => Err(asked::failure(&known, &error)),
        }
    })
}

/// Asks for the end, and waits for it. Who asks to be told of it first hears of it however soon it comes.
async fn end(client: &mut Client, args: &DownArgs, patience: Duration) -> Result<Finale, ClientError> {
    let over = client.begin(Do::Wait).await?;
    let timeout = args.timeout.map(|seconds| Duration::from_secs(seconds.into()));
    let asked: Result<Value, _> = client.ask(Do::stop(timeout, args.force), COMMAND).await;
    match asked {
        Ok(_) | Err(ClientError::Closed { .. }) => {}
        Err(ClientError::Refused(refusal)) if refusal.kind == Why::NotNow => {
            // It may be at its end already, which is what is wanted.
            let live: Live = client.ask(Do::Status, COMMAND).await?;
            if !is_ending(live.state) {
                return Err(ClientError::Refused(refusal));
            }
        }
        Err(error) => return Err(error),
    }
    client.answer(&over, patience).await
}

fn is_ending(state: State) -> bool {
    matches!(
        state,
        State::PoweringDown
            | State::Quitting
            | State::Killing
            | State::Judging
            | State::GivingBack
            | State::Over
    )
}

/// Returns how long an end may take at most: all stages, and the resets of devices that don't answer.
fn patience(known: &Known, timeout: Option<u32>) -> Duration {
    /// For what the host is given back with, beside the devices.
    const GIVE_BACK: Duration = Duration::from_secs(120);
    let patience = Patience::with_functions(known.devices.len());
    let profiles = known.plan.as_ref().map(|plan| plan.shutdown_timeout);
    let acpi = timeout.or(profiles).map_or(patience.acpi, |seconds| Duration::from_secs(seconds.into()));
    acpi + patience.quit + patience.exit + patience.killed + GIVE_BACK
}

/// Begins to listen to what the supervisor does meanwhile. That it can't be told is no failure of the end.
async fn watch(socket: &std::path::Path) -> Result<Client, ClientError> {
    /// It knows by heart what there is to be told; one that is silent is not waited for twice.
    const WITHIN: Duration = Duration::from_secs(1);
    let mut client = Client::connect(socket, asked::VERSION, WITHIN).await?;
    let _: Value = client.ask(Do::Events { last: 0, follow: true }, WITHIN).await?;
    Ok(client)
}

async fn tell(mut client: Client) -> Result<(), ClientError> {
    while let Some(entry) = client.entry().await? {
        match &entry.what {
            Told::Phase { text, .. } | Told::Note { text } => out::note(&format!("gpuvm: {text}")),
            Told::State { state: State::Over } => return Ok(()),
            Told::Qmp { .. }
            | Told::State { .. }
            | Told::Ended { .. }
            | Told::Missed { .. }
            | Told::Other => {
                tracing::debug!("{}", events::line(&entry));
            }
        }
    }
    Ok(())
}

fn told(cli: &Cli, vm: &VmName, finale: &Finale) -> Result<Exit, Failure> {
    let stage = match &finale.outcome {
        Some(Outcome::Stopped { stage }) => Some(*stage),
        _ => None,
    };
    if cli.json {
        out::json(&Document { name: vm, stage, finale })?;
    } else {
        // An outcome says the stage that was needed.
        match (&finale.failure, Exit::of(finale.exit_code)) {
            // Its QEMU may be there still, and have the devices.
            (Some(failure), Some(Exit::NotGivenBack)) if finale.outcome.is_none() => {
                out::text(&format!("{vm} is NOT wholly down: {failure}\n"))?;
                out::note(&format!("  hint: {}", hints::look_again(vm)));
            }
            _ => out::text(&format!("{vm} is down: {}\n", finale.words()))?,
        }
        finale.devices.iter().for_each(|device| out::note(&format!("gpuvm: {device}")));
        finale.not_given_back.iter().for_each(|what| out::note(&format!("error: {what}")));
        if !finale.not_given_back.is_empty() {
            out::note(&format!("  hint: {}", hints::stale(vm)));
        }
    }
    // One that was to end has not failed because it ended otherwise than asked: only the host's state counts then.
    match Exit::of(finale.exit_code) {
        Some(Exit::NotGivenBack) => Ok(Exit::NotGivenBack),
        _ if !finale.not_given_back.is_empty() => Ok(Exit::NotGivenBack),
        _ => Ok(Exit::Ok),
    }
}

/// Ends a guest that goes on without a gpuvm, and gives the host back in its stead.
fn alone(cli: &Cli, known: &Known) -> Result<Exit, Failure> {
    let (root, vm) = (cli.host_root(), &known.name);
    let boot_id = gpuvm_host::facts::boot_id(&root)?;
    let mut progress = Progress::new(cli);
    let report = end_unsupervised(&Kernel::running(root), &cli.places(), &boot_id, vm, &mut progress);
    let sick = report.devices.iter().filter(|device| device.judgement.verdict.is_bad());
    let code = match report.result {
        Cleaned::Running => Exit::Busy,
        Cleaned::Done if sick.count() == 0 => Exit::Ok,
        _ => Exit::NotGivenBack,
    };
    if cli.json {
        out::told(out::json(&Alone { name: vm, stage: None, exit_code: code, report: &report }));
    } else {
        if report.result == Cleaned::Done {
            out::told(out::text(&format!(
                "{vm} is down: it had no gpuvm, and its QEMU was ended by a signal\n"
            )));
        }
        cleanup::tell(&report);
    }
    Ok(code)
}

/// Says what has become of a VM whose supervisor ended without telling.
fn without_a_word(cli: &Cli, before: &Known) -> Result<Exit, Failure> {
    let vm = &before.name;
    let boot_id = gpuvm_host::facts::boot_id(&cli.host_root())?;
    let known = standing::of(&cli.places(), &boot_id, vm);
    let message = match known.standing {
        Standing::None => {
            match cli.json {
                true => out::json(&serde_json::json!({ "name": vm, "stage": null, "outcome": null }))?,
                false => out::text(&format!("{vm} is down; how its guest ended isn't known\n"))?,
            }
            return Ok(Exit::Ok);
        }
        standing => format!("the supervisor of VM {vm} has hung up without a word, and the VM is {standing}"),
    };
    let hint = match known.standing {
        Standing::Unsupervised => hints::unsupervised(vm.as_str()),
        Standing::Stale => hints::stale(vm),
        _ => hints::look_again(vm),
    };
    let item = Item { kind: "closed".to_owned(), message, hint: Some(hint) };
    Err(Failure::of(Exit::NotGivenBack, vec![item]))
}
