//! `gpuvm`: gives a VM a whole PCI device on a headless host.

mod asked;
mod came_back;
mod cli;
mod cmd;
mod diagnostics;
mod exit;
mod failure;
mod hints;
mod load;
mod locked;
mod out;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::usage(&error),
    };
    cli.start_logging();
    match cmd::run(&cli) {
        Ok(code) => code.into(),
        Err(failure) => report(&cli, &failure),
    }
}

fn report(cli: &Cli, failure: &Failure) -> ExitCode {
    if cli.json {
        out::told(out::json(&failure.to_json()));
    } else {
        failure.print();
    }
    failure.code.into()
}
