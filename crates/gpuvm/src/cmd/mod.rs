//! The verbs, one file each.

mod argv;
mod check;
mod cleanup;
mod plan;
mod up;

use crate::cli::{Cli, Command};
use crate::exit::Exit;
use crate::failure::Failure;

/// Runs a verb.
pub(crate) fn run(cli: &Cli) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Check(args) => check::run(cli, args),
        Command::Plan(args) => plan::run(cli, args),
        Command::Argv(args) => argv::run(cli, args),
        Command::Up(args) => up::run(cli, args),
        Command::Cleanup(args) => cleanup::run(cli, args),
    }
}
