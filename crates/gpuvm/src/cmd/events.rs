//! `gpuvm events`: what has happened to a VM, and what happens.

use std::fs;

use clap::Args;
use gpuvm_core::control::{Do, Entry, Told};
use gpuvm_core::date;
use gpuvm_core::profile::VmName;
use serde_json::Value;

use super::logs;
use crate::asked::{self, COMMAND};
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out::{self, Reader};

/// How many entries of before are told where it is followed.
const LAST: u32 = 10;

/// What `events` takes.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// The VM
    vm: VmName,

    /// Go on with what happens, until the VM is down
    #[arg(short, long)]
    follow: bool,

    /// Only so many of those that there are [default: all; 10 with --follow]
    #[arg(long, value_name = "COUNT")]
    last: Option<u32>,
}

pub(super) fn run(cli: &Cli, args: &EventsArgs) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    if args.follow {
        return follow(cli, args);
    }
    // Written down line by line: there is nobody to be asked, and it is there when the VM is gone.
    let path = logs::folder(cli, &args.vm)?.join(logs::EVENTS);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(logs::unreadable(&path, &error)),
    };
    let lines: Vec<&str> = text.lines().collect();
    let last = args.last.and_then(|last| usize::try_from(last).ok()).unwrap_or(lines.len());
    for written in lines.iter().skip(lines.len().saturating_sub(last)) {
        out::text(&shown(cli, written))?;
    }
    Ok(Exit::Ok)
}

fn follow(cli: &Cli, args: &EventsArgs) -> Result<Exit, Failure> {
    asked::runtime()?.block_on(async {
        let (known, mut client) = asked::connect(cli, &args.vm).await?;
        let failure = |error| asked::failure(&known, &error);
        let what = Do::Events { last: args.last.unwrap_or(LAST), follow: true };
        let _: Value = client.ask(what, COMMAND).await.map_err(failure)?;
        while let Some(entry) = client.entry().await.map_err(failure)? {
            let line = if cli.json { json_line(&entry) } else { format!("{}\n", line(&entry)) };
            if out::stream(line.as_bytes())? == Reader::Gone {
                break;
            }
        }
        Ok(Exit::Ok)
    })
}

/// Shows a line of the file; one that is no entry, as a newer gpuvm's, as it is.
pub(super) fn shown(cli: &Cli, written: &str) -> String {
    match serde_json::from_str::<Entry>(written) {
        Ok(entry) if !cli.json && entry.what != Told::Other => format!("{}\n", line(&entry)),
        _ => format!("{written}\n"),
    }
}

fn json_line(entry: &Entry) -> String {
    serde_json::to_string(entry).map(|line| format!("{line}\n")).unwrap_or_default()
}

/// Spells an entry for people.
pub(super) fn line(entry: &Entry) -> String {
    let what = match &entry.what {
        Told::State { state } => format!("state: {state}"),
        Told::Phase { text, .. } => text.trim().to_owned(),
        Told::Note { text } => format!("note: {text}"),
        Told::Ended { text, exit_code } => format!("over: {text} (exit code {exit_code})"),
        Told::Qmp { event, data: Value::Null } => format!("QEMU: {event}"),
        Told::Qmp { event, data } => format!("QEMU: {event} {data}"),
        Told::Missed { count } => format!("{count} entries were missed; they are in the log: gpuvm logs"),
        Told::Other => "something that this gpuvm doesn't know".to_owned(),
    };
    format!("{}  {what}", date::readable(entry.at_ms / 1000))
}
