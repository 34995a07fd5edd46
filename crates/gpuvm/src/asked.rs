//! What verbs share that ask a VM's supervisor: who it is, and what to say where nobody answers.

use std::path::PathBuf;
use std::time::Duration;

use gpuvm_core::control::{Do, Entry, Live, Refusal, Told as Happened, Why};
use gpuvm_core::date;
use gpuvm_core::profile::VmName;
use gpuvm_core::standing::Standing;
use gpuvm_host::places::Places;
use gpuvm_host::process;
use gpuvm_host::standing::{self, Known};
use gpuvm_run::client::{Client, ClientError, HELLO};
use gpuvm_run::control::SOCKET;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::cli::Cli;
use crate::cmd::logs::EVENTS;
use crate::exit::Exit;
use crate::failure::{Failure, Item};
use crate::hints;

/// How long a supervisor may take to tell what it knows by heart.
/// How many of a run's last entries are looked through for how it ended: that is the last but one.
const LAST_ENTRIES: usize = 20;
const STATUS: Duration = Duration::from_secs(3);
/// How long it may take for what it asks QEMU first.
pub(crate) const COMMAND: Duration = Duration::from_secs(40);

/// Makes the runtime that a connection lives in.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::one(Exit::Internal, format!("start tokio: {error}"), None))
}

/// A VM, and what its supervisor says of it.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) known: Known,
    /// Nothing where nobody is to be asked.
    pub(crate) live: Option<Result<Live, ClientError>>,
}

/// Reads what is known of VMs by their records, and asks their supervisors, all at the same time.
pub(crate) fn told(cli: &Cli, names: &[VmName]) -> Result<Vec<Told>, Failure> {
    let boot_id = gpuvm_host::facts::boot_id(&cli.host_root())?;
    let places = cli.places();
    let runtime = runtime()?;
    runtime.block_on(async {
        let ask = |known: &Known| {
            let socket = socket(&places, &known.name);
            known.standing.has_supervisor().then(|| {
                tokio::spawn(async move {
                    let mut client = Client::connect(&socket, VERSION, STATUS).await?;
                    client.ask::<Live>(Do::Status, STATUS).await
                })
            })
        };
        let known = names.iter().map(|name| standing::of(&places, &boot_id, name));
        let asked: Vec<_> = known.map(|known| (ask(&known), known)).collect();
        let mut all = Vec::new();
        for (live, known) in asked {
            let live = match live {
                None => None,
                // A task that panicked has told so.
                Some(task) => task.await.ok(),
            };
            all.push(again(&places, &boot_id, Told { known, live }));
        }
        Ok(all)
    })
}

/// Names a VM's control socket.
pub(crate) fn socket(places: &Places, vm: &VmName) -> PathBuf {
    places.vm(vm).join(SOCKET)
}

/// Looks once more at a VM whose supervisor has gone while it was asked.
fn again(places: &Places, boot_id: &str, told: Told) -> Told {
    match told.live {
        Some(Err(ClientError::Nobody { .. } | ClientError::Closed { .. })) => {
            let known = standing::of(places, boot_id, &told.known.name);
            let live = told.live.filter(|_| known.standing.has_supervisor());
            Told { known, live }
        }
        _ => told,
    }
}

/// This gpuvm's version, as it tells it to supervisors.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Reads what is known of a VM.
///
/// # Errors
/// Returns that there is no such VM, with those that there are.
pub(crate) fn known(cli: &Cli, vm: &VmName) -> Result<Known, Failure> {
    crate::cmd::refuse_recorded(cli)?;
    let boot_id = gpuvm_host::facts::boot_id(&cli.host_root())?;
    let known = standing::of(&cli.places(), &boot_id, vm);
    match known.standing {
        Standing::None => Err(no_such(cli, vm)),
        _ => Ok(known),
    }
}

/// Says that there is no such VM.
pub(crate) fn no_such(cli: &Cli, vm: &VmName) -> Failure {
    let others = match standing::names(&cli.places()) {
        Ok(others) => others,
        Err(error) => return error.into(),
    };
    let ran = cli.places().logs(vm).is_dir();
    let message = match ran {
        true => match ended(&cli.places(), vm) {
            Some((at_ms, how)) => {
                format!("VM {vm} isn't up; it ended {}: {how}", date::readable(at_ms / 1000))
            }
            None => format!("VM {vm} isn't up"),
        },
        false => format!("there is no VM {vm}"),
    };
    failed("no-such-vm", Exit::Unfit, message, Some(hints::no_such_vm(vm, &others, ran)))
}

/// Reads when and how a VM's last run ended; nothing where nobody has written it down.
fn ended(places: &Places, vm: &VmName) -> Option<(u64, String)> {
    let text = std::fs::read(places.logs(vm).join(EVENTS)).ok()?;
    let mut entries = text.split(|byte| *byte == b'\n').rev().take(LAST_ENTRIES);
    entries.find_map(|line| match serde_json::from_slice(line).ok()? {
        Entry { at_ms, what: Happened::Ended { text, .. }, .. } => Some((at_ms, text)),
        _ => None,
    })
}

/// Connects to a VM's supervisor.
///
/// # Errors
/// Returns that there is no such VM, or nobody who sees to it, and that it doesn't answer.
pub(crate) async fn connect(cli: &Cli, vm: &VmName) -> Result<(Known, Client), Failure> {
    let known = known(cli, vm)?;
    let pid = |seen: Option<standing::Seen>| seen.map_or(0, |seen| seen.pid);
    match known.standing {
        Standing::Unsupervised => {
            let qemu = pid(known.qemu);
            let message = format!(
                "VM {vm} is unsupervised: its gpuvm is dead, and its QEMU (process {qemu}) goes on alone"
            );
            return Err(failed("unsupervised", Exit::Unfit, message, Some(hints::unsupervised(vm.as_str()))));
        }
        Standing::Stale => {
            let message =
                format!("VM {vm} is stale: its processes are dead, and what they had isn't given back");
            return Err(failed("stale", Exit::Unfit, message, Some(hints::stale(vm))));
        }
        Standing::Unknown => {
            return Err(known.unread.into_iter().next().map_or_else(|| no_such(cli, vm), Failure::from));
        }
        _ => {}
    }
    match Client::connect(&socket(&cli.places(), vm), VERSION, HELLO).await {
        Ok(client) => Ok((known, client)),
        Err(error) => Err(failure(&known, &error)),
    }
}

/// Connects, asks and returns the answer.
///
/// # Errors
/// As [`connect`], and that it is refused.
pub(crate) fn ask<T: DeserializeOwned>(
    cli: &Cli,
    vm: &VmName,
    what: Do,
    within: Duration,
) -> Result<T, Failure> {
    runtime()?.block_on(async {
        let (known, mut client) = connect(cli, vm).await?;
        client.ask(what, within).await.map_err(|error| failure(&known, &error))
    })
}

/// Says what became of asking a supervisor.
pub(crate) fn failure(known: &Known, error: &ClientError) -> Failure {
    let (vm, pid) = (&known.name, known.supervisor.map_or(0, |seen| seen.pid));
    let state = || process::describe(pid);
    match error {
        ClientError::Nobody { .. } => {
            let message = format!(
                "VM {vm} is {}, and its supervisor (process {pid}, {}) doesn't listen: {error}",
                known.standing,
                state()
            );
            failed("nobody-listens", Exit::Busy, message, Some(hints::nobody_listens(vm, pid)))
        }
        ClientError::Silent { .. } => {
            let message =
                format!("the supervisor of VM {vm} (process {pid}, {}) is silent: {error}", state());
            failed("silent", Exit::Timeout, message, Some(hints::silent(vm, pid)))
        }
        ClientError::Connect { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            failed("permission", Exit::Permission, error.to_string(), Some(hints::not_yours(vm)))
        }
        ClientError::Connect { .. } | ClientError::Odd(_) => {
            failed("odd", Exit::Internal, format!("VM {vm}: {error}"), None)
        }
        ClientError::Closed { .. } => {
            let message = format!("VM {vm}: {error}");
            failed("closed", Exit::Busy, message, Some(hints::look_again(vm)))
        }
        ClientError::Version { .. } => {
            failed("version", Exit::Unfit, format!("VM {vm}: {error}"), Some(hints::other_version()))
        }
        ClientError::Refused(refusal) => refused(vm, refusal),
    }
}

fn refused(vm: &VmName, refusal: &Refusal) -> Failure {
    let code = match refusal.kind {
        Why::NotNow => Exit::Busy,
        Why::Timeout => Exit::Timeout,
        Why::BadRequest | Why::TooLong | Why::Failed => Exit::Internal,
        Why::UnknownRequest | Why::Version | Why::Qemu | Why::NotThere | Why::Other => Exit::Unfit,
    };
    let kind = serde_json::to_value(refusal.kind).ok();
    let kind = kind.as_ref().and_then(serde_json::Value::as_str).unwrap_or("refused").to_owned();
    failed(&kind, code, format!("VM {vm}: {refusal}"), hints::refused_by_supervisor(vm, refusal.kind))
}

fn failed(kind: &str, code: Exit, message: String, hint: Option<String>) -> Failure {
    Failure::of(code, vec![Item { kind: kind.to_owned(), message, hint }])
}
