//! `gpuvm explain`: what a message of the kernel, of QEMU or of a guest's driver means.

use std::io::Read;

use clap::Args;
use gpuvm_core::trouble::{Confidence, Context, Explanation, explain_all};
use gpuvm_host::facts;
use serde_json::json;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// The most that is read of standard input: more than any kernel's log.
const MAX_BYTES: u64 = 64 << 20;

/// What `explain` takes.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The message, or - to read a log from standard input, as in dmesg | gpuvm explain -
    #[arg(required = true, value_name = "MESSAGE")]
    message: Vec<String>,
}

pub(super) fn run(cli: &Cli, args: &ExplainArgs) -> Result<Exit, Failure> {
    let text = match args.message.as_slice() {
        [dash] if dash == "-" => standard_input()?,
        words => words.join(" "),
    };
    let distribution = facts::distribution(&cli.host_root());
    let found = explain_all(&text, &Context { distribution, ..Context::default() });
    if cli.json {
        out::json(&json!({ "messages": found }))?;
    } else if found.is_empty() {
        out::text("no message that gpuvm knows is in it\n")?;
    } else {
        let told: Vec<String> = found.iter().map(told).collect();
        out::text(&told.join("\n"))?;
    }
    Ok(Exit::Ok)
}

fn standard_input() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| Failure::one(Exit::Internal, format!("read standard input: {error}"), None))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn told(found: &Explanation) -> String {
    let again = match found.count {
        1 => String::new(),
        count => format!(" (and {} more of the kind)", count - 1),
    };
    let sure = match found.confidence {
        Confidence::Certain => "",
        Confidence::Likely => "likely: ",
        Confidence::OneReport => "in one report: ",
    };
    let kernels = match (found.since, found.until) {
        (None, None) => String::new(),
        (Some(since), None) => format!(" (kernels from {since} on)"),
        (None, Some(until)) => format!(" (kernels up to {until})"),
        (Some(since), Some(until)) => format!(" (kernels {since} to {until})"),
    };
    let todo: Vec<String> = match found.none {
        Some(why) => vec![why.to_owned()],
        None => found.commands.clone(),
    };
    let todo: String = todo.iter().map(|line| format!("    {line}\n")).collect();
    format!("{}{again}\n  {sure}{}{kernels}\n{todo}", found.line, found.cause)
}
