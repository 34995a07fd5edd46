//! `gpuvm qmp`: one command to a VM's QEMU.

use clap::Args;
use gpuvm_core::control::Do;
use gpuvm_core::profile::VmName;
use serde_json::{Map, Value};

use crate::asked::{self, COMMAND};
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// What `qmp` takes.
#[derive(Debug, Args)]
pub(crate) struct QmpArgs {
    /// The VM
    vm: VmName,

    /// QEMU's command, as query-status
    command: String,

    /// Its arguments, a JSON object
    #[arg(value_name = "JSON", value_parser = object)]
    arguments: Option<Object>,
}

/// A command's arguments.
#[derive(Debug, Clone)]
struct Object(Map<String, Value>);

fn object(text: &str) -> Result<Object, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(Object(fields)),
        Ok(_) => Err("expected a JSON object, like {\"id\": \"disk0\"}".to_owned()),
        Err(error) => Err(format!("expected a JSON object, like {{\"id\": \"disk0\"}}: {error}")),
    }
}

pub(super) fn run(cli: &Cli, args: &QmpArgs) -> Result<Exit, Failure> {
    let arguments = args.arguments.clone().map_or(Value::Null, |Object(fields)| Value::Object(fields));
    let what = Do::Qmp { execute: args.command.clone(), arguments };
    let answer: Value = asked::ask(cli, &args.vm, what, COMMAND)?;
    // QEMU's answer is JSON either way.
    out::json(&answer)?;
    Ok(Exit::Ok)
}
