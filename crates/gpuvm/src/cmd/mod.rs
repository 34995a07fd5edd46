//! The verbs, one file each.

mod argv;
pub(crate) mod bind;
mod check;
mod cleanup;
pub(crate) mod completions;
pub(crate) mod console;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod explain;
mod init;
mod ladder;
mod list;
pub(crate) mod lock;
pub(crate) mod logs;
pub(crate) mod man;
mod pause;
mod plan;
pub(crate) mod qmp;
mod quarantine;
mod reboot;
pub(crate) mod recover;
mod report;
pub(crate) mod reset;
mod resume;
mod schema;
pub(crate) mod screenshot;
pub(crate) mod soak;
pub(crate) mod status;
pub(crate) mod topology;
pub(crate) mod up;

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::failure::Failure;

pub(crate) use init::InitArgs;
pub(crate) use quarantine::QuarantineArgs;
pub(crate) use report::ReportArgs;

/// Refuses to act on a host that is only a recording.
pub(crate) fn refuse_recorded(cli: &Cli) -> Result<(), Failure> {
    if !cli.is_recorded() {
        return Ok(());
    }
    let (option, value) = if cli.facts.is_some() { ("--facts", "FILE") } else { ("--host-root", "DIR") };
    let hint = Some(format!("see what it would do there: gpuvm plan {option} {value} PROFILE"));
    Err(Failure::one(Exit::Usage, format!("a recorded host ({option}) can't be acted upon"), hint))
}

/// Runs a verb.
pub(crate) fn run(cli: &Cli) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Check(args) => check::run(cli, args),
        Command::Plan(args) => plan::run(cli, args),
        Command::Argv(args) => argv::run(cli, args),
        Command::Doctor(args) => doctor::run(cli, args),
        Command::Schema => schema::run(),
        Command::Up(args) => up::run(cli, args),
        Command::Status(args) => status::run(cli, args),
        Command::List => list::run(cli),
        Command::Down(args) => down::run(cli, args),
        Command::Pause(args) => pause::run(cli, args),
        Command::Resume(args) => resume::run(cli, args),
        Command::Reboot(args) => reboot::run(cli, args),
        Command::Recover(args) => recover::run(cli, args),
        Command::Logs(args) => logs::run(cli, args),
        Command::Events(args) => events::run(cli, args),
        Command::Console(args) => console::run(cli, args),
        Command::Screenshot(args) => screenshot::run(cli, args),
        Command::Qmp(args) => qmp::run(cli, args),
        Command::Devices(args) => devices::run(cli, args),
        Command::Bind(args) => bind::run(cli, args),
        Command::Unbind(args) => bind::run_unbind(cli, args),
        Command::Reset(args) => reset::run(cli, args),
        Command::Soak(args) => soak::run(cli, args),
        Command::Topology(args) => topology::run(cli, args),
        Command::Cleanup(args) => cleanup::run(cli, args),
        Command::Lock(args) => lock::run(cli, args),
        Command::Quarantine(args) => quarantine::run(cli, args),
        Command::Init(args) => init::run(cli, args),
        Command::Report(args) => report::run(cli, args),
        Command::Explain(args) => explain::run(cli, args),
        Command::Completions(args) => completions::run(cli, args),
        Command::Man(args) => man::run(cli, args),
    }
}
