//! `gpuvm completions`: gpuvm's words, for a shell to complete.

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// What `completions` takes.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Returns a command without what it doesn't show: the scripts would offer that too.
fn shown(command: &Command) -> Command {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
    let below = command.get_subcommands().filter(|below| !below.is_hide_set()).map(shown);
    let about = command.get_about().cloned().unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    Command::new(command.get_name().to_owned()).version(version).about(about).args(args).subcommands(below)
}

pub(super) fn run(cli: &Cli, args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut shown(&Cli::command()), "gpuvm", &mut script);
    let script = String::from_utf8_lossy(&script);
    if cli.json {
        out::json(&json!({ "shell": args.shell.to_string(), "script": script }))?;
    } else {
        out::text(&script)?;
    }
    Ok(Exit::Ok)
}
