//! `gpuvm pause`: stops a guest's vCPUs.

use gpuvm_core::control::{Do, Live};
use gpuvm_core::profile::VmName;
use serde_json::{Value, json};

use crate::asked::{self, COMMAND};
use crate::cli::{Cli, VmArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

pub(super) fn run(cli: &Cli, args: &VmArgs) -> Result<Exit, Failure> {
    done(cli, &args.vm, Do::Pause)
}

/// Asks for something that is done at once, and tells the state that the VM is in then.
pub(super) fn done(cli: &Cli, vm: &VmName, what: Do) -> Result<Exit, Failure> {
    let live: Live = asked::runtime()?.block_on(async {
        let (known, mut client) = asked::connect(cli, vm).await?;
        let failure = |error| asked::failure(&known, &error);
        let _: Value = client.ask(what, COMMAND).await.map_err(failure)?;
        client.ask(Do::Status, COMMAND).await.map_err(failure)
    })?;
    if cli.json {
        out::json(&json!({ "name": vm, "state": live.state, "reboots": live.reboots }))?;
    } else {
        out::text(&format!("{vm} is {}\n", live.state))?;
    }
    Ok(Exit::Ok)
}
