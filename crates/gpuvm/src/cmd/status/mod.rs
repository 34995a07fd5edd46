//! `gpuvm status`: everything that is to be known of a VM, whether or not anybody answers for it.

mod text;

use clap::Args;
use gpuvm_core::control::Live;
use gpuvm_core::date;
use gpuvm_core::pci::Bdf;
use gpuvm_core::profile::VmName;
use gpuvm_core::standing::Standing;
use gpuvm_host::HostError;
use gpuvm_host::standing::Seen;
use serde::Serialize;
use serde_json::json;

use crate::asked::{self, Told};
use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{self, Failure, Item};
use crate::{hints, out};

/// What `status` takes.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The VM; all of them if none is named
    vm: Option<VmName>,
}

/// What `--json` prints of a VM.
#[derive(Serialize)]
struct Document<'a> {
    name: &'a VmName,
    standing: Standing,
    /// What its supervisor says; nothing where nobody answers.
    live: Option<&'a Live>,
    /// By its records.
    begun: Option<String>,
    supervisor: Option<Seen>,
    qemu: Option<Seen>,
    in_flight: &'a [i32],
    devices: &'a [Bdf],
    not_undone: usize,
    /// What stands in the way of knowing or doing more.
    problems: Vec<serde_json::Value>,
}

pub(super) fn run(cli: &Cli, args: &StatusArgs) -> Result<Exit, Failure> {
    super::refuse_recorded(cli)?;
    match &args.vm {
        Some(vm) => {
            let known = asked::known(cli, vm)?;
            if known.standing == Standing::Unknown
                && let Some(error) = known.unread.into_iter().find(is_forbidden)
            {
                return Err(error.into());
            }
            let told = asked::told(cli, std::slice::from_ref(vm))?;
            // It may have ended between the two looks.
            let told = told.first().filter(|told| told.known.standing != Standing::None);
            let told = told.ok_or_else(|| asked::no_such(cli, vm))?;
            match cli.json {
                true => out::json(&document(told))?,
                false => out::text(&text::of(told, &problems(told)))?,
            }
        }
        None => {
            let all = asked::told(cli, &gpuvm_host::standing::names(&cli.places())?)?;
            if cli.json {
                out::json(&json!({ "vms": all.iter().map(document).collect::<Vec<_>>() }))?;
            } else if all.is_empty() {
                out::text("no VM is up\n")?;
            } else {
                let told: Vec<String> = all.iter().map(|told| text::of(told, &problems(told))).collect();
                out::text(&told.join("\n"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

/// Tells whether something can't be read for want of rights: then nothing is known, not even whether there is such a VM.
fn is_forbidden(error: &HostError) -> bool {
    matches!(error, HostError::File { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
}

fn document(told: &Told) -> Document<'_> {
    let known = &told.known;
    Document {
        name: &known.name,
        standing: known.standing,
        live: told.live.as_ref().and_then(|live| live.as_ref().ok()),
        begun: known.begun.map(date::readable),
        supervisor: known.supervisor,
        qemu: known.qemu,
        in_flight: &known.in_flight,
        devices: &known.devices,
        not_undone: known.not_undone,
        problems: problems(told).iter().map(Item::to_json).collect(),
    }
}

/// Lists what stands in the way, each with its remedy.
fn problems(told: &Told) -> Vec<Item> {
    let known = &told.known;
    let item =
        |kind: &str, message: String, hint: String| Item { kind: kind.to_owned(), message, hint: Some(hint) };
    let vm = &known.name;
    let mut items = Vec::new();
    match known.standing {
        Standing::Unsupervised => items.push(item(
            "unsupervised",
            "its gpuvm is dead, and its guest goes on".to_owned(),
            hints::unsupervised(vm.as_str()),
        )),
        Standing::Stale => items.push(item(
            "stale",
            "its processes are dead, and what they had isn't given back".to_owned(),
            hints::stale(vm),
        )),
        _ => {}
    }
    if let Some(Err(error)) = &told.live {
        items.extend(asked::failure(known, error).into_items());
    }
    items.extend(known.unread.iter().map(failure::left));
    items
}
