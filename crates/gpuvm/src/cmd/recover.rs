//! `gpuvm recover`: puts a new gpuvm beside a guest whose own is dead; where there is no such guest, gives back what the dead one has left.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use gpuvm_core::lifecycle::Patience;
use gpuvm_core::profile::{Ready, VmName};
use gpuvm_host::facts;
use gpuvm_host::kernel::Kernel;
use gpuvm_host::standing::Known;
use gpuvm_run::adopt::{self, Decided, Nothing, Remedy};
use gpuvm_run::detach::SUPERVISOR_LOG;
use gpuvm_run::{Cleaned, CleanupReport, Control, Launched, Run, Signals, end_unsupervised};
use serde::Serialize;
use serde_json::json;

use super::up::detach::{self, Said};
use super::up::{Progress, Teller, WaitFor, conclude};
use super::{cleanup, up};
use crate::asked;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{Failure, Item};
use crate::{hints, out};

/// How long the new gpuvm may take: it waits for QEMU's answers, each with a deadline of its own.
const READY: Duration = Duration::from_secs(180);

/// What `recover` takes.
#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// The VM
    vm: VmName,

    /// The socket on which the one that goes on tells the one that has started it
    #[arg(long, hide = true)]
    word_fd: Option<i32>,
}

/// What `--json` prints of a VM whose guest goes on.
#[derive(Serialize)]
struct Adopted<'a> {
    result: &'static str,
    #[serde(flatten)]
    ready: &'a detach::Ready,
}

/// What `--json` prints of a VM whose guest had never run, or was gone.
#[derive(Serialize)]
struct GivenBack<'a> {
    name: &'a VmName,
    result: &'static str,
    report: &'a CleanupReport,
}

pub(super) fn run(cli: &Cli, args: &RecoverArgs) -> Result<Exit, Failure> {
    if let Some(fd) = args.word_fd {
        return see_to(cli, &args.vm, fd);
    }
    let known = asked::known(cli, &args.vm)?;
    let vm = &known.name;
    match adopt::remedy(&cli.places(), &known)? {
        Some(Remedy::Adopt) => begin(cli, vm),
        Some(Remedy::GiveBack(why)) => give_back(cli, vm, why),
        None if known.standing.has_supervisor() => Err(supervised(&known)),
        None => {
            Err(known.unread.into_iter().next().map_or_else(|| asked::no_such(cli, &args.vm), Failure::from))
        }
    }
}

/// Says that somebody sees to the VM already.
fn supervised(known: &Known) -> Failure {
    let (vm, pid) = (&known.name, known.supervisor.map_or(0, |seen| seen.pid));
    let message = format!("VM {vm} is {}, and has its gpuvm (process {pid})", known.standing);
    let hint = Some(hints::has_a_supervisor(vm, pid));
    Failure::of(Exit::Busy, vec![Item { kind: "already-up".to_owned(), message, hint }])
}

/// Starts the gpuvm that sees to the guest from now on.
fn begin(cli: &Cli, vm: &VmName) -> Result<Exit, Failure> {
    let arguments = |fd| {
        let mut words = cli.again();
        words.extend(["recover".into(), OsString::from(format!("--word-fd={fd}")), vm.as_str().into()]);
        words
    };
    // What can't be read is told by the one that is started.
    let decided = adopt::decided(&cli.places(), vm).ok().flatten();
    let shutdown = decided.map_or(Patience::default().acpi, |it| Duration::from_secs(it.shutdown_timeout));
    match detach::start(cli, vm, (READY, shutdown), arguments)? {
        Said::Ready(ready) if cli.json => out::json(&Adopted { result: "adopted", ready: &ready })?,
        Said::Ready(ready) => {
            out::text(&format!("{vm} has a gpuvm again (process {})\n", ready.processes()))?;
        }
        Said::Ended(exit) => return over(cli, vm, exit),
    }
    Ok(Exit::Ok)
}

/// Tells that the guest has ended while it was taken over: then its gpuvm has given back what it had.
fn over(cli: &Cli, vm: &VmName, exit: Exit) -> Result<Exit, Failure> {
    if cli.json {
        out::json(&json!({ "name": vm, "result": "ended", "exit_code": exit }))?;
    } else {
        let log = cli.places().logs(vm).join(SUPERVISOR_LOG);
        out::text(&format!("the guest of {vm} has ended meanwhile; what became of it: {}\n", log.display()))?;
    }
    // How it ended is no failure of this: what counts is the host.
    Ok(if exit == Exit::NotGivenBack { exit } else { Exit::Ok })
}

/// Ends what is left of a VM whose guest has nothing to lose, and gives the host back.
fn give_back(cli: &Cli, vm: &VmName, why: Nothing) -> Result<Exit, Failure> {
    let root = cli.host_root();
    let boot_id = facts::boot_id(&root)?;
    let mut progress = Progress::new(cli);
    progress.tell(&format!("{why}: giving back what VM {vm} has"));
    let report = end_unsupervised(&Kernel::running(root), &cli.places(), &boot_id, vm, &mut progress);
    if cli.json {
        out::told(out::json(&GivenBack { name: vm, result: "given-back", report: &report }));
    } else {
        cleanup::tell(&report);
    }
    let sick = report.devices.iter().any(|device| device.judgement.verdict.is_bad());
    Ok(match report.result {
        Cleaned::Left => Exit::NotGivenBack,
        Cleaned::Running | Cleaned::Unsupervised => Exit::Busy,
        Cleaned::Done if sick => Exit::NotGivenBack,
        Cleaned::Done => Exit::Ok,
    })
}

/// Sees to the guest, as the gpuvm that was started for it.
fn see_to(cli: &Cli, vm: &VmName, fd: i32) -> Result<Exit, Failure> {
    let teller = Arc::new(Teller::new(Some(up::word_socket(fd)?), None));
    teller.wait_for(WaitFor::Ready(Ready::Running));
    let runtime = asked::runtime()?;
    let result = runtime.block_on(supervise(cli, vm, &teller));
    teller.ended(&result);
    result
}

async fn supervise(cli: &Cli, vm: &VmName, teller: &Arc<Teller>) -> Result<Exit, Failure> {
    let mut signals = Signals::catch()
        .and_then(Signals::of_a_scope)
        .map_err(|error| Failure::one(Exit::Internal, format!("catch signals: {error}"), None))?;
    let places = cli.places();
    let boot_id = &facts::boot_id(&cli.host_root())?;
    let gone = || Failure::one(Exit::Busy, format!("VM {vm} has ended meanwhile"), Some(hints::stale(vm)));
    let Some(Decided { plan, profile, shutdown_timeout }) = adopt::decided(&places, vm)? else {
        return Err(gone());
    };
    let Some(lone) = adopt::adopt(&places, boot_id, vm)? else { return Err(gone()) };
    let run = Run {
        plan: &plan,
        profile: &profile,
        kernel: &Kernel::running(cli.host_root()),
        places: &places,
        boot_id,
        patience: Patience {
            acpi: Duration::from_secs(shutdown_timeout),
            ..Patience::with_functions(plan.owned().count())
        },
        launched: Launched::Detached,
    };
    let mut control = Control::new(env!("CARGO_PKG_VERSION"), Launched::Detached);
    let mut progress = Progress::with_teller(cli, teller);
    let report = adopt::adopted(&run, lone, &mut signals, &mut control, &mut progress).await;
    conclude(cli, report, control, &mut progress)
}
