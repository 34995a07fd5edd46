//! `gpuvm list`: the VMs that are up, or that have left something behind.

use gpuvm_core::date;
use serde_json::{Value, json};

use crate::asked::{self, Told};
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// The width of a process's number: Linux counts up to 4,194,304.
const PID: usize = 7;
/// What stands where there is nothing to say.
const NOTHING: &str = "-";

pub(super) fn run(cli: &Cli) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    let names = gpuvm_host::standing::names(&cli.places())?;
    let all = asked::told(cli, &names)?;
    if cli.json {
        out::json(&json!({ "vms": all.iter().map(row).collect::<Vec<_>>() }))?;
    } else if all.is_empty() {
        out::text("no VM is up\n")?;
    } else {
        out::text(&table(&all))?;
    }
    Ok(Exit::Ok)
}

fn row(told: &Told) -> Value {
    let Told { known, live } = told;
    let live = live.as_ref().and_then(|live| live.as_ref().ok());
    json!({
        "name": known.name,
        "standing": known.standing,
        "state": live.map(|live| live.state),
        "since": since(told),
        "begun": known.begun.map(date::readable),
        "supervisor": known.supervisor,
        "qemu": known.qemu,
        "devices": known.devices,
    })
}

/// Tells since when a VM is in the state that is shown; by its records, since when it is up.
fn since(told: &Told) -> Option<String> {
    match &told.live {
        Some(Ok(live)) => Some(date::readable(live.since_ms / 1000)),
        _ => told.known.begun.map(date::readable),
    }
}

/// Names the state of a VM: its supervisor's word, or what its records say.
pub(super) fn state(told: &Told) -> String {
    match &told.live {
        Some(Ok(live)) => live.state.to_string(),
        Some(Err(_)) => format!("{}, no answer", told.known.standing),
        None => told.known.standing.to_string(),
    }
}

fn table(all: &[Told]) -> String {
    let words = |told: &Told| {
        let process = told.known.qemu.filter(|qemu| qemu.alive).map(|qemu| qemu.pid.to_string());
        let devices: Vec<String> = told.known.devices.iter().map(ToString::to_string).collect();
        [
            told.known.name.to_string(),
            state(told),
            since(told).unwrap_or_else(|| NOTHING.to_owned()),
            format!("{:<PID$}", process.as_deref().unwrap_or(NOTHING)),
            if devices.is_empty() { NOTHING.to_owned() } else { devices.join(" ") },
        ]
    };
    let head = ["NAME", "STATE", "SINCE", "QEMU", "DEVICES"].map(str::to_owned);
    let rows: Vec<_> = [head].into_iter().chain(all.iter().map(words)).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, word) in row.iter().enumerate() {
            line.push_str(&format!("{word:<width$}  ", width = width(column).unwrap_or_default()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
