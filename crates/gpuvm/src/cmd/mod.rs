//! The verbs, one file each.

mod argv;
mod check;
mod cleanup;
pub(crate) mod devices;
mod doctor;
mod plan;
mod schema;
pub(crate) mod topology;
mod up;

pub(crate) use doctor::DoctorArgs;

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::failure::Failure;

/// Refuses to act on a host that is only a recording.
fn refuse_recorded(cli: &Cli) -> Result<(), Failure> {
    if !cli.is_recorded() {
        return Ok(());
    }
    let hint = Some("see what it would do there: gpuvm plan --host-root DIR PROFILE".to_owned());
    Err(Failure::one(Exit::Usage, "a recorded host (--host-root) can't be acted upon", hint))
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
        Command::Devices(args) => devices::run(cli, args),
        Command::Topology(args) => topology::run(cli, args),
        Command::Cleanup(args) => cleanup::run(cli, args),
    }
}
