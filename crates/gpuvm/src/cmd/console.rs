//! `gpuvm console`: a person at a guest's serial port.

use clap::Args;
use gpuvm_core::control::Do;
use gpuvm_core::profile::VmName;
use gpuvm_core::units::ByteSize;
use gpuvm_run::Signals;
use gpuvm_run::attach::{Keys, Left, attach};
use serde_json::Value;

use crate::asked::{self, COMMAND};
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::{hints, out};

/// What `console` takes.
#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    /// The VM
    vm: VmName,

    /// Show so much of what the guest has said before, with K or M; 0 for nothing
    #[arg(long, value_name = "SIZE", default_value = "16K")]
    scrollback: ByteSize,
}

pub(super) fn run(cli: &Cli, args: &ConsoleArgs) -> Result<Exit, Failure> {
    if cli.json {
        let message = "a console is a guest's bytes, which no JSON holds as they are";
        return Err(Failure::one(Exit::Usage, message, Some(hints::console_lines(&args.vm))));
    }
    let vm = &args.vm;
    asked::runtime()?.block_on(async {
        let (known, mut client) = asked::connect(cli, vm).await?;
        let what = Do::Console { scrollback: args.scrollback.as_bytes() };
        let _: Value = client.ask(what, COMMAND).await.map_err(|error| asked::failure(&known, &error))?;
        let failed = |doing: &str, error: std::io::Error| {
            Failure::one(Exit::Internal, format!("{doing}: {error}"), None)
        };
        let mut signals = Signals::catch().map_err(|error| failed("catch signals", error))?;
        let keys = Keys::here();
        out::note(&match keys {
            Keys::Terminal => {
                format!("gpuvm: the console of VM {vm}; Ctrl-] leaves it, and the guest goes on")
            }
            Keys::None => {
                format!("gpuvm: the console of VM {vm}, to be read only: standard input is no terminal")
            }
        });
        let (stream, first) = client.into_stream();
        let left = attach(stream, first, keys, &mut signals).await;
        let left = left.map_err(|error| failed("use the terminal", error))?;
        // The guest's last line may not have ended.
        out::note(&match left {
            Left::Escape => format!("\ngpuvm: left the console; VM {vm} goes on"),
            Left::Ended => format!("\ngpuvm: the console of VM {vm} has ended"),
            Left::Signal(signal) => format!("\ngpuvm: {signal}: left the console; VM {vm} goes on"),
            Left::OutputClosed => return Ok(Exit::Ok),
        });
        Ok(Exit::Ok)
    })
}
